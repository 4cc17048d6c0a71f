"""What is drawn of each family's pictures: every visual token at the place that it shows."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments.answer.overlay import draw
from resprune_jax.experiments.answer.views import LONGEST, MOST_FRAMES, panels_of, titled
from resprune_jax.methods.base import NEWLINE
from resprune_jax.models.decoder.mrope import Grid
from resprune_jax.models.families.base import ImageLayout, Video
from resprune_jax.models.families.llava_next.anyres import packing
from resprune_jax.models.families.llava_next.family import NextFamily
from resprune_jax.models.families.qwen_vl.family import QwenFamily
from tests.models.families.test_anyres import PUBLISHED

NEXT = NextFamily.__new__(NextFamily)
NEXT.config = PUBLISHED


class Qwen(QwenFamily):
    """As many cells as the picture has 10 x 10 pixels; videos in pairs of frames."""

    def __init__(self) -> None:
        self.config: Any = SimpleNamespace(vision=SimpleNamespace(temporal_patch_size=2))

    def layout(self, height: int, width: int, *, together: int = 1) -> ImageLayout:
        grid = Grid(1, height // 10, width // 10)
        return ImageLayout(grid.num_tokens, grid=grid)

    def read(self, rows: Any, _: str) -> Any:
        (video,) = rows[0]
        groups, height, width = -(-len(video.frames) // 2), *video.frames.shape[1:3]
        grid = Grid(groups, height // 10, width // 10, 1.0)
        return SimpleNamespace(layouts=((ImageLayout(grid.num_tokens, media="video", grid=grid),),))


QWEN: Any = Qwen()


def noise(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(480, 640), (336, 336), (100, 1000)])
def test_tiles_lie_where_their_coordinates_say(size: tuple[int, int]) -> None:
    own = packing(*size, PUBLISHED)
    rng = np.random.default_rng(0)
    picks = rng.permutation(len(own.index))[:300]
    whole, tiles = panels_of(NEXT, [noise(*size)], picks.tolist())
    assert whole.grid == (24, 24) and tiles.grid == (own.rows, own.columns)
    base = picks[picks < 576]
    assert list(whole.kept or []) == base.tolist()
    shown = picks[(picks >= 576) & (own.kind[picks] != NEWLINE)]
    rows, columns = own.coords[shown].astype(int).T
    assert list(tiles.kept or []) == (rows * own.columns + columns).tolist()
    lines = int((own.kind[picks] == NEWLINE).sum())
    print(f"{size}: {len(base)} of the whole, {len(shown)} of the tiles, {lines} newlines")
    assert len(base) + len(shown) + lines == 300
    assert whole.seed == (picks[0] < 576) and tiles.seed == (picks[0] in shown)
    assert whole.title == f"whole: {len(base)} of 576"


def test_a_setting_of_several_shows_every_part_of_its_pictures() -> None:
    picks = [0, 575, 576, 600]
    whole, tiles = titled(NEXT, [noise(480, 640)], picks, "resprune, 4: a title beyond its panel")
    assert whole.title == "resprune, 4: a title beyond its p…" and len(whole.title) == LONGEST
    assert tiles.title.startswith("tiles: 2 of ") and not whole.seed | tiles.seed
    assert [list(panel.kept or []) for panel in (whole, tiles)] == [[0, 575], [0, 24]]
    assert [panel.kept for panel in titled(NEXT, [noise(480, 640)], None, "none")] == [None, None]


def test_several_images_and_a_video_share_one_numbering() -> None:
    frames = np.stack([np.full((20, 30, 3), 10 * n, np.uint8) for n in range(5)])
    pictures: list[Any] = [noise(40, 50), Video(frames, fps=2.0), noise(30, 30)]
    # 20 tokens, then three groups of 6, then 9.
    panels = panels_of(QWEN, pictures, [19, 20, 31, 37, 38, 46])
    assert [panel.title for panel in panels] == [
        "image 1: 1 of 20", "image 2, frame 1: 1 of 6", "image 2, frame 3: 1 of 6",
        "image 2, frame 5: 1 of 6", "image 3: 2 of 9",
    ]  # fmt: skip
    assert [list(panel.kept or []) for panel in panels] == [[19], [0], [5], [5], [0, 8]]
    assert [panel.seed for panel in panels] == [True, False, False, False, False]
    assert [int(panel.pixels.max()) for panel in panels[1:4]] == [0, 20, 40]
    assert [panel.kept for panel in panels_of(QWEN, pictures, None)] == [None] * 5


def test_a_single_part_is_drawn_in_full_and_pruned(tmp_path: Path) -> None:
    panels = panels_of(QWEN, [noise(40, 50)], [3, 7])
    assert [panel.title for panel in panels] == ["all 20 visual tokens", "2 visual tokens kept"]
    assert panels[0].kept is None and list(panels[1].kept or []) == [3, 7]
    assert panels[0].pixels.shape == (538, 672, 3)
    path = draw(panels, question="What?", path=tmp_path / "out.png", order=True)
    assert path.stat().st_size > 5000


def test_a_long_video_is_drawn_in_part() -> None:
    frames = np.zeros((60, 20, 20, 3), np.uint8)
    panels = panels_of(QWEN, [Video(frames, fps=2.0)], [0])
    assert len(panels) == MOST_FRAMES
    assert panels[-1].title == "video, frame 59: 0 of 4"
