"""Attention inside segments: both engines against loops, and the blocks that are never read."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.models.decoder import attention
from resprune_jax.models.decoder.attention import attend


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, so that small arrays have several, the last one cut."""
    monkeypatch.setattr(attention, "BLOCK", 16)


def oracle(
    q: Any, k: Any, v: Any, segments: np.ndarray, *, valid: np.ndarray | None, causal: bool, at: int
) -> np.ndarray:
    """Attention by loops in float64; query i sits in slot `at` + i."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    out, groups = np.zeros_like(q), q.shape[2] // k.shape[2]
    for b, s, h in np.ndindex(*q.shape[:3]):
        seen = np.flatnonzero(segments[b] == segments[b, at + s])
        if valid is not None:
            seen = seen[valid[b, seen]]
        if causal:
            seen = seen[seen <= at + s]
        if seen.size:
            scores = k[b, seen, h // groups] @ q[b, s, h] / np.sqrt(q.shape[-1])
            weights = np.exp(scores - scores.max())
            out[b, s, h] = weights / weights.sum() @ v[b, seen, h // groups]
    return out


def arrays(queries: int, keys: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Random q (2, S, 4, 8), k and v (2, T, 2, 8)."""
    rng = np.random.default_rng(queries + keys)
    q = rng.normal(size=(2, queries, 4, 8)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, keys, 2, 8)).astype(np.float32)
    return jnp.asarray(q), jnp.asarray(k), jnp.asarray(v)


@lru_cache
def program(engine: Any, causal: bool, offset: int) -> Callable[..., jax.Array]:
    """`attend` compiled once for the whole file: every test here has the same blocks."""
    return jax.jit(partial(attend, causal=causal, offset=offset, engine=engine))


SEGMENTS = {
    "ascending": [np.repeat([0, 1, 2, 3], [16, 20, 12, 12]), np.repeat([0, 5, 9], [1, 50, 9])],
    "mixed up": [np.arange(60) % 3, np.random.default_rng(0).integers(0, 4, 60)],
    "negative": [np.repeat([-1, 7, -1], [30, 20, 10]), np.full(60, -1)],
}


@pytest.mark.deep
@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("causal", [False, True])
def test_both_engines_match_the_oracle(name: str, causal: bool) -> None:
    q, k, v = arrays(44, 60)
    segments = np.stack(SEGMENTS[name]).astype(np.int32)
    valid = np.random.default_rng(1).random((2, 60)) < 0.8
    for mask in (None, valid) if name == "ascending" else (valid,):
        expected = oracle(q, k, v, segments, valid=mask, causal=causal, at=16)
        for engine in ("xla", "blockwise"):
            got = program(engine, causal, 16)(q, k, v, segments=segments, valid=mask)
            error = float(np.abs(got - expected).max())
            print(f"{name}, causal {causal}, {engine}: {error:.1e}")
            assert error <= 2e-6


def test_blocks_of_other_segments_are_not_read() -> None:
    q, k, v = arrays(60, 60)
    segments = np.stack([SEGMENTS["ascending"][0]] * 2).astype(np.int32)
    blockwise = program("blockwise", False, 0)
    clean = np.asarray(blockwise(q, k, v, segments=segments))
    # Segment 0 fills the first block alone. NaN would spread through a mask, not through a skip.
    spoilt = v.at[:, 16:].set(jnp.nan)
    out = np.asarray(blockwise(q, k, spoilt, segments=segments))
    np.testing.assert_array_equal(out[:, :16], clean[:, :16])
    assert np.isnan(out[:, 16:]).all()
    masked = np.asarray(program("xla", False, 0)(q, k, spoilt, segments=segments))
    assert np.isnan(masked).all()


def test_equal_segments_are_no_segments() -> None:
    q, k, v = arrays(60, 60)
    one = np.full((2, 60), 3, np.int32)
    for engine in ("xla", "blockwise"):
        run = program(engine, True, 0)
        np.testing.assert_array_equal(run(q, k, v, segments=one), run(q, k, v))
