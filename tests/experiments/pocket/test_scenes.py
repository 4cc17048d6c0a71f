"""Scenes of the pocket model: experiments/pocket/scenes/scene.py and what it draws with."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.grounds import (
    GROUNDS,
    TEXTURES,
    Ground,
    lab,
    paint_ground,
)
from resprune_jax.experiments.pocket.scenes.parts import (
    LEVELS,
    PATCH,
    PRESETS,
    TOP,
    Scene,
    SceneConfig,
)
from resprune_jax.experiments.pocket.scenes.scene import coverage, make_scene, render
from resprune_jax.experiments.pocket.scenes.shapes import FONTS, outline, polygon_mask, text_mask
from resprune_jax.experiments.pocket.scenes.words import COLOURS, POPULAR, SHAPES, WORDS, Draw
from tests.experiments.pocket.pocket_reader import changed

CPU, GPU = PRESETS["cpu"], PRESETS["gpu"]


def scenes(count: int, config: SceneConfig = CPU) -> list[Scene]:
    return [make_scene(config, 3_000_000 + i) for i in range(count)]


def patches(mask: np.ndarray) -> np.ndarray:
    """(N,) how many pixels of each patch are set."""
    grid = mask.shape[0] // PATCH
    return mask.reshape(grid, PATCH, grid, PATCH).sum((1, 3)).reshape(-1)


def test_a_scene_is_a_function_of_its_seed_and_configuration() -> None:
    first, second = scenes(20), scenes(20)
    assert first == second
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(render(a), render(b))
    pictures = {render(scene).tobytes() for scene in first}
    assert len(pictures) == 20
    assert make_scene(CPU, 1) != make_scene(CPU.at_level(TOP - 1), 1)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_levels_grow_from_one_object_to_crowded_scenes(preset: str) -> None:
    config = PRESETS[preset]
    for number, level in enumerate(LEVELS):
        made = scenes(60, config.at_level(number))
        for what, (low, high) in (("things", level.objects), ("texts", level.texts)):
            counts = {len(getattr(scene, what)) for scene in made}
            assert counts == set(range(low, high + 1)), (number, what, counts)
        assert {scene.ground.texture for scene in made} == set(level.textures)
        for scene in made:
            image = render(scene)
            assert image.shape == (config.grid * PATCH,) * 2 + (3,) and image.dtype == np.uint8
            small = [t.extent for t in scene.things if t.size == "small"]
            large = [t.extent for t in scene.things if t.size == "large"]
            assert max(small, default=0) < 0.75 * min(large, default=9999)
    print(f"{len(LEVELS)} levels of {preset}, {60 * len(LEVELS)} scenes")


@pytest.mark.parametrize("config", [CPU, GPU], ids=["cpu", "gpu"])
def test_parts_do_not_overlap_and_patches_cover_their_pixels(config: SceneConfig) -> None:
    parts = 0
    for scene in scenes(25 if config is CPU else 8, config):
        cover = coverage(scene)
        masks = [changed(scene, thing=i) for i in range(len(scene.things))]
        masks += [changed(scene, text=i) for i in range(len(scene.texts))]
        assert max(sum(mask.astype(int) for mask in masks).ravel()) == 1
        for i, mask in enumerate(masks):
            pixels = patches(mask)
            assert pixels.sum() > 20
            inside = cover[i] * PATCH**2
            # What changes is covered; edge pixels of a text may be a pixel outside its box.
            slack = 0 if i < len(scene.things) else 2 * PATCH
            assert not (pixels[inside == 0] > slack).any()
            if i < len(scene.things):
                # Anti-aliased pixels change in full and count in part.
                assert (pixels + 1e-3 >= inside).all() and (pixels <= 2 * inside + 14).all()
                assert not pixels[inside == 0].any() and (pixels[inside > 4] > 0).all()
        parts += len(masks)
    print(f"{parts} objects and texts")
    assert parts > 60


def test_objects_have_their_colour_and_stand_out() -> None:
    """Pixels well inside an object have its colour, near its name's and far from the ground's."""
    seen = set()
    for scene in scenes(120):
        image = render(scene)
        ground = lab(GROUNDS[scene.ground.base])
        for i, thing in enumerate(scene.things):
            if i == 0:
                inside = changed(scene, thing=0) & (image == thing.rgb).all(-1)
                assert inside.sum() > 0.4 * changed(scene, thing=0).sum()
            names = {
                name: np.linalg.norm(np.subtract(thing.rgb, rgb)) for name, rgb in COLOURS.items()
            }
            assert min(names, key=names.__getitem__) == thing.colour
            assert np.linalg.norm(np.subtract(lab(thing.rgb), ground)) > 25
            seen.add((thing.shape, thing.colour))
        for text in scene.texts:
            assert abs(lab(text.rgb)[0] - ground[0]) > 45
    print(f"{len(seen)} of 81 kinds of objects")
    assert len(seen) > 75


def test_clutter_and_textures_are_faint_and_keep_off_the_parts() -> None:
    strokes = 0
    for scene in scenes(60):
        with_clutter = render(scene)
        without = render(dataclasses.replace(scene, clutter=()))
        drawn = (with_clutter != without).any(-1)
        strokes += len(scene.clutter)
        for i in range(len(scene.things)):
            assert not (drawn & changed(scene, thing=i)).any()
        for stroke in scene.clutter:
            assert stroke.width <= 3.0
            ground = GROUNDS[scene.ground.base]
            # Hardly half the way from the ground to any colour that an object could have.
            for colour in scene.palette:
                whole = np.linalg.norm(np.subtract(COLOURS[colour], ground))
                assert np.linalg.norm(np.subtract(stroke.rgb, COLOURS[colour])) > 0.45 * whole
    assert strokes > 200
    for texture in TEXTURES:
        for base, colour in enumerate(GROUNDS):
            painted = paint_ground(Ground(texture, base, 9.0, 12.0, 30, 5), 168)
            assert painted.shape == (168, 168, 3)
            assert np.abs(painted.astype(int) - colour).max() <= 20
            assert (painted.std() > painted.mean((0, 1)).std() + 0.05) == (texture != "plain")


def _small_mask(shape: str) -> np.ndarray:
    points = outline(shape, round(CPU.small[0] * PATCH), 0) + np.array([16.0, 16.0])
    mask, left, top = polygon_mask(points)
    field = np.zeros((32, 32))
    field[top : top + mask.height, left : left + mask.width] = np.asarray(mask) / 255
    return field


def test_the_smallest_shapes_differ() -> None:
    masks = {shape: _small_mask(shape) for shape in SHAPES}
    worst = 0.0
    for a in SHAPES:
        for b in SHAPES:
            if a < b:
                shared = np.minimum(masks[a], masks[b]).sum()
                worst = max(worst, shared / np.maximum(masks[a], masks[b]).sum())
    print(f"no two of {len(SHAPES)} shapes share more than {worst:.2f} of their pixels")
    assert worst < 0.86


@pytest.mark.parametrize("font", FONTS)
def test_every_font_prints_every_character_differently(font: str) -> None:
    looks = {}
    for character in "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz":
        mask, _, _ = text_mask(character, font, 15.5, 0.0, 0.0)
        looks[np.asarray(mask).tobytes()] = character
        assert np.asarray(mask).max() > 160 and np.asarray(mask).sum() / 255 > 6
    assert len(looks) == 62


def test_words_are_short_and_no_answers_of_other_families() -> None:
    others = {*SHAPES, *COLOURS, "yes", "no", "small", "large", "left", "right", "top", "bottom"}
    assert len(set(WORDS)) == len(WORDS) >= 60 and not others & set(WORDS)
    assert all(2 <= len(word) <= 5 and word.isalpha() and word.islower() for word in WORDS)
    printed = [text for scene in scenes(300) for text in scene.texts]
    assert {text.font for text in printed} == set(FONTS)
    numbers = [text.printed for text in printed if text.kind == "number"]
    assert {len(number) for number in numbers} == {2, 3} and not any(n[0] == "0" for n in numbers)
    assert 0.4 < len(numbers) / len(printed) < 0.6
    lower = SceneConfig(cases=("lower", "title"))
    shown = {text.printed for scene in scenes(40, lower) for text in scene.texts}
    assert not any(text.isalpha() and text.isupper() for text in shown)


def test_popular_pairs_are_seen_more_often() -> None:
    pairs = [(t.shape, t.colour) for scene in scenes(500) for t in scene.things]
    share = sum(pair in POPULAR for pair in pairs) / len(pairs)
    print(f"popular pairs are {share:.2f} of objects, 1/3 of kinds")
    assert len(POPULAR) == 27 and 0.45 < share < 0.65
    small = np.mean([t.size == "small" for scene in scenes(500) for t in scene.things])
    assert 0.6 < small < 0.8


def test_draws_are_pinned() -> None:
    """The stream that everything is made of: a change would silently make new scenes."""
    draw = Draw(1, 2)
    assert [draw.below(1000) for _ in range(4)] == [353, 441, 310, 563]
    items = list(range(8))
    draw.shuffle(items)
    assert sorted(items) == list(range(8)) and items != list(range(8))
    kinds = [draw.weighted([("a", 3.0), ("b", 1.0)]) for _ in range(4000)]
    assert 0.72 < kinds.count("a") / 4000 < 0.78


def test_wrong_configurations_are_refused() -> None:
    for changes, message in [
        ({"level": 9}, "level 9 does not exist"),
        ({"level": -1}, "level -1 does not exist"),
        ({"cases": ("loud",)}, "choose from upper"),
        ({"small": (2.0, 2.4)}, "could be confused"),
        ({"grid": 3}, "do not fit a grid of 3"),
    ]:
        with pytest.raises(CallError, match=message):
            SceneConfig(**changes)  # type: ignore[arg-type]
    with pytest.raises(CallError, match="must not be negative"):
        make_scene(CPU, -1)
    with pytest.raises(CallError, match="leaves no room"):
        make_scene(SceneConfig(grid=5), 0)


def test_images_are_plain_rgb() -> None:
    image = Image.fromarray(render(make_scene(CPU, 0)))
    assert image.mode == "RGB" and image.size == (168, 168)
