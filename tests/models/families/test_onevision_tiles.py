"""LLaVA-OneVision's configuration, packing and processing; what needs torch is in tests/parity."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import (
    LlavaOnevisionImageProcessorPil,
)

from resprune_jax.errors import CallError
from resprune_jax.methods.base import NEWLINE, PATCH
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.base import Video
from resprune_jax.models.families.onevision import packing
from resprune_jax.models.families.onevision.config import DEFAULT_PINPOINTS, OneVisionConfig
from resprune_jax.models.families.onevision.family import OneVisionFamily
from resprune_jax.models.families.onevision.images import MAX_VIDEO_TOKENS, OneVisionProcessor
from resprune_jax.models.images.video import Sampling
from resprune_jax.models.towers.config import SiglipConfig

# Shaped like the published llava-onevision-qwen2-7b-ov file.
HUB: dict[str, Any] = {
    "model_type": "llava_onevision",
    "image_grid_pinpoints": [list(pin) for pin in DEFAULT_PINPOINTS],
    "image_token_index": 151646,
    "video_token_index": 151647,
    "projector_hidden_act": "gelu",
    "text_config": {"model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944,
                    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
                    "rope_theta": 1000000.0, "use_sliding_window": False, "vocab_size": 152000},
    "vision_aspect_ratio": "anyres_max_9",
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 384,
                      "intermediate_size": 4304, "num_attention_heads": 16,
                      "num_hidden_layers": 26, "patch_size": 14, "vision_use_head": False},
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}  # fmt: skip
PUBLISHED = OneVisionConfig.from_hf(HUB)

SIDE = 44
TINY = OneVisionConfig(
    SiglipConfig(32, 48, 2, 2, SIDE, 14),
    DecoderConfig(31, 16, 24, 1, 2, 2, 8),
    2,
    image_grid_pinpoints=tuple((SIDE * h, SIDE * w) for h in (1, 2, 3) for w in (1, 2, 3)),
    max_tiles=4,
)
PINPOINTS = [list(pin) for pin in TINY.image_grid_pinpoints]


def test_the_published_file_and_a_silent_one() -> None:
    assert PUBLISHED.vision == SiglipConfig(1152, 4304, 26, 16, 384, 14, use_head=False)
    assert (PUBLISHED.patches_per_tile, PUBLISHED.pooled, PUBLISHED.max_tiles) == (729, 14, 9)
    assert PUBLISHED.num_vision_blocks == 26 and PUBLISHED.text.qkv_bias
    text = {key: value for key, value in HUB["text_config"].items() if key != "model_type"}
    assert OneVisionConfig.from_hf({"text_config": text}) == PUBLISHED
    tied = {**HUB, "text_config": {**HUB["text_config"], "tie_word_embeddings": True}}
    assert OneVisionConfig.from_hf(tied).tie_word_embeddings
    assert OneVisionConfig.from_hf({**HUB, "vision_aspect_ratio": "anyres_max_12"}).max_tiles == 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *[({"vision_aspect_ratio": value}, r"vision_aspect_ratio .*'anyres_max_N'")
          for value in ("pad", "anyres", "anyres_max_", "anyres_max_0", "square", 9, None)],
        ({"vision_feature_select_strategy": "default"}, "'default'.*'full'"),
        ({"vision_config": {"model_type": "clip_vision_model"}}, "clip.*siglip"),
        ({"text_config": {"model_type": "gemma"}}, "gemma"),
        ({"image_grid_pinpoints": [[384, 400]]}, "384 x 400"),
        ({"vision_feature_layer": -30}, "-30"),
        ({"model_type": "llava_next"}, "llava_next"),
        ({"image_token_index": -1}, "image_token_index is -1, expected at least 0"),
        ({"video_token_index": 2**40}, "video_token_index is 1099511627776"),
        ({"vision_config": {"model_type": "siglip_vision_model", "num_channels": 5}}, "channels 5"),
    ],
)  # fmt: skip
def test_refused_settings_are_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(CallError, match=words) as caught:
        OneVisionConfig.from_hf({**HUB, **change})
    assert "\n" not in str(caught.value)


def resized(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear resizing of (h, w) values, place by place: the definition."""
    height, width = values.shape
    out = np.zeros((rows, columns))
    for row in range(rows):
        for column in range(columns):
            y = max((row + 0.5) * height / rows - 0.5, 0)
            x = max((column + 0.5) * width / columns - 0.5, 0)
            for dy in (0, 1):
                for dx in (0, 1):
                    share = abs(1 - dy - y % 1) * abs(1 - dx - x % 1)
                    at = min(int(y) + dy, height - 1), min(int(x) + dx, width - 1)
                    out[row, column] += share * values[at]
    return out


def tokens_of(own: packing.Packed, patches: np.ndarray) -> np.ndarray:
    """Visual tokens from patches by number; newlines are 0."""
    return (own.weight * patches.reshape(-1)[own.index]).sum(axis=-1)


@pytest.mark.parametrize("size", [(132, 132), (130, 90), (100, 132), (60, 60), (44, 300)])
def test_a_plane_is_what_resizing_gives(size: tuple[int, int]) -> None:
    own = packing.picture(*size, TINY)
    patches = np.random.default_rng(0).normal(size=(own.tiles, 3, 3))
    pin = packing.best_pinpoint(*size, TINY)
    rows, columns, top, left = packing.kept_patches(*size, pin, TINY)
    across = pin[1] // SIDE
    plane = patches[1:].reshape(-1, across, 3, 3).swapaxes(1, 2).reshape(pin[0] // SIDE * 3, -1)
    covered = plane[top : top + rows, left : left + columns]
    made = tokens_of(own, patches)
    np.testing.assert_array_equal(made[:9], patches[0].ravel())
    if rows * columns > 1.21 * 36:
        assert own.grid[0] < rows and own.grid[0] * own.grid[1] <= 36
    else:
        assert own.grid == (rows, columns)
    lines = made[9:].reshape(own.grid[0], own.grid[1] + 1)
    np.testing.assert_allclose(lines[:, :-1], resized(covered, *own.grid), atol=1e-6)
    assert (own.kind[9:].reshape(lines.shape)[:, -1] == NEWLINE).all()
    assert (own.kind == NEWLINE).sum() == own.grid[0]
    weight = own.weight.sum(axis=-1)
    np.testing.assert_allclose(weight, own.kind == PATCH, atol=1e-6)


def test_coordinates_of_a_resized_plane_are_those_of_the_patches() -> None:
    own = packing.picture(132, 132, TINY)
    rows, columns, _, _ = packing.kept_patches(132, 132, (132, 132), TINY)
    places = np.moveaxis(np.indices((rows, columns)), 0, -1).astype(float)
    lines = own.coords[9:].reshape(*np.add(own.grid, (0, 1)), 2)
    for axis in range(2):
        want = resized(places[..., axis], *own.grid)
        np.testing.assert_allclose(lines[:, :-1, axis], want, atol=1e-5)
    assert (lines[:, -1, 1] == columns).all()
    # The base tile shows the same picture: its corners lie inside the plane's.
    assert own.coords[:9].min() > 0 and own.coords[:9].max() < columns - 1


def test_one_of_several_and_videos() -> None:
    own = packing.one_of_several(TINY)
    assert own.kind.tolist() == [PATCH] * 9 + [NEWLINE] and own.tiles == 1
    film = packing.video(3, TINY)
    frames = np.random.default_rng(1).normal(size=(3, 3, 3))
    made = tokens_of(film, frames)
    assert film.kind.tolist() == [PATCH] * 12 + [NEWLINE] and film.tiles == 3
    want = np.concatenate([resized(frame, 2, 2).ravel() for frame in frames])
    np.testing.assert_allclose(made[:12], want, atol=1e-6)
    assert len(packing.video(32, PUBLISHED).index) == 32 * 196 + 1


def test_tables_put_rows_side_by_side() -> None:
    rows = [[packing.picture(90, 120, TINY)], [packing.one_of_several(TINY)] * 2,
            [packing.video(2, TINY), packing.one_of_several(TINY)]]  # fmt: skip
    tables = packing.make_tables(rows, TINY, batch=4)
    assert tables.tile_valid.shape == (4, 12) and tables.valid.shape == (4, 64)
    assert tables.tile_valid.sum(axis=1).tolist() == [10, 2, 3, 10]
    assert tables.valid.sum(axis=1).tolist() == [len(rows[0][0].index), 20, 19,
                                                 len(rows[0][0].index)]  # fmt: skip
    second = tables.index[1, 10:19, 0]
    np.testing.assert_array_equal(second, 9 + np.arange(9))
    np.testing.assert_array_equal(tables.index[2, 9:18, 0], 18 + np.arange(9))
    assert (tables.weight[~tables.valid] == 0).all()
    # No weight lies on a patch of a padding tile.
    tile = tables.index // 9
    for row in range(4):
        assert tables.tile_valid[row][tile[row]].all()
    with pytest.raises(CallError, match="no image"):
        packing.make_tables([[]], TINY)


def test_few_buckets_at_published_sizes() -> None:
    rng = np.random.default_rng(5)
    for _ in range(4):
        met, over = set(), []
        for height, width in rng.integers(200, 1601, (50, 2)).tolist():
            own = packing.picture(height, width, PUBLISHED)
            shape = packing.tile_bucket(own.tiles), packing.token_bucket(len(own.index))
            met.add(shape)
            over.append((shape[0] / own.tiles, shape[1] / len(own.index)))
        print(f"{len(met)} shapes, tiles and tokens padded by {np.mean(over, axis=0).round(3)}")
        assert len(met) <= 9 and (np.mean(over, axis=0) <= 1.35).all()
    assert packing.tile_bucket(38) == 48 and packing.tile_bucket(1) == 2
    for tokens in (1, 16, 17, 729, 8800):
        assert tokens <= packing.token_bucket(tokens) <= max(16, 1.6 * tokens + 16)


def processor(**changes: Any) -> Any:
    settings = {"size": {"height": SIDE, "width": SIDE}, "image_grid_pinpoints": PINPOINTS}
    return LlavaOnevisionImageProcessorPil(**{**settings, **changes})


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(1000 * height + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_tiles_are_the_processors_bit_for_bit() -> None:
    own, theirs = OneVisionProcessor(processor(), TINY), processor()
    for size in ((60, 90), (44, 44), (300, 31), (1, 5)):
        picture = noise(*size)
        tiles, found = own.alone(picture)
        want = theirs(images=[[picture]], return_tensors="np")["pixel_values"][0]
        assert found == size and len(tiles) == packing.picture(*size, TINY).tiles
        np.testing.assert_array_equal(tiles, want)
        both = theirs(images=[[picture, noise(9, 9)]], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(own.one_of_several(picture), both[0])


def test_frames_are_squeezed_with_the_videos_own_settings() -> None:
    frames = [noise(40, 60), noise(40, 60), noise(40, 60)]
    own = OneVisionProcessor(processor(), TINY)
    made, fps = own.video(np.stack([np.asarray(f) for f in frames]), fps=6.0)
    # The base tile of a picture is squeezed too.
    want = np.concatenate([own.alone(frame)[0][:1] for frame in frames])
    np.testing.assert_array_equal(made, want)
    assert fps == 6.0
    two, fps = own.video(frames, fps=6.0, sampling=Sampling(num_frames=2))
    assert len(two) == 2 and fps == 4.0
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1.0, 1.0, 1.0], "resample": 0}
    other, _ = OneVisionProcessor(processor(), TINY, video=settings).video(frames, fps=1.0)
    small = np.asarray(frames[0].resize((SIDE, SIDE), Image.Resampling.NEAREST), np.float32)
    want = small.transpose(2, 0, 1) / 255 - np.array([0.1, 0.2, 0.3])[:, None, None]
    np.testing.assert_allclose(other[0], want, atol=1e-6)
    many = [noise(2, 2)] * (MAX_VIDEO_TOKENS // 4 + 1)
    with pytest.raises(CallError, match="take fewer"):
        own.video(many, fps=1.0)


@pytest.mark.parametrize(
    ("changes", "video", "words"),
    [
        ({"size": {"height": 40, "width": 40}}, {}, "image processor's size.*44 x 44"),
        ({}, {"size": {"height": 40, "width": 40}}, "video processor's size"),
        ({"image_grid_pinpoints": PINPOINTS[::-1]}, {}, "image_grid_pinpoints"),
        ({"image_grid_pinpoints": None}, {}, "0 image_grid_pinpoints"),
        ({"size": None}, {}, "image processor's size.*44 x 44"),
        ({"do_resize": False}, {}, "do_resize False"),
        ({"do_center_crop": True, "crop_size": {"height": 44, "width": 44}}, {}, "do_center_crop"),
    ],
)
def test_processors_that_do_not_fit(changes: Any, video: Any, words: str) -> None:
    with pytest.raises(CallError, match=words):
        OneVisionProcessor(processor(**changes), TINY, video=video)


def test_files_of_another_family_or_aspect(tmp_path: Path) -> None:
    processor().save_pretrained(tmp_path)
    assert OneVisionProcessor.from_checkpoint(tmp_path, TINY).config == TINY
    (tmp_path / "processor_config.json").write_text('{"vision_aspect_ratio": "anyres_max_9"}')
    with pytest.raises(CallError, match=r"anyres_max_9.*anyres_max_4"):
        OneVisionProcessor.from_checkpoint(tmp_path, TINY)
    (tmp_path / "processor_config.json").unlink()
    path = tmp_path / "preprocessor_config.json"
    content = json.loads(path.read_text()) | {"image_processor_type": "LlavaNextImageProcessor"}
    path.write_text(json.dumps(content))
    with pytest.raises(CallError, match=r"another (family|model)"):
        OneVisionProcessor.from_checkpoint(tmp_path, TINY)


def family(folder: Path) -> OneVisionFamily:
    processor().save_pretrained(folder)
    return OneVisionFamily(TINY, folder)


def test_what_a_picture_gives_depends_on_the_others(tmp_path: Path) -> None:
    own = family(tmp_path)
    film = Video([noise(30, 40)] * 3, fps=2.0)
    rows: list[list[Any]] = [[noise(90, 120)], [noise(90, 120), noise(5, 5)],
                             [film, noise(90, 120), film]]  # fmt: skip
    read = own.read(rows, "processor")
    alone = own.layout(90, 120)
    assert read.layouts[0] == (alone,) and alone.tokens > 10
    assert read.layouts[1] == (own.layout(90, 120, together=2),) * 2
    assert [each.tokens for each in read.layouts[2]] == [13, alone.tokens, 13]
    assert [each.media for each in read.layouts[2]] == ["video", "image", "video"]
    assert read.slots == read.inputs["tables"].valid.shape[1]
    assert own.defaults == {"seed_rule": "max_norm"}
    with pytest.raises(CallError, match="image_aspect"):
        own.read(rows, "pad")


def test_the_overlays_parts_hold_every_token_but_newlines(tmp_path: Path) -> None:
    own = family(tmp_path)
    for size in ((132, 132), (60, 90), (300, 1)):
        packed = packing.picture(*size, TINY)
        parts = own.regions(noise(*size), "processor")
        shown = np.concatenate([part.tokens for part in parts])
        np.testing.assert_array_equal(shown, np.flatnonzero(packed.kind == PATCH))
        for part in parts:
            assert sorted(part.cells) == list(range(part.grid[0] * part.grid[1]))
    (part,) = own.regions(noise(60, 90), "processor", together=2)
    assert part.grid == (3, 3) and part.picture.width == part.picture.height
    with own.frames(Video([noise(30, 40)] * 3, fps=2.0)) as frames:
        assert len(list(frames)) == 3


def test_a_plane_that_cannot_shrink_is_refused() -> None:
    narrow = replace(TINY, image_grid_pinpoints=((44, 44 * 200),), max_tiles=1)
    with pytest.raises(CallError, match="cannot be resized"):
        packing.picture(44, 44 * 200, narrow)


def test_blank_pictures_have_the_shapes_of_real_ones(tmp_path: Path) -> None:
    size = (90, 120)
    real = family(tmp_path).read([[noise(*size)], [noise(*size)]], "processor")
    blank = OneVisionFamily.without_processor(TINY).blank(size, 2)
    assert blank.layouts == real.layouts and blank.slots == real.slots
    assert blank.inputs["pixels"].shape == real.inputs["pixels"].shape
    for name in ("index", "weight", "valid", "kind", "tile_valid"):
        ours, theirs = (getattr(read.inputs["tables"], name) for read in (blank, real))
        np.testing.assert_array_equal(ours, theirs)
    assert not blank.inputs["pixels"].any()
