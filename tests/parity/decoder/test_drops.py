"""Methods that drop tokens inside the decoder, through `LVLM`, against the torch reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from resprune_jax.models import LVLM
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.runner import Runner
from tests.checkpoints.llava import IMAGE_TOKEN_ID, NUM_VISUAL_TOKENS
from tests.parity.decoder import methods
from tests.parity.decoder.reference import Drop, Trace, decode, llava_embeddings, margins, prefill
from tests.parity.llava.next_pairs import SIZES, pair, picture
from tests.parity.llava.test_answers import QUESTIONS, bound, processed
from tests.parity.llava.test_next_answers import lvlm as next_model
from tests.parity.llava.test_next_answers import processor

NEW, SLOTS = 16, 64
COUNTS = [5, 9, 8]
KEEP = [5, 9, 0.5]
GRID = (4, 4)
HEAD = 16
"""Width of a head of the tiny checkpoint."""

Drops = Callable[[int], list[Drop]]
QUICK = ("fastv", "sparsevlm")
"""One that keeps positions and one that merges and counts anew: for `make test`."""
CASES: dict[str, tuple[dict[str, Any], Drops]] = {
    "fastv": ({"method": "fastv", "keep": KEEP}, methods.fastv_drops),
    "dart": (
        {"method": "dart", "keep": KEEP, "method_settings": ["image_pivots=1", "text_pivots=2"]},
        lambda count: methods.dart_drops(count, image_pivots=1, text_pivots=2),
    ),
    "adaptprune": (
        {"method": "adaptprune", "keep": KEEP},
        lambda count: methods.adaptprune_drops(count, GRID),
    ),
    "pdrop": (
        {
            "method": "pdrop",
            "method_settings": {"layers": (1, 2), "depth": 0, "fractions": (0.6, 0.3)},
        },
        lambda count: methods.pdrop_drops(NUM_VISUAL_TOKENS, (1, 2), (0.6, 0.3)),
    ),
    "sparsevlm-plus": (
        {
            "method": "sparsevlm-plus",
            "method_settings": {"layers": (0, 1), "depth": 0, "keeps": (9, 4), "heads": 3},
        },
        lambda count: methods.sparsevlm_plus_drops((0, 1), (9, 4), size=HEAD, heads=3),
    ),
    "sparsevlm": (
        {
            "method": "sparsevlm",
            "method_settings": {"layers": (0, 1), "depth": 0, "keeps": (8, 4)},
        },
        lambda count: methods.sparsevlm_drops((0, 1), (8, 4)),
    ),
}


def traces(
    checkpoint: Path, reference: Any, lvlm: LVLM, pictures: list[Image.Image], drops: Drops
) -> list[Trace]:
    """The reference's prefill of each prompt alone."""
    made = []
    for image, question, count in zip(pictures, QUESTIONS, COUNTS, strict=True):
        batch = processed(checkpoint, [image], [lvlm.encoder.encode(question).text])
        embeddings = llava_embeddings(reference, **batch)
        places = (batch["input_ids"][0] == lvlm.config.image_token_id).nonzero()[:, 0].tolist()
        assert len(places) == NUM_VISUAL_TOKENS
        made.append(prefill(reference, embeddings, places, drops(count)))
    return made


def compare(
    lvlm: LVLM, reference: Any, wanted: list[Trace], pictures: list[Any],
    given: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Keep lists, logits of all that is left, cache lengths, and `NEW` greedy tokens.

    The answer is made by `generate` from the program that gives every token's logits: one compile.
    """
    seen: list[Any] = []
    lengths: list[list[int]] = []
    real = Runner.drop

    def drop(self: Runner, call: Any, assembled: Any, *, slots: int = 0) -> Any:
        made = real(self, call, assembled, slots=slots, every=True)
        seen.append(made)
        last = np.asarray(made[1]).sum(axis=1) - 1
        # Decoding eats the cache: its counts are read before.
        for cache in made[2]:
            lengths.extend([np.asarray(cache.valid).sum(axis=1).tolist()] * len(cache.keys))
        return made[0][np.arange(len(last)), last], *made[1:]

    monkeypatch.setattr(Runner, "drop", drop)
    options = CallOptions(max_new_tokens=NEW, **given)
    made = lvlm.generate(pictures, QUESTIONS[: len(pictures)], options=options)
    ((logits, valid, *_, dropped),) = seen
    assert made.errors == [None] * len(pictures)
    for row, trace in enumerate(wanted):
        own = np.asarray(logits)[row][np.asarray(valid)[row]]
        assert own.shape == trace.logits.shape
        worst = np.abs(own - trace.logits).max() / bound(trace.logits)
        print(f"row {row}: {worst:.2f} of the bound")
        assert worst <= 1
        kept = np.asarray(made.selections.indices[row])[: made.selections.count[row]]
        assert sorted(kept.tolist()) == [i for i in trace.kept[-1] if i >= 0]
        assert np.flatnonzero(np.asarray(dropped.kept)[row]).tolist() == sorted(kept.tolist())
        assert [length[row] for length in lengths] == trace.lengths
        assert [count for _, count in made.drops[row]] == [len(own) for own in trace.kept]
        with torch.no_grad():
            tokens, steps = decode(reference, trace, NEW, stop=2)
        assert margins(steps).min() > 1e-4
        assert made.tokens[row].tolist() == tokens


@pytest.mark.parametrize(
    "case",
    [case if case in QUICK else pytest.param(case, marks=pytest.mark.deep) for case in CASES],
)
def test_logits_tokens_and_cache_are_the_references(
    case: str, checkpoint: Path, reference: Any, lvlm: LVLM, photographs: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A ragged batch of three; each row has a budget of its own where the method takes one."""
    given, drops = CASES[case]
    wanted = traces(checkpoint, reference, lvlm, photographs[:3], drops)
    compare(lvlm, reference, wanted, photographs[:3], given, monkeypatch)


def test_llava_next_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of several tiles, whose newline tokens compete for the budget too."""
    models, lvlm = pair("vicuna"), next_model("vicuna")
    pictures, wanted = [picture(*size) for size in SIZES[:2]], []
    for image, question in zip(pictures, QUESTIONS, strict=False):
        text = lvlm.encoder.encode(question).text
        batch = dict(processor()(images=[image], text=[text], return_tensors="pt"))
        places = (batch["input_ids"][0] == IMAGE_TOKEN_ID).nonzero()[:, 0].tolist()
        embeddings = llava_embeddings(models.torch_model, **batch)
        drops = methods.fastv_drops(11, layer=1)
        wanted.append(prefill(models.torch_model, embeddings, places, drops))
    given = {"method": "fastv", "keep": 11, "method_settings": {"k": 1}}
    compare(lvlm, models.torch_model, wanted, pictures, given, monkeypatch)
