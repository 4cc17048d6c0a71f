"""The figures of the selection benchmark as the Markdown of docs/explanation/performance.md."""

from collections.abc import Iterable, Sequence
from typing import Any

from resprune_jax.experiments.bench.engines import LOOP, PREPARE
from resprune_jax.experiments.bench.reference import ALGORITHM_1, CHOLESKY
from resprune_jax.experiments.bench.report import best_engine, kind_times, memory_text, milliseconds


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, the first column to the left."""
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|---:" * (len(heads) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def with_spread(ms: dict[str, Any] | None) -> str:
    """A median with its quartiles."""
    if ms is None:
        return ""
    if ms["runs"] == 1:
        return f"{milliseconds(ms['median'])} (one run)"
    low, high = milliseconds(ms["low"]), milliseconds(ms["high"])
    return f"{milliseconds(ms['median'])} ({low} to {high})"


def estimated(row: dict[str, Any], kind: str) -> str:
    """What torch was foretold to take where it was left out for it: never a measured time."""
    found = row.get("estimates", {}).get(kind)
    return "" if found is None else f"about {milliseconds(found['ms'])} (estimated)"


def machine_text(report: dict[str, Any]) -> str:
    """The machine in a line."""
    about, speed = report["machine"], report["speeds"]
    return (
        f"{about['device']}, {about['cores']} cores, {about['memory_bytes'] / 2**30:.0f} GiB;"
        f" measured {speed['bandwidth'] / 1e9:.0f} GB/s and"
        f" {speed['matmul_float32'] / 1e9:.0f} GFLOP/s in float32"
        f" ({speed['matmul_bfloat16'] / 1e9:.0f} in bfloat16); jax {about['jax']}, torch"
        f" {about['torch']}, Python {about['python']}\n"
    )


def selection_markdown(report: dict[str, Any]) -> str:
    """The rows of `bench selection`: torch against the choice by size, then every engine."""
    overall, engines, left_out = [], [], []
    every = [
        name
        for row in report["rows"].values()
        for name, side in row["sides"].items()
        if not side["group"].startswith("torch") and name not in (PREPARE, LOOP)
    ]
    names = list(dict.fromkeys(every))
    for name, row in report["rows"].items():
        sides = row["sides"]
        left_out += [f"- {name}: {side}: {why}\n" for side, why in row["left_out"].items()]
        if (engine := best_engine(row)) is None:
            continue
        best, ours = kind_times(row), sides[engine]
        loop = sides.get(LOOP, {})
        overall.append(
            [
                name,
                *(
                    with_spread(best.get(kind)) or estimated(row, kind)
                    for kind in (ALGORITHM_1, CHOLESKY, "here")
                ),
                "" if ours["ratio"] is None else f"**{ours['ratio']:.1f}**",
                f"{loop['of_product']:.0%}" if "of_product" in loop else "",
                memory_text(ours["memory"]),
            ]
        )
        engines.append(
            [name] + [with_spread(sides[each]["ms"]) if each in sides else "" for each in names]
        )
    left_out += [f"- {name}: {why}\n" for name, why in report.get("not_measured", {}).items()]
    heads = ["row", ALGORITHM_1, CHOLESKY, "here", "ratio", "picks / product", "memory"]
    fits = [
        f"- {group}: {' + '.join(f'{v:.3g} {t}' for t, v in found['terms'].items())}; a row that"
        f" the fit did not see is foretold to {found['typical_error']:.0%} (median of"
        f" {found['rows']} rows), {found['worst_error']:.0%} at worst ({found['worst_row']})\n"
        for group, found in report.get("fits", {}).items()
    ]
    parts = [machine_text(report), table(heads, overall), table(["row", *names], engines)]
    parts += ["".join(fits), "Left out:\n\n" + "".join(left_out) if left_out else ""]
    return "\n".join(part for part in parts if part)
