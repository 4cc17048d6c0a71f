"""Attention: two engines, one answer; masks, groups, windows, and what is never materialised."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from resprune_jax.models.decoder import attention
from resprune_jax.models.decoder.attention import attend, attention_rows


def oracle(
    q: Any, k: Any, v: Any, *, valid: Any = None, causal: bool = False, offset: int = 0, window: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Attention by loops in float64: (output, probabilities (B, H, S, T)); hidden rows are zero."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    batch, queries, heads, width = q.shape
    keys, groups = k.shape[1], heads // k.shape[2]
    real = np.ones((batch, keys), bool) if valid is None else np.asarray(valid)
    out, probabilities = np.zeros_like(q), np.zeros((batch, heads, queries, keys))
    for b, h, s in np.ndindex(batch, heads, queries):
        seen = np.flatnonzero(real[b])
        if causal or window is not None:
            seen = seen[seen <= offset + s]
        if window is not None:
            # The last `window` real tokens; a query that is padding still ends its own window.
            seen = seen[-window:] if offset + s in seen or not real[b, offset + s] else seen
        if seen.size:
            scores = k[b, seen, h // groups] @ q[b, s, h] / np.sqrt(width)
            weights = np.exp(scores - scores.max())
            probabilities[b, h, s, seen] = weights / weights.sum()
            out[b, s, h] = probabilities[b, h, s] @ v[b, :, h // groups]
    return out, probabilities


def arrays(queries: int, keys: int, heads: int, kv_heads: int) -> tuple[jax.Array, ...]:
    """Random q (2, S, H, 8), k and v (2, T, KV, 8), and a ragged (2, T) mask with gaps."""
    keyring = jax.random.split(jax.random.key(queries * 100 + keys), 3)
    q = jax.random.normal(keyring[0], (2, queries, heads, 8))
    k, v = (jax.random.normal(key, (2, keys, kv_heads, 8)) for key in keyring[1:])
    valid = jnp.ones((2, keys), bool).at[0, 5:9].set(False).at[1, keys // 2 :].set(False)
    return q, k, v, valid


def jitted(q: Any, k: Any, v: Any, **options: Any) -> jax.Array:
    """`attend` compiled as one program, afresh: tests change the module's block size."""
    arrays = {"valid": options.pop("valid", None), "offset": options.pop("offset", 0)}
    return jax.jit(lambda q, k, v, arrays: attend(q, k, v, **arrays, **options))(q, k, v, arrays)


CASES = {
    "full": (19, 19, 4, 4, False, False, 0, None),
    "padded": (19, 19, 4, 4, True, False, 0, None),
    "causal": (21, 21, 4, 2, False, True, 0, None),
    "causal padded grouped": (24, 24, 4, 1, True, True, 0, None),
    "window": (21, 21, 2, 2, False, True, 0, 6),
    "window padded": (21, 21, 4, 2, True, True, 0, 6),
    "queries across blocks": (4, 21, 4, 2, True, True, 14, 6),
    "one query": (1, 21, 4, 2, True, True, 8, None),
}


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Blocks of 8, so that small arrays have several, the last one cut."""
    monkeypatch.setattr(attention, "BLOCK", 8)
    yield


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(
    "name",
    [
        name if "padded" in name or "quer" in name else pytest.param(name, marks=pytest.mark.deep)
        for name in CASES
    ],
)
def test_both_engines_match_the_oracle(name: str) -> None:
    queries, keys, heads, kv_heads, padded, causal, offset, window = CASES[name]
    q, k, v, valid = arrays(queries, keys, heads, kv_heads)
    mask = valid if padded else None
    options: dict[str, Any] = {"valid": mask, "causal": causal, "offset": offset, "window": window}
    expected, _ = oracle(q, k, v, **options)
    xla = jitted(q, k, v, engine="xla", **options)
    blocks = jitted(q, k, v, engine="blockwise", **options)
    print(
        f"{name}: xla {np.abs(xla - expected).max():.1e}, "
        f"blockwise {np.abs(blocks - expected).max():.1e}, "
        f"apart {np.abs(xla - blocks).max():.1e}"
    )
    np.testing.assert_allclose(xla, expected, atol=2e-6)
    np.testing.assert_allclose(xla, blocks, atol=1e-6)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("engine", ["xla", "blockwise"])
def test_a_row_without_keys_is_zero_and_finite(engine: attention.Engine) -> None:
    q, k, v, valid = arrays(19, 19, 4, 2)
    valid = valid.at[0].set(False).at[1, :4].set(False)
    out = jitted(q, k, v, valid=valid, causal=True, engine=engine)
    assert np.all(np.asarray(out[0]) == 0) and np.all(np.asarray(out[1, :4]) == 0)
    assert np.isfinite(out).all() and float(jnp.abs(out[1, 4:]).min()) > 0
    gradient = jax.grad(lambda x: jitted(x, k, v, valid=valid, engine=engine).sum())(q)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("engine", ["xla", "blockwise"])
def test_hidden_keys_have_no_effect_at_all(engine: attention.Engine) -> None:
    q, k, v, valid = arrays(19, 19, 4, 2)
    out = jitted(q, k, v, valid=valid, causal=True, engine=engine)
    spoilt_k = jnp.where(valid[..., None, None], k, 1e4)
    spoilt_v = jnp.where(valid[..., None, None], v, -1e4)
    again = jitted(q, spoilt_k, spoilt_v, valid=valid, causal=True, engine=engine)
    np.testing.assert_array_equal(out, again)


def test_a_window_counts_real_tokens() -> None:
    # Tokens 0-3, four slots of padding, then a token that must still see 2 and 3.
    q, k, v, _ = arrays(1, 12, 2, 2)
    gaps = jnp.ones((2, 12), bool).at[:, 4:8].set(False).at[:, 9:].set(False)
    out = jitted(q, k, v, valid=gaps, offset=8, window=3)
    dense = jnp.array([2, 3, 8])
    expected = jitted(q, k[:, dense], v[:, dense])
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_a_traced_offset_matches_a_static_one() -> None:
    q, k, v, valid = arrays(3, 21, 4, 2)
    for window in (None, 4):
        options: dict[str, Any] = {"valid": valid, "causal": True, "window": window}
        static = jax.jit(lambda q, k, v, o=options: attend(q, k, v, offset=9, **o))(q, k, v)
        traced = jitted(q, k, v, offset=jnp.int32(9), **options)
        np.testing.assert_allclose(static, traced, atol=1e-6)


def test_bfloat16_keeps_float32_scores() -> None:
    q, k, v, valid = arrays(19, 19, 4, 2)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    exact, _ = oracle(*half, valid=valid, causal=True, window=None)
    for engine in ("xla", "blockwise"):
        out = jitted(*half, valid=valid, causal=True, engine=engine)
        assert out.dtype == jnp.bfloat16
        # Weights and the result are rounded to 8 bits, the scores are not.
        np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=0.02)


def test_rows_are_rows_of_the_whole_map() -> None:
    q, k, _, valid = arrays(19, 19, 4, 2)
    for mask in (None, valid):
        _, expected = oracle(q, k, k, valid=mask, window=None)
        rows = attention_rows(q[:, 3:5], k, valid=mask)
        assert rows.shape == (2, 4, 2, 19) and rows.dtype == jnp.float32
        np.testing.assert_allclose(rows, expected[:, :, 3:5], atol=1e-6)
        np.testing.assert_allclose(rows.sum(-1), 1, atol=1e-6)


def largest(jaxpr: Any) -> int:
    """Elements of the largest array any equation makes, inner programs included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(out.aval.shape)) for out in equation.outvars]
        sizes += [largest(inner) for inner in jaxprs_in_params(equation.params)]
    return max(sizes)


def test_auto_never_holds_the_scores_of_a_long_sequence() -> None:
    for length, whole in ((1024, True), (2048, False)):
        x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        program = jax.make_jaxpr(lambda q, k, v: attend(q, k, v, causal=True))(x, x, x)
        most = largest(program.jaxpr)
        print(f"S = {length}: largest array {most} elements, S * S = {length * length}")
        assert (most >= length * length) == whole
    assert attention.BLOCKWISE_ABOVE == 1024 * 1024
