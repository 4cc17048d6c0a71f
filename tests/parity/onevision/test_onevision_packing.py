"""LLaVA-OneVision's token counts and packing against transformers, at published sizes."""

from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlavaOnevisionProcessor
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from resprune_jax.models.families.onevision import packing
from tests.models.families.test_anyres import EXTREME, random_sizes
from tests.models.families.test_onevision_tiles import HUB, PUBLISHED

CONFIG = SimpleNamespace(
    vision_config=SimpleNamespace(image_size=384, patch_size=14),
    image_grid_pinpoints=HUB["image_grid_pinpoints"],
)
NEWLINE = 7.0


def tokens(own: packing.Packed, patches: np.ndarray) -> np.ndarray:
    """Our visual tokens of one channel of patches."""
    made = (own.weight * patches.reshape(-1)[own.index]).sum(axis=-1)
    return np.where(own.kind == packing.NEWLINE, NEWLINE, made)


def test_counts_and_packing_are_transformers_for_thousands_of_sizes() -> None:
    """Each patch has a random number of its own, so that a wrong tap shows."""
    large = np.random.default_rng(9).integers(1200, 3000, (200, 2)).tolist()
    sizes = [*EXTREME, *random_sizes(2000, rng_seed=8), *map(tuple, large)]
    numbers = torch.rand(40, 729, 1, generator=torch.Generator().manual_seed(0))
    counter = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=HUB["image_grid_pinpoints"]),
        num_image_tokens=729,
        vision_aspect_ratio="anyres_max_9",
    )
    counter._get_unpadded_features = lambda *sides: LlavaOnevisionProcessor._get_unpadded_features(
        counter, *sides
    )
    worst, resized = 0.0, 0
    for size in sizes:
        own = packing.picture(*size, PUBLISHED)
        assert len(own.index) == LlavaOnevisionProcessor._get_number_of_features(
            counter, *size, 384, 384
        )
        patches = numbers[: own.tiles]
        (row,), lengths = LlavaOnevisionModel.pack_image_features(
            SimpleNamespace(config=CONFIG), [patches], torch.tensor([size]),
            torch.tensor([NEWLINE]), "anyres_max_9",
        )  # fmt: skip
        assert lengths.tolist() == [len(own.index)], size
        worst = max(worst, float(np.abs(tokens(own, patches.numpy()) - row[:, 0].numpy()).max()))
        resized += bool((own.weight[729:, 1:] > 0).any())
    print(f"{len(sizes)} sizes, {resized} of them resized, off by {worst:.1e}")
    assert worst <= 1e-5 and resized > 300


def test_videos_are_pooled_as_transformers_does() -> None:
    numbers = torch.rand(5, 729, 1, generator=torch.Generator().manual_seed(1))
    want = LlavaOnevisionModel.apply_pooling(SimpleNamespace(config=CONFIG), numbers)
    made = tokens(packing.video(5, PUBLISHED), numbers.numpy())
    assert made[-1] == NEWLINE and len(made) == 5 * 196 + 1
    np.testing.assert_allclose(made[:-1], want.reshape(-1).numpy(), atol=1e-6)
