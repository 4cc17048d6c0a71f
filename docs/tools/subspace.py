"""Draws the picture of the algorithm's page: a pick, what it leaves of the others, and the gate.

    python -m docs.tools.subspace

The picks are those of `select` on the drawn vectors, so the picture shows what the code does.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("svg")
from matplotlib import pyplot as plt

from resprune_jax import select
from resprune_jax.relevance import gate

OUT = Path(__file__).parents[1] / "pictures" / "subspace.svg"

TOKENS = np.array(
    [[3.0, 0.8], [2.6, 1.0], [2.75, 0.35], [0.75, 1.95], [-0.65, 1.55], [1.0, -1.2]], np.float32
)
RELEVANCE = np.array([0.6, 0.6, 0.6, 0.45, 1.0, 0.3], np.float32)
ALPHA = 0.75
NAMES = "abcdef"
INK, PALE, FIRST, SECOND, GATED = "#24292f", "#a3acb5", "#3f51b5", "#d4622a", "#1b8a5a"


def _plane(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    axes.set_aspect("equal")
    axes.set_xlim(-1.25, 3.7)
    axes.set_ylim(-1.75, 2.45)
    axes.axhline(0, color="#e4e7ea", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#e4e7ea", linewidth=0.8, zorder=0)
    axes.set_axis_off()


def _arrow(axes: Any, end: np.ndarray, colour: str, width: float) -> None:
    axes.annotate(
        "", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": width,
                                     "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11},
    )  # fmt: skip


def _name(axes: Any, number: int, colour: str) -> None:
    x, y = TOKENS[number] * (1 + 0.2 / np.linalg.norm(TOKENS[number]))
    axes.text(x, y, NAMES[number], color=colour, fontsize=12, ha="center", va="center",
              fontweight="bold" if colour != PALE else "normal")  # fmt: skip


def main() -> None:
    """Write the picture."""
    plain = select(TOKENS, 2)
    guided = select(TOKENS, 2, relevance=RELEVANCE, alpha=ALPHA)
    seed, second = np.asarray(plain.indices).tolist()
    assert guided.indices[0] == seed
    other = int(guided.indices[1])
    assert other != second, "the gate is to make a difference"
    along = TOKENS[seed] / np.linalg.norm(TOKENS[seed])
    feet = (TOKENS @ along)[:, None] * along
    energy = np.sum((TOKENS - feet) ** 2, axis=1)
    assert np.isclose(energy.sum(), np.asarray(plain.energy)[1], rtol=1e-4)

    plt.rcParams.update({"font.size": 10, "axes.titlepad": 8})
    plt.rcParams.update({"svg.hashsalt": "subspace", "svg.fonttype": "path"})  # the same each time
    figure, (one, two, three) = plt.subplots(
        1, 3, figsize=(9.8, 3.1), width_ratios=(1, 1, 0.8), layout="constrained", facecolor="white"
    )
    _plane(one, "1. One token is kept")
    _plane(two, "2. What lies outside its span")
    for number, token in enumerate(TOKENS):
        colour = FIRST if number == seed else INK
        _arrow(one, token, colour, 2.4 if number == seed else 1.2)
        _name(one, number, colour)
    line = np.outer([-0.45, 1.0], TOKENS[seed])
    two.plot(*line.T, color=FIRST, linewidth=1.2, linestyle=(0, (5, 3)), zorder=1)
    two.text(*(line[0] + [0.02, -0.22]), f"span of {NAMES[seed]}", color=FIRST, ha="left")
    for number, token in enumerate(TOKENS):
        if number != seed:
            colour = SECOND if number == second else INK
            _arrow(two, token, PALE, 1.0)
            width = 3.0 if number == second else 2.0
            two.plot(*np.stack([token, feet[number]]).T, color=colour, linewidth=width)
            _name(two, number, colour)
    _arrow(two, TOKENS[seed], FIRST, 2.4)
    _name(two, seed, FIRST)

    rest = [number for number in range(len(TOKENS)) if number != seed]
    gated = energy * np.asarray(gate(jnp.asarray(RELEVANCE), jnp.asarray(ALPHA)))
    rows = np.arange(len(rest))
    three.set_title("3. The next one", fontsize=11, color=INK, loc="left")
    three.barh(rows - 0.19, energy[rest], 0.36, label="residual energy", color=[
        SECOND if number == second else PALE for number in rest])  # fmt: skip
    three.barh(rows + 0.19, gated[rest], 0.36, color=GATED, label="times relevance$^α$")
    for row, number in zip(rows, rest, strict=True):
        if number in (second, other):
            value, place = (energy, row - 0.19) if number == second else (gated, row + 0.19)
            how = "without text" if number == second else "with text"
            three.text(value[number] + 0.06, place, f"next {how}", va="center", fontsize=9,
                       color=SECOND if number == second else GATED)  # fmt: skip
    three.set_yticks(rows, [NAMES[number] for number in rest], fontsize=12)
    three.invert_yaxis()
    three.set_xlim(0, 4.4)
    three.set_xticks([])
    three.tick_params(length=0, colors=INK)
    for side in ("top", "right", "bottom"):
        three.spines[side].set_visible(False)
    three.spines["left"].set_color(PALE)
    handles = [mpl.patches.Patch(color=PALE), mpl.patches.Patch(color=GATED)]
    three.legend(handles, ["residual energy", "times relevance$^{α}$"], frameon=False, fontsize=9,
                 loc="upper right", labelcolor=INK)  # fmt: skip
    figure.savefig(OUT, metadata={"Date": None})
    print(f"{OUT.name}: {NAMES[seed]}, then {NAMES[second]}; with text {NAMES[other]}")


if __name__ == "__main__":
    main()
