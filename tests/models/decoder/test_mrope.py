"""M-RoPE positions: small cases by hand, pruning against a slow oracle, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.decoder.mrope import (
    IMAGE,
    TEXT,
    VIDEO,
    Grid,
    RopeIndex,
    pruned_positions,
    rope_index,
    token_kinds,
)
from resprune_jax.models.decoder.rope import axial_tables, rope_tables


def one(kinds: list[int], grids: list[Grid], tokens_per_second: float = 2) -> RopeIndex:
    """One prompt without padding."""
    row = np.asarray([kinds])
    return rope_index(row, np.ones_like(row, bool), [grids], tokens_per_second)


def test_text_alone_counts_up_on_every_axis() -> None:
    index = one([TEXT] * 5, [])
    np.testing.assert_array_equal(index.positions[0], np.arange(5)[:, None].repeat(3, axis=1))
    assert index.following.tolist() == [5] and (index.run == -1).all()
    assert index.deltas(np.ones((1, 5), bool)).tolist() == [0]


def test_a_picture_between_words_by_hand() -> None:
    index = one([TEXT] * 2 + [IMAGE] * 6 + [TEXT], [Grid(1, 2, 3)])
    expected = [(0, 0, 0), (1, 1, 1), (2, 2, 2), (2, 2, 3), (2, 2, 4), (2, 3, 2), (2, 3, 3)]
    assert list(map(tuple, index.positions[0].tolist())) == [*expected, (2, 3, 4), (5, 5, 5)]
    assert index.following.tolist() == [6] and index.starts.tolist() == [[2]]
    assert index.run[0].tolist() == [-1, -1, 0, 0, 0, 0, 0, 0, -1]


def test_a_video_s_clock_is_truncated() -> None:
    # 0.7 s a group at 2 steps a second: 0, 1.4 and 2.8 steps.
    index = one([VIDEO] * 3 + [TEXT], [Grid(3, 1, 1, 0.7)])
    assert index.positions[0].tolist() == [[0, 0, 0], [1, 0, 0], [2, 0, 0], [1, 1, 1]]
    assert index.following.tolist() == [3]


def test_padding_on_either_side_changes_nothing() -> None:
    kinds, grids = [TEXT] + [IMAGE] * 4 + [TEXT] * 2, [Grid(1, 2, 2)]
    alone = one(kinds, grids)
    rows = np.full((2, 10), TEXT)
    valid = np.zeros((2, 10), bool)
    for row, at in enumerate((slice(0, 7), slice(3, 10))):
        rows[row, at], valid[row, at] = kinds, True
    both = rope_index(rows, valid, [grids, grids], 2, runs=3)
    for row in range(2):
        np.testing.assert_array_equal(both.positions[row, valid[row]], alone.positions[0])
        assert (both.positions[row, ~valid[row]] == 0).all()
    assert both.following.tolist() == [5, 5] and both.starts.shape == (2, 3)


def slow_compact(index: RopeIndex, keep: np.ndarray, row: int) -> tuple[np.ndarray, int]:
    """The compact rule told as a story: walk the row, closing up behind each image."""
    run, positions = np.asarray(index.run)[row], np.asarray(index.positions)[row]
    out, saved, highest = np.zeros_like(positions), 0, -1
    at = 0
    while at < len(run):
        end = at + 1
        while run[at] >= 0 and end < len(run) and run[end] == run[at]:
            end += 1
        out[at:end] = positions[at:end] - saved
        kept = [i for i in range(at, end) if keep[row, i]]
        highest = max([highest, *(int(out[i].max()) for i in kept)])
        if run[at] >= 0:
            start = int(positions[at, 1])
            takes = max((int(positions[i, 1:].max()) - start + 1 for i in kept), default=0)
            saved += int(np.asarray(index.extents)[row, run[at]]) - takes
        at = end
    return out, highest + 1


def test_compact_positions_match_the_slow_oracle() -> None:
    rng = np.random.default_rng(0)
    program = jax.jit(pruned_positions, static_argnums=2)
    compared = moved = 0
    for _ in range(40):
        kinds = np.zeros((2, 64), np.int64)
        valid = np.zeros((2, 64), bool)
        grids: list[list[Grid]] = []
        for row in range(2):
            own, spans = [], [TEXT] * int(rng.integers(1, 4))
            for _ in range(rng.integers(0, 4)):
                grid = Grid(1, int(rng.integers(1, 5)), int(rng.integers(1, 5)))
                if rng.random() < 0.4:
                    grid = Grid(int(rng.integers(1, 4)), 2, int(rng.integers(1, 3)), 0.9)
                own.append(grid)
                spans += [IMAGE if grid.seconds is None else VIDEO] * grid.num_tokens
                spans += [TEXT] * int(rng.integers(1, 3))
            kinds[row, : len(spans)], valid[row, : len(spans)] = spans, True
            grids.append(own)
        index = rope_index(kinds, valid, grids, 2, runs=4)
        keep = valid & ((kinds == TEXT) | (rng.random(kinds.shape) < rng.choice([0.0, 0.3, 0.9])))
        places, following = map(np.asarray, program(index, keep, "compact"))
        whole, after = map(np.asarray, program(index, valid, "compact"))
        np.testing.assert_array_equal(whole[valid], index.positions[valid])
        np.testing.assert_array_equal(after, index.following)
        for row in range(2):
            want, end = slow_compact(index, keep, row)
            np.testing.assert_array_equal(places[row, keep[row]], want[keep[row]])
            assert following[row] == end
            compared += int(keep[row].sum())
            moved += int((want[keep[row]] != index.positions[row, keep[row]]).any(axis=1).sum())
        same, next_one = pruned_positions(index, jnp.asarray(keep), "original")
        np.testing.assert_array_equal(same, index.positions)
        np.testing.assert_array_equal(next_one, index.following)
    print(f"{compared} tokens, {moved} of them moved up")
    assert moved > 100


@pytest.mark.parametrize(
    ("kinds", "grids", "said"),
    [
        ([IMAGE] * 3, [Grid(1, 2, 2)], "3 placeholders in a row where image 0 has 4"),
        ([TEXT, IMAGE, TEXT], [], "1 visual tokens, but its images and videos give 0"),
        ([VIDEO] * 4, [Grid(1, 2, 2)], "0 placeholders in a row where image 0 has 4"),
        ([IMAGE] * 5 + [TEXT], [Grid(1, 2, 2)], "5 visual tokens"),
        ([TEXT] * 3, [Grid(1, 1, 1)], "0 placeholders in a row where image 0 has 1"),
    ],
)
def test_placeholders_must_fit_the_grids(kinds: list[int], grids: list[Grid], said: str) -> None:
    with pytest.raises(CallError, match=said):
        one(kinds, grids)


def test_too_many_images_for_the_static_room() -> None:
    row = np.asarray([[IMAGE, TEXT, IMAGE]])
    with pytest.raises(CallError, match="2 images and videos, but there is room for 1"):
        rope_index(row, np.ones_like(row, bool), [[Grid(1, 1, 1)] * 2], 2, runs=1)


def test_kinds_come_from_the_ids() -> None:
    kinds = token_kinds(np.asarray([[7, 5, 6, 5]]), image_token_id=5, video_token_id=6)
    assert kinds.tolist() == [[TEXT, IMAGE, VIDEO, IMAGE]]


def test_sections_pick_the_axis_of_each_frequency() -> None:
    positions = jnp.asarray([[[3, 50, 700]]], jnp.int32)
    cos, sin = rope_tables(positions, 16, 1e4, (2, 3, 3))
    for axis, where in enumerate((slice(0, 2), slice(2, 5), slice(5, 8))):
        alone = rope_tables(positions[:, :, axis], 16, 1e4)
        np.testing.assert_array_equal(cos[0, 0, where], alone[0][0, 0, where])
        np.testing.assert_array_equal(sin[0, 0, where], alone[1][0, 0, where])
    # One position for all axes is the plain rotation.
    plain = rope_tables(positions[:, :, 1], 16, 1e4, (2, 3, 3))
    np.testing.assert_array_equal(plain[0], rope_tables(positions[:, :, 1], 16, 1e4)[0])


def test_axial_tables_turn_rows_and_columns_alike() -> None:
    cos, sin = axial_tables(jnp.asarray([[4, 9], [9, 4]], jnp.int32), 16, 1e4)
    exact = np.asarray([4, 9])[:, None] * 1e4 ** (-np.arange(0, 8, 2) / 8)
    np.testing.assert_allclose(cos[0, 0], np.cos(exact).reshape(-1), atol=1e-6)
    np.testing.assert_allclose(sin[0, 0], np.sin(exact).reshape(-1), atol=1e-6)
    np.testing.assert_array_equal(cos[0, 0, :4], cos[0, 1, 4:])
