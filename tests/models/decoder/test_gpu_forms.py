"""The forms that a GPU runs, on this machine's backend: the numbers are those of the plain ones."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.errors import CallError
from resprune_jax.models.decoder import attention, gpu
from resprune_jax.models.decoder.attention import attend
from resprune_jax.models.decoder.layers import JoinedLinear, Normed, RMSNorm
from resprune_jax.models.decoder.rope import apply_rope, rope_tables
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava
from tests.models.decoder.test_attention import CASES, arrays, jitted, oracle

TEXT = {
    "num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 40,
    "num_attention_heads": 4,
}  # fmt: skip
TEXTS = {
    "llama": {**TEXT, "model_type": "llama"},
    "mistral, a window": {
        **TEXT, "model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 5
    },
    "qwen2, biases": {**TEXT, "model_type": "qwen2", "num_key_value_heads": 1},
}  # fmt: skip


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is traced is told that it is for a GPU, one without cuDNN."""
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    monkeypatch.setattr(gpu, "missing", lambda *_: "it is not here")
    yield


@pytest.mark.deep
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
    width=st.sampled_from([2, 8]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    rng_seed=st.integers(0, 99),
)
def test_turned_together_is_turned_one_by_one(
    sizes: tuple[int, ...], width: int, dtype: str, rng_seed: int
) -> None:
    batch, length, groups, queries = sizes
    shape = (batch, length, groups, queries + 2, width)
    joined = jax.random.normal(jax.random.key(rng_seed), shape, dtype)
    places = jnp.arange(batch * length, dtype=jnp.int32).reshape(batch, length) * 7
    tables = rope_tables(places, width, 100.0)

    @jax.jit
    def both(joined: jax.Array, *tables: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        one_by_one = [apply_rope(joined[:, :, :, row], *tables) for row in range(queries + 1)]
        return gpu.turn_joined(joined, *tables), one_by_one

    got, want = both(joined, *tables)
    assert got.dtype == joined.dtype
    np.testing.assert_array_equal(got[:, :, :, -1], joined[:, :, :, -1])
    np.testing.assert_array_equal(got[:, :, :, :-1], jnp.stack(want, axis=3))


def test_layers_are_taken_in_order() -> None:
    joined = jnp.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    layers = jax.jit(gpu.layers_of)(joined)
    assert len(layers) == 4
    for at, layer in enumerate(layers):
        np.testing.assert_array_equal(layer, joined[..., at, :])


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize(
    "name",
    [name if "padded" in name else pytest.param(name, marks=pytest.mark.deep) for name in CASES],
)
def test_attention_by_heads_matches_the_oracle(name: str) -> None:
    queries, keys, heads, kv_heads, padded, causal, offset, window = CASES[name]
    q, k, v, valid = arrays(queries, keys, heads, kv_heads)
    options: dict[str, Any] = {"valid": valid if padded else None, "causal": causal}
    options |= {"offset": offset, "window": window}
    expected, _ = oracle(q, k, v, **options)
    with attention.paths_taken() as paths:
        got = jitted(q, k, v, **options)
    print(f"{name}: {np.abs(got - expected).max():.1e}")
    assert paths == {"xla"}
    np.testing.assert_allclose(got, expected, atol=2e-6)


@pytest.mark.parametrize(
    "text",
    [name if "bias" in name else pytest.param(name, marks=pytest.mark.deep) for name in TEXTS],
)
def test_a_model_answers_the_same(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 3, "image_size": 28, "patch_size": 7}
    config = LlavaConfig.from_hf({"text_config": TEXTS[text], "vision_config": vision})
    model = Llava(config, rngs=nnx.Rngs(0))
    pixels = jax.random.normal(jax.random.key(1), (2, 3, 28, 28))
    x = jax.random.normal(jax.random.key(2), (2, 9, 32))
    real = jnp.arange(9) < jnp.array([[9], [6]])
    places = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (2, 9))

    def run() -> list[np.ndarray]:
        @jax.jit  # afresh: the forms are chosen while it is traced
        def program(pixels: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
            features, _ = model.vision_tower(pixels)
            hidden, cache = model.prefill(x, places, real, 12)
            more, _ = model.decode_step(x[:, :1], jnp.array([[9], [6]]), jnp.int32(9), cache)
            return features, jnp.where(real[..., None], hidden, 0), more

        return [np.asarray(part) for part in program(pixels, x)]

    want = run()
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    got = run()
    for plain, other in zip(want, got, strict=True):
        np.testing.assert_allclose(other, plain, atol=1e-5)
    monkeypatch.setattr(gpu, "turn_joined", lambda joined, *_: joined)
    assert np.abs(run()[1] - want[1]).max() > 1e-2  # it is read


def test_parts_where_all_scores_would_take_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert attention.path_of("auto", 1024, 1025, 1) == "blockwise"  # elsewhere, a head decides
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    cases = (
        (5476, 5476, 16, "xla"),
        (832, 832, 32 * 28, "xla"),
        (2240, 2240, 32 * 28, "parts"),
    )
    for queries, keys, heads, path in cases:
        assert attention.path_of("auto", queries, keys, heads) == path
        assert (4 * queries * keys * heads > 4 * 2**30) == (path == "parts")
        for asked in ("xla", "blockwise", "parts"):
            assert attention.path_of(asked, queries, keys, heads) == asked


def test_padding_behind_needs_no_mask() -> None:
    q, k, v, _ = arrays(19, 19, 4, 2)
    lengths = jnp.array([[19], [11]])
    valid = jnp.arange(19) < lengths
    for window in (None, 4):
        for engine in ("xla", "blockwise"):
            options: dict[str, Any] = {"causal": True, "window": window, "engine": engine}
            want = attend(q, k, v, valid=valid, **options)
            got = attend(q, k, v, valid=valid, padded_behind=True, **options)
            never = attend(q, k, v, valid=~valid, padded_behind=True, **options)
            np.testing.assert_array_equal(got, never)  # not read
            real = np.asarray(valid)
            np.testing.assert_array_equal(np.asarray(got)[real], np.asarray(want)[real])
            assert np.isfinite(got).all()
    # Where later tokens follow padding, and where all see all, it is read as ever.
    others: tuple[dict[str, Any], ...] = ({"offset": 14, "causal": True}, {"causal": False})
    for options in others:
        short = q if not options["causal"] else q[:, :3]
        want = attend(short, k, v, valid=valid, **options)
        got = attend(short, k, v, valid=valid, padded_behind=True, **options)
        np.testing.assert_array_equal(got, want)
        assert np.abs(want - attend(short, k, v, **options)).max() > 1e-3


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_cudnn_is_asked_for_the_same_attention(
    kv_heads: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # JAX's own reference stands for the library, which is not here.
    library, asked = jax.nn.dot_product_attention, []

    def reference(*args: Any, implementation: str, **options: Any) -> jax.Array:
        asked.append(implementation)
        return library(*args, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", reference)
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    gpu.missing.cache_clear()
    half = [x.astype(jnp.bfloat16) for x in arrays(19, 19, 4, kv_heads)[:3]]
    valid = jnp.arange(19) < jnp.array([[19], [11]])
    expected, _ = oracle(*half, valid=None, causal=True, window=window)
    with attention.paths_taken() as paths:
        got = attend(*half, valid=valid, padded_behind=True, causal=True, window=window)
    gpu.missing.cache_clear()
    assert paths == {"cudnn"} and set(asked) == {"cudnn"}
    real = np.asarray(valid)
    np.testing.assert_allclose(
        np.asarray(got, np.float32)[real], np.asarray(expected)[real], atol=0.03
    )


def test_what_cudnn_does_not_do_is_said() -> None:
    gpu.missing.cache_clear()
    q, k, v, valid = arrays(19, 19, 4, 2)
    half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    cases: tuple[tuple[list[jax.Array], dict[str, Any], str], ...] = (
        ([q, k, v], {}, "not float32"),
        (half, {"valid": valid}, "hide keys"),
        (half, {"segments": jnp.zeros((2, 19), jnp.int32)}, "hide keys"),
        (half, {"offset": jnp.int32(0), "causal": True}, "hide keys"),
        ([half[0][:, :1], *half[1:]], {}, "single query"),
        (half, {"causal": True}, "cuDNN"),
    )
    for given_arrays, options, why in cases:
        with pytest.raises(CallError, match=f"cuDNN does not do this attention.*{why}"):
            attend(*given_arrays, engine="cudnn", **options)


@settings(max_examples=5, deadline=None)
@given(
    width=st.sampled_from([32, 224]),
    size=st.floats(-3, 3),
    bias=st.booleans(),
    rng_seed=st.integers(0, 2**31),
)
def test_an_unfinished_norm_is_the_norm(width: int, size: float, bias: bool, rng_seed: int) -> None:
    """Its factor behind the layer, against exact numbers."""
    rng = np.random.default_rng(rng_seed)
    norm = RMSNorm(width, 1e-5, dtype=jnp.float32)
    norm.scale[...] = jnp.asarray(rng.normal(1, 0.3, width), jnp.float32)
    layer = JoinedLinear(width, 2, (2, 1), 4, use_bias=bias, rngs=nnx.Rngs(0), dtype=jnp.float32)
    x = jnp.asarray(rng.normal(size=(1, 1, width)) * 10.0**size, jnp.float32)
    x = x.astype(jnp.bfloat16).astype(jnp.float32)

    def exact() -> np.ndarray:
        y = np.asarray(x, np.float64)
        y = y / np.sqrt((y * y).mean() + 1e-5) * np.asarray(norm.scale[...], np.float64)
        made = y @ np.asarray(layer.weight[...], np.float64).reshape(-1, width).T
        if layer.bias is not None:
            made = made + np.asarray(layer.bias[...], np.float64).reshape(-1)
        return made.reshape(1, 1, 2, 3, 4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "in_use", lambda: True)
        patch.setattr(gpu, "undivided", lambda: True)
        same, halves = norm.of_a_step(x)
        assert isinstance(halves, Normed) and halves.squares.shape == (1, 1, gpu.PIECES)
        # Rows that are not alone, or not whole pieces, or that float16 might not hold.
        for other in (jnp.tile(x, (2, 1, 1)), jnp.tile(x, (1, 2, 1)), x.astype(jnp.float16)):
            assert not isinstance(norm.of_a_step(other)[1], Normed)
        assert not gpu.halves_norms(x[..., :-1])
    assert not isinstance(norm.of_a_step(x)[1], Normed)
    np.testing.assert_array_equal(same, x)
    np.testing.assert_allclose(layer(halves), exact(), rtol=1e-5, atol=1e-5)


@pytest.mark.deep
def test_a_step_of_a_single_row_answers_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    text = {**TEXTS["qwen2, biases"], "hidden_size": 64, "num_attention_heads": 8}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    vision |= {"num_hidden_layers": 3, "image_size": 28, "patch_size": 7}
    model = Llava(
        LlavaConfig.from_hf({"text_config": text, "vision_config": vision}), rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(2), (1, 9, 64))
    places = jnp.arange(9, dtype=jnp.int32)[None]
    halved: list[bool] = []

    def run() -> np.ndarray:
        @jax.jit  # afresh: the forms are chosen while it is traced
        def program(x: jax.Array) -> jax.Array:
            _, cache = model.prefill(x, places, jnp.ones((1, 9), bool), 12)
            more, cache = model.decode_step(x[:, :1], jnp.array([[9]]), jnp.int32(9), cache)
            return model.decode_step(more, jnp.array([[10]]), jnp.int32(10), cache)[0]

        return np.asarray(program(x))

    want = run()
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    monkeypatch.setattr(gpu, "undivided", lambda: True)
    finish = Normed.finish
    monkeypatch.setattr(Normed, "finish", lambda *a: halved.append(True) or finish(*a))
    np.testing.assert_allclose(run(), want, atol=1e-5)
    assert len(halved) == 2 * 2 * 2  # steps, layers, norms of each
    monkeypatch.setattr(Normed, "finish", lambda self, y: y)
    assert np.abs(run() - want).max() > 1e-3


def test_an_unfinished_norm_rounds_less_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """One rounding of each number in front of the product, where the norm itself has two."""
    rng = np.random.default_rng(0)
    width, outputs = 512, 2048
    norm = RMSNorm(width, 1e-5, dtype=jnp.bfloat16)
    norm.scale[...] = jnp.asarray(rng.normal(1, 0.3, width), jnp.bfloat16)
    layer = JoinedLinear(
        width, 1, (1,), outputs, use_bias=False, rngs=nnx.Rngs(0), dtype=jnp.bfloat16
    )
    x = jnp.asarray(30 * rng.normal(size=(1, 1, width)), jnp.bfloat16)
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    monkeypatch.setattr(gpu, "undivided", lambda: True)
    wide = [np.asarray(part, np.float64) for part in (x, norm.scale[...], layer.weight[...])]
    normed = wide[0] / np.sqrt((wide[0] ** 2).mean() + 1e-5) * wide[1]
    exact = (normed @ wide[2].reshape(outputs, width).T).reshape(-1)
    error = {}
    for name, row in (("plain", norm(x)), ("halves", norm.of_a_step(x)[1])):
        made = layer(row)
        assert made.dtype == jnp.bfloat16
        apart = np.asarray(made, np.float64).reshape(-1) - exact
        error[name] = float(np.sqrt((apart**2).mean()) / exact.std())
    print(error)
    assert error["halves"] < error["plain"] < 0.01
