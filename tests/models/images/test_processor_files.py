"""Image processors: those that a model takes, by any name they had, and settings within ranges."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.families.qwen_vl.config import QwenVisionConfig
from resprune_jax.models.families.qwen_vl.images import QwenProcessor
from resprune_jax.models.images.processor_files import load_image_processor, video_settings

CLIP: dict[str, Any] = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "do_center_crop": True,
    "size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, "resample": 3,
    "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 255,
}  # fmt: skip
QWEN = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "merge_size": 2,
        "temporal_patch_size": 2}  # fmt: skip


def write(folder: Path, content: Any, name: str = "preprocessor_config.json") -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


def test_the_settings_are_handed_on(tmp_path: Path) -> None:
    """As transformers itself reads the file; entries that nobody knows change nothing."""
    from transformers import AutoImageProcessor

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
    for change in (
        {},
        {"image_std": None, "do_normalize": False},
        {"do_center_crop": None, "size": {"height": 28, "width": 28}},
        {"image_mean": 0.5},
        {"resample": 2},
        {"do_center_crop": False},
    ):
        write(tmp_path, {**CLIP, **change})
        theirs = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
        write(tmp_path, {**CLIP, **change, "preprocess": 1, "image_grid_pinpoints": [[28, 28]]})
        ours = load_image_processor(tmp_path, ("CLIPImageProcessor",))
        wanted, got = (p(images=[picture], return_tensors="np") for p in (theirs, ours))
        assert np.array_equal(wanted["pixel_values"], got["pixel_values"])


@pytest.mark.parametrize(
    ("given", "accepted", "made"),
    [
        ("CLIPImageProcessor", "CLIPImageProcessor", "CLIP"),
        ("CLIPImageProcessorFast", "CLIPImageProcessor", "CLIP"),
        ("CLIPImageProcessorPil", "CLIPImageProcessor", "CLIP"),
        ("CLIPFeatureExtractor", "CLIPImageProcessor", "CLIP"),
        (None, "CLIPImageProcessor", "CLIP"),
        ("Qwen2_5_VLImageProcessor", "Qwen2VLImageProcessor", "Qwen2VL"),
        ("Qwen2VLImageProcessorFast", "Qwen2VLImageProcessor", "Qwen2VL"),
        ("SiglipImageProcessor", "SiglipImageProcessor", "Siglip"),
    ],
)
def test_names_of_today_and_of_once(
    tmp_path: Path, given: str | None, accepted: str, made: str
) -> None:
    write(tmp_path, {"image_processor_type": given})
    assert type(load_image_processor(tmp_path, (accepted,))).__name__.startswith(made)


@pytest.mark.parametrize("given", ["PixtralImageProcessor", "SiglipImageProcessor", "", "x" * 999])
def test_a_processor_of_another_model_is_named(tmp_path: Path, given: str) -> None:
    write(tmp_path, {"image_processor_type": given or "os.system"})
    with pytest.raises(CallError, match="prepared by CLIPImageProcessor or LlavaImageProcessor: "):
        load_image_processor(tmp_path, ("CLIPImageProcessor", "LlavaImageProcessor"))


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("image_mean", [[0.5], "x", [1, 2, 3, 4], [[0.5]] * 3, float("nan"), True, {}]),
        ("image_std", [None, [0, 0, 0], [1, 1, 0], 0, -1, float("inf"), [[0.5], [0.5], [0.5]]]),
        ("resample", ["bicubic", 99, -1, 1.5, True]),
        ("rescale_factor", ["x", 0, -1, float("inf"), [1]]),
        (
            "size",
            [{"shortest_edge": -1}, {"height": 10**9, "width": 1}, {"a": 1}, "x", 0, [1, 2, 3]],
        ),
        ("crop_size", [{"height": "28", "width": 28}, 2.5, [[1], [2]]]),
        ("do_resize", ["yes", 1, []]),
        ("image_grid_pinpoints", [[], [[28]], [[0, 28]], [[28, 28]] * 257, "x", [[1.0, 2]]]),
        ("patch_size", [0, -14, 10**6, [14]]),
        ("max_pixels", [0, -1, 2**40, "9"]),
    ],
)
def test_settings_out_of_range_are_named(tmp_path: Path, key: str, values: list[Any]) -> None:
    for value in values:
        for nested in (False, True):
            content = {**CLIP, key: value}
            name = "processor_config.json" if nested else "preprocessor_config.json"
            write(tmp_path, {"image_processor": content} if nested else content, name)
            with pytest.raises(RunError, match=rf"^{key} is .* in .*{name}, expected") as caught:
                load_image_processor(tmp_path, ("CLIPImageProcessor",))
            assert len(str(caught.value)) < 400
            (tmp_path / name).unlink()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, (3136, 1003520)),
        ({"max_pixels": 50176}, (3136, 50176)),
        ({"max_pixels": 4000}, (3136, 4000)),
        ({"min_pixels": 700000}, (700000, 1003520)),
        ({"size": {"min_pixels": 4000, "max_pixels": 9000}}, (4000, 9000)),
        ({"size": {"shortest_edge": 4000, "longest_edge": 9000}}, (4000, 9000)),
        ({"size": {"shortest_edge": 4000, "longest_edge": 9000}, "max_pixels": 8000}, (4000, 8000)),
    ],
)
def test_the_areas_of_qwens_pictures(tmp_path: Path, settings: Any, wanted: Any) -> None:
    write(tmp_path, {**QWEN, **settings})
    made = QwenProcessor.from_checkpoint(tmp_path, QwenVisionConfig.from_hf({}))
    assert made.image_limits == wanted
    rows, columns = made.grid(700, 900)[1:]
    assert rows * columns * 14 * 14 <= wanted[1]
    picture = Image.fromarray(np.zeros((350, 450, 3), np.uint8))
    assert made.image(picture).grid == made.grid(350, 450)


def test_settings_of_videos_have_ranges_too(tmp_path: Path) -> None:
    for value in (-1, "x", 2**40, [1]):
        write(tmp_path, {"max_video_tokens": value}, "video_preprocessor_config.json")
        with pytest.raises(RunError, match=r"max_video_tokens is .* expected a whole number"):
            video_settings(tmp_path)
    write(tmp_path, {"max_video_tokens": 99}, "video_preprocessor_config.json")
    assert video_settings(tmp_path) == {"max_video_tokens": 99}
