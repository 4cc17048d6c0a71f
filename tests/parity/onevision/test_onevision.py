"""LLaVA-OneVision from `load_model` to the answer, against transformers."""

from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from resprune_jax.methods.base import NEWLINE
from resprune_jax.models import Video
from tests.compiles import backend_compiles
from tests.parity.llava.next_pairs import picture
from tests.parity.onevision.pairs import lvlm, reference
from tests.parity.whole_path import QUESTIONS, Reference, check_greedy, check_logits, check_pruned

FILM = Video(np.stack([np.asarray(picture(60 + n, 90))[:60] for n in range(3)]), fps=4.0)

# A picture whose plane is resized; one that is not; three; a picture and a video, which leaves the
# picture alone among pictures.
ROWS: list[list[Any]] = [
    [picture(120, 130)],
    [picture(50, 80)],
    [picture(44, 44), picture(90, 40), picture(30, 200)],
    [picture(60, 40), FILM],
]


@lru_cache(maxsize=1)
def references() -> list[Reference]:
    return [reference(row, asked) for row, asked in zip(ROWS, QUESTIONS, strict=True)]


def test_logits_answers_and_pruned_answers_of_a_ragged_batch() -> None:
    model, rows = lvlm(), references()
    check_logits(model, ROWS, QUESTIONS, rows)
    assert check_greedy(model, ROWS, QUESTIONS, rows) >= 64
    check_pruned(model, ROWS, QUESTIONS, rows, keep=[0.3, 11, None, 0.5], new=8)


def test_pruned_by_image_with_newlines_beside_it_at_the_unpruned_positions() -> None:
    """In the shapes of the test above, so that little is compiled."""
    model, rows = lvlm(), references()
    kinds = np.asarray(model.encode(ROWS).kind)
    lines = [np.flatnonzero(kind == NEWLINE) for kind in kinds]
    keep = [4, 0.5, 2, None]
    made = check_pruned(
        model, ROWS, QUESTIONS, rows, keep=keep, positions="original", budget="per_image",
        newline="always", lines=lines,
    )  # fmt: skip
    beside = [len(own) for own in lines]
    assert min(beside) >= 2
    assert made.kept[0] == 4 + beside[0] and made.kept[2] == 3 * 2 + 3


def test_padding_has_no_effect() -> None:
    """A row alone, and beside one with more tiles and tokens, padding tiles not even finite."""
    model = lvlm()
    more = [picture(30, 60)] * 8
    own, wide = (model.family.read(rows, "processor") for rows in ([ROWS[1]], [ROWS[1], more]))
    assert own.slots < wide.slots
    tables = wide.inputs["tables"]
    wide.inputs["pixels"][~tables.tile_valid] = np.nan
    alone, beside = (model.programs.encode(model.parameters, read.inputs) for read in (own, wide))
    real = np.asarray(alone.valid[0])
    got, want = np.asarray(beside.embeddings[0]), np.asarray(alone.embeddings[0])
    count = int(real.sum())
    assert int(np.asarray(beside.valid[0]).sum()) == count
    np.testing.assert_allclose(got[:count], want[:count], atol=1e-5 * want.std())
    assert (got[count:] == 0).all() and (want[count:] == 0).all()
    np.testing.assert_array_equal(beside.kind[0, :count], alone.kind[0, :count])


@pytest.mark.deep
def test_a_stream_compiles_once_a_bucket_and_nothing_behind_a_warm_up() -> None:
    """Pictures of random sizes, two together, and films, each against torch."""
    model, rng = lvlm(), np.random.default_rng(3)
    stream: list[list[Any]] = [[picture(*size)] for size in rng.integers(20, 200, (6, 2)).tolist()]
    stream += [[picture(30, 60), picture(70, 50)], [FILM], [picture(90, 90), picture(20, 20)]]
    model.warm_up(
        [(44, 44), (44, 88), (44, 132), (88, 88), (132, 132), [(44, 44), (44, 44)], (3, 44, 44)],
        prompt_lengths=(40,), max_new_tokens=3,
    )  # fmt: skip
    shapes = set()
    with backend_compiles() as compiles:
        made = [model.generate([row], [QUESTIONS[0]], max_new_tokens=3) for row in stream]
    for row in stream:
        read = model.family.read([row], "processor")
        shapes.add((*read.inputs["pixels"].shape, read.slots))
    print(f"{len(stream)} prompts in {len(shapes)} shapes; {len(compiles)} compiles")
    assert compiles == [] and len(shapes) >= 4
    for row, answer in zip(stream[4:], made[4:], strict=True):
        want = reference(row, QUESTIONS[0]).greedy(int(model.encoder.eos_ids[0]), 3)
        assert answer.tokens[0].tolist() == want
