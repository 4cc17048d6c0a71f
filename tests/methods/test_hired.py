"""HiRED on pictures of several tiles, against an oracle written from the specification alone."""

import inspect
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.methods import PromptContext, VisualTokens, get_method
from resprune_jax.methods.encoder import hired as ours
from resprune_jax.methods.encoder.hired import Hired
from resprune_jax.methods.inputs import NEWLINE
from tests.methods.oracles.encoder.hired import allocate, hired
from tests.methods.oracles.encoder.ranking import top

PROBLEMS, ROWS, SLOTS, KEEP = 200, 8, 200, 60
PLANES = ((1, 1), (1, 2), (2, 1), (2, 2), (1, 3), (3, 1))


@dataclass(frozen=True)
class Problem:
    """The tokens of one picture as LLaVA-NeXT packs them."""

    side: int  # of a tile, in patches
    plane: tuple[int, int]
    tile: np.ndarray  # [n], -1 for newlines
    place: np.ndarray  # [n], within the tile
    early: np.ndarray  # [tiles, side^2]
    late: np.ndarray  # [tiles, side^2]
    keep: int


def problem(seed: int) -> Problem:
    """Every other picture does not fill its tiles: rows of patches above and below are missing."""
    rng = np.random.default_rng(seed)
    plane = PLANES[rng.integers(len(PLANES))]
    side = 6 if plane[0] * plane[1] == 3 else int(rng.choice([4, 6]))
    rows, columns = plane[0] * side, plane[1] * side
    hidden = int(rng.integers(0, rows // 2)) if seed % 2 else 0
    tile, place = [0] * side**2, list(range(side**2))
    for row in range(hidden, rows - hidden):
        for column in range(columns):
            tile.append(1 + (row // side) * plane[1] + column // side)
            place.append((row % side) * side + column % side)
        tile.append(-1)
        place.append(-1)
    shape = (1 + plane[0] * plane[1], side**2)
    early, late = (rng.exponential(size=shape).astype(np.float32) / side**2 for _ in range(2))
    keep = int(rng.integers(1, min(KEEP, len(tile)) + 1))
    return Problem(side, plane, np.asarray(tile), np.asarray(place), early, late, keep)


def expected(p: Problem, alpha: float, regions: str) -> list[int]:
    """The tokens of the whole sequence that the oracle keeps, in image order."""
    shares = allocate(
        first_heads_saliency=p.early[:1], grid=(p.side, p.side), tiles=p.plane, keep=p.keep,
        alpha=alpha, regions={"rows": "runs"}.get(regions, regions),
    )  # fmt: skip
    kept: list[int] = []
    for number, share in enumerate(shares):
        mine = np.flatnonzero(p.tile == number)
        scores = p.late[number, p.place[mine]]
        kept += mine[top(scores.tolist(), min(share, len(mine)))].tolist()
    if not kept:  # left open: the budget is lost altogether
        kept = [int(np.argmax(p.late[0]))]
    return sorted(kept)


def batch(problems: list[Problem]) -> tuple[VisualTokens, PromptContext, jax.Array]:
    """Side by side; padding is NaN and lies between the tokens too."""
    rng = np.random.default_rng(problems[0].keep)
    rows = len(problems)
    valid, kind = np.zeros((rows, SLOTS), bool), np.zeros((rows, SLOTS), np.int8)
    tile = rng.integers(0, 3, (rows, SLOTS, 3)).astype(np.int32)
    parts = np.full((2, rows, SLOTS), np.nan, np.float32)
    for row, p in enumerate(problems):
        at = np.sort(rng.permutation(SLOTS)[: len(p.tile)])
        valid[row, at] = True
        kind[row, at] = np.where(p.tile < 0, NEWLINE, 0)
        tile[row, at, 0], tile[row, at, 1:] = p.tile, p.plane
        for part, scores in enumerate((p.early, p.late)):
            parts[part, row, at] = np.where(p.tile < 0, 0, scores[p.tile, p.place])
    visual = VisualTokens(
        jnp.zeros((rows, SLOTS, 1)), jnp.asarray(valid), kind=jnp.asarray(kind),
        saliency=jnp.asarray(parts[1]), early_saliency=jnp.asarray(parts[0]),
        tile=jnp.asarray(tile),
    )  # fmt: skip
    nothing = PromptContext(jnp.zeros((rows, 1, 1)), jnp.zeros((rows, 1), bool))
    return visual, nothing, jnp.asarray([p.keep for p in problems], jnp.int32)


def compare(method: Any) -> int:
    """How many problems came out with fewer tokens than their budget; all as the oracle has it."""
    run = jax.jit(
        lambda m, visual, prompt, limit: m.select(visual, prompt, KEEP, limit=limit),
    )
    fewer = 0
    for start in range(0, PROBLEMS, ROWS):
        problems = [problem(seed) for seed in range(start, start + ROWS)]
        visual, prompt, limits = batch(problems)
        made = run(method, visual, prompt, limits)
        for row, p in enumerate(problems):
            rank = np.cumsum(np.asarray(visual.valid)[row]) - 1
            own = np.asarray(made.indices)[row, : int(made.count[row])]
            wanted = expected(p, method.alpha, method.regions)
            assert sorted(rank[own].tolist()) == wanted, start + row
            fewer += len(wanted) < p.keep
    return fewer


@pytest.mark.parametrize("alpha", [0.5, 0.3])
@pytest.mark.parametrize("regions", ["rows", "quadrants"])
def test_the_tiles_keep_what_the_oracle_keeps(regions: str, alpha: float) -> None:
    fewer = compare(get_method("hired", regions=regions, alpha=alpha))
    print(f"{regions}, alpha {alpha}: {PROBLEMS} equal keep lists, {fewer} below their budget")
    assert 0 < fewer < PROBLEMS


def test_without_tiles_it_is_fastervlm() -> None:
    rng = np.random.default_rng(0)
    heads = rng.random((16, 3, 36)).astype(np.float32)
    visual = VisualTokens(
        jnp.zeros((16, 36, 1)), jnp.ones((16, 36), bool), saliency=jnp.asarray(heads.mean(axis=1)),
        early_saliency=jnp.asarray(rng.random((16, 36)), jnp.float32),
        tile=jnp.zeros((16, 36, 3), jnp.int32),
    )  # fmt: skip
    nothing = PromptContext(jnp.zeros((16, 1, 1)), jnp.zeros((16, 1), bool))
    limits = jnp.arange(1, 33, 2)
    run = jax.jit(lambda method: method.select(visual, nothing, 32, limit=limits))
    made = run(get_method("hired"))
    assert made.count.tolist() == limits.tolist()
    for row, keep in enumerate(limits.tolist()):
        own = sorted(made.indices[row, :keep].tolist())
        assert own == hired(heads_saliency=heads[row], keep=keep).indices
    same = run(get_method("fastervlm"))
    assert same.mask(36).tolist() == made.mask(36).tolist()


FAULTS = {
    "-jnp.where(there, image.saliency, 0)": "jnp.where(there, image.saliency, 0)",
    "-image.early_saliency": "image.early_saliency",
    "at - starts[inside] < shares": "at - starts[inside] <= shares",
    "rank < _part": "rank <= _part",
    "region + 1, size": "region, size",
    "place * parts //": "place * wide //",
    "row * high // side": "row * wide // side",
    "(limit - own) * marks": "limit * marks",
    "_part(limit, self.alpha), count)": "_part(limit, 1 - self.alpha), count)",
}


@pytest.mark.deep
def test_a_fault_is_seen() -> None:
    """Each of these is one operator, one place or one axis away from the rule."""
    source = inspect.getsource(ours)
    seen = 0
    for text, instead in FAULTS.items():
        assert source.count(text) == 1, text
        module: dict[str, Any] = {"__name__": "planted_hired"}
        exec(compile(source.replace(text, instead), "hired", "exec"), module)
        made: type[Hired] = module["Hired"]
        regions = "quadrants" if "row *" in text else "rows"
        alpha = 0.3 if "alpha" in text else 0.5
        try:
            compare(made(alpha=alpha, regions=regions))
        except AssertionError:
            seen += 1
        else:
            pytest.fail(f"not seen: {text}")
    print(f"{seen} of {len(FAULTS)} planted faults were seen")
