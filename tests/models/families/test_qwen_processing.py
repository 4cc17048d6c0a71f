"""Pictures and videos to patches: transformers' values, counts, order, and refusals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    smart_resize as reference_resize,
)

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.decoder.mrope import Grid
from resprune_jax.models.families.qwen_vl.images import (
    QwenProcessor,
    VisionInput,
    pack,
    smart_resize,
)
from resprune_jax.models.images.video import Sampling
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig
from resprune_jax.models.towers.qwen_vision.tables import num_tokens

CONFIG = QwenVisionConfig(32, 56, 2, 2, 64)
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711])
SMALL = {"shortest_edge": 4 * 784, "longest_edge": 64 * 784}
HUB = {"shortest_edge": 3136, "longest_edge": 12845056}
LEVELS = Path(__file__).parents[2] / "data" / "qwen_video_levels.npz"


def processor(size: dict[str, int] | None = None, **video: Any) -> QwenProcessor:
    """Ours around transformers' processor."""
    size = SMALL if size is None else size
    return QwenProcessor(Qwen2VLImageProcessorPil(size=size), CONFIG, video={"size": size, **video})


def frames(count: int, height: int, width: int) -> np.ndarray:
    """A video (T, height, width, 3) of moving waves, the one that `LEVELS` was made from."""
    t, y, x, c = np.meshgrid(*map(np.arange, (count, height, width, 3)), indexing="ij")
    waves = 127 + 60 * np.sin(x / 7 + t / 3 + c) + 50 * np.cos(y / 5 - c * t / 4)
    return (waves + (x * y * (c + 1)) % 17).clip(0, 255).astype(np.uint8)


def levels(patches: np.ndarray) -> np.ndarray:
    """Patches as the 8-bit values that they were normalised from."""
    values = patches.reshape(len(patches), 3, -1) * DEVIATION[:, None] + MEAN[:, None]
    return np.rint(255 * values).reshape(-1)


def sizes(count: int, rng_seed: int) -> list[tuple[int, int]]:
    """Random (height, width), long thin ones included, up to 200 to 1."""
    rng = np.random.default_rng(rng_seed)
    out = []
    while len(out) < count:
        height = int(np.exp(rng.uniform(0, np.log(5000))))
        ratio = np.exp(rng.uniform(-np.log(200), np.log(200)) * rng.choice([0.1, 0.5, 1]))
        width = max(1, round(height * ratio))
        if max(height, width) <= 200 * min(height, width) and height * width < 2**27:
            out.append((height, width))
    return out


@pytest.mark.parametrize("size", [HUB, SMALL, {"shortest_edge": 3136, "longest_edge": 1003520}])
def test_token_counts_are_transformers(size: dict[str, int]) -> None:
    reference, ours = Qwen2VLImageProcessorPil(size=size), processor(size)
    tokens, aspect = set(), 0.0
    cases = [
        *sizes(1000, rng_seed=size["longest_edge"]),
        (1, 200),
        (200, 1),
        (14, 2800),
        (28, 28),
        (5, 1000),
    ]
    for height, width in cases:
        grid = ours.grid(height, width)
        assert grid[0] == 1 and grid[1] % 2 == 0 and grid[2] % 2 == 0
        assert np.prod(grid) == reference.get_number_of_image_patches(height, width), (
            height,
            width,
        )
        tokens.add(int(np.prod(grid)) // 4)
        aspect = max(aspect, height / width, width / height)
    print(f"{len(cases)} sizes, {min(tokens)} to {max(tokens)} tokens, aspect ratio up to {aspect}")
    assert aspect == 200


def test_rows_and_columns_of_qwen2_vl_are_transformers() -> None:
    vision = {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "spatial_patch_size": 14}
    config = QwenVisionConfig.plain_from_hf(vision)
    ours = QwenProcessor(Qwen2VLImageProcessorPil(size=HUB), config, video={})
    cases = list(dict.fromkeys(sizes(3000, rng_seed=2)))[:2000]
    for height, width in cases:
        tall, wide = reference_resize(
            height, width, factor=28, min_pixels=3136, max_pixels=12845056
        )
        assert ours.grid(height, width) == (1, tall // 14, wide // 14), (height, width)
        assert num_tokens(ours.grid(height, width), config) == tall * wide // 784
    assert len(cases) == 2000


def test_known_token_counts_of_the_published_processor() -> None:
    ours = processor(HUB)
    known = {(480, 640): 391, (375, 500): 234, (1080, 1920): 2691, (2160, 3840): 10549, (28, 28): 4}
    for (height, width), tokens in known.items():
        assert np.prod(ours.grid(height, width)) == 4 * tokens


def test_pixels_are_transformers(photographs: list[Image.Image]) -> None:
    images = [
        *photographs,
        Image.fromarray(frames(1, 9, 700)[0]),
        Image.fromarray(frames(1, 97, 3)[0]),
    ]
    reference = Qwen2VLImageProcessorPil(size=SMALL)
    made = processor().images(images)
    for image, got in zip(images, made, strict=True):
        want = reference(images=[image], return_tensors="np")
        assert got.grid == tuple(want["image_grid_thw"][0].tolist())
        np.testing.assert_array_equal(got.patches, want["pixel_values"])
        assert got.patches.dtype == np.float32 and got.seconds is None
        tall, wide = smart_resize(
            image.height, image.width, factor=28, min_pixels=4 * 784, max_pixels=64 * 784
        )
        assert got.grid == (1, tall // 14, wide // 14)


def test_patches_lie_in_cells_channels_frames_rows_columns() -> None:
    # 56 x 84 pixels is 2 x 3 cells, which no resizing changes.
    clip = frames(3, 56, 84)
    got = processor().video(clip, fps=4)
    assert got.grid == (2, 4, 6) and got.seconds == 0.5
    values = ((clip / 255 - MEAN) / DEVIATION).astype(np.float32)
    patches = got.patches.reshape(2, 2, 3, 2, 2, 3, 2, 14, 14)
    for group, top, left, row, column, c, frame in np.ndindex(patches.shape[:7]):
        at = min(2 * group + frame, 2)  # the third frame fills the second group
        y, x = 28 * top + 14 * row, 28 * left + 14 * column
        own = values[at, y : y + 14, x : x + 14, c]
        np.testing.assert_allclose(patches[group, top, left, row, column, c, frame], own, atol=1e-6)
    print(f"{patches.size} values")


VIDEOS: dict[str, tuple[tuple[int, int, int], float | None, Sampling | None, dict[str, Any]]] = {
    "odd": ((5, 60, 90), None, None, {}),
    "large": ((4, 300, 200), None, None, {}),
    "sampled": ((23, 64, 50), 25.0, Sampling(fps=2.0), {}),
    "counted": ((13, 64, 50), 12.0, Sampling(num_frames=6), {}),
    "capped": (
        (6, 300, 200), None, None, {"cap_pixels_per_frame": True, "max_video_tokens": 800},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_transformers(name: str) -> None:
    """Against values that its Qwen2-VL video processor (torchvision 0.28) gave for these frames."""
    shape, fps, sampling, settings = VIDEOS[name]
    got = processor(**settings).video(frames(*shape), fps=fps, sampling=sampling)
    with np.load(LEVELS) as kept:
        assert list(got.grid) == kept[f"{name}_grid"].tolist()
        assert got.seconds == pytest.approx(float(kept[f"{name}_seconds"]), abs=1e-12)
        apart = np.abs(levels(got.patches)[kept[f"{name}_at"]] - kept[f"{name}_level"])
    print(f"{name}: {len(apart)} values, {np.mean(apart > 0):.1%} differ, by {apart.max()} at most")
    # torchvision's resizing rounds elsewhere; a frame out of place would be tens of levels away.
    assert apart.max() <= 2 and apart.mean() < 0.25


@pytest.mark.parametrize("off", [False, None])
def test_a_processor_that_leaves_pictures_at_their_sizes_is_refused(off: bool | None) -> None:
    with pytest.raises(CallError, match=f"do_resize {off}, but this model's pictures are resized"):
        QwenProcessor(Qwen2VLImageProcessorPil(size=SMALL, do_resize=off), CONFIG)


def test_a_video_that_no_context_holds_is_refused_early() -> None:
    # 40 frames of 300 x 200 pixels are 20 groups of 54 tokens.
    clip, settings = frames(40, 300, 200), {"max_video_tokens": 1000}
    with pytest.raises(CallError, match="40 frames of the video array give 1080 visual tokens"):
        processor(**settings).video(clip, fps=10)
    fewer = processor(**settings).video(clip, fps=10, sampling=Sampling(num_frames=36))
    capped = processor(**settings).video(clip, fps=10, cap_pixels=True)
    tokens = [int(np.prod(each.grid)) // 4 for each in (fewer, capped)]
    print(f"{tokens} tokens of at most 1000")
    assert tokens[0] == 972 and 800 <= tokens[1] <= 900


def test_packing_fills_behind_with_zeros(photographs: list[Image.Image]) -> None:
    inputs = processor().images(photographs[:3])
    patches, tables = pack(inputs, CONFIG, rows=[[0, 1], [2]])
    real = np.concatenate([each.patches for each in inputs])
    np.testing.assert_array_equal(patches[: len(real)], real)
    assert (patches[len(real) :] == 0).all() and len(patches) == len(tables.segments) > len(real)
    assert inputs[0].cells(CONFIG) == Grid(1, inputs[0].grid[1] // 2, inputs[0].grid[2] // 2)
    assert VisionInput(real, (3, 4, 6), 0.5).cells(CONFIG) == Grid(3, 2, 3, 0.5)


def write(folder: Path, files: dict[str, Any]) -> Path:
    """A folder with these JSON files."""
    for name, content in files.items():
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


PREPROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056,
    "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
}  # fmt: skip


def test_settings_come_from_the_newest_file(tmp_path: Path) -> None:
    folder = write(tmp_path, {"preprocessor_config.json": PREPROCESSOR})
    ours = QwenProcessor.from_checkpoint(folder, CONFIG)
    # As published: one file for both.
    assert ours.image_limits == ours.video_limits == (3136, 12845056) and not ours.cap_pixels
    write(folder, {"video_preprocessor_config.json": {"size": SMALL, "cap_pixels_per_frame": True}})
    ours = QwenProcessor.from_checkpoint(folder, CONFIG)
    assert ours.video_limits == (3136, 50176) and ours.cap_pixels
    assert ours.image_limits == (3136, 12845056)
    write(folder, {"processor_config.json": {"video_processor": {"max_pixels": 156800}}})
    assert QwenProcessor.from_checkpoint(folder, CONFIG).video_limits == (128 * 784, 156800)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"neither preprocessor_config.json nor"):
        QwenProcessor.from_checkpoint(tmp_path, CONFIG)
    write(tmp_path, {"preprocessor_config.json": {**PREPROCESSOR, "patch_size": 16}})
    with pytest.raises(CallError, match=r"\(16, 2, 2\), but the vision tower takes \(14, 2, 2\)"):
        QwenProcessor.from_checkpoint(tmp_path, CONFIG)
    write(tmp_path, {"preprocessor_config.json": "{"})
    with pytest.raises(RunError, match="not readable JSON"):
        QwenProcessor.from_checkpoint(tmp_path, CONFIG)
    with pytest.raises(CallError, match="smallest area 784 and largest area 28"):
        processor({"shortest_edge": 784, "longest_edge": 28})


def test_pictures_that_are_refused(tmp_path: Path) -> None:
    ours = processor()
    long = Image.new("RGB", (603, 3))
    with pytest.raises(CallError, match=r"603 x 3 pixels, longer than 200 to 1"):
        ours.image(long)
    with pytest.raises(CallError, match="longer than 200 to 1"):
        ours.grid(1, 201)
    with pytest.raises(CallError, match="longer than 200 to 1"):
        ours.video(np.zeros((2, 1, 201, 3), np.uint8), fps=2)
    with pytest.raises(CallError, match="put a single one in a list"):
        ours.images(long)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="no image was given"):
        ours.images([])
    with pytest.raises(CallError, match="does not exist"):
        ours.image(tmp_path / "none.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG....")
    with pytest.raises(RunError, match="not an image"):
        ours.image(tmp_path / "broken.png")
