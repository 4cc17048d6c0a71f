"""Buckets: the few static sizes that arrays are padded to, so that a new length rarely compiles.

Every function rounds a count up. A larger step wastes work on padding, a smaller one compiles more
often; the steps grow with the count so that padding stays a bounded share of the work.
"""

from resprune_jax.errors import CallError


def length_bucket(n: int) -> int:
    """Sequence length: multiples of 64 up to 1024, of 256 beyond.

    Args:
        n: tokens, at least 0.

    Returns:
        The smallest bucket that holds `n`; 64 for 0.

    Raises:
        CallError: `n` is negative.
    """
    return multiple(n, 64 if n <= 1024 else 256)


def step(n: int) -> int:
    """Room for visual tokens that are kept: multiples of 64, none for none.

    Args:
        n: tokens, at least 0.

    Returns:
        The smallest multiple that holds `n`.

    Raises:
        CallError: `n` is negative.
    """
    return multiple(n, 64) if n else 0


def batch_bucket(n: int) -> int:
    """Rows of a batch: 1, 2, 4, 8, then multiples of 8.

    Args:
        n: rows, at least 0.

    Returns:
        The smallest bucket that holds `n`; 1 for 0.

    Raises:
        CallError: `n` is negative.
    """
    return _power(n, 1) if n <= 8 else multiple(n, 8)


def new_token_bucket(n: int) -> int:
    """Cache slots for generated tokens: multiples of 64.

    Args:
        n: tokens, at least 0.

    Returns:
        The smallest bucket that holds `n`; 64 for 0.

    Raises:
        CallError: `n` is negative.
    """
    return multiple(n, 64)


def noun_bucket(n: int) -> int:
    """Noun tokens of a prompt: 32, 64, 128 and so on; a cosine costs so little that few sizes do.

    Args:
        n: tokens, at least 0.

    Returns:
        The smallest bucket that holds `n`; 32 for 0.

    Raises:
        CallError: `n` is negative.
    """
    return _power(n, 32)


def image_bucket(n: int) -> int:
    """Images of a prompt: 1, 2, 4, 8 and so on.

    Args:
        n: images, at least 0.

    Returns:
        The smallest bucket that holds `n`; 1 for 0.

    Raises:
        CallError: `n` is negative.
    """
    return _power(n, 1)


def multiple(n: int, step: int) -> int:
    """The smallest multiple of `step`, at least one of them, that is not below `n`."""
    return step * max(1, -(-_count(n) // step))


def _power(n: int, least: int) -> int:
    """The smallest of `least`, 2 `least`, 4 `least`, ... that is not below `n`."""
    size = least
    while size < _count(n):
        size *= 2
    return size


def _count(n: int) -> int:
    """`n`, if a thing can have this size."""
    if n < 0:
        raise CallError(f"a bucket holds 0 things or more, got {n}")
    return n
