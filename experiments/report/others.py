"""Tables that the paper does not have: hard examples, budgets by error, costs, all settings."""

from collections.abc import Mapping

import numpy as np

from resprune_jax.experiments.report.cases import cases
from resprune_jax.experiments.report.formats import Block, Cell, Number, Row, Table, scaled
from resprune_jax.experiments.report.measured import RELATIVE, Comparison
from resprune_jax.experiments.report.settings import FULL, share, written
from resprune_jax.experiments.report.tables import Group, Line, Maker, NoTableError, in_full
from resprune_jax.experiments.report.tolerance import above_fixed, variants
from resprune_jax.experiments.statistics import cluster_sums, holm, sign_flip

NAMES: Mapping[str, str] = {
    "tolerance": "Budgets by error, and fixed ones",
    "hard": "What downsampling gets wrong",
    "costs": "Tokens and times",
    "cases": "Examples on which methods part",
}

RIGHT = 0.5
"""From this score on an answer is right, where a table counts right answers."""

ALMOST_ALL = 0.99
"""A budget by error that may keep so large a share is not bounded."""

_COSTS = (
    ("kept", "kept", 1), ("average", "a layer", 1), ("residual", "energy left, %", 2),
    ("effective_rank", "effective rank", 1), ("select_ms", "choosing, ms", 2),
    ("answer_ms", "answering, ms", 2),
)  # fmt: skip
"""Columns of the results, their headings and digits."""


def make(maker: Maker, name: str) -> list[Table]:
    """One of these tables.

    Args:
        maker: what tables are made from.
        name: a key of NAMES.

    Raises:
        NoTableError: the results do not hold its configurations.
    """
    makers = {"tolerance": by_error, "hard": hard, "costs": costs, "cases": cases}
    return [makers[name](maker)]


def by_error(maker: Maker) -> Table:
    """A row a budget: mean tokens kept, accuracy, and the gain over a fixed budget of that mean."""
    found = variants(maker.choice, maker.measured)
    if not found:
        raise NoTableError(f"no tolerance of {maker.choice.against} was run")
    tokens = int(maker.choice.results.run["visual_tokens"])
    blocks = []
    for variant, (fixed, controlled) in found.items():
        for kind, own in (("Fixed budgets", fixed), ("Budgets by error", controlled)):
            rows = []
            for one in own:
                what = one.keep or "all tokens"
                if one.tolerance is not None and one.keep is not None:
                    what = f"energy left {one.tolerance:g}"
                    what += f", at most {one.keep}" if share(one.keep, tokens) < ALMOST_ALL else ""
                cells: list[Cell] = [what, scaled(one.kept, 1), scaled(one.accuracy)]
                gain = None if one.tolerance is None else above_fixed(one, fixed)
                cells.append("" if gain is None else scaled(gain, signed=True))
                name = maker.measured.settings[one.setting].name
                rows.append(Row(cells, {"configuration": name}))
            blocks.append(Block(f"{kind}, {variant}" if variant else kind, rows))
    note = (
        "Gain: accuracy above that of a fixed budget of as many tokens in the mean, which is read"
        " off straight lines between the fixed budgets over the logarithm of tokens; a dash where"
        " no fixed budget is as small. Intervals hold both uncertainties."
    )
    head = ["budget", "tokens kept, mean", "accuracy", "gain, points"]
    return Table("tolerance", NAMES["tolerance"], head, blocks, [note])


def hard(maker: Maker) -> Table:
    """VTC-Bench's point (arXiv 2510.07143): accuracy where a smaller picture does not do."""
    choice, own = maker.choice, maker.measured
    groups: list[tuple[Group, np.ndarray]] = []
    for keep in choice.keeps:
        down = choice.same_budget("downsample", keep)
        if down is None:
            continue
        found = [(label, choice.at_base(label, keep)) for label in choice.methods]
        lines = [Line(label, i) for label, i in found if i is not None and i != down]
        lines = [Line("all tokens", choice.full), *lines]
        groups.append((Group(keep, lines, choice.reference(keep)), own.scores[down] < RIGHT))
    if not groups:
        raise NoTableError("method downsample was not run at any of the budgets")
    groups = [(group, wrong) for group, wrong in groups if wrong.any()]
    if not groups:
        raise NoTableError("method downsample gets nothing wrong")
    compared = _compared(maker, groups)
    blocks = []
    for group, wrong in groups:
        rows = []
        scores = own.scores[[line.setting for line in group.lines]]  # [L, E]
        there = own.means(np.where(wrong, scores, np.nan), shares=True)
        right = np.where(wrong, np.nan, scores)
        elsewhere = [] if wrong.all() else own.means(right, shares=True)
        for n, line in enumerate(group.lines):
            against = compared.get((group.keep, line.setting))
            cells: list[Cell] = [line.label, scaled(there[n], mark=against.mark if against else "")]
            cells.append(scaled(elsewhere[n]) if elsewhere else "")
            more: dict[str, str | float] = {"examples": float(wrong.sum())}
            if against:
                more |= in_full(against)
            rows.append(Row(cells, more, line.setting == group.reference))
        asked = f"{int(wrong.sum()):,} of {wrong.size:,} examples"
        blocks.append(Block(f"{maker.heading(group.keep)}: {asked} are wrong", rows))
    notes = [
        "Accuracy on the examples that method downsample answers wrongly at the same budget, and on"
        " the others, in per cent with 95 % intervals for these examples as they are."
    ]
    if compared:
        notes.append(
            f"Arrows: above (↑) or below (↓) {choice.against} (in bold) on the wrong ones, by a"
            " paired sign-flip test by cluster at 5 %, Holm's correction for"
            f" {len(compared)} comparisons."
        )
    head = ["method", "where downsample is wrong", "where it is right"]
    return Table("hard", NAMES["hard"], head, blocks, notes)


def _compared(
    maker: Maker, groups: list[tuple[Group, np.ndarray]]
) -> dict[tuple[str | None, int], Comparison]:
    """Each pruning method against the reference, on the examples of its budget."""
    own = maker.measured
    keys: list[tuple[str | None, int]] = []
    apart: list[np.ndarray] = []
    for group, wrong in groups:
        for line in group.lines:
            beside = group.reference
            if beside is not None and line.setting not in (beside, maker.choice.full):
                keys.append((group.keep, line.setting))
                difference = own.scores[line.setting] - own.scores[beside]
                apart.append(np.where(wrong, difference, np.nan))
    if not keys:
        return {}
    gains = own.means(np.stack(apart))
    sums = cluster_sums(np.nan_to_num(np.stack(apart)), own.results.clusters)
    p = sign_flip(sums, rng_seed=own.rng_seed)
    made = zip(gains, p, holm(p), strict=True)
    return {
        key: Comparison(gain, float(own_p), float(corrected))
        for key, (gain, own_p, corrected) in zip(keys, made, strict=True)
    }


def costs(maker: Maker) -> Table:
    """A row a method and budget: tokens, what they leave out, times of a question."""
    full = Line("all tokens", maker.choice.full)
    groups = [Group(None, [full], None), *maker.methods()]
    columns = [
        (name, heading, digits)
        for name, heading, digits in _COSTS
        if any(
            np.isfinite(maker.measured.level(line.setting, name))
            for g in groups
            for line in g.lines
        )
    ]
    blocks = []
    for n, group in enumerate(groups):
        rows = []
        for line in group.lines:
            cells: list[Cell] = [line.label]
            for name, _, digits in columns:
                percent = 100 if name == "residual" else 1
                cells.append(
                    Number(percent * maker.measured.level(line.setting, name), digits=digits)
                )
            rows.append(Row(cells))
        blocks.append(Block(maker.heading(group.keep) if n else "", rows))
    note = (
        "Means over the examples. A layer: visual tokens an LLM layer sees, the mean over layers."
        " Energy left: outside the span of the kept tokens. Times are a question's share of its"
        " batch, where it was computed."
    )
    return Table("costs", NAMES["costs"], ["method", *(h for _, h, _ in columns)], blocks, [note])


def every(maker: Maker) -> Table:
    """All settings of a run and all their figures: a table for programs."""
    own = maker.measured
    axes = list(dict.fromkeys(name for one in own.settings for name in one.axes))
    failed = [one.configuration for one in own.results.failed]
    rows = []
    for i, one in enumerate(own.settings):
        cells: list[Cell] = [one.name, one.label, "" if one.method == FULL else one.keep or ""]
        cells += [written(one.axes[name]) if name in one.axes else "" for name in axes]
        cells += [Number(float(len(one.members))), scaled(own.figure(i, RELATIVE))]
        cells += [scaled(own.figure(i, figure)) for figure, _ in own.figures]
        cells += [Number(own.level(i, name)) for name, _, _ in _COSTS]
        names = [own.results.configurations[member]["name"] for member in one.members]
        cells.append(Number(float(sum(failed.count(name) for name in names))))
        rows.append(Row(cells))
    head = ["setting", "method", "keep", *axes, "draws", RELATIVE]
    head += [f"accuracy {name}" for name in own.categories] if len(own.categories) > 1 else []
    head.append("accuracy")
    head += [name for name, _, _ in _COSTS]
    return Table("configurations", "All settings", [*head, "failed"], [Block("", rows)])
