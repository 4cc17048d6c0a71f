"""Residual-energy selection: which visual tokens to keep (the paper's Algorithm 1), batched.

`select` is the public entry. The engines that do the work are in `engines/`, the oracle that they
are checked against in `exact.py`.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from . import engines
from .errors import CallError
from .relevance import gate

SMALLEST_TOLERANCE = 1e-5
"""Energies are exact to this fraction of their initial total; a finer stop would stop on noise."""

_LARGEST_NORM = -1  # as `first`: no seed token was named
_NEVER = -1.0  # as `tolerance`: run to the budget


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Selection:
    """The tokens that were kept, in order of choice; a leading batch axis B is optional.

    The greedy order does not depend on the budget, so one Selection serves every smaller one
    (`prefix`).

    Attributes:
        indices: (K,) or (B, K) int32, in order of choice; entries from `count` on hold N, the
            number of tokens, and a gather with mode "fill" reads them as absent.
        energy: (K + 1,) or (B, K + 1) float32, total ungated residual energy before each pick
            and after the last, in the tokens' own units; constant from `count` on. All NaN if
            the row failed (a token or a relevance was NaN or infinite); infinite where the
            energy of finite tokens exceeds float32.
        count: () or (B,) int32, how many entries of `indices` are real; 0 if the row failed.
    """

    indices: jax.Array
    energy: jax.Array
    count: jax.Array

    def prefix(self, k: int) -> "Selection":
        """The selection that a budget of `k` tokens would have given.

        Args:
            k: 1 <= k <= K.

        Raises:
            CallError: `k` lies outside that range.
        """
        most = self.indices.shape[-1]
        if not 1 <= k <= most:
            raise CallError(f"prefix({k}): this selection holds between 1 and {most} tokens")
        count = jnp.minimum(self.count, k)
        return Selection(self.indices[..., :k], self.energy[..., : k + 1], count)

    def image_order(self) -> jax.Array:
        """The kept indices in ascending order, (K,) or (B, K) int32; the fill N comes last."""
        return jnp.sort(self.indices, axis=-1)

    def mask(self, n: int) -> jax.Array:
        """Which of the `n` tokens are kept, (n,) or (B, n) bool."""
        kept = jnp.zeros((*self.indices.shape[:-1], n + 1), bool)
        at = jnp.minimum(self.indices, n)
        return jnp.put_along_axis(kept, at, True, axis=-1, inplace=False)[..., :n]


def _power_of_two(size: jax.Array) -> jax.Array:
    """The exponent e with size * 2^-e in [1, 2); 0 for size 0."""
    _, exponent = jnp.frexp(size)
    return jnp.where(size > 0, exponent - 1, 0)


def _scale(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x * 2^exponent, exactly, in two steps so that the factor itself cannot overflow."""
    half = exponent // 2
    factors = [jnp.ldexp(jnp.float32(1), part) for part in (half, exponent - half)]
    for factor in factors:
        x = x * factor.astype(x.dtype)
    return x


def _select_one(
    tokens: jax.Array,
    limit: jax.Array,
    relevance: jax.Array,
    alpha: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    tolerance: jax.Array,
    *,
    keep: int,
    engine: str,
) -> Selection:
    n = tokens.shape[0]
    if tokens.dtype == jnp.float16:  # its exponent range is too narrow to be scaled in place
        tokens = tokens.astype(jnp.float32)
    tokens = jnp.where(valid[:, None], tokens, 0)  # [N, d]
    relevance = jnp.where(valid, relevance, 0.0)
    seeded = first >= 0
    failed = ~jnp.all(jnp.isfinite(tokens)) | ~jnp.all(jnp.isfinite(relevance))
    failed |= seeded & ~jnp.where(first < n, valid[jnp.clip(first, 0, n - 1)], False)
    failed |= jnp.isnan(tolerance) | ~jnp.isfinite(alpha) | (alpha < 0)

    # Twice, because a squared norm of unscaled tokens could overflow: by the largest entry, then
    # by the largest norm. Both are powers of two, so the tokens keep every bit.
    by_entry = _power_of_two(jnp.max(jnp.abs(tokens)).astype(jnp.float32))
    scaled = _scale(tokens, -by_entry)
    square = jnp.sum(jnp.square(scaled.astype(jnp.float32)), axis=-1)  # [N]
    by_norm = _power_of_two(jnp.sqrt(jnp.max(square)))
    scaled = _scale(scaled, -by_norm)

    # A common factor changes no pick; without it a large exponent could under- or overflow.
    top = jnp.max(relevance)
    weight = gate(relevance / jnp.where(top > 0, top, 1.0), alpha)
    largest = jnp.argmax(jnp.where(valid, square, -1.0))
    seed = jnp.where(seeded, first, largest).astype(jnp.int32)
    indices, energy = engines.ENGINES[engine](scaled, weight, seed, valid, keep)

    reached = (tolerance > 0) & (energy[1:] <= tolerance * energy[0])
    enough = jnp.where(reached, jnp.arange(1, keep + 1), keep)
    count = jnp.minimum(jnp.min(enough), jnp.minimum(limit, jnp.sum(valid, dtype=jnp.int32)))
    count = jnp.where(failed, 0, jnp.clip(count, 0, keep)).astype(jnp.int32)
    indices = jnp.where(jnp.arange(keep) < count, indices, n)
    energy = jnp.where(jnp.arange(keep + 1) <= count, energy, energy[count])
    energy = jnp.where(failed, jnp.nan, _scale(energy, 2 * (by_entry + by_norm)))
    return Selection(indices, energy, count)


@partial(jax.jit, static_argnames=("keep", "engine"))
def _select(
    tokens: jax.Array,
    limit: jax.Array,
    relevance: jax.Array,
    alpha: jax.Array,
    first: jax.Array,
    valid: jax.Array,
    tolerance: jax.Array,
    *,
    keep: int,
    engine: str,
) -> Selection:
    one = partial(_select_one, keep=keep, engine=engine)
    arguments = (limit, relevance, alpha, first, valid, tolerance)
    if tokens.ndim == 2:
        return one(tokens, *arguments)
    batch = tokens.shape[0]
    full = [jnp.broadcast_to(x, (batch, *x.shape[1:])) if x.ndim else jnp.full((batch,), x)
            for x in arguments]  # fmt: skip
    return jax.vmap(one)(tokens, *full)


def _traced(
    value: ArrayLike | None, default: ArrayLike, dtype: type, shape: tuple[int, ...]
) -> ArrayLike:
    """The argument in one dtype and shape; host values stay NumPy, so nothing eager compiles."""
    value = default if value is None else value
    if isinstance(value, jax.Array):
        return value if value.dtype == dtype else value.astype(dtype)
    return np.broadcast_to(np.asarray(value, dtype), shape)


def _check(name: str, value: ArrayLike | None, shape: tuple[int, ...], *, rows: bool) -> None:
    """Check the shape always, values only where they lie on the host: no device is waited for."""
    if value is None:
        return
    allowed = [shape] if not rows else [(), shape]
    if np.shape(value) not in allowed:
        expected = " or ".join(str(s) for s in allowed)
        raise CallError(f"{name} has shape {np.shape(value)}, expected {expected}")
    if not isinstance(value, jax.Array):
        host = np.asarray(value)
        if name in ("alpha", "relevance") and not np.all(host >= 0):
            raise CallError(f"{name} must be non-negative and not NaN, got {host.min()}")
        if name == "limit" and not np.all(host >= 1):
            raise CallError(f"limit must be at least 1, got {host.min()}")
        if name == "tolerance" and not np.all((host >= SMALLEST_TOLERANCE) & (host < 1)):
            raise CallError(
                f"tolerance must lie in [{SMALLEST_TOLERANCE:g}, 1), the precision of the"
                f" energies and the whole, got {host}"
            )


def select(
    tokens: ArrayLike,
    keep: int,
    *,
    limit: ArrayLike | None = None,
    relevance: ArrayLike | None = None,
    alpha: ArrayLike = 0.0,
    first: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    tolerance: ArrayLike | None = None,
    engine: str = "auto",
) -> Selection:
    """Choose the visual tokens to keep: greedy residual energy, gated by relevance^alpha.

    Each step takes the token with the largest gated energy outside the subspace spanned by those
    already chosen (Algorithm 1 of arXiv 2603.21105; certificate and tie rules: `exact.py`).
    `keep` and `engine` are static; every other argument is traced, so a sweep over them compiles
    once. May be called under jit, vmap and shard_map.

    Args:
        tokens: (N, d) or (B, N, d), any float dtype.
        keep: the most tokens to keep, at least 1, capped at N.
        limit: () or (B,) int, each row's own budget; default `keep`.
        relevance: (N,) or (B, N), non-negative (`relevance.py` aggregates and maps); default
            uniform.
        alpha: () or (B,) float, strength of the gate; 0 ignores the relevance.
        first: () or (B,) int, the seed token; default the largest norm.
        valid: (N,) or (B, N) bool, False for padding; default all.
        tolerance: () or (B,) float in [1e-5, 1): stop once the residual energy is at most this
            fraction of the total; `keep` stays the maximum.
        engine: "auto", "feature" or "gram".

    Returns:
        A `Selection` with K = min(keep, N) entries a row.

    Raises:
        CallError: a shape or a host value that cannot work; nothing was compiled. Values inside
            traced or device arrays are not read: a row whose tokens or relevance are not finite,
            or whose seed is padding, fails, which its NaN energy shows.
    """
    shape = np.shape(tokens)
    if len(shape) not in (2, 3) or 0 in shape:
        raise CallError(f"tokens must be (N, d) or (B, N, d) and not empty, got shape {shape}")
    if isinstance(keep, bool) or not isinstance(keep, int | np.integer) or keep < 1:
        raise CallError(f"keep must be a whole number of tokens, at least 1, got {keep!r}")
    engine = engines.resolve(engine)
    keep = min(int(keep), shape[-2])
    rows = shape[:-2]
    for name, value in (("limit", limit), ("alpha", alpha), ("first", first),
                        ("tolerance", tolerance)):  # fmt: skip
        _check(name, value, rows, rows=True)
    for name, value in (("relevance", relevance), ("valid", valid)):
        _check(name, value, shape[:-1], rows=False)
    if not jnp.issubdtype(jnp.result_type(tokens), jnp.floating):
        raise CallError(f"tokens must be floating point, got {jnp.result_type(tokens)}")
    if first is not None and not isinstance(first, jax.Array):
        host = np.asarray(first)
        if not np.all((host >= 0) & (host < shape[-2])):
            raise CallError(f"first must be a token index in [0, {shape[-2]}), got {host}")
    # One structure of arguments, with defaults: an option left out or given compiles nothing new.
    return _select(
        tokens,
        _traced(limit, keep, np.int32, rows),
        _traced(relevance, 1.0, np.float32, shape[:-1]),
        _traced(alpha, 0.0, np.float32, rows),
        _traced(first, _LARGEST_NORM, np.int32, rows),
        _traced(valid, True, np.bool_, shape[:-1]),
        _traced(tolerance, _NEVER, np.float32, rows),
        keep=keep,
        engine=engine,
    )
