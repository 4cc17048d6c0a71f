"""Every method against its oracle, which somebody wrote from the specification alone.

Keep lists must be equal. Where rounding decides (two tokens whose scores differ by less than
float32 tells apart) a problem decides nothing; random problems have no such pair.
"""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.methods import Method, PromptContext, VisualTokens, get_method
from resprune_jax.methods.baselines.uniform import rows_of_grid
from tests.methods.oracles.baselines.uniform import uniform
from tests.methods.oracles.encoder.fastervlm import fastervlm
from tests.methods.oracles.encoder.ranking import top
from tests.methods.oracles.encoder.vispruner import vispruner
from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.agilepruner import agilepruner
from tests.methods.oracles.tokens.cdpruner import (
    cdpruner,
    exponential,
    greedy_map,
    raw_relevance,
    scaled,
)
from tests.methods.oracles.tokens.divprune import divprune
from tests.methods.oracles.tokens.lrcp import lrcp
from tests.methods.oracles.tokens.relevance import cosines, relevance
from tests.methods.oracles.tokens.resprune import resprune
from tests.methods.oracles.tokens.scope import scope
from tests.methods.oracles.tokens.spare import spare
from tests.methods.oracles.tokens.svdprune import svdprune

PROBLEMS = 200
N, D, V, M, HEADS, C, K = 30, 12, 10, 4, 16, 8, 9
ROWS = 8
"""Rows of a batch."""


@dataclass(frozen=True)
class Problem:
    """One image and its question, without padding."""

    embeddings: np.ndarray
    features: np.ndarray
    saliency: np.ndarray
    received: np.ndarray
    text: np.ndarray
    clip: np.ndarray  # [n, C]
    clip_text: np.ndarray  # [1 to 3, C]
    grid: tuple[int, int]
    coords: np.ndarray
    keep: int


def problem(seed: int) -> Problem:
    """Tokens of one to three directions beside noise, as those of pictures are, of any norms."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(K + 4, N + 1))
    parts = rng.normal(size=(3, D))
    norms = np.exp(rng.normal(size=(n, 1)) * 0.5)
    embeddings = norms * (parts[rng.integers(3, size=n)] + rng.normal(size=(n, D)))
    features = rng.normal(size=(n, V)) + 2 * rng.normal(size=V)
    saliency, received = rng.random(n) / n, np.random.default_rng(seed + 10**6).random(n) / n
    text = rng.normal(size=(int(rng.integers(1, M + 1)), D)) + parts[0]
    clip = rng.normal(size=(n, C)) - rng.normal(size=C)
    clip_text = rng.normal(size=(int(rng.integers(1, 4)), C))
    parts = (embeddings, features, saliency, received, text, clip, clip_text)
    narrow = (np.asarray(x, np.float32) for x in parts)
    keep = int(rng.integers(1, K + 1))
    shapes = [(rows, n // rows) for rows in range(1, n + 1) if n % rows == 0]
    grid = shapes[rng.integers(len(shapes))]
    return Problem(*narrow, grid=grid, coords=np.argwhere(np.ones(grid)), keep=keep)


Oracle = Callable[[Problem], Kept]


def llm_cdpruner(p: Problem) -> Kept:
    relevance = scaled(raw_relevance(p.embeddings, p.text, 1))
    return Kept(greedy_map(p.embeddings, relevance, p.keep))


def clip_cdpruner(p: Problem, theta: float | None = None) -> Kept:
    return cdpruner(
        embeddings=p.embeddings, clip_patch=p.clip, clip_text=p.clip_text, keep=p.keep, theta=theta
    )


def towards_cdpruner(p: Problem) -> Kept:
    return Kept(greedy_map(p.embeddings, scaled(raw_relevance(p.clip, p.clip_text, 1)), p.keep))


def weighted_cdpruner(p: Problem) -> Kept:
    relevance = exponential(scaled(raw_relevance(p.embeddings, p.text, -1)), 0.4)
    return Kept(greedy_map(p.embeddings, relevance, p.keep))


CASES: dict[str, tuple[Method, Oracle]] = {
    "uniform": (
        get_method("uniform"),
        lambda p: uniform(grid=(1, len(p.embeddings)), keep=p.keep, layout="raster"),
    ),
    "uniform rows": (
        get_method("uniform", layout="rows"),
        lambda p: uniform(grid=p.grid, keep=p.keep, layout="rows"),
    ),
    "uniform grid": (
        get_method("uniform", layout="grid"),
        lambda p: uniform(grid=p.grid, keep=p.keep, layout="cells"),
    ),
    "fastervlm": (
        get_method("fastervlm"), lambda p: fastervlm(saliency=p.saliency, keep=p.keep)
    ),
    "vispruner": (
        get_method("vispruner"),
        lambda p: vispruner(features=p.features, saliency=p.saliency, keep=p.keep),
    ),
    "vispruner 0.75": (
        get_method("vispruner", important=0.75),
        lambda p: vispruner(
            features=p.features, saliency=p.saliency, keep=p.keep, important_ratio=0.75
        ),
    ),
    "scope": (
        get_method("scope"),
        lambda p: scope(
            features=p.features, heads_saliency=np.tile(p.saliency, (HEADS, 1)), keep=p.keep
        ),
    ),
    "scope add": (
        get_method("scope", combine="add", alpha=0.7),
        lambda p: scope(
            features=p.features, heads_saliency=np.tile(p.saliency, (HEADS, 1)), keep=p.keep,
            combined="add", alpha=0.7,
        ),
    ),
    "agilepruner": (
        get_method("agilepruner", average=4.0, most=0.4, step=0.1),
        lambda p: agilepruner(
            features=p.features, saliency=p.saliency, keep=p.keep, erank_avg=4.0, tau_max=0.4,
            slope=0.1,
        ),
    ),
    "agilepruner exhausted": (
        get_method("agilepruner", average=1.0, most=2.0, step=0.5, start=0.0),
        lambda p: agilepruner(
            features=p.features, saliency=p.saliency, keep=p.keep, erank_avg=1.0, tau_max=2.0,
            slope=0.5, order_start=0,
        ),
    ),
    "fastervlm received": (
        get_method("fastervlm", attention="received"),
        lambda p: fastervlm(saliency=p.received, keep=p.keep),
    ),
    "vispruner received": (
        get_method("vispruner", attention="received"),
        lambda p: vispruner(features=p.features, saliency=p.received, keep=p.keep),
    ),
    "scope received": (
        get_method("scope", attention="received"),
        lambda p: scope(
            features=p.features, heads_saliency=np.tile(p.received, (HEADS, 1)), keep=p.keep
        ),
    ),
    "agilepruner received": (
        get_method("agilepruner", attention="received", average=4.0, most=0.4, step=0.1),
        lambda p: agilepruner(
            features=p.features, saliency=p.received, keep=p.keep, erank_avg=4.0, tau_max=0.4,
            slope=0.1,
        ),
    ),
    "divprune": (
        get_method("divprune"), lambda p: divprune(embeddings=p.embeddings, keep=p.keep)
    ),
    "cdpruner": (get_method("cdpruner"), clip_cdpruner),
    "cdpruner theta": (
        get_method("cdpruner", theta=0.6, engine="feature"),
        lambda p: clip_cdpruner(p, theta=0.6),
    ),
    "cdpruner towards": (get_method("cdpruner", sign=1.0, engine="feature"), towards_cdpruner),
    "divprune unsorted": (
        get_method("divprune", sort=False),
        lambda p: divprune(embeddings=p.embeddings, keep=p.keep, sort=False),
    ),
    "cdpruner-llm": (get_method("cdpruner-llm"), llm_cdpruner),
    "cdpruner-llm away": (get_method("cdpruner-llm", sign=-1.0, theta=0.4), weighted_cdpruner),
    "resprune": (
        get_method("resprune", seed_rule="max_norm"),
        lambda p: resprune(
            embeddings=p.embeddings, keep=p.keep, alpha=0.75,
            relevance=relevance(embeddings=p.embeddings, text=p.text),
        ),
    ),
    "resprune against the text": (
        get_method("resprune", seed_rule="max_norm", relevance_sign=-1, nonnegative="shift"),
        lambda p: resprune(
            embeddings=p.embeddings, keep=p.keep, alpha=0.75,
            relevance=relevance(
                embeddings=p.embeddings, text=p.text, how="shift", relevance_sign=-1
            ),
        ),
    ),
    "relevance": (
        get_method("relevance"),
        lambda p: Kept(top(cosines(p.embeddings, p.text), p.keep)),
    ),
    "relevance pooled": (
        get_method("relevance", aggregate="pooled"),
        lambda p: Kept(top(cosines(p.embeddings, p.text, "pooled"), p.keep)),
    ),
    "spare": (
        get_method("spare"),
        lambda p: spare(embeddings=p.embeddings, text=p.text, keep=p.keep),
    ),
    "lrcp": (get_method("lrcp"), lambda p: lrcp(embeddings=p.embeddings, keep=p.keep)),
    "lrcp centred": (
        get_method("lrcp", centred=True, share=0.7),
        lambda p: lrcp(embeddings=p.embeddings, keep=p.keep, centered=True, energy=0.7),
    ),
    "svdprune": (
        get_method("svdprune"), lambda p: svdprune(embeddings=p.embeddings, keep=p.keep)
    ),
}  # fmt: skip


def batch(problems: list[Problem]) -> tuple[VisualTokens, PromptContext, jax.Array]:
    """Problems side by side; padding is NaN, and lies between the tokens too."""
    rng = np.random.default_rng(len(problems[0].embeddings))
    size = len(problems)
    places = [np.sort(rng.permutation(N)[: len(p.embeddings)]) for p in problems]

    def spread(name: str, *rest: int) -> jax.Array:
        table = np.full((size, N, *rest), np.nan, np.float32)
        for row, (place, p) in enumerate(zip(places, problems, strict=True)):
            table[row, place] = getattr(p, name)
        return jnp.asarray(table)

    valid = np.zeros((size, N), bool)
    text, words = np.full((size, M, D), np.nan, np.float32), np.zeros((size, M), bool)
    for row, (place, p) in enumerate(zip(places, problems, strict=True)):
        valid[row, place] = True
        text[row, : len(p.text)], words[row, : len(p.text)] = p.text, True
    visual = VisualTokens(
        spread("embeddings", D), jnp.asarray(valid), features=spread("features", V),
        saliency=spread("saliency"), received=spread("received"), clip_patches=spread("clip", C),
        coords=spread("coords", 2),
    )  # fmt: skip
    limits = jnp.asarray([p.keep for p in problems], jnp.int32)
    parts, heard = np.full((size, 4, C), np.nan, np.float32), np.zeros((size, 4), bool)
    for row, p in enumerate(problems):
        parts[row, : len(p.clip_text)], heard[row, : len(p.clip_text)] = p.clip_text, True
    return visual, PromptContext(*map(jnp.asarray, (text, words, parts, heard))), limits


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.deep if case.endswith(" received") else ())
        for case in CASES
    ],
)
def test_keep_lists_are_the_oracles(case: str, record_property: Any) -> None:
    method, oracle = CASES[case]
    run = jax.jit(lambda visual, prompt, limit: method.select(visual, prompt, K, limit=limit))
    wrong = []
    for start in range(0, PROBLEMS, ROWS):
        problems = [problem(seed) for seed in range(start, start + ROWS)]
        visual, prompt, limits = batch(problems)
        made = run(visual, prompt, limits)
        exact = case != "uniform grid"
        assert not exact or made.count.tolist() == limits.tolist()
        rank = np.cumsum(np.asarray(visual.valid), axis=1) - 1
        for row, p in enumerate(problems):
            own = np.asarray(made.indices)[row, : int(made.count[row])]
            assert np.asarray(visual.valid)[row, own].all()
            kept, wanted = rank[row, own].tolist(), oracle(p).indices
            if made.rows is None:  # an order of choice of ours; the LLM sees image order
                kept, wanted = sorted(kept), sorted(wanted)
            if kept != wanted:
                wrong.append((start + row, kept, wanted))
    assert not wrong, f"{len(wrong)} of {PROBLEMS}: {wrong[:3]}"


@pytest.mark.deep
def test_a_fault_in_cdpruner_is_seen(monkeypatch: Any) -> None:
    """Each of these is one operator, one place or one axis away from the rule."""
    faults = {
        "minmax(self.sign * mean_cosine(visual.clip": "minmax(-self.sign * mean_cosine(visual.clip",
        "unit(visual.embeddings) * weight": "visual.embeddings * weight",
        "weight[..., None],": "jnp.sqrt(weight[..., None]),",
        "low = jnp.min(values, axis=-1,": "low = jnp.min(values, axis=0,",
        "limit=limit,": "limit=limit - 1,",
        "every, axis=-1, where=words": "every, axis=-1, where=words | True",
    }
    method, oracle = CASES["cdpruner"]
    source = inspect.getsource(sys.modules[type(method).__module__])
    monkeypatch.setattr(sys.modules[__name__], "PROBLEMS", 2 * ROWS)
    for text, instead in faults.items():
        assert source.count(text) == 1, text
        module: dict[str, Any] = {"__name__": "planted"}
        exec(compile(source.replace(text, instead), "planted", "exec"), module)
        monkeypatch.setitem(CASES, "cdpruner", (module["Cdpruner"](engine="feature"), oracle))
        with pytest.raises(AssertionError):
            test_keep_lists_are_the_oracles("cdpruner", None)
    print(f"{len(faults)} of {len(faults)} planted faults were seen")


def test_as_many_rows_as_a_budget_needs() -> None:
    """Every budget of every grid up to 4 x 20, or 20 x 4."""
    wide = [(rows, columns) for rows in range(1, 5) for columns in range(1, 21)]
    asked = [
        (rows, columns, keep)
        for rows, columns in {*wide, *((b, a) for a, b in wide)}
        for keep in range(1, rows * columns + 1)
    ]
    made = jax.jit(jax.vmap(lambda *one: rows_of_grid(*one, 20)))(*jnp.asarray(asked).T)
    for (rows, columns, keep), own in zip(asked, made.tolist(), strict=True):
        chosen = uniform(grid=(rows, columns), keep=keep, layout="rows").indices
        assert own == len({token // columns for token in chosen}), (rows, columns, keep)
