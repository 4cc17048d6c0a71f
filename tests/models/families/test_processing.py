"""Pixels equal those of transformers' processors bit for bit, within stated limits."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from resprune_jax.errors import CallError, ResPruneError, RunError
from resprune_jax.models.families.llava.images import (
    MAX_RESIZED_PIXELS,
    ImageProcessor,
    pad_and_resize,
)
from resprune_jax.models.images.files import ImageLike

SIDE = 28


def published(side: int) -> dict[str, Any]:
    """The settings of a published LLaVA-1.5 checkpoint, for pictures of any side."""
    return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}


SETTINGS = published(SIDE)
# (width, height): square, wide, tall, smaller than the result, extreme, and sizes that look like
# channels.
SIZES = [
    *[(28, 28), (64, 48), (48, 64), (37, 500), (500, 37), (200, 199), (1, 1), (3, 3), (3, 4)],
    *[(4, 3), (1, 250), (250, 1), (3, 300)],
]


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(folder: Path, **settings: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_processor_is_that_of_transformers(tmp_path: Path) -> None:
    """From the file of a published checkpoint, in the real size and in a small one."""
    decided = 0
    for side in (SIDE, 336):
        settings = published(side)
        folder = save(tmp_path / str(side), image_processor_type="CLIPImageProcessor", **settings)
        ours, theirs = (
            ImageProcessor.from_checkpoint(folder, side),
            CLIPImageProcessorPil(**settings),
        )
        for size in SIZES if side == SIDE else [(640, 480), (300, 500), (1, 1)]:
            image = noise(*size)
            got = ours([image])
            wanted = theirs(images=[image], return_tensors="np")["pixel_values"]
            assert got.dtype == wanted.dtype == np.float32 and got.shape == (1, 3, side, side)
            assert (got == wanted).all(), size
            decided += got.size
    print(f"{decided} values equal bit for bit")


def test_pad_is_the_original_pipeline(tmp_path: Path) -> None:
    """LLaVA's own class pads a whole square with the mean colour, then resizes it."""
    decided = 0
    for side, sizes in [(SIDE, [*SIZES, (3000, 7), (7, 3000)]), (336, [(640, 480), (300, 500)])]:
        settings = published(side)
        theirs = LlavaImageProcessorPil(do_pad=True, **settings)
        ours = ImageProcessor(CLIPImageProcessorPil(**settings), side)
        assert ours.mean_colour == (122, 116, 104)
        # A checkpoint that pads by itself does so under the name "processor" too.
        itself = ImageProcessor(theirs, side)
        for size in sizes:
            image = noise(*size)
            wanted = theirs(images=[image], return_tensors="np")["pixel_values"]
            assert (ours([image], image_aspect="pad") == wanted).all(), size
            assert (itself([image]) == wanted).all(), size
            decided += wanted.size
    print(f"{decided} values equal bit for bit")


@pytest.mark.parametrize("resample", list(Image.Resampling))
def test_strips_equal_the_whole_square(
    resample: Image.Resampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding in strips of one, a few and all rows, for every filter."""
    for pixels in (1, 500, 2**21):
        monkeypatch.setattr("resprune_jax.models.families.llava.images._STRIP_PIXELS", pixels)
        for width, height in [(90, 41), (41, 90), (50, 50), (2, 95)]:
            image, colour = noise(width, height), (12, 200, 99)
            long = max(width, height)
            square = Image.new("RGB", (long, long), colour)
            square.paste(image, ((long - width) // 2, (long - height) // 2))
            wanted = np.asarray(square.resize((SIDE, SIDE), resample))
            got = np.asarray(pad_and_resize(image, SIDE, colour, resample))
            assert (got == wanted).all(), (pixels, width, height)


def test_a_batch_of_every_kind(tmp_path: Path) -> None:
    """Paths, images and arrays of several sizes in one call, each as if alone."""
    ours = ImageProcessor(CLIPImageProcessorPil(**SETTINGS), SIDE)
    noise(40, 30).save(tmp_path / "a.png")
    images: list[ImageLike] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        noise(31, 60),
        np.asarray(noise(64, 64)),
        np.asarray(noise(20, 30))[..., 0],
    ]
    for aspect in ("processor", "pad"):
        got = ours(images, aspect)
        assert got.shape == (5, 3, SIDE, SIDE)
        assert (got == np.concatenate([ours([image], aspect) for image in images])).all()
        assert (got[0] == got[1]).all() and (got[0] != got[2]).any()


def test_a_long_thin_picture() -> None:
    """Refused by the stated limit where it would be resized whole, and padded otherwise."""
    ours = ImageProcessor(CLIPImageProcessorPil(**published(336)), 336)
    for size in [(10_000, 10), (10, 10_000), (1, 298)]:
        image = Image.new("RGB", size, "red")
        assert 336 * 336 * max(size) // min(size) > MAX_RESIZED_PIXELS
        with pytest.raises(CallError, match=r'would be resized to .* image_aspect="pad"'):
            ours([image])
        pixels = ours([image], "pad")
        assert pixels.shape == (1, 3, 336, 336) and np.isfinite(pixels).all()


def test_wrong_calls(tmp_path: Path) -> None:
    ours = ImageProcessor(CLIPImageProcessorPil(**SETTINGS), SIDE)
    with pytest.raises(CallError, match="no image was given"):
        ours([])
    with pytest.raises(CallError, match='"processor" or "pad", got \'square\''):
        ours([noise(9, 9)], "square")  # type: ignore[arg-type]
    for single in ("a.png", tmp_path, noise(9, 9), np.zeros((9, 9), np.uint8)):
        with pytest.raises(CallError, match="put a single one in a list"):
            ours(single)  # type: ignore[arg-type]
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(RunError, match=r"b\.png' is empty"):
        ours([noise(9, 9), tmp_path / "b.png"])


@pytest.mark.parametrize(
    "settings",
    [
        published(336),
        {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": 14}},
        {"size": {"shortest_edge": SIDE}, "do_center_crop": False},
        {"size": {"height": 30, "width": 30}, "do_center_crop": False},
        {"size": {"shortest_edge": SIDE, "longest_edge": 99}, "crop_size": SETTINGS["crop_size"]},
        {"do_resize": False, "crop_size": SETTINGS["crop_size"]},
        {
            "size": {"shortest_edge": 30},
            "crop_size": SETTINGS["crop_size"],
            "image_processor_type": "LlavaImageProcessor",
            "do_pad": True,
        },
    ],
)
def test_settings_of_another_size(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = save(tmp_path, **{"image_processor_type": "CLIPImageProcessor", **settings})
    with pytest.raises(CallError, match="do not give the 28 x 28 pixels"):
        ImageProcessor.from_checkpoint(folder, SIDE)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        {"size": {"shortest_edge": 32}, "crop_size": SETTINGS["crop_size"]},
        {"size": {"height": 30, "width": 40}, "crop_size": SETTINGS["crop_size"]},
        {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
        {**SETTINGS, "resample": 2, "image_mean": [0, 0.5, 1], "image_std": [1, 2, 3]},
        {**SETTINGS, "do_normalize": False},
        {"size": SIDE, "crop_size": SIDE},  # as old files spell it
    ],
)
def test_settings_of_the_right_size(tmp_path: Path, settings: dict[str, Any]) -> None:
    folder = save(tmp_path, **{"image_processor_type": "CLIPImageProcessor", **settings})
    ours, image = ImageProcessor.from_checkpoint(folder, SIDE), noise(50, 40)
    wanted = CLIPImageProcessorPil(**settings)(images=[image], return_tensors="np")["pixel_values"]
    assert (ours([image]) == wanted).all()
    assert ours([image], "pad").shape == (1, 3, SIDE, SIDE)


def test_folders_that_do_not_work(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"has neither preprocessor_config\.json nor processor_con"):
        ImageProcessor.from_checkpoint(tmp_path, SIDE)
    for content, said in {
        "{": "not readable JSON",
        "[]": "holds no JSON object",
        '{"image_processor_type": "NoSuchProcessor"}': "'NoSuchProcessor', but this model's",
        '{"image_processor_type": ["a"]}': "expected a name",
    }.items():
        (tmp_path / "preprocessor_config.json").write_text(content)
        with pytest.raises(ResPruneError, match=said) as caught:
            ImageProcessor.from_checkpoint(tmp_path, SIDE)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_that_transformers_saved(
    checkpoint: Path, photographs: list[Image.Image]
) -> None:
    """The settings nested in processor_config.json, against the whole LLaVA processor."""
    from transformers import LlavaProcessor

    from tests.checkpoints.llava import IMAGE_SIZE

    assert not (checkpoint / "preprocessor_config.json").exists()
    theirs = LlavaProcessor.from_pretrained(checkpoint)
    wanted = theirs(images=photographs, text=["<image>"] * len(photographs), return_tensors="np")
    got = ImageProcessor.from_checkpoint(checkpoint, IMAGE_SIZE)(photographs)
    assert (got == wanted["pixel_values"]).all()
