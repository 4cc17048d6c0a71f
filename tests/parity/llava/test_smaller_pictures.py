"""Pictures smaller than the tower's, against transformers' `interpolate_pos_encoding`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, SiglipVisionConfig
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings
from transformers.models.siglip.modeling_siglip import SiglipVisionEmbeddings

from resprune_jax.models import LVLM
from resprune_jax.models.towers.patches import resized_positions


@torch.no_grad()
@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_positions_are_resized_as_transformers_does(tower: str) -> None:
    config: Any = CLIPVisionConfig if tower == "clip" else SiglipVisionConfig
    embeddings: Any = CLIPVisionEmbeddings if tower == "clip" else SiglipVisionEmbeddings
    patch, width, first = 14, 8, int(tower == "clip")
    sizes = {"hidden_size": width, "num_attention_heads": 1}
    resized = jax.jit(resized_positions, static_argnums=1)
    worst, compared = 0.0, 0
    for grid in (4, 24, 27):
        module = embeddings(config(image_size=grid * patch, patch_size=patch, **sizes))
        table = torch.randn(grid * grid + first, width, generator=torch.manual_seed(grid))
        module.position_embedding.weight.copy_(table)
        for side in {1, 3, grid // 2, grid - 1, grid}:
            blank = torch.zeros(1, side * side + first, width)
            theirs = module.interpolate_pos_encoding(blank, side * patch, side * patch)[0, first:]
            ours = resized(jnp.asarray(table[first:].numpy()), side)
            worst = max(worst, float(np.abs(np.asarray(ours) - theirs.numpy()).max()))
            compared += 1
    print(f"{tower}: {compared} grids, largest difference {worst:.1e}")
    assert worst < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("side", [1, 2, 3])
def test_a_tower_sees_a_smaller_picture_as_transformers_does(
    side: int, lvlm: LVLM, reference: Any
) -> None:
    pixels = np.random.default_rng(side).normal(size=(2, 3, side * 14, side * 14))
    pixels = pixels.astype(np.float32)
    given = {"pixels": pixels, "smaller": ()}
    ours = lvlm.programs.encode(lvlm.parameters, given, needs=frozenset({"features"}))
    out = reference.model.vision_tower(
        torch.from_numpy(pixels), output_hidden_states=True, interpolate_pos_encoding=True
    )
    theirs = out.hidden_states[reference.config.vision_feature_layer][:, 1:].numpy()
    assert ours.features is not None and ours.features.shape == theirs.shape
    scale = np.abs(theirs).max()
    worst = float(np.abs(np.asarray(ours.features) - theirs).max() / scale)
    print(f"{side} x {side}: features differ by {worst:.1e} of the largest")
    assert worst < 1e-5
    cells = np.argwhere(np.ones((side, side)))
    np.testing.assert_array_equal(ours.coords, np.broadcast_to(cells, (2, *cells.shape)))
