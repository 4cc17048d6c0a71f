"""Where tokens lie on the page's pictures, against what each family's own processor shows them.

The picture given is one of coordinates: the mean colour of a patch says where its middle lies. What
a token sees is read from the pixels that enter the tower; what the page shows, from its picture.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from resprune_jax.errors import CallError
from resprune_jax.experiments.explore import places
from resprune_jax.models.families.base import Family, Video
from resprune_jax.models.families.llava.family import LlavaFamily
from resprune_jax.models.families.llava.images import ImageProcessor
from resprune_jax.models.families.llava_next.anyres import packing
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.llava_next.family import NextFamily
from resprune_jax.models.families.llava_next.images import NextProcessor
from resprune_jax.models.families.onevision import packing as onevision
from resprune_jax.models.families.onevision.family import OneVisionFamily
from resprune_jax.models.families.onevision.images import OneVisionProcessor
from resprune_jax.models.families.qwen_vl.family import QwenFamily
from resprune_jax.models.families.qwen_vl.images import QwenProcessor
from resprune_jax.models.families.registry import read_model_config
from tests.core.families import CONFIGS
from tests.experiments.explore.pages import coordinates, pixels_of
from tests.models.families.test_onevision_tiles import TINY

SIDE, PATCH = 112, 14
SIZES = [(160, 120), (120, 160), (112, 112), (220, 60), (90, 200)]
Seen = Callable[[Image.Image], np.ndarray]
"""The mean colours (N, 3) that the tokens of a picture see; NaN for newlines."""
PLAIN: dict[str, Any] = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}


def patches(tile: np.ndarray, patch: int = PATCH) -> np.ndarray:
    """The mean colours of a square's patches (3, S, S), patch by patch in raster order."""
    count = tile.shape[1] // patch
    return np.array([
        tile[:, r * patch : (r + 1) * patch, c * patch : (c + 1) * patch].mean(axis=(1, 2))
        for r in range(count) for c in range(count)
    ])  # fmt: skip


def llava(aspect: str) -> tuple[Family, Seen]:
    squeezed = aspect == "squeeze"
    square = {"height": SIDE, "width": SIDE}
    made: Any = (
        SiglipImageProcessorPil(size=square, **PLAIN)
        if squeezed
        else CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square, **PLAIN)
    )
    family = LlavaFamily.__new__(LlavaFamily)
    grid = SIDE // PATCH
    vision = SimpleNamespace(grid=grid, image_size=SIDE, patch_size=PATCH)
    family.config = SimpleNamespace(vision=vision, num_visual_tokens=grid**2)
    family.processor = ImageProcessor(made, SIDE)
    way: Any = "pad" if aspect == "pad" else "processor"
    return family, lambda image: patches(family.processor([image], way)[0])


def next_family() -> tuple[Family, Seen]:
    hf = {**CONFIGS["llava_next"], "image_grid_pinpoints": [[112, 224], [224, 112], [224, 224]]}
    hf["vision_config"] = {**hf["vision_config"], "image_size": SIDE}
    config = read_model_config(hf)
    assert isinstance(config, LlavaNextConfig)
    square = {"height": SIDE, "width": SIDE}
    made: Any = LlavaNextImageProcessorPil(
        image_grid_pinpoints=hf["image_grid_pinpoints"], size={"shortest_edge": SIDE},
        crop_size=square, **PLAIN,
    )  # fmt: skip
    family = NextFamily.__new__(NextFamily)
    family.config, family.processor = config, NextProcessor(made, config)

    def seen(image: Image.Image) -> np.ndarray:
        means = np.concatenate([patches(tile) for tile in family.processor.image(image).tiles])
        own = packing(image.height, image.width, config)
        return np.array([means[at] if at >= 0 else [np.nan] * 3 for at in own.index])

    return family, seen


def onevision_family() -> tuple[Family, Seen]:
    side = TINY.vision.image_size
    made: Any = LlavaOnevisionImageProcessorPil(
        image_grid_pinpoints=[list(pin) for pin in TINY.image_grid_pinpoints],
        size={"height": side, "width": side}, **PLAIN,
    )  # fmt: skip
    family = OneVisionFamily.__new__(OneVisionFamily)
    family.config, family.processor = TINY, OneVisionProcessor(made, TINY)

    def seen(image: Image.Image) -> np.ndarray:
        tiles, size = family.processor.alone(image)
        means = np.concatenate([patches(tile) for tile in tiles])
        own = onevision.picture(*size, TINY)
        return np.array([
            sum(w * means[at] for at, w in zip(taps, weights, strict=True))
            if weights.any() else [np.nan] * 3
            for taps, weights in zip(own.index, own.weight, strict=True)
        ])  # fmt: skip

    return family, seen


def qwen() -> tuple[Family, Seen]:
    config: Any = read_model_config(CONFIGS["qwen2_5_vl"])
    areas = {"shortest_edge": 4 * 784, "longest_edge": 48 * 784}
    family = QwenFamily.__new__(QwenFamily)
    processor = Qwen2VLImageProcessorPil(size=areas, **PLAIN)
    family.config, family.processor = config, QwenProcessor(processor, config.vision)

    def seen(image: Image.Image) -> np.ndarray:
        rows = family.processor.image(image).patches
        colours = rows.reshape(len(rows), 3, -1).mean(axis=2)
        return np.array([colours[at : at + 4].mean(axis=0) for at in range(0, len(rows), 4)])

    return family, seen


FAMILIES: dict[str, Callable[[], tuple[Family, Seen]]] = {
    "crop": lambda: llava("crop"), "pad": lambda: llava("pad"),
    "squeeze": lambda: llava("squeeze"), "next": next_family, "onevision": onevision_family,
    "qwen": qwen,
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_lies_where_its_patch_was_taken(name: str, size: tuple[int, int]) -> None:
    family, seen = FAMILIES[name]()
    image = coordinates(*size)
    aspect: Any = "pad" if name == "pad" else "processor"
    pictures, views, total = places.views_of(family, [image], image_aspect=aspect)
    colours = 255 * seen(image)
    assert len(colours) == total
    placed = [token for view in views for token in view.tokens]
    assert sorted(placed) == np.flatnonzero(~np.isnan(colours[:, 0])).tolist()
    checked = 0
    for view in views:
        shown = pixels_of(pictures[view.picture]).astype(float)
        height, width = shown.shape[:2]
        assert (width, height) == (pictures[view.picture].width, pictures[view.picture].height)
        for token, cell in zip(view.tokens, view.cells, strict=True):
            row, column = divmod(cell, view.columns)
            top, bottom = (round(at * height / view.rows) for at in (row, row + 1))
            left, right = (round(at * width / view.columns) for at in (column, column + 1))
            mean = shown[top:bottom, left:right].mean(axis=(0, 1))
            if min(colours[token, 2], mean[2]) < 245:
                continue  # padding is in it, in whole or in part
            # Half a cell, of a picture whose sides are 255 levels long.
            bound = 0.5 * 255 * np.array([right - left, bottom - top]) / (width, height)
            assert (abs(mean - colours[token])[:2] <= bound + 3).all(), (view.name, token, cell)
            checked += 1
    assert checked >= {"pad": 0.2, "onevision": 0.45}.get(name, 0.8) * len(placed)


def test_every_picture_of_a_prompt_has_its_own_tokens() -> None:
    family, seen = qwen()
    images = [coordinates(*size) for size in SIZES[:3]]
    pictures, views, total = places.views_of(family, images)
    assert [view.name for view in views] == ["image 1", "image 2", "image 3"]
    assert [view.picture for view in views] == [0, 1, 2] and len(pictures) == 3
    numbers = [token for view in views for token in view.tokens]
    assert numbers == list(range(total)) and total == sum(len(seen(image)) for image in images)


def test_tiles_lie_on_the_same_picture_as_the_whole() -> None:
    family, _ = next_family()
    pictures, views, _ = places.views_of(family, [coordinates(160, 120)])
    assert len(pictures) == 1 and [view.name for view in views] == ["whole", "tiles"]


def test_a_video_is_refused() -> None:
    family, _ = qwen()
    with pytest.raises(CallError, match="images, not videos"):
        places.views_of(family, [Video(np.zeros((2, 56, 56, 3), np.uint8))])


def test_pictures_fit_their_share() -> None:
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (525, 900, 3), np.uint8))
    sizes = []
    for most in (10**9, 200_000, 60_000, 20_000):
        made = places.embedded(noise, most)
        assert len(made.src) <= most and abs(made.width / made.height - 12 / 7) < 0.03
        sizes.append(made.width)
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == places.SIDES[0]
    assert places.embedded(noise, 1).width == places.SIDES[-1]  # no further
    flat = places.embedded(Image.new("RGB", (168, 168), "red"), 10**9)
    assert flat.src.startswith("data:image/png") and (flat.width, flat.height) == (168, 168)
    assert places.embedded(noise, 10**9).src.startswith("data:image/jpeg")
