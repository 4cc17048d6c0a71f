"""The lines of `bench generate` in the order of interest, and which are measured together."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

Way = Literal["here", "compiled", "eager", "flash"]

LABELS: dict[Way, str] = {
    "here": "here",
    "compiled": "transformers (compiled, sdpa)",
    "eager": "transformers (eager, sdpa)",
    "flash": "transformers (eager, flash)",
}
"""How a way through the model is called: what runs it, and with which attention."""

MEANING = (
    "transformers: eager, with a cache that grows; or compiled: a static cache (StaticCache), and"
    " the decode step and the steps of choosing through torch.compile, with CUDA graphs"
    ' ("reduce-overhead") on a GPU. Attention: sdpa, or flash (kernels of flash-attn).'
)

WANTED = 128
"""Of the budgets the one that is asked about most; it is measured first where it is among them."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of the table.

    Attributes:
        batch: prompts.
        way: through the model.
        keep: visual tokens to keep; None: all of them.
    """

    batch: int
    way: Way
    keep: int | None

    @property
    def row(self) -> str:
        """The batch, as the JSON file calls it."""
        return f"batch {self.batch}"

    @property
    def where(self) -> str:
        """Whose implementation it is."""
        return "here" if self.way == "here" else "transformers"

    @property
    def name(self) -> str:
        """The line in words."""
        return f"{self.row}, {label(self.way, self.keep)}"

    @property
    def head(self) -> dict[str, Any]:
        """What says which line an entry of the JSON file is."""
        return {"where": self.where, "way": self.way, "keep": self.keep}


def label(way: Way, keep: int | None) -> str:
    """A way through the model and its budget, in words."""
    return f"{LABELS[way]}, {'all' if keep is None else keep}"


def plan_groups(
    batches: Sequence[int], keeps: Sequence[int], theirs: Sequence[Way], *, hurried: bool
) -> list[list[Line]]:
    """Lines that are measured together, those that are asked about most first.

    Args:
        batches: prompts of a batch, in order.
        keeps: budgets.
        theirs: ways through transformers' model.
        hurried: the time is short: the full model and one budget of every batch come before the
            other budgets. Else a batch is one group, so that all its lines take turns.

    Returns:
        Groups of lines of one batch each; every line once.
    """
    first = WANTED if WANTED in keeps else keeps[0]
    rest = [keep for keep in dict.fromkeys(keeps) if keep != first]
    # Eager is there at once; torch.compile takes a minute a line on a large model.
    quick: tuple[Way, ...] = ("eager", "compiled")
    fast = [way for way in quick if way in theirs]

    def core(batch: int) -> list[Line]:
        ours = [Line(batch, "here", keep) for keep in (None, first)]
        return ours + [Line(batch, way, keep) for keep in (None, first) for way in fast]

    def others(batch: int) -> list[Line]:
        ways: list[Way] = ["here", *fast]
        found = [Line(batch, way, keep) for way in ways for keep in rest]
        if "flash" in theirs:
            found += [Line(batch, "flash", keep) for keep in (None, first, *rest)]
        return found

    batches = list(dict.fromkeys(batches))
    if not hurried:
        return [core(batch) + others(batch) for batch in batches]
    groups = [core(batch) for batch in batches] + [others(batch) for batch in batches]
    return [group for group in groups if group]
