"""A pocket model with random weights and few layers, for the tests of what is done with one."""

import dataclasses
from pathlib import Path

import pytest
from flax import nnx

from resprune_jax.experiments.pocket.model import recipe
from resprune_jax.experiments.pocket.model.export import export
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava

SMALL = dataclasses.replace(
    recipe.RECIPES["cpu"], vision_width=32, vision_layers=1, vision_heads=2, width=128, layers=2,
    heads=4, inner=64,
)  # fmt: skip


def small_export(folder: Path, rng_seed: int = 0) -> Path:
    """Write one whose answers are noise, and depend on the image, the question and the budget."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe.RECIPES, "cpu", SMALL)
        model = Llava(LlavaConfig.from_hf(SMALL.hf_config()), rngs=nnx.Rngs(rng_seed))
        for block in model.language_model.layers:
            attention = block.self_attn
            # Else the last word of the template would decide every answer.
            attention.qkv_proj.weight[:, :-2] *= 3.0
            attention.o_proj.kernel[...] *= 30.0
        return export(folder, "cpu", model)
