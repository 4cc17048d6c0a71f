"""The grid of a sweep: axes as a user writes them, and the configurations that they span.

A wrong grid is refused before a model is loaded; JAX comes in where methods are looked up.
"""

import dataclasses
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Annotated, Any, get_args

from resprune_jax.arguments import LARGEST, read_setting, settings_by_name
from resprune_jax.choices import (
    METHODS,
    Aggregate,
    NonNegative,
    OcrLine,
    SeedRule,
    TextSource,
)
from resprune_jax.errors import CallError, shown
from resprune_jax.experiments.common import parse_keep
from resprune_jax.experiments.common import shown as option
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import CallOptions, Positions

ALL = "all"
"""Stands for every method."""

OFF = "off"
"""On the axis of tolerances: keep the whole budget."""

SETTINGS = ("alpha", "aggregate", "nonnegative", "relevance_sign", "seed_rule")
"""Axes that are settings of a method: they apply to those that have a field of that name."""

TEXTS = ("text", "ocr_line", "tagger")
"""Axes that say what of a question conditions the choice, of methods that read its text."""

AXES = (*SETTINGS, *TEXTS, "tolerance", "positions")
"""Every axis beside methods, budgets and draws, in the order of names."""


def _axis(metavar: str, about: str) -> Any:
    return Annotated[tuple[Any, ...], option(metavar, "the method's", about)]


def _names(choices: Any) -> str:
    return "{" + ",".join(get_args(choices)) + "}"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Axes; every method is run at every point of those that apply to it.

    An axis left empty stands for the method's own default. A configuration of a method to which an
    axis does not apply (an alpha of `divprune`) is run once, not once for each value.
    """

    methods: Annotated[tuple[str, ...], option("NAME", None)] = ("none", "resprune")
    """Methods (resprune methods lists them), with settings as agilepruner:average=9,most=0.3, or a
    class of your own as FILE.py:NAME; none keeps every token; all is every one that the model can
    run without settings."""
    keep: Annotated[tuple[str, ...], option("BUDGET", None)] = ("1/3", "2/9", "1/9")
    """Budgets: shares of the visual tokens (1/9, 0.2) or counts (64)."""
    alpha: Annotated[tuple[float, ...], option("X", "the method's")] = ()
    """Strengths of the guidance by the question's nouns (Table V)."""
    aggregate: Annotated[tuple[Aggregate, ...], option(_names(Aggregate), "the method's")] = ()
    """Relevance over several noun tokens (Table VI)."""
    nonnegative: Annotated[
        tuple[NonNegative, ...], option(_names(NonNegative), "the method's")
    ] = ()
    """How negative cosines become weights."""
    relevance_sign: Annotated[tuple[int, ...], option("{1,-1}", "the method's")] = ()
    """Whether likeness to the nouns counts for a token, or against it."""
    seed_rule: Annotated[tuple[SeedRule, ...], option(_names(SeedRule), "the method's")] = ()
    """Which visual token is chosen first (Table VII)."""
    text: Annotated[tuple[TextSource, ...], option(_names(TextSource), "the method's")] = ()
    """What conditions the choice: the question's nouns or every word (Table IV)."""
    ocr_line: Annotated[tuple[OcrLine, ...], option(_names(OcrLine), "strip")] = ()
    """Whether TextVQA's line of reference OCR tokens counts."""
    tagger: Annotated[tuple[str, ...], option("NAME", "auto")] = ()
    """What finds the nouns: auto, lexicon, or a spaCy pipeline."""
    tolerance: Annotated[tuple[str, ...], option("X", OFF)] = ()
    """Shares of residual energy to stop at, the budget stays the most; off for none."""
    positions: Annotated[tuple[Positions, ...], option(_names(Positions), "the model's")] = ()
    """Position ids after pruning."""
    draws: Annotated[int, option("N", None)] = 1
    """How often the method random is drawn."""


@dataclass(frozen=True)
class Configuration:
    """One point of a grid.

    Attributes:
        name: unique in a sweep.
        method: its name, or FILE.py:NAME, without settings; "none" keeps every token.
        keep: the budget as it was written; None for every token, or where settings say how many.
        settings: of the method, by name.
        draw: of random tokens.
        axes: the axes that apply to it and that the grid gives, by name.
        optional: it may be left out where the model cannot run it.
        refused: why it cannot run anywhere, of an optional one.
    """

    name: str
    method: str
    keep: str | None
    settings: Mapping[str, Any] = field(default_factory=dict)
    draw: int = 0
    axes: Mapping[str, Any] = field(default_factory=dict)
    optional: bool = False
    refused: str = ""

    @property
    def budget(self) -> Keep:
        """`keep` as a call takes it."""
        return None if self.keep is None else read_keep(self.keep)

    @property
    def tolerance(self) -> float | None:
        """Where to stop, None for the whole budget."""
        given = self.axes.get("tolerance", OFF)
        return None if given == OFF else float(given)

    @property
    def draws_rows(self) -> bool:
        """Whether tokens are drawn for each example apart: those of `random`, unless it is told."""
        return self.method == "random" and "rng_seed" not in self.settings

    def options(self, **more: Any) -> CallOptions:
        """What a call is told for it.

        Args:
            **more: other fields of `CallOptions`.

        Raises:
            CallError: a value that cannot be.
        """
        own = {name: self.axes[name] for name in ("positions", *TEXTS) if name in self.axes}
        told = dict(self.settings)
        told |= {name: self.axes[name] for name in SETTINGS if name in self.axes}
        given: dict[str, Any] = {
            "method": self.method, "method_settings": told, "keep": self.budget,
            "tolerance": self.tolerance, **own, **more,
        }  # fmt: skip
        return CallOptions(**given)

    def options_for(self, keys: Sequence[str], **more: Any) -> CallOptions:
        """`options` for a call about these examples: random tokens are drawn for each apart."""
        if self.draws_rows:
            more["method_settings"] = {"rng_seed": [seed_of(key, self.draw) for key in keys]}
        return self.options(**more)

    def record(self) -> dict[str, Any]:
        """What results say of it."""
        return {
            "name": self.name, "method": self.method, "keep": self.keep, "draw": self.draw,
            "settings": dict(self.settings), **self.axes,
        }  # fmt: skip


def seed_of(key: str, draw: int) -> int:
    """The seed of an example's random tokens: of its key, whatever block it is in."""
    return zlib.crc32(f"{draw} {key}".encode("utf-8", "backslashreplace"))


def read_keep(written: str) -> Keep:
    """A budget: a fraction, a share or a count.

    Raises:
        CallError: none of these, or one that keeps nothing or everything.
    """
    if "/" in written:
        try:
            share = Fraction(written)
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share < 1:
            raise CallError(f"--keep {shown(written)}: write a share between 0 and 1, such as 1/9")
        return float(share)
    found = parse_keep(written)
    if found is None:
        raise CallError("--keep full: every token stays with --methods none, leave it out of keep")
    return found


def configurations(grids: Sequence[Grid]) -> list[Configuration]:
    """The configurations of some grids, each once, in their order.

    Raises:
        CallError: an unknown method or value, or one twice on an axis.
    """
    found: dict[str, Configuration] = {}
    for grid in grids:
        for made in _of(grid):
            found.setdefault(made.name, made)
    if not found:
        raise CallError("the grid is empty: give methods and budgets")
    return list(found.values())


def _of(grid: Grid) -> list[Configuration]:
    for axis in ("methods", "keep", *AXES):
        values = getattr(grid, axis)
        if not isinstance(values, list | tuple):
            raise CallError(f"{axis} is a list of values, got {shown(values)}")
        if twice := [value for n, value in enumerate(values) if value in values[:n]]:
            raise CallError(f"{axis} names {shown(twice[0])} twice")
    if not isinstance(grid.draws, int) or not 1 <= grid.draws <= 1000:
        raise CallError(f"draws must lie in 1 to 1000, got {shown(grid.draws)}")
    for keep in grid.keep:
        read_keep(str(keep))
    made = []
    for written in grid.methods:
        if written != ALL:
            made += _of_method(grid, str(written))
            continue
        for name in ("none", *METHODS):
            try:
                made += _of_method(grid, name, optional=True)
            except CallError as error:
                made.append(Configuration(name, name, None, optional=True, refused=str(error)))
    return made


def split_method(written: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a method as it is written: NAME:SETTING=VALUE,...

    Raises:
        CallError: settings that are none.
    """
    name, told = written, ""
    head, _, tail = written.rpartition(":")
    if "=" in tail and head:
        name, told = head, tail
    return name, settings_by_name(_parts(told)) if told else {}


def _parts(told: str) -> list[str]:
    """Settings split at the commas in front of a name, so that rows of numbers stay whole."""
    parts: list[str] = []
    for part in told.split(","):
        if "=" in part or not parts:
            parts.append(part)
        else:
            parts[-1] += f",{part}"
    return parts


def _of_method(grid: Grid, written: str, *, optional: bool = False) -> list[Configuration]:
    name, settings = split_method(written)
    if name == "none":
        if settings:
            raise CallError("method none has no settings")
        return [Configuration("none", "none", None)]
    if not grid.keep:
        raise CallError("keep is empty: give a budget such as 1/9, or --methods none alone")
    from resprune_jax.methods import get_method

    fits, budgeted = _applies(name, settings)
    axes = {axis: getattr(grid, axis) for axis in AXES if axis in fits and getattr(grid, axis)}
    keeps: Sequence[Any] = [None] if budgeted else grid.keep
    draws = grid.draws if name == "random" and "rng_seed" not in settings else 1
    made = []
    for keep, *point in itertools.product(keeps, *axes.values()):
        own = {axis: _value(axis, value) for axis, value in zip(axes, point, strict=True)}
        words = [written, *([] if keep is None else [f"keep={keep}"])]
        words += [f"{axis}={value}" for axis, value in own.items()]
        for draw in range(draws):
            label = " ".join([*words, *([f"draw={draw}"] if draw else [])])
            one = Configuration(
                label, name, None if keep is None else str(keep), settings, draw, own, optional
            )
            get_method(name, one.options().settings)  # refuses what cannot be
            made.append(one)
    return made


def _value(axis: str, value: Any) -> Any:
    """A value of an axis as results record it."""
    if axis in ("alpha", "relevance_sign"):
        found = read_setting(value) if isinstance(value, str) else value
        known = isinstance(found, int | float) and not isinstance(found, bool)
        if not known or not abs(found) <= LARGEST:  # NaN is neither
            raise CallError(f"{axis} is a number, got {shown(value)}")
        return float(found) if axis == "alpha" else found
    if axis == "tolerance":
        if value in (OFF, None):
            return OFF
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            raise CallError(f"tolerance {shown(value)} is neither a number nor {OFF}") from None
    if not isinstance(value, str):
        raise CallError(f"{axis} is text, got {shown(value)}")
    return value


def _applies(name: str, settings: Mapping[str, Any]) -> tuple[set[str], bool]:
    """The axes that mean something to a method, and whether its settings say how many stay."""
    from resprune_jax.methods import get_method
    from resprune_jax.methods.decoder.base import DecoderMethod

    method = get_method(name, settings)
    fits = {own.name for own in dataclasses.fields(method)} & set(SETTINGS)
    fits -= settings.keys()
    if "text" in method.needs or "alpha" in fits:
        fits |= set(TEXTS)
    if method.measures_energy:
        fits.add("tolerance")
    fixed = isinstance(method, DecoderMethod) or method.stage == "pixels"
    if not fixed and not (method.makes_rows and method.sequence == "listed"):
        fits.add("positions")
    return fits, method.budgeted
