"""From a model to the data of a page: what is kept at every budget, and the answers on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import stopping
from resprune_jax.experiments.explore.data import Answer, Card, Run, rounded
from resprune_jax.experiments.explore.places import views_of
from resprune_jax.methods import DecoderMethod, Method
from resprune_jax.methods.inputs import ON_REQUEST
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts import budgets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.encoded import Encoded

DEPENDENT = 1e-6
"""A token adds nothing to a span that all of it but this share of its length lies in."""

BLOCK = 64
"""Tokens that are joined to the span together."""


@dataclass(frozen=True)
class Asked:
    """What is asked about one prompt's pictures.

    Attributes:
        name: of the pictures.
        images: paths, PIL images or arrays.
        prompts: the questions.
        budgets: that are answered.
    """

    name: str
    images: tuple[Any, ...]
    prompts: tuple[str, ...]
    budgets: tuple[Keep, ...]


def check_shown(method: Method, name: str) -> None:
    """Refuse a method whose choice is no set of visual tokens.

    Raises:
        CallError: what it does instead.
    """
    if method.stage == "pixels":
        why = "makes the picture smaller"
    elif method.merges:
        why = "merges tokens, so that what enters the model lies at no one place"
    elif method.budgeted:
        why = "is told by its settings how many tokens stay: leave those out"
    else:
        return
    raise CallError(f"--method {name} cannot be shown on a picture: it {why}")


def make_card(
    lvlm: LVLM,
    asked: Asked,
    methods: dict[str, CallOptions],
    *,
    batch_size: int = 8,
    most_bytes: int = 10**9,
) -> Card:
    """Ask questions about a prompt's pictures by several methods, at several budgets.

    Args:
        lvlm: the model.
        asked: the pictures, questions and budgets.
        methods: options of a call by the name of each method, without a budget.
        batch_size: answers that are made together.
        most_bytes: that each picture of the card may take.

    Raises:
        CallError: a method that cannot be shown, or cannot run on this model.
        RunError: a picture or an answer failed.
    """
    own = {name: _method(lvlm, options, name) for name, options in methods.items()}
    aspect = next(iter(methods.values())).image_aspect
    pictures, views, total = views_of(
        lvlm.family, asked.images, image_aspect=aspect, most_bytes=most_bytes
    )
    needs = frozenset().union(*(method.needs for method in own.values())) & ON_REQUEST
    seen = lvlm.encode([list(asked.images)], image_aspect=aspect, needs=needs)
    tokens = np.asarray(seen.embeddings[0])[:total].astype(np.float64)  # [N, d]
    counts = counts_of(asked.budgets, total)
    runs = []
    for name, options in methods.items():
        note = _note(lvlm, own[name], name, counts)
        rows = _answers(lvlm, seen, asked, options, own[name].nested, counts, batch_size)
        shown = _relevance(lvlm, seen, asked, options, own[name])
        for number, prompt in enumerate(asked.prompts):
            mine = rows[number * len(counts) : (number + 1) * len(counts)]
            relevance = None if shown is None else shown[number][:total]
            runs.append(make_run(prompt, name, mine, tokens, relevance, own[name].nested, note))
    runs.sort(key=lambda run: asked.prompts.index(run.prompt))  # stable: methods side by side
    energies = tuple(rounded(value) for value in np.square(tokens).sum(axis=1))
    return Card(asked.name, total, energies, tuple(pictures), tuple(views), tuple(runs))


def counts_of(asked: Sequence[Keep], total: int) -> list[int]:
    """Budgets as counts of `total` tokens, each once: all of them, then the others downwards."""
    return sorted({total, *(budgets.ceiling(keep, total) for keep in asked)}, reverse=True)


def _method(lvlm: LVLM, options: CallOptions, name: str) -> Method:
    method = lvlm.method_of(options)
    assert method is not None
    check_shown(method, name)
    return method


def _note(lvlm: LVLM, method: Method, name: str, counts: list[int]) -> str:
    """What a reader must know of a method.

    Raises:
        CallError: one that drops several times inside the decoder: no one picture shows that.
    """
    if not isinstance(method, DecoderMethod):
        return ""
    layers = lvlm.config.text.num_layers
    before = 0
    for keep in counts[1:]:
        drops = method.drops(counts[0], keep, layers)
        if len(drops) != 1:
            raise CallError(
                f"--method {name} cannot be shown on one picture: it drops tokens {len(drops)}"
                " times on their way through the model"
            )
        before = drops[0].before
    return f"{name} drops tokens inside the model: its first {before} layers work on all of them."


@dataclass(frozen=True)
class Row:
    """What one question gave at one budget.

    Attributes:
        keep: visual tokens kept.
        text: the answer.
        chosen: (keep,) the tokens, in order of choice.
        energy: (keep + 1,) residual energy as the method measured it, else None.
        nouns: what guided the choice.
        noun_backend: what found them.
    """

    keep: int
    text: str
    chosen: NDArray[np.int64]
    energy: NDArray[np.float64] | None
    nouns: tuple[str, ...]
    noun_backend: str


def _answers(
    lvlm: LVLM,
    seen: Encoded,
    asked: Asked,
    options: CallOptions,
    nested: bool,
    counts: list[int],
    batch_size: int,
) -> list[Row]:
    """Every question at every budget, question by question.

    The budget of all tokens stands beside the others: of a nested method its choice is the order of
    all, and programs are compiled once for all budgets, questions and pictures.
    """
    total = counts[0]
    pairs = [(prompt, keep) for prompt in asked.prompts for keep in counts]
    step = max(1, batch_size // len(counts)) * len(counts) if len(counts) <= batch_size else 0
    rows: list[Row] = []
    for start in range(0, len(pairs), step or batch_size):
        stopping.check()
        part = pairs[start : start + (step or batch_size)]
        keep = [None if own == total and not nested else own for _, own in part]
        made = lvlm.generate(
            seen, [prompt for prompt, _ in part], options=replace(options, keep=keep)
        )
        for error in made.errors:
            if error is not None:
                raise RunError(f"{asked.name}: {error}")
        for number, (_, own) in enumerate(part):
            chosen, energy = np.arange(total), None
            if made.selections is not None and keep[number] is not None:
                count = made.kept[number]
                chosen = np.asarray(made.selections.indices[number])[:count].astype(np.int64)
                if made.selections.energy is not None:
                    energy = np.asarray(made.selections.energy[number], np.float64)[: count + 1]
            if len(set(chosen.tolist())) != own or chosen.max() >= total:
                raise RunError(f"{asked.name}: a budget of {own} tokens kept {len(chosen)}")
            nouns = tuple(dict.fromkeys(made.nouns[number]))
            rows.append(Row(own, made.texts[number], chosen, energy, nouns, made.noun_backend))
    return rows


def _relevance(
    lvlm: LVLM, seen: Encoded, asked: Asked, options: CallOptions, method: Method
) -> NDArray[np.float32] | None:
    """The relevance of every visual token to each question (P, N), None where there is none."""
    if isinstance(method, DecoderMethod):
        return None
    call = lvlm.prepare(seen, list(asked.prompts), options, new_tokens=0)
    found = lvlm.relevance(call)
    return None if found is None else np.asarray(found)


def make_run(
    prompt: str,
    method: str,
    rows: Sequence[Row],
    tokens: NDArray[np.float64],
    relevance: NDArray[np.float32] | None,
    nested: bool,
    note: str = "",
) -> Run:
    """One question by one method.

    Args:
        prompt: the question.
        method: the method's name.
        rows: what each budget gave, the one of all tokens first.
        tokens: (N, d).
        relevance: (N,) of the tokens, or None.
        nested: whether the first row's order serves the others.
        note: see `Run.note`.
    """
    first = rows[0]
    order = first.chosen if nested else first.chosen[:0]
    energy = np.zeros(0)
    if nested:
        energy = residual_energy(tokens, order) if first.energy is None else first.energy
    answers = []
    for row in rows:
        if nested and np.array_equal(row.chosen, order[: row.keep]):
            answers.append(Answer(row.keep, row.text))
            continue
        # Also of a nested method, where rounding decided between tokens that are as good.
        left = rounded(residual_energy(tokens, row.chosen)[-1])
        answers.append(Answer(row.keep, row.text, tuple(row.chosen.tolist()), left))
    # A budget of all tokens may be the full model, which no noun guides.
    guided = rows[-1]
    return Run(
        prompt=prompt,
        method=method,
        nouns=guided.nouns,
        noun_backend=guided.noun_backend,
        nested=nested,
        order=tuple(order.tolist()),
        energy=tuple(rounded(value) for value in energy),
        relevance=None if relevance is None else tuple(rounded(value) for value in relevance),
        answers=tuple(answers),
        note=note,
    )


def residual_energy(tokens: ArrayLike, order: ArrayLike) -> NDArray[np.float64]:
    """The tokens' energy outside the span of the first of an order, for each length of it.

    Args:
        tokens: (N, d).
        order: (K,) token numbers.

    Returns:
        (K + 1,): the sum of squared norms, then behind each token of the order.
    """
    every = np.asarray(tokens, np.float64)
    picks = np.asarray(order, np.int64)
    total = float(np.square(every).sum())
    norms = np.linalg.norm(every[picks], axis=1)
    basis = np.zeros((every.shape[1], 0))  # of the span, [d, rank]
    taken = np.zeros(len(picks))
    for start in range(0, len(picks), BLOCK):
        here = np.arange(start, min(start + BLOCK, len(picks)))
        here = here[norms[here] > 0]
        block = (every[picks[here]] / norms[here, None]).T
        for _ in range(2):  # once more for what rounding has left
            block -= basis @ (basis.T @ block)
        new = np.zeros((len(block), 0))
        adds = []
        for place, column in zip(here, block.T, strict=True):
            for _ in range(2):
                column = column - new @ (new.T @ column)
            length = np.linalg.norm(column)
            if length > DEPENDENT:
                new = np.column_stack([new, column / length])
                adds.append(place)
        taken[adds] = np.square(every @ new).sum(axis=0)
        basis = np.concatenate([basis, new], axis=1)
    return np.maximum(total - np.concatenate([[0.0], np.cumsum(taken)]), 0.0)
