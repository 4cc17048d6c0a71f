"""How the time of a selection grows with N, K, d and the batch: fitted, and foretold."""

import statistics
from typing import Any

from resprune_jax.experiments.bench.problems import Size

LEAST_ROWS = 8
"""Fewer rows of one side fit anything."""


def growth_sizes(base: Size) -> list[tuple[Size, int]]:
    """Sizes and batches that vary one thing at a time about a base: N, d, K and the batch."""
    n, d, keep = base.n, base.d, base.keep
    varied = [(Size(max(keep, int(n * factor)), d, keep), 1) for factor in (0.5, 2, 4)]
    varied += [(Size(n, max(keep, int(d * factor)), keep), 1) for factor in (0.25, 0.5, 2)]
    varied += [(Size(n, d, max(1, min(n, int(keep * factor)))), 1) for factor in (0.25, 2, 3)]
    varied += [(base, batch) for batch in (2, 4, 16)]
    return varied


def features(group: str, row: dict[str, Any]) -> dict[str, float]:
    """What the time of a side can be made of, by name, for one image of a row.

    Algorithm 1 passes over the tokens and over its basis at every pick; `lazy` makes a row of the
    Gram matrix for about every pick, in a store of N rows; every other engine pays a whole product
    once. These and `lazy` read the earlier rows of their factor at every pick.
    """
    n, d, keep = row["n"], row["d"], row["keep"]
    common = {"K": float(keep), "N K": float(n * keep), "1/B": 1 / row["batch"]}
    if group in ("torch Algorithm 1", "feature"):
        return {"N d K": float(n * d * keep), "d K^2": float(d * keep**2)} | common
    if group == "lazy":
        own = {"N d K": float(n * d * keep), "N d": float(n * d), "N^2": float(n * n)}
        return own | {"N K^2": float(n * keep**2)} | common
    if group in ("Gram product", "auto: prepare"):
        return {"N^2 d": float(n * n * d), "N d": float(n * d), "1/B": common["1/B"]}
    if group == "auto: the picks":
        return {"N K^2": float(n * keep**2)} | common
    return {"N^2 d": float(n * n * d), "N K^2": float(n * keep**2), "N d": float(n * d)} | common


def fit_all(rows: dict[str, Any]) -> dict[str, Any]:
    """Fit every side that enough rows of float32 tokens have.

    Args:
        rows: of the JSON file, by name.

    Returns:
        By group: "terms" (milliseconds a unit of each), "rows", "typical_error" and "worst_error",
        the share by which the time of a row is missed that the fit did not see, and "worst_row".
    """
    times: dict[str, dict[str, float]] = {}
    for name, row in rows.items():
        if row["questions"] or row["dtype"] != "float32":
            continue
        for side in row["sides"].values():
            own = times.setdefault(side["group"], {})
            own[name] = min(side["ms"]["median"], own.get(name, float("inf")))
    return {
        group: fit(group, {name: rows[name] for name in own}, own)
        for group, own in times.items()
        if len(own) >= LEAST_ROWS and group != "auto"
    }


def fit(group: str, rows: dict[str, Any], times: dict[str, float]) -> dict[str, Any]:
    """Fit one side: non-negative terms, every row's relative error weighing the same.

    Args:
        group: which side.
        rows: by name.
        times: milliseconds for one image, by name of the row.

    Returns:
        See `fit_all`.
    """
    import numpy as np
    from scipy.optimize import nnls

    names = list(times)
    parts = [features(group, rows[name]) for name in names]
    labels = list(parts[0])
    took = np.array([times[name] for name in names])
    # Divided by the row's time the target is 1 and errors are relative.
    table = np.array([[part[label] for label in labels] for part in parts]) / took[:, None]
    scale = table.max(axis=0)

    def solve(use: Any) -> Any:
        return nnls(table[use] / scale, np.ones(len(table[use])))[0] / scale

    every = np.ones(len(names), bool)
    errors = {}
    for index, name in enumerate(names):
        others = every.copy()
        others[index] = False
        errors[name] = abs(float(table[index] @ solve(others)) - 1)
    worst = max(errors, key=lambda name: errors[name])
    found = solve(every)
    return {
        "terms": {label: float(v) for label, v in zip(labels, found, strict=True) if v > 0},
        "rows": len(names),
        "typical_error": statistics.median(errors.values()),
        "worst_error": errors[worst],
        "worst_row": worst,
    }
