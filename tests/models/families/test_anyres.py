"""Tile choice, unpadding, packing tables and buckets of LLaVA-NeXT, against slow oracles."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from transformers import LlavaNextProcessor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from resprune_jax.errors import CallError
from resprune_jax.methods.base import NEWLINE, PATCH
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava_next.anyres import (
    NO_PATCH,
    Packing,
    best_pinpoint,
    image_buckets,
    make_tables,
    num_tiles,
    num_tokens,
    packing,
    tile_bucket,
    token_bucket,
)
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.towers.config import ClipConfig
from tests.checkpoints.llava import tiny_tokenizer

TEXT = DecoderConfig(31, 16, 24, 1, 2, 2, 8)
PUBLISHED = LlavaNextConfig(ClipConfig(32, 48, 2, 2, 336, 14), TEXT, 1)
TINY = LlavaNextConfig(
    ClipConfig(32, 48, 2, 2, 56, 14),
    TEXT,
    1,
    image_grid_pinpoints=((56, 112), (112, 56), (112, 112), (168, 56), (56, 168)),
)
# Another order, more shapes, two that are equally good, patches that do not fill the tile.
ODD = LlavaNextConfig(
    ClipConfig(32, 48, 2, 2, 50, 16),
    TEXT,
    1,
    image_grid_pinpoints=((100, 100), (50, 50), (200, 50), (50, 200), (150, 100), (100, 150)),
)

# (height, width): unpads to no row, to no column, 1-pixel sides, 200 to 1, exact pinpoints, and
# quotients that are whole but not in floating point.
EXTREME = [
    *[(1, 1), (1, 200), (200, 1), (1, 2000), (2000, 1), (3, 600), (600, 3), (1, 65535), (65535, 1)],
    *[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008), (336, 336), (335, 337)],
    *[(5000, 25), (25, 5000), (2, 3), (671, 1343), (40, 8000)],
    *[(88, 55), (88, 99), (176, 198), (328, 205), (55, 176), (110, 352), (205, 984), (235, 1128)],
]


def random_sizes(count: int, rng_seed: int) -> list[tuple[int, int]]:
    """Random (height, width), aspect ratios up to 200 to 1."""
    rng = np.random.default_rng(rng_seed)
    out: list[tuple[int, int]] = []
    while len(out) < count:
        height = int(np.exp(rng.uniform(0, np.log(5000))))
        ratio = np.exp(rng.uniform(-np.log(200), np.log(200)) * rng.choice([0.1, 0.5, 1]))
        width = max(1, round(height * ratio))
        if max(height, width) <= min(200 * min(height, width), 65535):
            out.append((height, width))
    return out


def reference(config: LlavaNextConfig) -> LlavaNextProcessor:
    """transformers' processor with a configuration's tiles."""
    side = config.vision.image_size
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            image_grid_pinpoints=[list(pin) for pin in config.image_grid_pinpoints],
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=config.vision.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("config", [PUBLISHED, ODD], ids=["published", "odd"])
def test_choice_and_counts_are_transformers(config: LlavaNextConfig) -> None:
    theirs, pins = reference(config), [list(pin) for pin in config.image_grid_pinpoints]
    cases = [*EXTREME, *random_sizes(3000, rng_seed=config.vision.image_size)]
    chosen: Counter[Any] = Counter()
    counts, no_row, no_column = set(), 0, 0
    for height, width in cases:
        pin = best_pinpoint(height, width, config)
        assert pin == tuple(select_best_resolution((height, width), pins)), (height, width)
        wanted = theirs._get_num_multimodal_tokens([(height, width)]).num_image_tokens
        assert num_tokens(height, width, config) == wanted[0], (height, width)
        own = packing(height, width, config)
        assert len(own.index) == wanted[0] and own.tiles == num_tiles(height, width, config)
        chosen[pin] += 1
        counts.add(wanted[0])
        no_row += own.rows == 0
        no_column += own.columns == 0
    widest = max(max(h / w, w / h) for h, w in cases[len(EXTREME) :])
    print(
        f"{len(cases)} sizes, aspect ratio up to {widest:.0f}: {len(counts)} counts from "
        f"{min(counts)} to {max(counts)}, {no_row} without a row, {no_column} without a column, "
        f"pinpoints {dict(chosen)}"
    )
    assert len(chosen) >= 5 and no_row > 20 and no_column > 20 and widest > 190
    if config is PUBLISHED:
        assert min(counts) == 576 and max(counts) == 2928


def test_the_published_table_of_counts() -> None:
    table = {
        (336, 336): (3, 1176, 24),
        (224, 224): (3, 1176, 24),
        (480, 640): (5, 2340, 36),
        (768, 1024): (5, 2340, 36),
        (640, 480): (5, 2352, 48),
        (426, 640): (5, 2144, 32),
        (1080, 1920): (5, 1948, 28),
        (1024, 1024): (5, 2928, 48),
        (1000, 300): (4, 2232, 72),
        (300, 1000): (4, 2182, 22),
        (100, 1000): (4, 1160, 8),
    }
    for size, expected in table.items():
        own = packing(*size, PUBLISHED)
        assert (own.tiles, len(own.index), int((own.kind == NEWLINE).sum())) == expected, size


def slow_packing(height: int, width: int, config: LlavaNextConfig) -> list[tuple[str, int, int]]:
    """What stands at each place, patch by patch: (what, tile, patch), built as a picture of names.

    Draws the tile plane as a table of names, cuts its padding away, and reads it out.
    """
    grid, side = config.vision.grid, config.vision.image_size
    best, merit = None, None
    for pin in config.image_grid_pinpoints:
        scale = min(pin[1] / width, pin[0] / height)
        area = min(int(width * scale) * int(height * scale), width * height)
        own = (area, -(pin[0] * pin[1] - area))
        if merit is None or own > merit:
            best, merit = pin, own
    assert best is not None
    high, across = best[0] // side, best[1] // side
    plane = [[("", 0, 0)] * (across * grid) for _ in range(high * grid)]
    for tile in range(high * across):
        for patch in range(grid * grid):
            row = tile // across * grid + patch // grid
            column = tile % across * grid + patch % grid
            plane[row][column] = ("patch", tile + 1, patch)
    if width / height > across / high:
        covered = int(round(height * (across * grid / width), 7))
        cut = (len(plane) - covered) // 2
        plane = plane[cut : len(plane) - cut]
    else:
        covered = int(round(width * (high * grid / height), 7))
        cut = (across * grid - covered) // 2
        plane = [row[cut : across * grid - cut] for row in plane]
    out = [("patch", 0, patch) for patch in range(grid * grid)]
    for row in plane:
        out += [*row, ("newline", 0, 0)]
    return out


def names(own: Packing, config: LlavaNextConfig) -> list[tuple[str, int, int]]:
    """A packing as the slow one tells it."""
    out = []
    for index, kind in zip(own.index, own.kind, strict=True):
        tile, patch = divmod(int(index), config.patches_per_tile)
        out.append(("patch", tile, patch) if kind == PATCH else ("newline", 0, 0))
        assert (index == NO_PATCH) == (kind == NEWLINE)
    return out


@pytest.mark.parametrize("config", [PUBLISHED, TINY, ODD], ids=["published", "tiny", "odd"])
def test_the_table_is_the_slow_packing(config: LlavaNextConfig) -> None:
    cases = [*EXTREME, *random_sizes(40 if config is PUBLISHED else 250, rng_seed=5)]
    tokens = 0
    for height, width in cases:
        own = packing(height, width, config)
        assert names(own, config) == slow_packing(height, width, config), (height, width)
        tokens += len(own.index)
    print(f"{tokens} visual tokens of {len(cases)} sizes")


@pytest.mark.parametrize("config", [PUBLISHED, TINY], ids=["published", "tiny"])
def test_coordinates_put_both_scales_in_one_plane(config: LlavaNextConfig) -> None:
    """A mark in the picture has the same place, seen in the base tile and in its tiles."""
    grid, patch = config.vision.grid, config.vision.patch_size
    worst, decided = 0.0, 0
    for height, width in [(300, 500), (500, 300), (900, 900), (140, 700), (700, 140), (77, 60)]:
        own = packing(height, width, config)
        pin, part = own.pinpoint, config.patches_per_tile
        tiles = own.coords[part:].reshape(own.rows, own.columns + 1, 2)
        rows, columns = np.indices((own.rows, own.columns + 1))
        assert (tiles[..., 0] == rows).all() and (tiles[..., 1] == columns).all()
        resized = get_patch_output_size(
            np.empty((3, height, width), np.uint8), pin, input_data_format=ChannelDimension.FIRST
        )
        for fraction in [(0.1, 0.3), (0.5, 0.5), (0.9, 0.6)]:
            # In the base tile: between the middles of its patches; in the plane: by its pixels.
            base = own.coords[:part].reshape(grid, grid, 2)
            along = np.array(fraction) * grid - 0.5
            seen = base[0, 0] + along * (base[-1, -1] - base[0, 0]) / (grid - 1)
            begin = [(whole - size) // 2 for whole, size in zip(pin, resized, strict=True)]
            pixel = np.array(begin) + np.array(fraction) * resized
            cut = [(pin[0] // patch - own.rows) // 2, (pin[1] // patch - own.columns) // 2]
            wanted = pixel / patch - 0.5 - np.array(cut)
            worst, decided = max(worst, float(np.abs(seen - wanted).max())), decided + 2
        middle = own.coords[:part].mean(axis=0)
        assert np.abs(middle - [(own.rows - 1) / 2, (own.columns - 1) / 2]).max() <= 0.5
    print(f"{decided} coordinates, off by {worst:.1e} patches at most")
    assert worst < 1e-4


def test_a_batch_is_its_pictures_side_by_side() -> None:
    rows = [[(90, 120)], [(56, 56), (1, 300), (300, 20)], [(300, 1), (90, 120)]]
    tables = make_tables(rows, TINY, batch=4)
    part = TINY.patches_per_tile
    for at, row in enumerate([*rows, rows[0]]):
        token = tile = 0
        for size in row:
            own = packing(*size, TINY)
            here = slice(token, token + len(own.index))
            index = np.asarray(tables.index)[at, here]
            patches = own.kind == PATCH
            np.testing.assert_array_equal(index[patches] - tile * part, own.index[patches])
            assert (index[~patches] == NO_PATCH).all()
            np.testing.assert_array_equal(np.asarray(tables.kind)[at, here], own.kind)
            np.testing.assert_array_equal(np.asarray(tables.coords)[at, here], own.coords)
            token, tile = token + len(own.index), tile + own.tiles
        assert np.asarray(tables.valid)[at].sum() == token and tables.valid[at, :token].all()
        assert (
            np.asarray(tables.tile_valid)[at].sum() == tile and tables.tile_valid[at, :tile].all()
        )
        assert (np.asarray(tables.index)[at, token:] == NO_PATCH).all()
    assert tables.index.shape == (4, 256) and tables.tile_valid.shape == (4, 10)


def shape(sizes: Sequence[tuple[int, int]], config: LlavaNextConfig) -> tuple[int, int]:
    """(T, N) of a batch of one picture a row, as `make_tables` chooses them."""
    tiles = tile_bucket(max(num_tiles(*size, config) for size in sizes), config)
    tokens = max(num_tokens(*size, config) for size in sizes)
    return tiles, token_bucket(tokens, tiles, config)


@pytest.mark.parametrize("kind", ["any", "photographs", "batches"])
def test_six_shapes_serve_every_picture(kind: str) -> None:
    rng = np.random.default_rng(3)
    sides = np.exp(rng.uniform(np.log(50), np.log(4000), (1200, 2))).astype(int)
    if kind == "photographs":
        ratio = rng.choice([4 / 3, 3 / 2, 16 / 9, 1, 3 / 4, 2 / 3, 9 / 16], len(sides))
        sides[:, 1] = np.maximum(1, sides[:, 0] * ratio)
    sizes = [(int(h), int(w)) for h, w in sides]
    step = 4 if kind == "batches" else 1
    shapes, over = set(), []
    for first in range(0, len(sizes), step):
        batch = sizes[first : first + step]
        own = shape(batch, PUBLISHED)
        shapes.add(own)
        over += [own[1] / num_tokens(*size, PUBLISHED) for size in batch]
        assert own[0] >= max(num_tiles(*size, PUBLISHED) for size in batch)
        assert min(over) >= 1
    print(f"{kind}: {len(shapes)} shapes {sorted(shapes)}, padded {np.mean(over):.3f} on average")
    assert len(image_buckets(PUBLISHED)) == 6 and shapes <= set(image_buckets(PUBLISHED))
    if kind != "batches":
        assert np.mean(over) <= 1.35


def test_buckets_of_other_pinpoints_and_of_several_pictures() -> None:
    assert [tile_bucket(n, PUBLISHED) for n in (1, 3, 4, 5, 6, 7, 11)] == [3, 3, 4, 5, 6, 8, 12]
    for config in (PUBLISHED, TINY, ODD):
        counts = {num_tiles(*size, config) for size in random_sizes(500, rng_seed=1)}
        for size in random_sizes(500, rng_seed=2):
            tiles = tile_bucket(num_tiles(*size, config), config)
            tokens = num_tokens(*size, config)
            assert tokens <= token_bucket(tokens, tiles, config)
        pairs = {shape([size], config) for size in [*EXTREME, *random_sizes(500, rng_seed=2)]}
        assert pairs <= set(image_buckets(config)) and len(image_buckets(config)) <= 2 * len(counts)
    assert token_bucket(2945, 5, PUBLISHED) == 3072 and token_bucket(100, 6, PUBLISHED) == 256
    # As many pinpoints as later models have: tile counts that lie close together share a bucket.
    many = tuple((56 * h, 56 * w) for h in range(1, 7) for w in range(1, 7))
    config = replace(TINY, image_grid_pinpoints=many)
    own = {tile_bucket(n, config) for n in range(1, 38)}
    print(f"36 pinpoints: tile buckets {sorted(own)}")
    assert len(own) <= 13 and max(own) == 37
    assert make_tables([[(400, 400)]], config).tile_valid.shape[1] in own


def test_tables_are_cached_and_cannot_be_spoilt() -> None:
    assert packing(480, 640, PUBLISHED) is packing(480, 640, PUBLISHED)
    for array in (own := packing(480, 640, PUBLISHED)).index, own.kind, own.coords:
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 3


def test_wrong_calls_are_refused() -> None:
    for size in [(0, 5), (5, 0), (-1, 3)]:
        with pytest.raises(CallError, match="none to tile"):
            best_pinpoint(*size, TINY)
        with pytest.raises(CallError, match="none to tile"):
            packing(*size, TINY)
        with pytest.raises(CallError, match="none to tile"):
            make_tables([[size]], TINY)
    for rows in ([], [[]], [[(90, 120)], []]):
        with pytest.raises(CallError, match="no image was given"):
            make_tables(rows, TINY)
    rows = [[(90, 120)], [(56, 56)]]
    with pytest.raises(CallError, match="4 tiles are too few for this batch, which has 5"):
        make_tables(rows, TINY, tiles=4)
    with pytest.raises(CallError, match=r"69 visual tokens are too few .* has 70"):
        make_tables(rows, TINY, tokens=69)
    with pytest.raises(CallError, match="1 rows are too few for this batch, which has 2"):
        make_tables(rows, TINY, batch=1)
    with pytest.raises(CallError, match="at least one tile, got 0"):
        tile_bucket(0, TINY)
    with pytest.raises(CallError, match="at least one visual token, got 0"):
        token_bucket(0, 3, TINY)
