"""The picture of the kept tokens: what the model sees, and which patches stay clear."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.answer.overlay import (
    HATCH,
    SIDE,
    VEIL,
    Panel,
    View,
    dim,
    draw,
    overlay,
    patch_mask,
)
from resprune_jax.models.families.llava.images import ImageProcessor, seen_by_model


def noise(width: int, height: int, rng_seed: int = 0) -> Image.Image:
    """A smooth random colour image."""
    rng = np.random.default_rng(rng_seed)
    small = rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(80, 60), (60, 81), (56, 56), (301, 100), (20, 33), (57, 400)])
@pytest.mark.parametrize("aspect", ["processor", "pad"])
def test_the_drawn_square_is_what_the_model_sees(
    checkpoint: Path, size: tuple[int, int], aspect: str
) -> None:
    image = noise(*size)
    side = 56
    processor = ImageProcessor.from_checkpoint(checkpoint, side)
    pixels = processor([image], image_aspect=aspect)[0]  # type: ignore[arg-type]
    mean = np.array([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = np.array([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    truth = (pixels * std + mean).transpose(1, 2, 0) * 255
    seen = seen_by_model(image, image_aspect=aspect, image_size=side, side=side)  # type: ignore[arg-type]
    drawn = np.asarray(seen)
    # Another filter, and the crop before the resize: the same to a few grey levels.
    difference = np.abs(drawn - truth)
    shifted = np.abs(np.roll(drawn, 3, axis=0) - truth).mean()
    shifted = min(shifted, np.abs(np.roll(drawn, 3, axis=1) - truth).mean())
    print(f"{size} {aspect}: mean {difference.mean():.2f}, shifted by 3 pixels {shifted:.2f}")
    assert difference.mean() < 1.0 < shifted


PICTURES = {
    "white": np.full((SIDE, SIDE, 3), 255, np.uint8),
    "black": np.zeros((SIDE, SIDE, 3), np.uint8),
    "grey": np.full((SIDE, SIDE, 3), 127, np.uint8),
    "the veil's own": np.full((SIDE, SIDE, 3), VEIL, np.uint8),
    "the hatch's own": np.full((SIDE, SIDE, 3), HATCH, np.uint8),
    "smooth": np.asarray(noise(SIDE, SIDE)),
    "noisy": np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
}


@pytest.mark.parametrize("grid", [(3, 4), (12, 12), (24, 24)])
@pytest.mark.parametrize("name", PICTURES)
def test_what_was_dropped_shows_on_any_picture(name: str, grid: tuple[int, int]) -> None:
    pixels, (rows, columns) = PICTURES[name], grid
    mask = np.random.default_rng(1).random(grid) < 0.25
    mask[1, :2] = True, False
    drawn = dim(pixels, mask)
    down, across = SIDE // rows, SIDE // columns
    for row in range(rows):
        for column in range(columns):
            part = np.s_[down * row : down * (row + 1), across * column : across * (column + 1)]
            if mask[row, column]:
                np.testing.assert_array_equal(drawn[part], pixels[part])
                continue
            inside = drawn[part][5:-5, 5:-5].astype(float)
            # Two tones that stand apart in every dropped patch, whatever was there: the hatch.
            tones = inside.mean(axis=-1)
            assert np.ptp(tones) > 25, (row, column)
            # Little of its colour is left.
            assert (inside.max(axis=-1) - inside.min(axis=-1)).max() < 30
    # Between a kept patch and a dropped one stand a light and a dark line.
    edge = drawn[down + down // 2, across : across + 4].mean(axis=-1)
    assert edge.max() > 240 and edge.min() < 40


def test_the_answer_stands_on_the_picture(tmp_path: Path) -> None:
    """As words of an SVG, which keeps them apart from the question."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):
        views = [View("all", PICTURES["black"], (4, 4), [1, 2])]
        for answer, says in (("two $5 <b>dogs</b>", "Answer: two $5"), ("", "Answer: (empty)"),
                             ("word " * 99, "…")):  # fmt: skip
            path = draw(views, question="What?", answer=answer, path=tmp_path / "a.svg")
            assert says in path.read_text(encoding="utf-8")
        path = draw(views, question="What?", path=tmp_path / "b.svg")
        assert "Answer" not in path.read_text(encoding="utf-8")


def test_an_index_outside_the_grid_is_refused() -> None:
    for kept in ([16], [-1]):
        with pytest.raises(CallError, match="outside the grid of 4x4"):
            patch_mask(kept, (4, 4))
    assert patch_mask(None, (4, 4)).all() and not patch_mask([], (4, 4)).any()


@pytest.mark.parametrize("suffix", ["png", "jpg", "pdf", "svg"])
def test_a_picture_is_written(tmp_path: Path, suffix: str) -> None:
    # Dollar signs and markup are words here, not formulas.
    question = "Does it cost $5 or $6, and is [bold]this[/bold] <b>it</b>? " * 5
    panels: list[Panel] = [("full", None), ("3 of $16$", np.array([5, 2, 9])), ("none", [])]
    path = tmp_path / f"out.{suffix}"
    for order in (False, True):
        written = overlay(
            noise(80, 60), panels, (4, 4), question=question, image_aspect="processor",
            image_size=56, path=path, order=order,
        )  # fmt: skip
    assert written == path and path.stat().st_size > 5000


def test_every_panel_shows_its_own_budget(tmp_path: Path) -> None:
    red = Image.new("RGB", (56, 56), (255, 0, 0))
    budgets: list[Panel] = [
        ("all", None), ("8", range(8)), ("4", range(4)), ("2", range(2)), ("1", [0])
    ]  # fmt: skip
    path = overlay(
        red, budgets, (4, 4), question=None, image_aspect="pad", image_size=56,
        path=tmp_path / "out.png",
    )  # fmt: skip
    seen = np.asarray(Image.open(path).convert("RGB")).astype(int)
    is_red = (seen[..., 0] > 200) & (seen[..., 1:].max(axis=-1) < 40)
    each = (is_red.sum() / 160**2 / 9) * 16  # a panel is 3 inches at 160 dots an inch
    assert abs(each - (16 + 8 + 4 + 2 + 1)) < 1.0, each  # the rings take a little


def test_bad_calls_are_refused(tmp_path: Path) -> None:
    arguments = {"question": "?", "image_aspect": "pad", "image_size": 56}
    with pytest.raises(CallError, match="no panel"):
        overlay(noise(9, 9), [], (4, 4), path=tmp_path / "o.png", **arguments)  # type: ignore[arg-type]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(RunError, match=r"broken\.png"):
        overlay(broken, [("a", None)], (4, 4), path=tmp_path / "o.png", **arguments)  # type: ignore[arg-type]
