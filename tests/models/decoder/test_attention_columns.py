"""What each token receives: both engines against loops, blocks that are not read, memory."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from resprune_jax.models.decoder import attention
from resprune_jax.models.decoder.attention import attention_columns

SIZE = 44
"""Not whole blocks of 16."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16, so that small arrays have several, the last one cut."""
    monkeypatch.setattr(attention, "BLOCK", 16)


def oracle(q: Any, k: Any, segments: np.ndarray | None) -> np.ndarray:
    """By loops in float64: query after query, head after head."""
    q, k = np.asarray(q, np.float64), np.asarray(k, np.float64)
    batch, size, heads, width = q.shape
    received = np.zeros((batch, size))
    for b in range(batch):
        for s in range(size):
            seen = [t for t in range(size) if segments is None or segments[b, t] == segments[b, s]]
            for h in range(heads):
                own = k[b, seen, h // (heads // k.shape[2])]
                scores = [float(q[b, s, h] @ key) / width**0.5 for key in own]
                powers = [np.exp(score - max(scores)) for score in scores]
                for t, power in zip(seen, powers, strict=True):
                    received[b, t] += power / sum(powers) / heads
    return received


def arrays(seed: int, size: int = SIZE) -> tuple[jax.Array, jax.Array]:
    """Random q (2, S, 4, 8) and k (2, S, 2, 8), large enough for uneven shares."""
    rng = np.random.default_rng(seed)
    q, k = 2 * rng.normal(size=(2, size, 4, 8)), rng.normal(size=(2, size, 2, 8))
    return jnp.asarray(q, jnp.float32), jnp.asarray(k, jnp.float32)


@lru_cache
def program(engine: Any) -> Callable[..., jax.Array]:
    """Compiled once for the whole file: every test here has the same blocks."""
    return jax.jit(
        lambda q, k, segments=None: attention_columns(q, k, segments=segments, engine=engine)
    )


ASCENDING = np.stack([np.repeat([0, 1, 2], [16, 20, 8]), np.repeat([0, 5, 9], [1, 40, 3])])


@pytest.mark.parametrize("engine", ["xla", "blockwise"])
def test_columns_are_the_oracles(engine: str) -> None:
    q, k = arrays(0)
    mixed = np.stack([np.arange(SIZE) % 3, np.full(SIZE, -1)])
    for segments in (ASCENDING, mixed, None):
        given = None if segments is None else segments.astype(np.int32)
        got = np.asarray(program(engine)(q, k, given))
        wanted = oracle(q, k, segments)
        assert got.dtype == np.float32 and wanted.std() > 0.1
        np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-6 * wanted.max())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 43), max_size=5))
def test_every_segment_hands_out_as_much_as_it_has_queries(seed: int, cuts: list[int]) -> None:
    """A row of the softmax sums to 1, so a segment's tokens receive 1 on average, in any cut."""
    q, k = arrays(seed)
    segments = np.zeros((2, SIZE), np.int32)
    for cut in cuts:
        segments[:, cut:] += 1
    both = [np.asarray(program(engine)(q, k, segments)) for engine in ("xla", "blockwise")]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5, atol=1e-5)
    for own in np.unique(segments):
        inside = segments[0] == own
        np.testing.assert_allclose(both[0][:, inside].mean(axis=1), 1, rtol=1e-5)


def test_blocks_of_other_segments_are_not_read() -> None:
    q, k = arrays(1)
    segments = np.stack([ASCENDING[0]] * 2).astype(np.int32)
    clean = np.asarray(program("blockwise")(q, k, segments))
    # Segment 0 fills the first block alone. NaN would spread through a mask, not through a skip.
    spoilt = np.asarray(program("blockwise")(q, k.at[:, 16:].set(jnp.nan), segments))
    np.testing.assert_array_equal(spoilt[:, :16], clean[:, :16])
    assert np.isnan(spoilt[:, 16:]).all()


def test_a_long_sequence_holds_no_square_of_scores() -> None:
    size = 4096
    q = jax.ShapeDtypeStruct((1, size, 2, 8), jnp.float32)

    def largest(jaxpr: Any) -> int:
        made = [0]
        for equation in jaxpr.eqns:
            made += [int(np.prod(out.aval.shape)) for out in equation.outvars]
            made += [largest(inner) for inner in jaxprs_in_params(equation.params)]
        return max(made)

    most = largest(jax.make_jaxpr(attention_columns)(q, q).jaxpr)
    print(f"{most} numbers in the largest array, {2 * size * size} scores")
    assert most <= 2 * size * 8
