"""Fewer pixels in: true counts, the pictures that towers see, and what is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.methods import get_method
from resprune_jax.models import LVLM, CallOptions
from resprune_jax.models.families.base import Video
from resprune_jax.models.families.llava.images import ImageProcessor
from resprune_jax.models.families.qwen_vl.images import smart_resize
from resprune_jax.models.towers.patches import resized_positions
from tests.compiles import backend_compiles
from tests.methods.oracles.baselines import downsample as oracle
from tests.methods.test_on_models import QUESTIONS, model

SMALL: dict[str, Any] = {"method": "downsample"}


def test_positions_are_the_oracles() -> None:
    worst = 0.0
    resized = jax.jit(resized_positions, static_argnums=1)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        grid = (1, 4, 7)[rng.integers(3)]
        side = int(rng.integers(1, grid + 1))
        table = rng.normal(size=(1 + grid * grid, 3)).astype(np.float32)
        wanted = oracle.position_embeddings(table, (side, side))[1:]
        made = np.asarray(resized(jnp.asarray(table[1:]), side))
        worst = max(worst, float(np.abs(made - wanted).max()))
    print(f"200 tables, largest difference {worst:.1e}")
    assert worst < 1e-5


def test_every_budget_gives_the_nearest_square(lvlm: LVLM, photographs: Any) -> None:
    """16 tokens at most here; a budget beyond them is the picture as it is."""
    for keep in range(1, 20):
        read = lvlm.family.read_smaller([[photographs[0]]], [keep], "processor")
        ((layout,),) = read.layouts
        wanted = min(16, oracle.count(keep))
        assert layout.tokens == read.slots == wanted
        assert read.inputs["pixels"].shape[2:] == (14 * oracle.side(min(keep, 16)),) * 2
    full = lvlm.family.read([[photographs[0]]], "processor").inputs["pixels"]
    same = lvlm.family.read_smaller([[photographs[0]]], [None], "processor").inputs["pixels"]
    np.testing.assert_array_equal(same, full)


@pytest.mark.parametrize("aspect", ["processor", "pad"])
def test_a_smaller_picture_is_that_of_a_smaller_tower(
    aspect: Any, checkpoint: Path, lvlm: LVLM, photographs: Any, tmp_path: Path
) -> None:
    """A processor whose file names these sizes makes the same pixels."""
    file = checkpoint / "processor_config.json"
    told = json.loads(file.read_text())
    own = told["image_processor"]
    own["size"], own["crop_size"] = {"shortest_edge": 28}, {"height": 28, "width": 28}
    shutil.copytree(checkpoint, tmp_path / "small")
    (tmp_path / "small" / file.name).write_text(json.dumps(told))
    small = ImageProcessor.from_checkpoint(tmp_path / "small", 28)
    rows = [[photograph] for photograph in photographs]
    made = lvlm.family.read_smaller(rows, [4] * len(rows), aspect).inputs["pixels"]
    np.testing.assert_array_equal(made[: len(rows)], small(list(photographs), aspect))


def test_results_tell_the_true_counts(lvlm: LVLM, photographs: Any) -> None:
    images = list(photographs[:2])
    made = lvlm.generate(images, QUESTIONS, keep=[10, 0.5], max_new_tokens=3, **SMALL)
    assert made.kept == made.visual_tokens == [9, 9] and made.errors == [None, None]
    assert made.drops == [(), ()] and made.selections is None
    assert [cost.kept for cost in made.costs if cost] == [9.0, 9.0]
    # Another budget of the same grid, other pictures: nothing is compiled again.
    with backend_compiles() as compiles:
        again = lvlm.generate(list(photographs[2:4]), QUESTIONS, keep=8, max_new_tokens=3, **SMALL)
    assert again.kept == [9, 9] and not compiles


@pytest.mark.deep
def test_what_enters_is_the_smaller_picture_whole(lvlm: LVLM, photographs: Any) -> None:
    images = list(photographs[:2])
    seen = lvlm.select(images, QUESTIONS, keep=9, **SMALL)
    assert seen.mask.shape == (2, 9) and seen.mask.all()
    small = lvlm.run_tower(lvlm.family.read_smaller([[x] for x in images], [9, 9], "processor"))
    ours, valid = lvlm.logits(images, QUESTIONS, keep=9, **SMALL)
    theirs, there = lvlm.logits(small, QUESTIONS, method="none")
    np.testing.assert_array_equal(valid, there)
    np.testing.assert_array_equal(ours, theirs)
    # One picture for several prompts, and images with a budget each.
    one = lvlm.select(images[0], QUESTIONS, keep=9, **SMALL)
    assert one.kept == [9, 9]
    both = lvlm.select([images], QUESTIONS[:1], keep=9, budget="per_image", **SMALL)
    assert both.kept == both.visual_tokens == [18]
    mixed = lvlm.select([images[0], None], QUESTIONS, keep=4, **SMALL)
    assert mixed.kept == [4, 0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": [9, 4]}, "2 x 2, 3 x 3"),
        ({"keep": [9, None]}, "3 x 3, 4 x 4"),
        ({"keep": 9, "tolerance": 0.1}, "tolerance"),
        ({"keep": 9, "positions": "original"}, "positions=original is not for Downsample"),
        ({"keep": 9, "newline": "always"}, "newline"),
        ({"keep": 9, "alpha": 0.5}, "no setting alpha"),
    ],
)
def test_calls_that_mean_nothing(given: Any, said: str, lvlm: LVLM, photographs: Any) -> None:
    with backend_compiles() as compiles, pytest.raises(CallError, match=said):
        lvlm.generate(list(photographs[:2]), QUESTIONS, **SMALL, **given)
    assert not compiles


def test_what_is_no_picture_any_more(lvlm: LVLM, photographs: Any) -> None:
    with pytest.raises(CallError, match="before they are encoded"):
        lvlm.generate(lvlm.encode(photographs[0]), QUESTIONS[0], keep=9, **SMALL)
    with pytest.raises(CallError, match=r"prompts about one have budgets 9 and 4"):
        lvlm.generate(photographs[0], QUESTIONS, keep=[9, 4], **SMALL)
    with pytest.raises(CallError, match="image by image"):
        lvlm.generate([list(photographs[:2])], QUESTIONS[:1], keep=9, **SMALL)
    with pytest.raises(CallError, match="warm_up runs full pictures"):
        lvlm.warm_up(options=CallOptions(keep=9, **SMALL))
    with pytest.raises(CallError, match="chooses no tokens"):
        get_method("downsample").select(None, None, 3)  # type: ignore[arg-type]


@pytest.mark.deep
def test_qwen_resizes_under_the_area_of_the_budget() -> None:
    lvlm, rng = model("qwen"), np.random.default_rng(0)
    family: Any = lvlm.family
    factor = family.config.vision.pixel_factor
    met = 0
    for turn in range(200):
        height, width = (int(n) for n in rng.integers(8, 260, 2))
        if max(height, width) > 12 * min(height, width):
            continue
        full = family.layout(height, width).tokens
        keep = int(rng.integers(1, full + 3))
        picture = [[Image.new("RGB", (width, height))]]
        if full > keep:
            most = oracle.max_pixels(keep, patch=factor // 2)
            sides = smart_resize(height, width, factor=factor, min_pixels=1, max_pixels=most)
            wanted = sides[0] * sides[1] // factor**2
            if wanted > keep:
                with pytest.raises(CallError, match="at least"):
                    family.read_smaller(picture, [keep], "processor")
                continue
        else:
            wanted = full
        ((layout,),) = family.read_smaller(picture, [keep], "processor").layouts
        assert layout.tokens == wanted <= max(keep, 1), (turn, height, width, keep)
        met += 1
    assert met > 100
    made = lvlm.generate(
        [np.zeros((200, 120, 3), np.uint8), np.zeros((60, 220, 3), np.uint8)], QUESTIONS,
        keep=[9, 3], max_new_tokens=2, **SMALL,
    )  # fmt: skip
    assert made.kept == made.visual_tokens and made.errors == [None, None]
    assert made.kept[0] <= 9 and made.kept[1] <= 3
    with pytest.raises(CallError, match="takes images, not videos"):
        lvlm.generate(
            Video(np.zeros((4, 56, 56, 3), np.uint8), fps=2), QUESTIONS[0], keep=2, **SMALL
        )


@pytest.mark.deep
def test_next_sees_the_base_tile_alone(photographs: Any) -> None:
    lvlm, images = model("next"), list(photographs[:2])
    family: Any = lvlm.family
    side = lvlm.config.vision.image_size
    for image in photographs:
        whole = family.processor.image(image).tiles[:1]
        np.testing.assert_array_equal(family.processor.base(image, side), whole)
    made = lvlm.generate(images, QUESTIONS, keep=5, max_new_tokens=2, **SMALL)
    assert made.kept == made.visual_tokens == [4, 4] and made.errors == [None, None]
    both = lvlm.select([images], QUESTIONS[:1], keep=9, budget="per_image", **SMALL)
    assert both.kept == [18]
    # At the tower's own size these are the base tile's tokens of the whole picture.
    grid = lvlm.config.vision.grid
    base = lvlm.run_tower(family.read_smaller([[x] for x in images], [grid**2] * 2, "processor"))
    whole = lvlm.encode(images)
    np.testing.assert_allclose(
        base.embeddings[:2], np.asarray(whole.embeddings)[:, : grid**2], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(CallError, match="some of these prompts keep every tile"):
        lvlm.select(images, QUESTIONS, keep=[4, None], **SMALL)
    with pytest.raises(CallError, match="LLaVA-OneVision does not do here"):
        model("onevision").method_of(CallOptions(keep=4, **SMALL))
