"""What a GPU runs in place of the plain expressions: the same numbers in fewer kernels.

XLA's GPU compiler makes a kernel of what it can fuse, and decides by the form of an expression.
These forms were found by counting the kernels of compiled programs (`resprune gpu-check`); other
backends keep the plain ones, whose programs they suit better.

Shapes: B rows, S queries, T keys, H query heads, KV key/value heads, G = H / KV, hd head width.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike

from resprune_jax.engines.kernels import undivided
from resprune_jax.models.decoder.softmax import softmax

HELD = 2**32
"""Bytes of float32 scores that are held at once; with more, attention goes in parts (`parts`)."""


PIECES = 32
"""Of a row, whose squares are summed apart, see `halves_norms`; a power of two. With 16, and so few
blocks of threads, XLA leaves the sum in front of them a kernel of its own."""


def in_use() -> bool:
    """Whether the program that is traced is for a GPU."""
    return jax.default_backend() == "gpu"


def halves_norms(x: jax.Array) -> bool:
    """Whether a norm is left unfinished in front of a product, see `layers.Normed`.

    It saves kernels of a single row, on one device: of several, a norm is one kernel. float16 might
    not hold what is not normed yet.

    Args:
        x: (B, S, d), to be normed.
    """
    whole = x.shape[-1] % PIECES == 0 and x.dtype != jnp.float16
    return in_use() and x.size == x.shape[-1] and whole and undivided()


def turn_joined(joined: jax.Array, cos: jax.Array, sin: jax.Array, *, values: int = 1) -> jax.Array:
    """Rotate queries and keys where their product wrote them, beside the values.

    One expression for all three, of which XLA writes queries, keys, values and what goes to the
    cache in one kernel. A half and its partner change places by `flip`: a concatenation would be
    another kind of kernel, which is not merged with others.

    Args:
        joined: (B, S, KV, n, hd): of each group queries and keys, and values behind them; in the
            decoder n is G + 2.
        cos: (B, S, hd / 2) float32, from `rope_tables`.
        sin: the same.
        values: how many of the n are values.

    Returns:
        The array with all but the values rotated, as `apply_rope` does.
    """
    joined = _row_major(joined)
    halves = joined.astype(jnp.float32).reshape(*joined.shape[:-1], 2, -1)
    cos, sin = (table[:, :, None, None, None] for table in (cos, sin))
    sign = jnp.array([[-1.0], [1.0]])
    turned = halves * cos + jnp.flip(halves, axis=-2) * (sign * sin)
    rows = joined.shape[3]
    turned = jnp.where((jnp.arange(rows) < rows - values)[:, None, None], turned, halves)
    return turned.astype(joined.dtype).reshape(joined.shape)


def layers_of(joined: jax.Array) -> tuple[jax.Array, ...]:
    """The layers of a product, (..., n, width), each (..., width): XLA writes all in one kernel.

    Slices whose places are known do not overlap, and XLA makes a kernel of each. Behind a barrier
    it does not know the places.
    """
    places = jax.lax.optimization_barrier(jnp.arange(joined.shape[-2], dtype=jnp.int32))
    return tuple(
        jax.lax.dynamic_index_in_dim(joined, places[at], joined.ndim - 2, keepdims=False)
        for at in range(joined.shape[-2])
    )


def attend_by_heads(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Attention with all its scores, laid out head by head.

    In the order of tokens XLA's GPU compiler turns keys and values around in kernels of their own.
    Probabilities are divided in front of the product with the values: behind it the division is
    one more kernel, which reads the scores a second time.

    Args:
        q: (B, S, KV, G, hd).
        k: (B, T, KV, hd).
        v: the same.
        mask: (B or 1, S, T) bool, or `None`.

    Returns:
        (B, S, KV, G, hd) in q's dtype.
    """
    q = _row_major(jnp.transpose(q, (0, 2, 3, 1, 4)))  # [B, KV, G, S, hd]
    k, v = (_row_major(jnp.swapaxes(x, 1, 2)) for x in (k, v))  # [B, KV, T, hd]
    scores = jnp.einsum("bkgsh,bkth->bkgst", q, k, preferred_element_type=jnp.float32)
    shares = softmax(scores * q.shape[-1] ** -0.5, mask).astype(v.dtype)
    mixed = jnp.einsum("bkgst,bkth->bkgsh", shares, v, preferred_element_type=jnp.float32)
    return jnp.transpose(mixed.astype(q.dtype), (0, 3, 1, 2, 4))


def attend_by_cudnn(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    window: int | None,
    lengths: jax.Array | None = None,
) -> jax.Array:
    """cuDNN's flash attention; arguments as `attention.attend`, where nothing is missing.

    Returns:
        (B, S, H, hd) in q's dtype; zeros behind `lengths`.
    """
    local = None if window is None else (window - 1, 0)
    # A row without any token attends to its first one, which nobody reads.
    sizes = None if lengths is None else jnp.maximum(lengths, 1)
    mixed = jax.nn.dot_product_attention(
        q, k, v, is_causal=causal, local_window_size=local, query_seq_lengths=sizes,
        key_value_seq_lengths=sizes, implementation="cudnn",
    )  # fmt: skip
    if lengths is None:
        return mixed
    # What the library leaves there is not said anywhere.
    there = jnp.arange(q.shape[1], dtype=jnp.int32) < lengths[:, None]
    return jnp.where(there[:, :, None, None], mixed, jnp.zeros((), mixed.dtype))


def refusal(q: jax.Array, *, masked: bool) -> str:
    """Why an attention is none of cuDNN's; "" if it is one.

    Args:
        q: (B, S, H, hd).
        masked: keys are hidden by more than `causal`, `window` and `lengths`.
    """
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bfloat16 and float16, not {q.dtype}"
    if masked:
        return "padding or segments hide keys"
    if q.shape[1] == 1:
        return "of a single query XLA is faster"
    return ""


@lru_cache(maxsize=256)
def missing(
    queries: tuple[int, ...],
    keys: tuple[int, ...],
    dtype: DTypeLike,
    causal: bool,
    window: int | None,
    with_lengths: bool = False,
) -> str:
    """What JAX says where cuDNN is missing, or does not take these shapes; "" if all is there.

    Args:
        queries: (B, S, H, hd).
        keys: (B, T, KV, hd).
        dtype: of both.
        causal: see `attention.attend`.
        window: likewise.
        with_lengths: whether rows have them.
    """
    q, k = jax.ShapeDtypeStruct(queries, dtype), jax.ShapeDtypeStruct(keys, dtype)
    lengths = jax.ShapeDtypeStruct(queries[:1], jnp.int32) if with_lengths else None
    try:
        jax.eval_shape(
            lambda q, k, lengths: attend_by_cudnn(
                q, k, k, causal=causal, window=window, lengths=lengths
            ),
            q, k, lengths,
        )  # fmt: skip
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def _row_major(x: jax.Array) -> jax.Array:
    """The array with its axes in memory as they are named, whatever reads it.

    Where XLA may divide it among devices it is left alone: what is pinned is gathered on each.
    """
    return with_layout_constraint(x, Layout(tuple(range(x.ndim)))) if undivided() else x
