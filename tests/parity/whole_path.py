"""The whole path of a prompt on torch's side: what the tests of every family's answers share.

Every reference is one prompt alone and without padding; batches and buckets are ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from resprune_jax.models import LVLM
from resprune_jax.models.running.generation import Generation

NEW = 32
QUESTIONS = [
    "What is on the table next to the window?",
    "How many people are in the picture, and what colour is the dog near the old bicycle?",
    "Is there a dog in the image?\nAnswer the question using a single word or phrase.",
    "Where is the bus?",
]
LONG = " ".join(QUESTIONS[1] for _ in range(24))
"""A question of over 500 tokens."""


@dataclass(frozen=True)
class Reference:
    """One unpruned prompt in torch.

    Attributes:
        model: the torch model.
        inputs: what its `forward` and `generate` take.
        embeddings: (S, d), text and visual tokens in place.
        positions: (S,), or (S, 3) on three axes.
        image: (S,) int, which of the prompt's images a token belongs to; -1 for text.
    """

    model: Any
    inputs: dict[str, torch.Tensor]
    embeddings: torch.Tensor
    positions: np.ndarray
    image: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """(S,) the expanded prompt."""
        return self.inputs["input_ids"][0].numpy()

    @torch.no_grad()
    def logits(self) -> np.ndarray:
        """(S, V)."""
        self._forget()
        return self.model(**self.inputs).logits[0].numpy()

    @torch.no_grad()
    def greedy(self, eos: int, new: int = NEW) -> list[int]:
        """The answer, up to and with the end-of-sequence id."""
        self._forget()
        whole = self.model.generate(**self.inputs, do_sample=False, max_new_tokens=new)
        row = whole[0, len(self.ids) :].tolist()
        return row[: row.index(eos) + 1] if eos in row else row

    @torch.no_grad()
    def pruned_logits(self, kept: np.ndarray, rule: str) -> np.ndarray:
        """(P, V) from the kept visual tokens, by number, at the rule's positions."""
        stay, places = self._prune(kept, rule)
        return self._run(self.embeddings[stay], places)

    @torch.no_grad()
    def pruned_answer(
        self,
        kept: np.ndarray,
        rule: str,
        eos: int | Sequence[int],
        new: int,
        judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> tuple[list[int], np.ndarray]:
        """The answer after pruning, every step from the whole prompt again; its first logits.

        `judge` takes the unpruned ids with the answer so far (1, S) and scores (1, V).
        """
        stay, places = self._prune(kept, rule)
        x = self.embeddings[stay]
        # LLaVA counts tokens that left too; Qwen2.5-VL goes on behind the largest position.
        row: list[int] = []
        first: np.ndarray | None = None
        ends = {eos} if isinstance(eos, int) else set(eos)
        while len(row) < new and not ends & set(row):
            logits = self._run(x, places)[-1]
            first = logits if first is None else first
            if judge is not None:
                ids = torch.tensor([[*self.ids.tolist(), *row]])
                logits = judge(ids, torch.from_numpy(logits)[None])[0].numpy()
            row.append(int(logits.argmax()))
            x = torch.cat([x, self.model.get_input_embeddings()(torch.tensor(row[-1:]))])
            places = np.concatenate([places, np.full_like(places[:1], places.max() + 1)])
        assert first is not None
        return row, first

    def _prune(self, kept: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray]:
        """Which of the prompt's tokens stay, and where they stand."""
        visual = np.flatnonzero(self.image >= 0)
        stay = np.sort(np.concatenate([np.flatnonzero(self.image < 0), visual[kept]]))
        if rule == "original":
            return stay, self.positions[stay]
        if self.positions.ndim == 1:
            return stay, np.arange(len(stay))
        return stay, closed_up(self.positions[stay], self.image[stay], self.positions, self.image)

    def _run(self, x: torch.Tensor, places: np.ndarray) -> np.ndarray:
        order = torch.from_numpy(np.ascontiguousarray(places.T)).long()
        order = order[None] if places.ndim == 1 else order[:, None]
        self._forget()
        return self.model(inputs_embeds=x[None], position_ids=order).logits[0].numpy()

    def _forget(self) -> None:
        """transformers keeps the last prompt's offset on the module."""
        if hasattr(self.model.model, "rope_deltas"):
            self.model.model.rope_deltas = None


def closed_up(
    positions: np.ndarray, image: np.ndarray, full: np.ndarray, owner: np.ndarray
) -> np.ndarray:
    """Positions on three axes, one token at a time: text goes on behind what was kept.

    Args:
        positions: (P, 3) of the tokens that stay, as in the full prompt.
        image: (P,) their images.
        full: (S, 3) of the full prompt.
        owner: (S,) its images.
    """
    out = []
    at, seen = 0, set()
    for own, here in zip(positions, image, strict=True):
        # Images in front of this token that lost everything take no room.
        if here < 0:
            out.append(np.full(3, at))
            at += 1
            continue
        first = full[owner == here][0]
        if here not in seen:
            begin = at
            seen.add(int(here))
        offset = own - first[1]
        out.append(begin + offset)
        at = max(at, begin + int(offset[1:].max()) + 1)
    return np.asarray(out)


def bound(reference: np.ndarray) -> float:
    """The parity gate of this project: 1e-5, or that share of the logits' deviation."""
    return 1e-5 * max(1.0, float(reference.std()))


def share(got: np.ndarray, want: np.ndarray) -> float:
    """max|d| over the bound: at most 1 passes."""
    assert got.shape == want.shape
    return float(np.abs(got - want).max()) / bound(want)


def check_logits(lvlm: LVLM, images: Any, prompts: list[str], rows: list[Reference]) -> None:
    """Every logit of the full prompts, and the ids that they stand behind."""
    got, valid = map(np.asarray, lvlm.logits(images, prompts))
    worst, compared = 0.0, 0
    for row, reference in enumerate(rows):
        want = reference.logits()
        worst = max(worst, share(got[row][valid[row]], want))
        compared += want.size
    print(f"{compared} logits of {len(rows)} rows, worst {worst:.2f} of the bound")
    assert worst <= 1


def check_greedy(lvlm: LVLM, images: Any, prompts: list[str], rows: list[Reference]) -> int:
    """The greedy tokens of every row; returns how many."""
    got = lvlm.generate(images, prompts, max_new_tokens=NEW)
    eos = int(lvlm.encoder.eos_ids[0])
    assert [row.tolist() for row in got.tokens] == [row.greedy(eos) for row in rows]
    assert got.errors == [None] * len(rows)
    return sum(map(len, got.tokens))


def kept_of(made: Generation, row: int, lines: Sequence[int] = ()) -> np.ndarray:
    """The visual tokens of a row that entered the language model, ascending."""
    if made.kept[row] == made.visual_tokens[row]:
        return np.arange(made.visual_tokens[row])
    assert made.selections is not None
    own = np.asarray(made.selections.indices[row]).ravel()
    own = own[own < made.visual_tokens[row]]
    own = np.unique(np.concatenate([own, np.asarray(lines, own.dtype)]))
    assert len(own) == made.kept[row]
    return own


def check_pruned(
    lvlm: LVLM,
    images: Any,
    prompts: list[str],
    rows: list[Reference],
    *,
    keep: Any,
    new: int = 1,
    lines: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> Generation:
    """Logits after pruning, and `new` greedy tokens, against torch with the same kept tokens."""
    encoded = lvlm.encode(images)
    made = lvlm.generate(encoded, prompts, keep=keep, max_new_tokens=new, **options)
    got, valid = map(np.asarray, lvlm.logits(encoded, prompts, keep=keep, **options))
    rule = options.get("positions") or lvlm.family.positions
    eos, worst, tokens = int(lvlm.encoder.eos_ids[0]), 0.0, 0
    for row, reference in enumerate(rows):
        kept = kept_of(made, row, () if lines is None else lines[row])
        want = reference.pruned_logits(kept, rule)
        worst = max(worst, share(got[row][valid[row]], want))
        assert made.tokens[row].tolist() == reference.pruned_answer(kept, rule, eos, new)[0]
        tokens += len(made.tokens[row])
    left = f"{made.kept} of {made.visual_tokens} kept"
    print(f"{options}: {left}, worst {worst:.2f} of the bound, {tokens} greedy tokens equal")
    assert worst <= 1
    return made
