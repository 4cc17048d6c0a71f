"""Methods that drop tokens inside Qwen2.5-VL, through `LVLM`, against the torch reference.

Position ids have three axes and stay the tokens' own. A batch of two: a prompt about one picture,
and one about two of different sizes with text between them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import numpy as np
import pytest

from resprune_jax.methods.decoder.pdrop import PyramidDrop
from tests.checkpoints.qwen_vl import EOS_ID
from tests.parity.decoder import rules
from tests.parity.decoder.reference import Drop, Trace, decode, prefill
from tests.parity.decoder.test_drops import compare
from tests.parity.llava.next_pairs import picture
from tests.parity.qwen.pairs import pair
from tests.parity.qwen.test_qwen_answers import RAGGED, ROWS, STRIP, WHOLE, lvlm, reference
from tests.parity.whole_path import QUESTIONS, Reference, share

VARIANT = "untied"
SMALL = (60, 60)
PICTURES = [[picture(*RAGGED)], [picture(*WHOLE), picture(*STRIP)]]
LOST = [[picture(*WHOLE), picture(*SMALL)], [picture(*RAGGED), picture(*SMALL)]]
KEEP = [0.4, 11]
"""Of 35 tokens and of 27."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Pyramid(PyramidDrop):
    """PyramidDrop that keeps position ids: what it counts anew, three axes cannot."""

    positions = "original"


@dataclass(frozen=True)
class Prompt:
    """A prompt of the batch in torch.

    Attributes:
        whole: unpruned.
        keep: tokens of its budget.
    """

    whole: Reference
    keep: int

    @property
    def visual(self) -> list[int]:
        """Places of its visual tokens."""
        return np.flatnonzero(self.whole.image >= 0).tolist()

    @property
    def grids(self) -> list[tuple[int, int]]:
        """Rows and columns of each picture's tokens."""
        cells = self.whole.inputs["image_grid_thw"][:, 1:] // 2
        return [(rows, columns) for rows, columns in cells.tolist()]

    def run(self, drops: list[Drop]) -> Trace:
        """The prefill."""
        own = self.whole
        return prefill(own.model, own.embeddings, self.visual, drops, own.positions)


Rule = Callable[[Prompt], list[Drop]]
FRACTIONS = (0.6, 0.3)
QUICK = "fastv"
"""For `make test`; the others are `make test-deep`."""
CASES: dict[str, tuple[dict[str, Any], Rule]] = {
    "fastv": ({"method": "fastv", "keep": KEEP}, lambda own: rules.fastv(own.keep, 2)),
    "fastv behind layer 0": (
        {"method": "fastv", "keep": KEEP, "method_settings": {"k": 1}},
        lambda own: rules.fastv(own.keep, 1),
    ),
    "dart": (
        {"method": "dart", "keep": KEEP, "method_settings": {"image_pivots": 2, "text_pivots": 3}},
        lambda own: rules.dart(own.keep, 2, image_pivots=2, text_pivots=3),
    ),
    "adaptprune": (
        {"method": "adaptprune", "keep": KEEP},
        lambda own: rules.adaptprune(own.keep, 2, own.grids),
    ),
    "pdrop": (
        {"method": Pyramid(layers=(1, 2), depth=0, fractions=FRACTIONS)},
        lambda own: rules.pdrop(len(own.visual), (1, 2), FRACTIONS),
    ),
    "sparsevlm-plus": (
        {
            "method": "sparsevlm-plus",
            "method_settings": {"layers": (0, 1), "depth": 0, "keeps": (14, 6), "heads": 3},
        },
        lambda own: rules.sparsevlm_plus((0, 1), (14, 6), 3),
    ),
}


@lru_cache
def prompts() -> list[Prompt]:
    """The batch."""
    return read(PICTURES, KEEP)


def read(pictures: list[list[Any]], budgets: list[Any]) -> list[Prompt]:
    """Prompts about so many rows of pictures."""
    made = []
    for row, question, keep in zip(pictures, QUESTIONS, budgets, strict=False):
        whole = reference(VARIANT, row, question)
        tokens = int((whole.image >= 0).sum())
        made.append(Prompt(whole, round(keep * tokens) if isinstance(keep, float) else int(keep)))
    return made


def check(
    given: dict[str, Any], rule: Rule, own: list[Prompt], pictures: Any, patch: pytest.MonkeyPatch
) -> list[Trace]:
    """Keep lists, logits, cache lengths and greedy tokens; the reference's prefills."""
    wanted = [each.run(rule(each)) for each in own]
    compare(lvlm(VARIANT), pair(VARIANT).torch_model, wanted, pictures, given, patch)
    return wanted


@pytest.mark.parametrize(
    "case",
    [case if case == QUICK else pytest.param(case, marks=pytest.mark.deep) for case in CASES],
)
def test_logits_tokens_and_cache_are_the_references(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = [own.grids for own in prompts()]
    assert len(grids[1]) == 2 and len({*grids[0], *grids[1]}) == 3
    assert len({len(own.whole.ids) for own in prompts()}) == 2
    check(*CASES[case], prompts(), PICTURES, monkeypatch)


@pytest.mark.deep
def test_videos_are_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames stand on the axis of time; a picture follows the second one."""
    given: dict[str, Any] = {"method": "fastv", "keep": 13, "method_settings": {"k": 1}}
    check(
        given, lambda own: rules.fastv(own.keep, 1), read(ROWS[2:], [13, 13]), ROWS[2:], monkeypatch
    )


@pytest.mark.deep
def test_raters_are_the_same_words_when_the_last_picture_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The text in front of it stands behind all that is left, and was not asked."""
    settings = {"layers": (0, 1), "depth": 0, "keeps": (5, 3), "heads": 3}
    given = {"method": "sparsevlm-plus", "method_settings": settings}
    own = read(LOST, [5, 5])
    wanted = check(given, lambda _: rules.sparsevlm_plus((0, 1), (5, 3), 3), own, LOST, monkeypatch)
    first = [math.prod(each.grids[0]) for each in own]
    gone = [max(trace.kept[0]) < size for trace, size in zip(wanted, first, strict=True)]
    assert any(gone), "every picture keeps a token: the test decides nothing"


FAULTS: dict[str, Callable[[list[Drop]], list[Drop]]] = {
    "positions counted anew": rules.counted_anew,
    "one token for another": rules.one_off,
    "a layer late": rules.a_layer_late,
}


@pytest.mark.deep
@pytest.mark.parametrize("fault", FAULTS)
def test_the_bound_tells_a_wrong_drop(fault: str) -> None:
    for own in prompts():
        drops = rules.fastv(own.keep, 1)
        right, wrong = own.run(drops), own.run(FAULTS[fault](drops))
        assert share(wrong.logits[-4:], right.logits[-4:]) > 100


@pytest.mark.deep
def test_the_reference_is_the_model() -> None:
    """Without drops: transformers' own logits and answers."""
    for own in prompts():
        trace = own.run([])
        assert share(trace.logits, own.whole.logits()) <= 1
        tokens, _ = decode(own.whole.model, trace, 16, stop=EOS_ID)
        assert tokens == own.whole.greedy(EOS_ID, 16)
