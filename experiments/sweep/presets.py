"""Grids that come with the package."""

from resprune_jax.experiments.sweep.grid import Grid

BUDGETS = ("1/3", "2/9", "1/9")
"""The paper's."""

CURVE = ("1/48", "1/24", "1/18", "1/12", "1/9", "2/9", "1/3", "1/2")
"""Fixed budgets to hold error-controlled ones against."""

TOLERANCES = (
    "0.5", "0.3", "0.2", "0.1", "0.05", "0.02", "0.01", "0.005", "0.002", "0.001", "0.0005",
    "0.0002",
)  # fmt: skip
"""Shares of residual energy to stop at: where a few tokens hold nearly all of it, only the last of
them tell budgets apart."""

ALPHAS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25)
"""Table V's, of both of its families."""

PRESETS = {
    "tables": [
        Grid(methods=("all",), keep=BUDGETS, draws=5),  # Table I
        Grid(methods=("resprune",), keep=BUDGETS, text=("nouns", "prompt")),  # Table IV
        Grid(methods=("resprune",), keep=BUDGETS, alpha=(0.0, *ALPHAS)),  # Tables IV and V
        Grid(methods=("resprune",), keep=BUDGETS, aggregate=("max", "mean", "pooled")),
        Grid(
            methods=("resprune",), keep=BUDGETS,
            seed_rule=("cls_attention", "max_norm", "text", "mean_similarity", "center"),
        ),
        Grid(methods=("resprune",), keep=BUDGETS, nonnegative=("clip", "shift", "minmax")),
        Grid(methods=("resprune",), keep=BUDGETS, relevance_sign=(1, -1)),
        Grid(methods=("resprune", "random"), keep=BUDGETS, positions=("reindex", "original")),
        Grid(methods=("resprune",), keep=CURVE, alpha=(0.0, 0.75)),
        Grid(methods=("resprune",), keep=("0.999",), alpha=(0.0, 0.75), tolerance=TOLERANCES),
    ],
}  # fmt: skip
"""By name. `tables`: the paper's Tables I and IV to VII, the open questions of the algorithm but
tagger and OCR line, which need a model of spaCy and questions with such a line, and the plot of
tolerances."""
