"""A drop between two layers: what is left of a sequence, and the rows of attention beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.models.decoder.attention import attend, attention_rows, seen_by
from resprune_jax.models.decoder.drops import leave
from resprune_jax.models.decoder.views import Segment, take, words_behind

S, N, ROOM, D = 26, 12, 14, 3


def slow(row: dict, chosen: list[int], new: list[int], reindex: bool) -> dict:
    """One row with lists: text in front, kept tokens, new ones behind the last, text behind."""
    last = max((i for i, n in enumerate(row["number"]) if n >= 0), default=-1)
    kept = [i for i, n in enumerate(row["number"]) if n < 0 or n in chosen]
    front, behind = [i for i in kept if i <= last], [i for i in kept if i > last]
    slots = [*front, *(-1 - n for n in new), *behind]  # a new row is numbered below 0
    visual = [i < 0 or row["number"][i] >= 0 for i in slots]
    which = [row["number"][i] if i >= 0 else None for i in slots]
    original = [N if n is None else row["original"][n] if n >= 0 else None for n in which]
    return {
        "slots": slots,
        "number": [sum(visual[:i]) if own else -1 for i, own in enumerate(visual)],
        "original": [n for n, own in zip(original, visual, strict=True) if own],
        "positions": list(range(len(slots))) if reindex else [row["positions"][i] for i in slots],
    }


@pytest.mark.parametrize("merges", [False, True])
def test_what_a_drop_leaves(merges: bool) -> None:
    """Images with text between them, rows without any, rows that lose all; 60 random batches."""
    room = 4 if merges else 0
    run = jax.jit(
        lambda segment, chosen, new: leave(
            segment, chosen, ROOM, N - 2, new if merges else None,
            "reindex" if merges else "original",
        )
    )  # fmt: skip
    for seed in range(60):
        rng = np.random.default_rng(seed)
        rows, picks, entering = [], [], []
        for _ in range(2):
            words, count = int(rng.integers(1, ROOM + 1)), int(rng.integers(0, N - 1))
            order = rng.permutation(words - 1 + count)
            # The last token of a prompt is text; images lie side by side, or with text between.
            visual = np.append(order >= words - 1, False)
            if rng.random() < 0.5:
                visual[: words - 1 + count] = np.sort(visual[: words - 1 + count])
            size = len(visual)
            number = np.where(visual, np.cumsum(visual) - 1, -1)
            own = {
                "number": number.tolist(),
                "original": np.sort(rng.permutation(N)[:count]).tolist(),
                "positions": np.sort(rng.permutation(40)[:size]).tolist(),
            }
            rows.append(own)
            picks.append(rng.permutation(count)[: rng.integers(0, count + 1)].tolist())
            entering.append(int(rng.integers(0, room + 1)) if count else 0)
        table = {
            name: np.full((2, width), fill, np.int32)
            for name, width, fill in (("number", S, -1), ("original", N, N), ("positions", S, 0))
        }
        for i, own in enumerate(rows):
            for name in table:
                table[name][i, : len(own[name])] = own[name]
        x = rng.normal(size=(2, S, D)).astype(np.float32)
        fresh = rng.normal(size=(2, room, D)).astype(np.float32)
        count = np.asarray([len(own["number"]) for own in rows], np.int32)
        segment = Segment(
            x, table["positions"], count, table["number"], table["original"],
            np.asarray([50, 60], np.int32), np.zeros((2, N), np.int32),
            words_behind(table["number"], count), N,
        )  # fmt: skip
        segment = jax.tree.map(jnp.asarray, segment)
        chosen = np.asarray([[n in own for n in range(N)] for own in picks])
        made = run(segment, jnp.asarray(chosen), (fresh, np.asarray(entering, np.int32)))
        for i, own in enumerate(rows):
            want = slow(own, picks[i], list(range(entering[i])), merges)
            size = len(want["slots"])
            assert int(made.count[i]) == size
            assert made.valid[i].tolist() == [True] * size + [False] * (made.x.shape[1] - size)
            for name in ("number", "positions"):
                assert np.asarray(getattr(made, name))[i, :size].tolist() == want[name]
            assert set(np.asarray(made.number)[i, size:].tolist()) <= {-1}
            left = len(want["original"])
            assert made.original[i, :left].tolist() == want["original"]
            assert set(made.original[i, left:].tolist()) <= {N}
            states = [x[i, at] if at >= 0 else fresh[i, -1 - at] for at in want["slots"]]
            np.testing.assert_array_equal(np.asarray(made.x)[i, :size], np.stack(states))
            assert int(made.following[i]) == (size if merges else (50, 60)[i])
            # Text that was in front of a dropped token is not behind the image now.
            last = max((at for at, n in enumerate(own["number"]) if n >= 0), default=-1)
            behind = [at for at, slot in enumerate(want["slots"]) if slot > last]
            slots = np.asarray(made.text_places(ROOM))[i].tolist()
            assert slots[: len(behind)] == behind
            assert set(slots[len(behind) :]) <= {made.x.shape[1]}


@pytest.mark.parametrize("window", [None, 1, 5])
def test_rows_are_those_of_the_fused_attention(window: int | None) -> None:
    """Queries of chosen slots, padding anywhere, grouped heads, a window over real tokens."""
    rng = np.random.default_rng(0)
    q = jnp.asarray(rng.normal(size=(2, S, 4, 6)), jnp.float32)
    k, v = (jnp.asarray(rng.normal(size=(2, S, 2, 6)), jnp.float32) for _ in range(2))
    valid = jnp.asarray(rng.random((2, S)) < 0.7).at[:, -1].set(True)
    slots = jnp.asarray([[3, 9, S - 1, S], [0, S - 1, 17, S]], jnp.int32)
    rows = attention_rows(take(q, slots, 0), k, valid=seen_by(slots, valid, window))
    mixed = jnp.einsum("bhrt,bthd->brhd", rows, jnp.repeat(v, 2, axis=2))
    whole = attend(q, k, v, valid=valid, causal=True, window=window)
    np.testing.assert_allclose(mixed, take(whole, slots, 0), atol=1e-6)
    assert not np.asarray(rows)[:, :, -1].any()
