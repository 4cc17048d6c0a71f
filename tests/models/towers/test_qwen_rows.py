"""The tower as a GPU runs it, whole frames in rows, on this machine's backend."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.models.decoder import attention, gpu
from resprune_jax.models.towers.qwen_vision import rows as layout
from resprune_jax.models.towers.qwen_vision.rows import Rows, frame_rows
from resprune_jax.models.towers.qwen_vision.tables import make_tables
from tests.models.towers.test_qwen_vision import CLIP, CONFIG, RAGGED, STRIP, packed, tower

SLOTS = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=30), room=st.sampled_from([0, 2, 9]))
def test_every_patch_has_a_slot_beside_its_frame(sizes: list[int], room: int) -> None:
    real, length = sum(sizes), max(sizes) + 3
    size = real + 5
    before, layout.ROOM = layout.ROOM, room
    try:
        made = frame_rows(sizes, size, length)
    finally:
        layout.ROOM = before
    frame = np.repeat(np.arange(len(sizes)), sizes)
    if len(sizes) == 1:
        assert made.index is None and made.slot is None and made.segments is None
        assert np.asarray(made.lengths).tolist() == sizes
        return
    index, slot = np.asarray(made.index), np.asarray(made.slot)
    assert index.shape[1] == length and slot.shape == (size,)
    np.testing.assert_array_equal(index.reshape(-1)[slot[:real]], np.arange(real))
    assert (index < size).sum() == real and (slot[real:] == index.size).all()
    if made.lengths is not None:  # a frame a row, from its first slot on
        assert made.segments is None and index.size <= room * size
        lengths = np.asarray(made.lengths)
        assert lengths[: len(sizes)].tolist() == sizes and not lengths[len(sizes) :].any()
        np.testing.assert_array_equal(index < size, np.arange(length) < lengths[:, None])
        np.testing.assert_array_equal(slot[:real] // length, frame)
    else:
        segments = np.asarray(made.segments)
        np.testing.assert_array_equal(segments.reshape(-1)[slot[:real]], frame)
        assert (segments[index == size] == -1).all()
        # First fit: no two rows could be one, and so few are counted that no row is far too much.
        used = (index < size).any(axis=1).sum()
        assert used * length <= 2 * real + length and len(index) <= 1.5 * used + 1


@partial(jax.jit, static_argnums=0)
def look(graph: Any, state: Any, patches: Any, tables: Any) -> tuple[jax.Array, ...]:
    return nnx.merge(graph, state).look(patches, tables)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tables and programs made meanwhile are for a GPU without cuDNN."""
    monkeypatch.setattr(gpu, "in_use", lambda: True)
    monkeypatch.setattr(gpu, "missing", lambda *_: "it is not here")
    look.clear_cache()
    yield
    look.clear_cache()


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return tower(replace(CONFIG, full_attention_blocks=(1, 2)))


def plain(model: Any, *grids: tuple[int, int, int]) -> tuple[list[np.ndarray], np.ndarray, int]:
    """What the tower shows elsewhere, the patches, and how many are real."""
    patches, tables, real = packed(*grids, patches=192)
    assert tables.frames is None
    return [np.asarray(part) for part in look(*model, patches, tables)], patches, real


def apart(got: Any, want: list[np.ndarray], real: int) -> float:
    """The largest difference over the deviation; of patches, cells and what cells receive."""
    counts = (real, real // 4, real // 4)
    return max(
        float(np.abs(np.asarray(g)[:n] - w[:n]).max() / w[:n].std())
        for g, w, n in zip(got, want, counts, strict=True)
    )


LAYOUTS: dict[str, tuple[tuple[tuple[int, int, int], ...], int, Callable[[Rows], bool]]] = {
    "a picture": ((RAGGED,), 4, lambda rows: rows.index is None),
    "a row each": ((RAGGED, STRIP, CLIP), 4, lambda rows: rows.lengths is not None),
    "shared rows": ((RAGGED, STRIP, CLIP), 0, lambda rows: rows.segments is not None),
}


@pytest.mark.parametrize(
    ("name", "held"),
    [
        (name, held)
        if (name, held) == ("a row each", 2**32)
        else pytest.param(name, held, marks=pytest.mark.deep)
        for name in LAYOUTS
        for held in (2**32, 40_000)
    ],
)
def test_rows_of_frames_show_the_same(
    name: str, held: int, model: Any, request: pytest.FixtureRequest, monkeypatch: Any
) -> None:
    grids, room, is_so = LAYOUTS[name]
    want, patches, real = plain(model, *grids)
    request.getfixturevalue("on_a_gpu")
    monkeypatch.setattr(layout, "ROOM", room)
    monkeypatch.setattr(gpu, "HELD", held)
    tables = make_tables(grids, CONFIG, patches=192)
    assert tables.frames is not None and is_so(tables.frames)
    with attention.paths_taken() as paths:
        got = look(*model, patches, tables)
    assert paths == ({"xla"} if held == 2**32 else {"xla", "parts"})
    error = apart(got, want, real)
    print(f"{name}, {held} bytes of scores: {error:.1e} of the deviation")
    assert error <= 1e-5
    # Whatever the padding holds.
    spoilt = patches.copy()
    spoilt[real:] = 100.0
    for one, other in zip(got, look(*model, spoilt, tables), strict=True):
        count = real if len(one) == len(patches) else real // 4
        np.testing.assert_array_equal(one[:count], other[:count])


@pytest.mark.deep
@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("fault", ["lengths", "segments", "slots"])
def test_a_fault_in_the_rows_is_seen(fault: str, model: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(layout, "ROOM", 0 if fault == "segments" else 4)
    patches, tables, real = packed(RAGGED, STRIP, CLIP, patches=192)
    want = [np.asarray(part) for part in look(*model, patches, tables)]
    frames = tables.frames
    assert frames is not None
    if fault == "lengths":
        wrong = replace(frames, lengths=np.full_like(frames.lengths, frames.index.shape[1]))
    elif fault == "segments":
        wrong = replace(frames, segments=np.zeros_like(frames.segments))
    else:
        wrong = replace(frames, slot=np.roll(frames.slot, 1))
    got = look(*model, patches, replace(tables, frames=wrong))
    error = apart(got, want, real)
    print(f"{fault}: {error:.1e} of the deviation")
    assert error > 1e-3
