"""What a page holds: pictures, places of tokens, selections and answers; as JSON and back.

Budgets are counts of visual tokens. A run is one question by one method; where the method's choices
are nested, one order of tokens serves every budget, else each budget of the list has its own.
"""

import dataclasses
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from resprune_jax.errors import CallError, RunError

FORMAT = "resprune-explore"
VERSION = 1
DIGITS = 7
"""Significant digits of energies and relevances: those of float32."""

_OPENING = '<script type="application/json" id="data">'


@dataclass(frozen=True)
class Picture:
    """A picture as the page shows it.

    Attributes:
        src: a data URI.
        width: in pixels.
        height: in pixels.
    """

    src: str
    width: int
    height: int


@dataclass(frozen=True)
class View:
    """Visual tokens that lie on one picture, in a grid over all of it.

    Attributes:
        name: which part of the model's input it is; empty where it is all there is.
        picture: number of the picture among its card's.
        rows: of the grid.
        columns: of the grid.
        tokens: (n,) visual tokens, counted through the prompt's pictures.
        cells: (n,) where each of them lies, in raster order.
    """

    name: str
    picture: int
    rows: int
    columns: int
    tokens: tuple[int, ...]
    cells: tuple[int, ...]


@dataclass(frozen=True)
class Answer:
    """What a budget gave.

    Attributes:
        keep: visual tokens kept; all of them is the full model.
        text: the answer.
        order: the tokens kept, in order of choice, where they are not the first of the run's.
        energy: residual energy behind them, where `order` is given.
    """

    keep: int
    text: str
    order: tuple[int, ...] | None = None
    energy: float | None = None


@dataclass(frozen=True)
class Run:
    """One question by one method.

    Attributes:
        prompt: the question.
        method: the method's name.
        nouns: what guided the choice, where the method reads text.
        noun_backend: what found them.
        nested: whether a smaller budget keeps the first tokens of a larger one.
        order: the visual tokens in order of choice; empty where choices are not nested.
        energy: residual energy before each pick and after the last, one more than `order`.
        relevance: of every visual token, before the gate; None where the method has none.
        answers: one a budget, from the largest budget down.
        note: what a reader must know of the method, else empty.
    """

    prompt: str
    method: str
    nouns: tuple[str, ...]
    noun_backend: str
    nested: bool
    order: tuple[int, ...]
    energy: tuple[float, ...]
    relevance: tuple[float, ...] | None
    answers: tuple[Answer, ...]
    note: str = ""

    def kept(self, keep: int) -> tuple[int, ...]:
        """The visual tokens that a budget keeps, in order of choice.

        Args:
            keep: a count; of a run that is not nested, one of its answers'.

        Raises:
            CallError: a budget that the run does not hold.
        """
        for answer in self.answers:
            if answer.keep == keep and answer.order is not None:
                return answer.order
        if not self.nested or not 1 <= keep <= len(self.order):
            known = (
                f"1 to {len(self.order)}" if self.nested else str([a.keep for a in self.answers])
            )
            raise CallError(f"this run holds budgets {known}, got {keep}")
        return self.order[:keep]

    @property
    def turns(self) -> tuple[tuple[int, int], ...]:
        """Where the answer turns: (smaller, larger) budgets beside one another in the list."""
        return turns([(answer.keep, answer.text) for answer in self.answers])


@dataclass(frozen=True)
class Card:
    """A prompt's pictures and what was asked about them.

    Attributes:
        name: the picture's file name.
        tokens: N, visual tokens.
        energies: (N,) each token's own energy, its squared norm.
        pictures: what views lie on.
        views: tokens in none of them show no place of a picture (newline tokens).
        runs: at least one.
    """

    name: str
    tokens: int
    energies: tuple[float, ...]
    pictures: tuple[Picture, ...]
    views: tuple[View, ...]
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Page:
    """All that a page shows.

    Attributes:
        model: the checkpoint's name.
        made_by: the program and its version.
        cards: at least one.
    """

    model: str
    made_by: str
    cards: tuple[Card, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """As JSON's values; turns are written beside the answers that they follow from."""
        made = dataclasses.asdict(self)
        for card, own in zip(made["cards"], self.cards, strict=True):
            for run, told in zip(card["runs"], own.runs, strict=True):
                run["turns"] = [list(turn) for turn in told.turns]
        return {"format": FORMAT, "version": VERSION, **made}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The page of `to_json`.

        Raises:
            RunError: other values.
        """
        if values.get("format") != FORMAT or values.get("version") != VERSION:
            raise RunError(f"these are not the data of a page of version {VERSION}")
        try:
            cards = tuple(_card(card) for card in values["cards"])
            return cls(values["model"], values["made_by"], cards)
        except (KeyError, TypeError, ValueError) as error:
            raise RunError(f"the data of the page are damaged: {error!r}") from None


def _card(values: Mapping[str, Any]) -> Card:
    views = [
        View(**{**view, "tokens": tuple(view["tokens"]), "cells": tuple(view["cells"])})
        for view in values["views"]
    ]
    pictures = tuple(Picture(**picture) for picture in values["pictures"])
    runs = tuple(_run(run) for run in values["runs"])
    energies = tuple(values["energies"])
    return Card(values["name"], values["tokens"], energies, pictures, tuple(views), runs)


def _run(values: Mapping[str, Any]) -> Run:
    own = {name: value for name, value in values.items() if name != "turns"}
    answers = []
    for answer in own.pop("answers"):
        order = answer["order"]
        answers.append(Answer(**{**answer, "order": None if order is None else tuple(order)}))
    for name in ("nouns", "order", "energy", "relevance"):
        own[name] = None if own[name] is None else tuple(own[name])
    return Run(answers=tuple(answers), **own)


def alike(answer: str) -> str:
    """An answer as far as two of them count as the same: case, blanks and a final stop do not."""
    return " ".join(answer.split()).casefold().rstrip(".")


def turns(answers: Sequence[tuple[int, str]]) -> tuple[tuple[int, int], ...]:
    """Where answers turn.

    Args:
        answers: (budget, text) in any order.

    Returns:
        (smaller, larger) budgets next to one another whose answers differ, the largest first.
    """
    down = sorted(answers, key=lambda one: -one[0])
    pairs = zip(down[1:], down[:-1], strict=True)
    return tuple((low, high) for (low, one), (high, two) in pairs if alike(one) != alike(two))


def rounded(value: float) -> float:
    """A number to the digits that a page holds."""
    return float(f"{value:.{DIGITS}g}")


def script_json(values: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or open one."""
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    # Outside of its strings JSON has none of these.
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def element(values: Any) -> str:
    """The element that holds the data."""
    return f"{_OPENING}{script_json(values)}</script>"


def load(path: str | Path) -> Page:
    """Read the data of a page that `resprune explore` wrote.

    Args:
        path: the HTML file.

    Returns:
        The page: `page.cards[0].runs[0].kept(48)` are tokens, `.answers` the answers.

    Raises:
        CallError: the file is missing, or is no such page.
        RunError: a page that is damaged.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise CallError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    found = re.search(re.escape(_OPENING) + "(.*?)</script>", text, re.DOTALL)
    if found is None:
        raise CallError(f"{path} is no page of resprune explore")
    try:
        return Page.from_json(json.loads(found[1]))
    except ValueError as error:
        raise RunError(f"the data of {path} are damaged: {error}") from None


def escaped(text: str) -> str:
    """Text for HTML, in an isolate of its own direction: its marks turn nothing around it."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return html.escape(f"\u2068{whole}\u2069")
