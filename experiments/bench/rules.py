"""`resprune bench rules`: what a rule of one's own costs beside the built-in one."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.experiments.bench.problems import ALPHA, QUICK_SIZES, make_problem, parse_size
from resprune_jax.experiments.bench.timing import Side, interleave, machine
from resprune_jax.experiments.common import (
    check_number,
    check_target,
    console,
    import_models,
    shown,
)

NOUNS = 4
"""Of the rule that follows them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RulesOptions:
    """Measure the greedy loop with a rule (select(..., rule=)) beside the one that is built in."""

    sizes: Annotated[tuple[str, ...], shown("N,d,K ...", "two of the supported models")] = ()
    """Visual tokens, their width, and how many are kept."""
    batch: Annotated[int, shown("B", "1")] = 1
    """Images that are chosen from together."""
    repeats: Annotated[int, shown("N", "20")] = 20
    """Rounds; fewer where they would take more than 30 seconds."""
    output: Annotated[Path | None, shown("OUT.json", "none")] = None
    """Write the figures to this file."""
    debug: bool = False
    """Show the traceback when something fails."""


def run(options: RulesOptions) -> int:
    """Carry out `resprune bench rules`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a measurement in which something was compiled.
    """
    check_number("--batch", options.batch, 1)
    check_number("--repeats", options.repeats, 1)
    if options.output is not None:
        check_target(options.output, "--output", (".json",))
    sizes = tuple(map(parse_size, options.sizes)) or QUICK_SIZES
    import_models()
    rows = [measure(size, options.batch, options.repeats) for size in sizes]
    if options.output is not None:
        text = json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n"
        options.output.write_text(text, encoding="utf-8")
    from rich.table import Table

    table = Table(box=None)
    for head in ("tokens", "engine", "rule", "ms", "times the built-in"):
        table.add_column(head)
    for row in rows:
        for side in row["sides"]:
            table.add_row(
                row["size"], side["engine"], side["rule"], f"{side['ms']['median']:.1f}",
                f"{side['ratio']:.2f}",
            )  # fmt: skip
    console().print(table)
    return 0


def measure(size: Any, batch: int, repeats: int) -> dict[str, Any]:
    """Every rule on every engine that runs one, in turn.

    Args:
        size: N, d and K.
        batch: images.
        repeats: rounds.

    Returns:
        Plain data: for each side its engine, rule, milliseconds a call, and how often the built-in
        rule's median fits into its own.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from resprune_jax import rules, select
    from resprune_jax.engines import RULED

    made = make_problem(size, batch, "float32")
    rng = np.random.default_rng(0)
    side = int(np.ceil(np.sqrt(size.n)))
    places = jnp.asarray(np.argwhere(np.ones((side, side)))[: size.n], jnp.float32)
    by_noun = jnp.asarray(rng.random((size.n, NOUNS)), jnp.float32)
    every: dict[str, tuple[Any, Any]] = {
        "built in": (None, None),
        "ResidualEnergy": (rules.ResidualEnergy(), None),
        "Distance": (rules.Distance(), places),
        "CoveredNouns": (rules.CoveredNouns(by_noun), None),
        "FallingAlpha": (rules.FallingAlpha(), None),
    }
    tokens, relevance, first = (jnp.asarray(x) for x in (made.tokens, made.relevance, made.first))

    def call(engine: str, rule: Any, own: Any) -> Any:
        chosen = jax.jit(
            lambda tokens, relevance, first, rule, own: select(
                tokens, size.keep, relevance=relevance, alpha=ALPHA, first=first, rule=rule,
                places=own, engine=engine,
            ).indices
        )  # fmt: skip
        return lambda: jax.block_until_ready(chosen(tokens, relevance, first, rule, own))

    sides = [
        Side(f"{engine}, {name}", call(engine, *what))
        for engine in sorted(RULED)
        for name, what in every.items()
    ]
    timed = interleave(sides, repeats, 30.0)
    rows = []
    for engine in sorted(RULED):
        base = timed[f"{engine}, built in"].median
        for name in every:
            own = timed[f"{engine}, {name}"]
            rows.append(
                {"engine": engine, "rule": name, "ms": own.facts(), "ratio": own.median / base}
            )
    return {"size": str(size), "batch": batch, "sides": rows}
