"""Tiles equal those of transformers' LLaVA-NeXT processor bit for bit; stacking; refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.families.llava_next.images import NextProcessor, TiledImage, stack_tiles
from resprune_jax.models.images.files import ImageLike
from tests.models.families.test_anyres import PUBLISHED, TINY

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)

# (width, height): every pinpoint, larger and smaller than the tiles, sides of 1 pixel, sizes that
# look like channels.
SIZES = [
    *[(112, 56), (56, 112), (112, 112), (56, 168), (168, 56), (56, 56), (300, 200), (33, 77)],
    *[(1, 1), (3, 3), (3, 4), (1, 300), (300, 1), (3, 500), (500, 4), (20, 4000)],
]


def settings(side: int, pins: Any) -> dict[str, Any]:
    """The settings of a published checkpoint, for tiles of any side."""
    return {
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "image_grid_pinpoints": [list(pin) for pin in pins],
    }


SMALL = settings(56, TINY.image_grid_pinpoints)


def noise(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def save(folder: Path, **content: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return folder


def small() -> NextProcessor:
    return NextProcessor(LlavaNextImageProcessorPil(**SMALL), TINY)


def test_tiles_are_those_of_transformers(tmp_path: Path) -> None:
    """From the file of a published checkpoint, in the real size and in a small one."""
    decided = 0
    for side, config, sizes in [
        (56, TINY, SIZES),
        (336, PUBLISHED, [(640, 480), (300, 1000), (1, 1)]),
    ]:
        own = settings(side, config.image_grid_pinpoints)
        folder = save(tmp_path / str(side), image_processor_type="LlavaNextImageProcessor", **own)
        ours = NextProcessor.from_checkpoint(folder, config)
        theirs = LlavaNextImageProcessorPil(**own)
        for size in sizes:
            image = noise(*size)
            got = ours.image(image)
            wanted = theirs(images=[image], return_tensors="np")
            assert got.size == tuple(wanted["image_sizes"][0])
            assert got.tiles.dtype == np.float32
            assert (got.tiles == wanted["pixel_values"][0]).all(), size
            decided += got.tiles.size
    print(f"{decided} values equal bit for bit")


def test_tiles_hold_the_picture_in_the_right_places() -> None:
    """Without the reference: four quarters in four colours, black above and below."""
    colours = np.array([[200, 30, 60], [20, 180, 90], [40, 70, 220], [240, 240, 10]], np.uint8)
    quarters = np.repeat(np.repeat(colours.reshape(2, 2, 3), 45, axis=0), 60, axis=1)
    tiles = small().image(quarters).tiles  # 90 x 120 becomes 84 x 112 in a plane of 112 x 112
    levels = np.rint(255 * (tiles.transpose(0, 2, 3, 1) * DEVIATION + MEAN)).astype(int)
    assert len(levels) == 5
    plane = levels[1:].reshape(2, 2, 56, 56, 3).swapaxes(1, 2).reshape(112, 112, 3)
    assert (plane[:14] == 0).all() and (plane[98:] == 0).all()
    for row, column in np.ndindex(2, 2):
        colour = colours[2 * row + column]
        assert (
            plane[14 + 42 * row : 14 + 42 * (row + 1), 56 * column :][4:-4, 4:50] == colour
        ).all()
        base = levels[0, 28 * row : 28 * (row + 1), 28 * column : 28 * (column + 1)]
        assert (base[3:-3, 3:-3] == colour).all()


def test_pictures_of_every_kind_are_stacked(tmp_path: Path) -> None:
    """Paths, images and arrays of several sizes, in rows of one and of several."""
    ours = small()
    noise(40, 30).save(tmp_path / "a.png")
    images: list[ImageLike] = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        noise(200, 37),
        np.asarray(noise(120, 90)),
        np.asarray(noise(56, 80))[..., 0],
    ]
    read = ours.images(images)
    assert (read[0].tiles == read[1].tiles).all()
    assert [len(image.tiles) for image in read] == [3, 3, 4, 5, 3]
    assert [ours.num_tokens(image.size) for image in read] == [44, 44, 42, 70, 46]

    pixels, tables = stack_tiles(read, TINY, batch=8)
    assert pixels.shape == (8, 5, 3, 56, 56) and tables.index.shape == (8, 96)
    assert (np.asarray(tables.valid).sum(axis=1) == [44, 44, 42, 70, 46, 44, 44, 44]).all()
    for row, image in enumerate([*read, read[0], read[0], read[0]]):
        count = len(image.tiles)
        assert (pixels[row, :count] == image.tiles).all() and (pixels[row, count:] == 0).all()
        assert (np.asarray(tables.tile_valid)[row] == (np.arange(5) < count)).all()

    pixels, tables = stack_tiles(read, TINY, rows=[[2, 4], [0]])
    assert pixels.shape == (2, 8, 3, 56, 56) and tables.index.shape == (2, 256)
    assert (pixels[0, :4] == read[2].tiles).all() and (pixels[0, 4:7] == read[4].tiles).all()
    assert (np.asarray(tables.valid).sum(axis=1) == [88, 44]).all()


def test_a_turned_photograph_has_the_size_that_it_is_seen_at(tmp_path: Path) -> None:
    image = noise(168, 56)
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    image.save(tmp_path / "turned.png", exif=exif)
    got = small().image(tmp_path / "turned.png")
    assert got.size == (168, 56)
    upright = small().image(image.transpose(Image.Transpose.ROTATE_270))
    assert (got.tiles == upright.tiles).all()


def test_wrong_calls_are_refused() -> None:
    ours = small()
    with pytest.raises(CallError, match="put a single one in a list"):
        ours.images(noise(5, 5))  # type: ignore[arg-type]
    with pytest.raises(CallError, match="no image was given"):
        ours.images([])
    with pytest.raises(CallError, match="does not exist"):
        ours.image("nowhere.png")
    one = TiledImage(np.zeros((3, 3, 56, 56), np.float32), (56, 56))
    for rows in ([[1]], [[-1]], [[0], []]):
        with pytest.raises(CallError, match="by their number below 1"):
            stack_tiles([one], TINY, rows=rows)
    with pytest.raises(CallError, match="no image was given"):
        stack_tiles([], TINY)
    with pytest.raises(CallError, match="2 tiles are too few"):
        stack_tiles([one], TINY, tiles=2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_grid_pinpoints": [[56, 112]]}, "are not those of config.json"),
        ({"image_grid_pinpoints": SMALL["image_grid_pinpoints"][::-1]}, "are not those"),
        ({"image_grid_pinpoints": None}, "are not those of config.json"),
        ({"do_resize": False}, "do_resize False, but"),
        ({"size": {"shortest_edge": 28}}, "do not give the 56 x 56 pixels"),
        ({"crop_size": {"height": 28, "width": 28}}, "do not give the 56 x 56 pixels"),
        ({"size": {"height": 56, "width": 28}}, "do not give the 56 x 56 pixels"),
    ],
)
def test_a_processor_that_does_not_fit_the_model_is_refused(change: Any, said: str) -> None:
    with pytest.raises(CallError, match=said):
        NextProcessor(LlavaNextImageProcessorPil(**{**SMALL, **change}), TINY)


def test_folders_without_a_fitting_processor_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"neither preprocessor_config\.json nor"):
        NextProcessor.from_checkpoint(tmp_path, TINY)
    square = {"height": 56, "width": 56}
    with pytest.raises(CallError, match="CLIPImageProcessorPil, which makes no tiles"):
        NextProcessor(CLIPImageProcessorPil(size=square, crop_size=square), TINY)
    (tmp_path / "preprocessor_config.json").write_text("{broken")
    with pytest.raises(RunError, match="not readable JSON"):
        NextProcessor.from_checkpoint(tmp_path, TINY)
    # Sizes as a square instead of an edge, and no crop at all, give the same tiles.
    plain = LlavaNextImageProcessorPil(**{**SMALL, "size": square, "do_center_crop": False})
    image = noise(90, 70)
    assert (NextProcessor(plain, TINY).image(image).tiles == small().image(image).tiles).all()
