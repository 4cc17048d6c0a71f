"""The assembled model without a reference: dtypes, shapes, segments, cache, refusals."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.towers.config import ClipConfig

CONFIG = LlavaConfig(
    vision=ClipConfig(16, 24, 3, 2, image_size=29, patch_size=7),
    text=DecoderConfig(31, 16, 24, 3, 4, 2, 4, sliding_window=5),
    num_vision_blocks=2,
    image_token_id=4,
)
# Rows of 9, 6 and 2 tokens, padded on the right.
VALID = jnp.arange(9) < jnp.array([[9], [6], [2]])
POSITIONS = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (3, 9))


def build(dtype: Any, config: LlavaConfig = CONFIG) -> tuple[Any, Any]:
    """(graph, state): the graph from shapes in float32, the state in `dtype`."""
    # One program for all initial values: one by one they compile for seconds.
    state = jax.jit(lambda: nnx.state(Llava(config, rngs=nnx.Rngs(0), dtype=dtype)))()
    return nnx.graphdef(nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0)))), state


@pytest.fixture(scope="module")
def model() -> Llava:
    """A random float32 model."""
    return nnx.merge(*build(jnp.float32))


def embeddings() -> jax.Array:
    """(3, 9, d) inputs."""
    return jax.random.normal(jax.random.key(1), (3, 9, 16))


def test_only_the_blocks_that_run_are_parameters(model: Llava) -> None:
    paths = {".".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert "vision_tower.encoder.layers.1.mlp.fc2.bias" in paths
    assert "language_model.layers.2.self_attn.qkv_proj.weight" in paths
    assert {"vision_tower.embeddings.class_embedding", "lm_head.kernel"} <= paths
    # Of the block behind them what makes queries and keys, of those further on nothing.
    behind = {path for path in paths if path.startswith("vision_tower.encoder.layers.2.")}
    linear = {f"self_attn.{part}_proj.{leaf}" for part in "qk" for leaf in ("kernel", "bias")}
    linear |= {"layer_norm1.scale", "layer_norm1.bias"}
    assert {path.split("layers.2.")[1] for path in behind} == linear
    assert not any("layers.3" in path and "vision" in path for path in paths)
    assert not any("post_layernorm" in path for path in paths)
    assert len(paths) == 3 + 2 + 2 * 12 + 6 + 4 + 1 + 3 * 6 + 1 + 1
    last = replace(CONFIG, num_vision_blocks=CONFIG.vision.num_layers)
    whole = nnx.eval_shape(lambda: Llava(last, rngs=nnx.Rngs(0)))
    blocks = CONFIG.vision.num_layers
    assert len(nnx.to_flat_state(nnx.state(whole))) == len(paths) - 6 + 12 * (blocks - 2)
    tied = nnx.eval_shape(
        lambda: Llava(replace(CONFIG, tie_word_embeddings=True), rngs=nnx.Rngs(0))
    )
    assert len(nnx.to_flat_state(nnx.state(tied))) == len(paths) - 1


def test_images_become_tokens_with_places(model: Llava) -> None:
    pixels = jax.random.normal(jax.random.key(2), (2, 3, 29, 29))
    encode = partial(jax.jit, static_argnames=("saliency", "needs"))(
        lambda state, x, **what: nnx.merge(nnx.graphdef(model), state).encode_images(x, **what)
    )
    tokens = encode(nnx.state(model), pixels, saliency=True, needs=frozenset({"features"}))
    assert tokens.embeddings.shape == (2, 16, 16) and tokens.features.shape == (2, 16, 16)
    assert tokens.valid.all() and tokens.kind is None
    expected = [[row, column] for row in range(4) for column in range(4)]
    np.testing.assert_array_equal(tokens.coords[1], expected)
    assert tokens.saliency.dtype == jnp.float32
    total = np.asarray(tokens.saliency.sum(axis=1))
    assert np.all((total > 0.5) & (total < 1))  # the class token keeps a share
    bare = encode(nnx.state(model), pixels)
    assert bare.saliency is None and bare.features is None
    np.testing.assert_allclose(bare.embeddings, tokens.embeddings, atol=1e-6)
    # The last column and row of pixels fill no patch: a stride of one patch never reads them.
    cut = encode(nnx.state(model), pixels.at[:, :, 28:].set(9).at[..., 28:].set(9))
    np.testing.assert_array_equal(cut.embeddings, bare.embeddings)


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (3, 29, 29), (1, 1, 29, 29)])
def test_pixels_of_another_shape_are_refused(model: Llava, shape: tuple[int, ...]) -> None:
    with pytest.raises(CallError, match=r"expected \(B, 3, 29, 29\)"):
        model.encode_images(jnp.zeros(shape))


def test_prefill_and_decode_match_the_pass_without_a_cache(model: Llava) -> None:
    x, new = embeddings(), jax.random.normal(jax.random.key(3), (3, 4, 16))
    count = VALID.sum(axis=1)

    @jax.jit
    def cached(model: Llava) -> jax.Array:
        _, cache = model.prefill(x, POSITIONS, VALID, 14)

        def body(carry: tuple[jax.Array, KVCache], at: jax.Array) -> Any:
            hidden, cache = model.decode_step(
                jax.lax.dynamic_slice_in_dim(new, at, 1, axis=1),
                (count + at)[:, None].astype(jnp.int32),
                9 + at,
                carry[1],
            )
            return (hidden, cache), hidden[:, 0]

        start = (jnp.zeros((3, 1, 16)), cache)
        return jax.lax.scan(body, start, jnp.arange(4))[1].swapaxes(0, 1)  # [B, 4, d]

    # The same sequences without gaps: each row's new tokens right behind its own.
    index = jnp.arange(13)[None] - count[:, None]  # [B, 13]
    behind = jnp.take_along_axis(new, jnp.clip(index, 0, 3)[..., None], axis=1)
    dense = jnp.where(index[..., None] < 0, jnp.pad(x, ((0, 0), (0, 4), (0, 0))), behind)
    places = jnp.broadcast_to(jnp.arange(13, dtype=jnp.int32), (3, 13))
    whole = jax.jit(lambda m: m.forward(dense, places, index < 4))(model)
    got = cached(model)
    expected = jnp.take_along_axis(whole, (count[:, None] + jnp.arange(4))[..., None], axis=1)
    print(f"decode against one pass: {float(jnp.abs(got - expected).max()):.1e}")
    np.testing.assert_allclose(got, expected, atol=5e-6)


def test_padding_has_no_effect_and_stays_finite(model: Llava) -> None:
    run = jax.jit(lambda m, x: m.forward(x, POSITIONS, VALID))
    clean = run(model, embeddings())
    spoilt = run(model, jnp.where(VALID[..., None], embeddings(), 1e3))
    np.testing.assert_array_equal(clean[VALID], spoilt[VALID])
    assert np.isfinite(clean).all() and np.isfinite(spoilt).all()


def test_segments_with_their_own_caches_make_the_whole(model: Llava) -> None:
    decoder, x = model.language_model, embeddings()

    @jax.jit
    def both(model: Llava) -> tuple[jax.Array, jax.Array]:
        decoder = model.language_model
        whole, _ = decoder.run_layers(x, POSITIONS, valid=VALID)
        first = KVCache.zeros(CONFIG.text, 3, 9, dtype=x.dtype, stop=1)
        second = KVCache.zeros(CONFIG.text, 3, 12, dtype=x.dtype, start=1)
        middle, _ = decoder.run_layers(x, POSITIONS, valid=VALID, cache=first, stop=1)
        end, cache = decoder.run_layers(middle, POSITIONS, valid=VALID, cache=second, start=1)
        assert cache is not None and len(cache.keys) == 2
        return whole, end

    whole, end = both(model)
    assert len(decoder.layers) == 3
    np.testing.assert_allclose(whole[VALID], end[VALID], atol=1e-6)


@pytest.mark.parametrize(("dtype", "tied"), [("bfloat16", False), ("float16", True)])
def test_activations_take_the_dtype_of_the_state(dtype: str, tied: bool) -> None:
    short = replace(CONFIG.text, num_layers=1)
    config = replace(CONFIG, text=short, num_vision_blocks=1, tie_word_embeddings=tied)
    graph, state = build(jnp.dtype(dtype), config)
    pixels = jax.random.normal(jax.random.key(4), (1, 3, 29, 29))
    ids = jax.random.randint(jax.random.key(5), (3, 9), 5, 31)

    @jax.jit
    def run(state: Any) -> tuple[Any, ...]:
        model = nnx.merge(graph, state)
        visual = model.encode_images(pixels, saliency=True, needs=frozenset({"features"}))
        hidden, cache = model.prefill(model.embed(ids), POSITIONS, VALID, 10)
        return visual, hidden, cache, model.project_logits(hidden)

    visual, hidden, cache, logits = run(state)
    halves = [visual.embeddings, visual.features, hidden, *cache.keys, *cache.values]
    assert {x.dtype.name for x in halves} == {dtype}
    assert (visual.saliency.dtype, logits.dtype) == (jnp.float32, jnp.float32)

    exact = run(jax.tree.map(lambda x: x.astype(jnp.float32), state))
    for name, got, expected in (
        ("visual tokens", visual.embeddings, exact[0].embeddings),
        ("logits", logits[VALID], exact[3][VALID]),
    ):
        error = float(jnp.abs(got - expected).max() / expected.std())
        print(f"{dtype} {name}: off by {error:.1e} standard deviations")
        assert 0 < error < (0.1 if dtype == "bfloat16" else 0.02)


def test_the_donated_cache_is_updated_in_place(model: Llava) -> None:
    graph, state = nnx.split(model)

    def step(state: Any, cache: KVCache, x: jax.Array, slot: jax.Array) -> tuple[Any, KVCache]:
        return nnx.merge(graph, state).decode_step(x, slot[None, None], slot, cache)

    cache = KVCache.zeros(CONFIG.text, 1, 64, dtype=jnp.float32)
    compiled = (
        jax.jit(step, donate_argnums=1)
        .lower(state, cache, jnp.zeros((1, 1, 16)), jnp.int32(3))
        .compile()
    )
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    plan = compiled.memory_analysis()
    assert plan is not None
    aliased = plan.alias_size_in_bytes
    print(f"cache {size} bytes, aliased {aliased}")
    assert aliased >= size
