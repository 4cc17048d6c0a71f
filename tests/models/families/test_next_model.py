"""LLaVA-NeXT without a reference: configurations as published, refusals, parameters, dtypes."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from transformers import LlavaNextConfig as Reference

from resprune_jax.errors import CallError
from resprune_jax.methods import PromptContext, get_method
from resprune_jax.methods.base import NEWLINE
from resprune_jax.models.checkpoint.reading import CheckpointError, load_parameters
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava_next.anyres import make_tables
from resprune_jax.models.families.llava_next.config import DEFAULT_PINPOINTS, LlavaNextConfig
from resprune_jax.models.families.llava_next.module import LlavaNext
from resprune_jax.models.families.registry import save_checkpoint
from resprune_jax.models.towers.config import ClipConfig
from tests.models.families.test_anyres import TINY

# Shaped like the published files.
MISTRAL: dict[str, Any] = {
    "architectures": ["LlavaNextForConditionalGeneration"],
    "ignore_index": -100,
    "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    "image_token_index": 32000,
    "model_type": "llava_next",
    "projector_hidden_act": "gelu",
    "text_config": {
        "_name_or_path": "mistralai/Mistral-7B-Instruct-v0.2",
        "architectures": ["MistralForCausalLM"],
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "model_type": "mistral",
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "torch_dtype": "bfloat16",
        "vocab_size": 32064,
    },
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_image_newline_parameter": True,
    "vision_config": {
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "model_type": "clip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
        "vocab_size": 32000,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "vocab_size": 32064,
}
VICUNA = MISTRAL | {
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "architectures": ["LlamaForCausalLM"],
        "max_position_embeddings": 4096,
        "model_type": "llama",
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "torch_dtype": "float16",
        "vocab_size": 32064,
    }
}
VISION = ClipConfig(1024, 4096, 24, 16, 336, 14)


def test_published_files() -> None:
    mistral = DecoderConfig(
        32064, 4096, 14336, 32, 32, 8, 128, rms_norm_eps=1e-5, rope_theta=1e6,
        max_position_embeddings=32768, sliding_window=None,
    )  # fmt: skip
    assert LlavaNextConfig.from_hf(MISTRAL) == LlavaNextConfig(VISION, mistral, 23)
    vicuna = DecoderConfig(
        32064, 4096, 11008, 32, 32, 32, 128, rms_norm_eps=1e-5, max_position_embeddings=4096
    )
    config = LlavaNextConfig.from_hf(VICUNA)
    assert config == LlavaNextConfig(VISION, vicuna, 23)
    assert config.patches_per_tile == 576
    assert config.tile_model == LlavaConfig(VISION, vicuna, 23)


@pytest.mark.parametrize(
    "hf",
    [
        {},
        MISTRAL,
        VICUNA,
        {"text_config": {"model_type": "mistral"}},
        {"text_config": {"model_type": "mistral", "sliding_window": None}},
        {"text_config": {"model_type": "mistral", "sliding_window": 1024}},
        {"text_config": {"model_type": "llama", "tie_word_embeddings": True}},
        {"vision_config": {"model_type": "clip_vision_model", "image_size": 336}},
        {"image_grid_pinpoints": None, "image_token_id": 7},
        {"image_grid_pinpoints": [[672, 672], [336, 672]], "tie_word_embeddings": True},
    ],
)
def test_silent_fields_are_those_of_transformers(hf: dict[str, Any]) -> None:
    theirs, ours = Reference.from_dict(hf), LlavaNextConfig.from_hf(hf)
    text, vision = theirs.text_config, theirs.vision_config
    pairs = [
        (ours.tie_word_embeddings, theirs.tie_word_embeddings),
        (ours.image_token_id, theirs.image_token_id),
        (ours.image_grid_pinpoints, tuple(map(tuple, theirs.image_grid_pinpoints))),
        (ours.projector_act, theirs.projector_hidden_act),
        (ours.projector_bias, theirs.multimodal_projector_bias),
        (ours.num_vision_blocks, theirs.vision_feature_layer + vision.num_hidden_layers + 1),
        (ours.text.sliding_window, getattr(text, "sliding_window", None)),
        (ours.text.num_kv_heads, text.num_key_value_heads),
        (ours.text.intermediate_size, text.intermediate_size),
        (ours.text.rms_norm_eps, text.rms_norm_eps),
        (ours.text.rope_theta, text.rope_parameters["rope_theta"]),
        (ours.text.max_position_embeddings, text.max_position_embeddings),
        (ours.vision.hidden_size, vision.hidden_size),
        (ours.vision.num_layers, vision.num_hidden_layers),
        (ours.vision.image_size, vision.image_size),
        (ours.vision.hidden_act, vision.hidden_act),
    ]
    assert all(mine == wanted for mine, wanted in pairs), pairs


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llava"}, ["'llava'", "'llava_next'"]),
        ({"text_config": {"model_type": "gemma"}}, ["gemma", "'llama'", "'mistral'", "'qwen2'"]),
        ({"vision_feature_select_strategy": "full"}, ["full", "'default'"]),
        ({"vision_feature_layer": [-2, -5]}, ["[-2, -5]", "one layer"]),
        ({"projector_hidden_act": "relu"}, ["relu", "'gelu'"]),
        ({"image_grid_pinpoints": [[336, 700]]}, ["336 x 700", "336 x 336", "whole tiles"]),
        ({"image_grid_pinpoints": []}, ["[]", "pairs (height, width)"]),
        ({"image_grid_pinpoints": [336, 672]}, ["[336, 672]", "pairs (height, width)"]),
        ({"image_grid_pinpoints": "anyres"}, ["'anyres'", "pairs (height, width)"]),
        ({"image_grid_pinpoints": [[336, 0]]}, ["0", "at least 1"]),
        ({"image_grid_pinpoints": [[336, 672.0]]}, ["672.0", "whole number"]),
    ],
)
def test_refused_settings_are_named(change: dict[str, Any], said: list[str]) -> None:
    with pytest.raises(CallError) as caught:
        LlavaNextConfig.from_hf(MISTRAL | change)
    assert all(part in str(caught.value) for part in said)
    assert "\n" not in str(caught.value)


CONFIG = replace(TINY, text=replace(TINY.text, vocab_size=40), image_token_id=4)


@cache
def build() -> tuple[Any, Any]:
    """(graph, state) of a random float32 model."""
    # One program for all initial values: one by one they compile for seconds.
    state = jax.jit(lambda: nnx.state(LlavaNext(CONFIG, rngs=nnx.Rngs(0))))()
    return nnx.graphdef(nnx.eval_shape(lambda: LlavaNext(CONFIG, rngs=nnx.Rngs(0)))), state


SIZES = [(90, 120), (1, 300), (300, 1)]
TABLES = make_tables([[size] for size in SIZES], CONFIG)


@jax.jit
def encode(state: Any, pixels: jax.Array) -> Any:
    """VisualTokens of pictures of `SIZES`, with all optional parts."""
    model = nnx.merge(build()[0], state)
    return model.encode_images(pixels, TABLES, saliency=True, needs=frozenset({"features"}))


PIXELS = np.random.default_rng(0).normal(size=(3, 5, 3, 56, 56)).astype(np.float32)


def test_the_newline_is_the_only_parameter_that_is_new() -> None:
    paths = {path for path, _ in nnx.to_flat_state(build()[1])}
    assert ("image_newline",) in paths
    tied = nnx.eval_shape(
        lambda: LlavaNext(replace(CONFIG, tie_word_embeddings=True), rngs=nnx.Rngs(0))
    )
    assert {path for path, _ in nnx.to_flat_state(nnx.state(tied))} == paths - {
        ("lm_head", "kernel")
    }
    assert DEFAULT_PINPOINTS[0] == (336, 672)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_activations_take_the_dtype_of_the_state(dtype: str) -> None:
    _, state = build()
    tokens = encode(jax.tree.map(lambda x: x.astype(dtype), state), PIXELS)
    assert {x.dtype.name for x in (tokens.embeddings, tokens.features)} == {dtype}
    assert (tokens.saliency.dtype, tokens.kind.dtype) == (jnp.float32, jnp.int8)
    exact = encode(state, PIXELS)
    error = float(jnp.abs(tokens.embeddings - exact.embeddings).max() / exact.embeddings.std())
    print(f"{dtype}: off by {error:.1e} standard deviations")
    assert 0 < error < (0.1 if dtype == "bfloat16" else 0.02)


def test_pixels_of_another_shape_than_the_tables_are_refused() -> None:
    model = nnx.merge(*build())
    tables = make_tables([[size] for size in SIZES[:2]], CONFIG)
    for shape in [(2, 4, 3, 56, 56), (1, 5, 3, 56, 56), (10, 3, 56, 56)]:
        with pytest.raises(CallError, match=r"expected \(2, 5\) tiles of \(3, H, W\)"):
            model.encode_images(jnp.zeros(shape), tables)
    with pytest.raises(CallError, match=r"expected \(B, 3, 56, 56\)"):
        model.encode_images(jnp.zeros((2, 5, 3, 28, 28)), tables)


def test_resprune_starts_at_a_patch_and_keeps_one_newline() -> None:
    """The defaults of the paper's LLaVA family: alpha 0.75, the seed by CLS attention."""
    graph, state = build()
    method, keep = get_method("resprune"), 12

    @jax.jit
    def run(state: Any) -> Any:
        model = nnx.merge(graph, state)
        visual = model.visual_tokens({"pixels": PIXELS, "tables": TABLES})
        nouns = PromptContext(model.embed(jnp.full((3, 2), 9)), jnp.zeros((3, 2), bool))
        return visual, method.select(visual, nouns, keep)

    visual, selection = run(state)
    assert visual.features is None
    indices, counts = np.asarray(selection.indices), np.asarray(selection.count)
    kind, valid = np.asarray(visual.kind), np.asarray(visual.valid)
    assert (counts == keep).all() and keep < CONFIG.text.hidden_size
    for row, own in enumerate(indices):
        assert valid[row, own].all() and kind[row, own[0]] != NEWLINE
        assert own[0] == np.asarray(visual.saliency[row]).argmax()
    kept = [int((kind[row, own] == NEWLINE).sum()) for row, own in enumerate(indices)]
    print(f"newlines kept: {kept} of {[int((own == NEWLINE).sum()) for own in kind]}")
    # All newlines are one vector: a second one adds nothing to what the first one spans.
    assert max(kept) == 1 and kept[1] == 0


def test_a_newline_that_is_missing_or_misshapen_is_named(tmp_path: Path) -> None:
    graph, state = build()
    hf = {
        "model_type": "llava_next",
        "image_grid_pinpoints": [list(pin) for pin in CONFIG.image_grid_pinpoints],
        "vision_feature_layer": 1,
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": 56, "patch_size": 14,
        },
        "text_config": {
            "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
        },
    }  # fmt: skip
    assert LlavaNextConfig.from_hf(hf) == replace(CONFIG, image_token_id=32000)
    model = nnx.merge(graph, state)
    whole = save_checkpoint(tmp_path / "whole", hf, model)
    abstract = nnx.eval_shape(lambda: LlavaNext(CONFIG, rngs=nnx.Rngs(0)))
    again = load_parameters(whole, abstract, dtype=None)
    for left, right in zip(jax.tree.leaves(state), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(left, right, strict=True)

    wider = nnx.eval_shape(
        lambda: LlavaNext(
            replace(CONFIG, text=replace(CONFIG.text, vocab_size=41)), rngs=nnx.Rngs(0)
        )
    )
    with pytest.raises(CheckpointError, match=r"misshapen: language_model\.lm_head\.weight"):
        load_parameters(whole, wider, dtype=None)
    flat = [(path, leaf) for path, leaf in nnx.to_flat_state(state) if path != ("image_newline",)]
    less = save_checkpoint(tmp_path / "less", hf, nnx.from_flat_state(flat))
    with pytest.raises(CheckpointError, match="1 missing: image_newline"):
        load_parameters(less, abstract, dtype=None)
