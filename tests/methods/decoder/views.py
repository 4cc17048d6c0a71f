"""Random views of a decoder layer, alone and side by side in a padded batch."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from resprune_jax.methods import PromptContext, VisualTokens
from resprune_jax.methods.inputs import LayerView

GRID = (5, 6)
N = GRID[0] * GRID[1]
FRONT, M = 3, 7
D, H, KV, SIZE = 12, 4, 2, 6
ROWS = 8
"""Rows of a batch."""


@dataclass(frozen=True)
class Problem:
    """One prompt: three text tokens, its visual tokens, and text behind them."""

    states: np.ndarray  # [n, D]
    text: np.ndarray  # [m, D]
    attention: np.ndarray  # [H, m, S], rows that sum to 1; the last one is the last prompt token's
    keys: np.ndarray  # [KV, S, SIZE]
    query: np.ndarray  # [H, SIZE]
    final: np.ndarray  # [S, D]
    bare: np.ndarray  # [n, KV * SIZE]
    raters: np.ndarray  # [m] bool
    coords: np.ndarray  # [n, 2]
    keep: int

    @property
    def visual(self) -> list[int]:
        return list(range(FRONT, FRONT + len(self.states)))

    @property
    def behind(self) -> list[int]:
        start = FRONT + len(self.states)
        return list(range(start, start + len(self.text)))


def problem(
    rng_seed: int, *, whole: bool = False, words: int | None = None, slots: int = N
) -> Problem:
    """A random prompt of at most `slots` visual tokens; `whole` fills the grid."""
    rng = np.random.default_rng(rng_seed)
    n = N if whole else int(rng.integers(14, slots + 1))
    m = int(rng.integers(2, M + 1)) if words is None else words
    size = FRONT + n + m
    logits = 2 * rng.normal(size=(H, m, size))
    weights = np.exp(logits)
    raters = rng.random(m) < 0.5
    raters[rng.integers(m)] = True
    centres = rng.normal(size=(5, KV * SIZE))
    return Problem(
        states=rng.normal(size=(n, D)),
        text=rng.normal(size=(m, D)),
        attention=weights / weights.sum(axis=-1, keepdims=True),
        keys=rng.normal(size=(KV, size, SIZE)),
        query=rng.normal(size=(H, SIZE)),
        final=rng.normal(size=(size, D)),
        # Keys that lie close together, so that likeness within 0.05 counts.
        bare=centres[rng.integers(5, size=n)] + 0.1 * rng.normal(size=(n, KV * SIZE)),
        raters=raters,
        coords=np.argwhere(np.ones((slots // GRID[1], GRID[1])))[:n].astype(float),
        keep=int(rng.integers(1, 13)),
    )


def batch(
    problems: list[Problem], slots: int = N, **extra: Any
) -> tuple[VisualTokens, PromptContext]:
    """Problems side by side: padding behind, states of padding NaN, of the layer's parts 0.

    Args:
        problems: `ROWS` of them.
        slots: for visual tokens.
        extra: more parts of the `LayerView`, a list with one array (..., n) for each problem, or
            for "gravity" (m, n).
    """

    def rows(values: list[np.ndarray], *shape: int, fill: float = 0) -> Any:
        table = np.full((len(values), *shape), fill, np.float32)
        for row, value in enumerate(values):
            table[(row, *(slice(n) for n in value.shape))] = value
        return jnp.asarray(table)

    def of_slots(take: Any, *shape: int) -> Any:
        return rows([take(p) for p in problems], *shape)

    valid = jnp.asarray([np.arange(slots) < len(p.states) for p in problems])
    words = jnp.asarray([np.arange(M) < len(p.text) for p in problems])
    parts: dict[str, Any] = {
        "attention": of_slots(lambda p: p.attention[:, -1, p.visual], H, slots),
        "text_attention": of_slots(lambda p: p.attention[:, :, p.visual], H, M, slots),
        "keys": of_slots(lambda p: p.keys[:, p.visual].swapaxes(0, 1), slots, KV, SIZE),
        "text_keys": of_slots(lambda p: p.keys[:, p.behind].swapaxes(0, 1), M, KV, SIZE),
        "final_states": of_slots(lambda p: p.final[p.visual], slots, D),
        "text_final_states": of_slots(lambda p: p.final[p.behind], M, D),
        "bare_keys": of_slots(lambda p: p.bare, slots, KV * SIZE),
        "memory": of_slots(lambda p: p.raters, M) > 0,
    }
    for name, values in extra.items():
        shape = (M, slots) if name == "gravity" else (H, slots)
        parts[name] = rows(values, *shape)
    layer = LayerView(jnp.where(valid, 0, -1), **parts)
    visual = VisualTokens(
        rows([p.states for p in problems], slots, D, fill=np.nan), valid,
        coords=of_slots(lambda p: p.coords, slots, 2), layer=layer,
    )  # fmt: skip
    return visual, PromptContext(rows([p.text for p in problems], M, D, fill=np.nan), words)
