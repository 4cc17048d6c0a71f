"""Residual-energy selection: which visual tokens to keep (the paper's Algorithm 1), batched.

`select` is the public entry. The engines that do the work are in `engines/`, the oracle that they
are checked against in `exact.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from . import engines
from .arguments import array_of, one_length, whole
from .conditions import PLACES, check, of_rows, traced
from .engines import lazy
from .engines.guard import doubted, guarded, told
from .engines.loop import Guide
from .engines.product import Product, diagonal, gram_product, gram_products, scale, scaled_tokens
from .engines.visits import by_chunks, goes_alone
from .errors import CallError, shown
from .prepared import Prepared, as_tokens
from .relevance import gate
from .rules import Rule

MAX_BYTES = 2**31
"""Memory that a batch may take beside its arguments and its result, by default: 2 GiB."""

_LARGEST_NORM = -1  # as `first`: no seed token was named
_NEVER = -1.0  # as `tolerance`: run to the budget
_RELEVANCE = 1  # its place among the conditions of `_select`


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
            energy of finite tokens exceeds float32. `None` of a method that does not measure it.
        count: () or (B,) int32, how many entries of `indices` are real; 0 if the row failed.
        rows: (K, w) or (B, K, w), of a method that merges tokens: what enters in place of each, of
            the width of its `merges`; an entry of `indices` that stands for no token of its own (a
            mean of what was dropped) holds N although it counts. `None`: the tokens as they are.
        doubtful: () or (B,) bool, whether rounding may have decided a pick; `None` where the guard
            put that right, as it does outside of `guard.telling`.
    """

    indices: jax.Array
    energy: jax.Array | None
    count: jax.Array
    rows: jax.Array | None = None
    doubtful: jax.Array | None = None

    def prefix(self, k: int) -> "Selection":
        """The selection that a budget of `k` tokens would have given.

        Args:
            k: 1 <= k <= K.

        Raises:
            CallError: `k` lies outside that range.
        """
        most = self.indices.shape[-1]
        k = whole("the budget of a prefix", k)
        if k > most:
            raise CallError(f"prefix({shown(k)}): this selection holds between 1 and {most} tokens")
        if self.rows is not None:
            raise CallError("what was merged for one budget is not what a smaller one merges")
        count = jnp.minimum(self.count, k)
        energy = None if self.energy is None else self.energy[..., : k + 1]
        return Selection(self.indices[..., :k], energy, count)

    def image_order(self) -> jax.Array:
        """The kept indices in ascending order, (K,) or (B, K) int32; the fill N comes last."""
        return jnp.sort(self.indices, axis=-1)

    def mask(self, n: int) -> jax.Array:
        """Which of the `n` tokens are kept, (n,) or (B, n) bool."""
        n = whole("the number of tokens", n)
        if jax.default_backend() == "gpu":  # one kernel with what comes of it; a scatter is not
            return jnp.any(self.indices[..., None] == jnp.arange(n), axis=-2)
        kept = jnp.zeros((*self.indices.shape[:-1], n + 1), bool)
        at = jnp.where(self.indices < 0, n, jnp.minimum(self.indices, n))
        return jnp.put_along_axis(kept, at, True, axis=-1, inplace=False)[..., :n]


class _Image(NamedTuple):
    tokens: jax.Array  # [N, d] as given
    valid: jax.Array  # [N]
    matrix: Any  # what the engine works on, see `engines.Engine`
    squares: jax.Array  # [N] squared norms of the scaled tokens
    exponent: jax.Array  # () scaled by 2^-exponent
    finite: jax.Array  # ()
    doubtful: jax.Array | None = None  # () whether the engine's products are not to be trusted


def _choose(
    image: _Image,
    limit: jax.Array,
    relevance: jax.Array,
    alpha: jax.Array,
    first: jax.Array,
    tolerance: jax.Array,
    own: Mapping[str, jax.Array],
    *,
    rule: Rule | None,
    keep: int,
    engine: str,
    tell: bool,
) -> Selection:
    """One selection on one image; `own` is what the rule has for it, and the places."""
    valid, n = image.valid, image.valid.shape[0]
    relevance = jnp.where(valid, relevance, 0.0)
    seeded = first >= 0
    failed = ~image.finite | ~jnp.all(jnp.isfinite(relevance))
    failed |= seeded & ~jnp.where(first < n, valid[jnp.clip(first, 0, n - 1)], False)
    failed |= jnp.isnan(tolerance) | ~jnp.isfinite(alpha) | (alpha < 0) | (limit < 1)

    # A common factor changes no pick; without it a large exponent could under- or overflow.
    top = jnp.max(relevance)
    relevance = relevance / jnp.where(top > 0, top, 1.0)
    weight = gate(relevance, alpha)
    largest = jnp.argmax(jnp.where(valid, image.squares, -1.0))
    seed = jnp.where(seeded, first, largest).astype(jnp.int32)
    # Its value is zero; under shard_map it makes the seed vary over every axis that anything does.
    seed += jnp.zeros_like((weight * image.squares)[0], dtype=jnp.int32)
    decides: Any = weight
    if rule is not None:
        settings = {name: value for name, value in own.items() if name != PLACES}
        rule = replace(rule, **settings) if settings else rule
        decides = Guide(rule, weight, relevance, own.get(PLACES))
    found = engines.ENGINES[engine](image.matrix, decides, seed, valid, keep)
    indices, energy, doubtful = found.indices, found.totals, None
    if image.doubtful is not None:
        found = found._replace(growth=jnp.where(image.doubtful, jnp.inf, found.growth))
    if tell:
        doubtful = doubted(found)
    elif engine not in engines.FROM_TOKENS:
        indices, energy = guarded(
            found, image.tokens, image.exponent, image.squares, decides, seed, valid, keep
        )

    reached = (tolerance > 0) & (energy[1:] <= tolerance * energy[0])
    enough = jnp.where(reached, jnp.arange(1, keep + 1), keep)
    most = jnp.minimum(limit, jnp.sum(valid, dtype=jnp.int32))
    # The minimum last: as one kernel it has nothing behind it.
    enough = jnp.where(failed, 0, jnp.clip(jnp.minimum(enough, most), 0, keep))
    count = jnp.min(enough).astype(jnp.int32)
    indices = jnp.where(jnp.arange(keep) < count, indices, n)
    energy = jnp.where(jnp.arange(keep + 1) <= count, energy, energy[count])
    energy = jnp.where(failed, jnp.nan, scale(energy, 2 * image.exponent))
    return Selection(indices, energy, count, doubtful=doubtful)


def _image(given: jax.Array | Prepared, valid: jax.Array, engine: str) -> _Image:
    """What the engine needs of one image, or of every image of a batch."""
    tokens = given.tokens if isinstance(given, Prepared) else given
    if engine in engines.FROM_TOKENS:
        scaled = scaled_tokens if valid.ndim == 1 else jax.vmap(scaled_tokens)
        matrix, exponent, finite = scaled(tokens, valid)
        squares = jnp.sum(jnp.square(matrix.astype(jnp.float32)), axis=-1)
        return _Image(tokens, valid, matrix, squares, exponent, finite)
    if engine in engines.AS_GIVEN:
        squares, exponent, finite, far = lazy.norms_in_scale(tokens, valid)
        as_given = lazy.Tokens(tokens, squares, exponent)
        return _Image(tokens, valid, as_given, squares, exponent, finite, far)
    made: Product | Prepared
    if isinstance(given, Prepared):
        made = given
    else:
        made = (gram_product if valid.ndim == 1 else gram_products)(tokens, valid)
    squares = diagonal(made.gram)
    return _Image(tokens, valid, made.gram, squares, made.exponent, made.finite)


@partial(jax.jit, static_argnames=("keep", "engine", "chunk", "tell"))
def _select(
    given: jax.Array | Prepared,
    valid: jax.Array,
    conditions: tuple[jax.Array, ...],
    rule: Rule | None,
    own: Mapping[str, jax.Array],
    *,
    keep: int,
    engine: str,
    chunk: int,
    tell: bool,
) -> Selection:
    """Every row of a batch, `chunk` rows at a time.

    Args:
        given: one image, or a batch of them.
        valid: (N,) or (B, N).
        conditions: limit, relevance, alpha, first and tolerance, each of one row or with the
            batch axis; it is the axis of the images, or of the questions about one image.
        rule: in place of the paper's.
        own: what it has for each row, and the places, with the batch axis where there is one.
        keep: K.
        engine: which one.
        chunk: rows.
        tell: see `guard.telling`.
    """
    choose: Callable[..., Selection] = partial(
        _choose, rule=rule, keep=keep, engine=engine, tell=tell
    )
    one_image = valid.ndim == 1
    rows = jnp.broadcast_shapes(
        valid.shape[:-1],
        *(x.shape if i != _RELEVANCE else x.shape[:-1] for i, x in enumerate(conditions)),
    )
    if not rows:
        return choose(_image(given, valid, engine), *conditions, own)
    shared = tuple(
        jnp.broadcast_to(x, (*rows, x.shape[-1]) if i == _RELEVANCE else rows)
        for i, x in enumerate(conditions)
    )
    full: tuple[Any, ...] = (*shared, own)
    if one_image:
        image = _image(given, valid, engine)
        return by_chunks(lambda row: choose(image, *row), full, rows[0], chunk)
    if chunk >= rows[0] and not goes_alone(rows[0]):
        return jax.vmap(choose)(_image(given, valid, engine), *full)
    return by_chunks(
        lambda row: choose(_image(row[0], row[1], engine), *row[2]),
        (given, valid, full),
        rows[0],
        chunk,
    )


def rows_at_once(
    n: int, d: int, keep: int, rows: int, engine: str, max_bytes: int, *, prepared: bool
) -> int:
    """How many rows of a batch fit into `max_bytes` together, at least 1.

    Args:
        n: tokens of an image.
        d: their dimension.
        keep: K.
        rows: of the batch.
        engine: which one.
        max_bytes: beside the arguments and the result.
        prepared: whether the Gram matrix is an argument.
    """
    if engine in engines.AS_GIVEN:
        return 1  # one after the other, each cut out of the batch once
    each, once = engines.memory(engine, n, d, keep, prepared=prepared)
    if once + rows * each <= max_bytes:
        return rows
    each += 0 if prepared else 4 * n * d  # a chunk is cut out of the batch
    return min(rows, max(1, (max_bytes - once) // each))


def select(
    tokens: ArrayLike | Prepared,
    keep: int,
    *,
    limit: ArrayLike | None = None,
    relevance: ArrayLike | None = None,
    alpha: ArrayLike = 0.0,
    first: ArrayLike | None = None,
    valid: ArrayLike | None = None,
    tolerance: ArrayLike | None = None,
    rule: Rule | None = None,
    places: ArrayLike | None = None,
    engine: str = "auto",
    max_bytes: int = MAX_BYTES,
) -> Selection:
    """Choose the visual tokens to keep: greedy residual energy, gated by relevance^alpha.

    Each step takes the token with the largest gated energy outside the subspace spanned by those
    already chosen (Algorithm 1 of arXiv 2603.21105; certificate and tie rules: `exact.py`).
    `keep`, `engine` and `max_bytes` are static; every other argument is traced, so a sweep over
    them compiles once. May be called under jit, vmap and shard_map.

    Args:
        tokens: (N, d) or (B, N, d), any float dtype, of NumPy, JAX or torch, or lists of numbers;
            or what `prepare` made of them.
        keep: the most tokens to keep, at least 1, capped at N.
        limit: () or (B,) int, each row's own budget; default `keep`.
        relevance: (N,) or (B, N), non-negative (`relevance.py` aggregates and maps); default
            uniform.
        alpha: () or (B,) float, strength of the gate; 0 ignores the relevance.
        first: () or (B,) int, the seed token; default the largest norm.
        valid: (N,) or (B, N) bool, False for padding; default all. Not with a `Prepared`, which
            has its own.
        tolerance: () or (B,) float in [1e-5, 1): stop once the residual energy is at most this
            fraction of the total; `keep` stays the maximum.
        rule: decides in place of the paper's rule (`rules.py`), on the engines "feature" and
            "gram".
        places: (N, 2) or (B, N, 2), (row, column) of each token, for rules that read them.
        engine: "auto", "feature", "gram", "blocked", "lazy", "schur", "pallas_tpu",
            "pallas_gpu" or "mosaic_gpu".
        max_bytes: rows of a batch that would together take more than this, beside arguments and
            result, are done in chunks. Where a single row would, "auto" takes an engine that holds
            less of the Gram matrix; an engine that was named always runs.

    With one image, as a `Prepared`, B is the number of selections on it (questions, alphas, seed
    tokens, budgets): any of the conditions may have the axis, and the Gram matrix is not copied.

    Returns:
        A `Selection` with K = min(keep, N) entries a row.

    Raises:
        CallError: a shape or a host value that cannot work; nothing was compiled. Values inside
            traced or device arrays are not read: a row whose tokens, relevance or alpha are not
            finite, whose limit is below 1 or whose seed is padding fails, which its NaN energy
            shows.
    """
    prepared = tokens if isinstance(tokens, Prepared) else None
    if prepared is not None and valid is not None:
        raise CallError("valid is given, but these tokens are prepared and have their own")
    given = None if isinstance(tokens, Prepared) else as_tokens(tokens)
    shape = np.shape(prepared.tokens if given is None else given)  # type: ignore[union-attr]
    keep = min(whole("keep", keep, what="whole number of tokens"), shape[-2])
    max_bytes = whole("max_bytes", max_bytes, what="number of bytes")
    engine = engines.resolve(
        engine,
        shape[-2],
        keep,
        shape[-1],
        shared=prepared is not None,
        max_bytes=max_bytes,
        ruled=rule is not None,
    )
    rows, count = shape[:-2], shape[-2]
    limit = None if limit is None else array_of("limit", limit, "whole")
    first = None if first is None else array_of("first", first, "whole")
    relevance = None if relevance is None else array_of("relevance", relevance, "number")
    alpha = 0.0 if alpha is None else array_of("alpha", alpha, "number")
    tolerance = None if tolerance is None else array_of("tolerance", tolerance, "number")
    valid = None if valid is None else array_of("valid", valid, "truth")
    scalars = {"limit": limit, "alpha": alpha, "first": first, "tolerance": tolerance}
    weights: tuple[tuple[int, ...], ...] = ((*rows, count),)
    if prepared is not None and not rows:  # any number of selections on one image
        named = {**scalars, "relevance": relevance}
        shapes = {name: np.shape(x) for name, x in named.items() if x is not None}
        rows = one_length(
            {name: s[0] for name, s in shapes.items() if len(s) == 1 + (name == "relevance")}
        )
        weights = ((count,), (*rows, count))
    for name, value in scalars.items():
        check(name, value, (), rows)
    check("relevance", relevance, *weights)
    check("valid", valid, shape[:-1])
    if first is not None and not isinstance(first, jax.Array):
        host = np.asarray(first)
        if not np.all((host >= 0) & (host < count)):
            raise CallError(f"first must be a token index in [0, {count}), got {host}")
    # One structure of arguments, with defaults: an option left out or given compiles nothing new.
    conditions = (
        traced(limit, keep, np.int32, rows),
        traced(relevance, 1.0, np.float32, (*rows, count)),
        traced(alpha, 0.0, np.float32, rows),
        traced(first, _LARGEST_NORM, np.int32, rows),
        traced(tolerance, _NEVER, np.float32, rows),
    )
    chunk = rows_at_once(
        count, shape[-1], keep, rows[0] if rows else 1, engine, max_bytes,
        prepared=prepared is not None,
    )  # fmt: skip
    return _select(
        prepared if given is None else given,
        prepared.valid if prepared else traced(valid, True, np.bool_, shape[:-1]),
        conditions,
        rule,
        of_rows(rule, places, rows, count),
        keep=keep,
        engine=engine,
        chunk=chunk,
        tell=told(),
    )
