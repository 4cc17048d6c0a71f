"""What merging methods make of their tokens, against the same oracles as keep lists are."""

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.methods import Method, PromptContext, VisualTokens, get_method
from tests.methods.oracles.baselines.pooling import pooling
from tests.methods.oracles.encoder.prumerge import prumerge
from tests.methods.oracles.encoder.ranking import outliers
from tests.methods.oracles.encoder.trim import trim, trim_scores
from tests.methods.oracles.encoder.visionzip import split, visionzip
from tests.methods.oracles.result import Kept
from tests.methods.oracles.tokens.apet import apet

PROBLEMS, ROWS = 200, 8
N, D, V, HEADS, H, C, K = 30, 12, 10, 3, 4, 7, 20


@dataclass(frozen=True)
class Problem:
    """One image without padding: a grid of tokens in raster order."""

    grid: tuple[int, int]
    embeddings: np.ndarray
    features: np.ndarray
    saliency: np.ndarray
    received: np.ndarray
    heads: np.ndarray  # [n, HEADS, H]
    own: np.ndarray  # [V], the class token
    clip: np.ndarray  # [n, C]
    text: np.ndarray  # [1, C]
    beyond: np.ndarray  # [n], attention in the block behind
    keys: np.ndarray  # [n, V], there
    keep: int


def problem(seed: int) -> Problem:
    """Of any shape that fits, and of any budget up to all tokens."""
    rng = np.random.default_rng(seed)
    shapes = [(r, c) for r in range(1, 9) for c in range(1, 9) if 10 <= r * c <= N]
    grid = shapes[rng.integers(len(shapes))]
    n = grid[0] * grid[1]
    parts = (
        rng.normal(size=(n, D)), rng.normal(size=(n, V)) + rng.normal(size=V),
        rng.random(n) / n, np.random.default_rng(seed + 10**6).random(n) / n,
        rng.normal(size=(n, HEADS, H)), rng.normal(size=V),
        rng.normal(size=(n, C)) * np.exp(rng.normal()), rng.normal(size=(1, C)),
        np.exp(1.5 * rng.normal(size=n)) / n, rng.normal(size=(n, V)),
    )  # fmt: skip
    narrow = (np.asarray(x, np.float32) for x in parts)
    return Problem(grid, *narrow, keep=int(rng.integers(1, min(n, K) + 1)))


def zipped(p: Problem, combine: str) -> Kept:
    dominant, contextual = split(p.keep)
    return visionzip(
        features=p.features, cls_feature=p.own, saliency=p.saliency, keys=p.heads,
        dominant=dominant, contextual=contextual, combine=combine,
    )  # fmt: skip


def zipped_without_class(p: Problem) -> Kept:
    """The class token's row left out, and one more dominant patch in its place."""
    dominant, contextual = split(p.keep)
    made = visionzip(
        features=p.features, cls_feature=p.own, saliency=p.received, keys=p.heads,
        dominant=dominant + 1, contextual=contextual,
    )  # fmt: skip
    assert made.merged is not None and made.indices[0] == -1
    return Kept(made.indices[1:], made.merged[1:])


def trimmed(p: Problem, *, sign: int = -1, keep: int | None = None) -> Kept:
    return trim(
        features=p.features,
        clip_patch=p.clip,
        clip_text=p.text,
        keep=p.keep if keep is None else keep,
        sign=sign,
    )


def adaptively_trimmed(p: Problem) -> Kept:
    """The number of outliers, at most the budget, which the oracle does not know."""
    most = outliers(trim_scores(clip_patch=p.clip, clip_text=p.text))
    return trimmed(p, keep=min(most, p.keep))


def pruned(p: Problem, count: str = "fixed", plus: bool = False, neighbours: int = 32) -> Kept:
    """The oracle, and where it leaves a budget open what the method says it does."""
    n, keep = len(p.features), p.keep
    own = outliers(p.beyond) if count == "adaptive" else n
    fitting = {}
    for k in range(1, n // 3 + 1):
        grid = range(0, n - 1, n // k // 3)
        ranked = np.argsort(-p.beyond, kind="stable")[:k].tolist()
        fitting[k] = k + 1 + len(set(grid) - set(ranked))
    allowed = [k for k, rows in fitting.items() if rows <= keep and k <= max(own, 1)]
    given: Any = {"keep": keep} if count == "fixed" else {"ratio": (min(own, keep - 1) + 0.5) / n}
    if plus and not allowed:
        plus = False
    elif plus and count == "adaptive":
        given = {"ratio": (max(allowed) + 0.5) / n}
    return prumerge(
        features=p.features, attention=p.beyond, keys=p.keys, plus=plus, neighbours=neighbours,
        **given,
    )  # fmt: skip


CASES: dict[str, tuple[Method, Callable[[Problem], Kept]]] = {
    "pooling": (
        get_method("pooling"), lambda p: pooling(embeddings=p.embeddings, grid=p.grid, keep=p.keep)
    ),
    "pooling partition": (
        get_method("pooling", bins="partition"),
        lambda p: pooling(embeddings=p.embeddings, grid=p.grid, keep=p.keep, bins="partition"),
    ),
    "visionzip": (get_method("visionzip"), lambda p: zipped(p, "sum")),
    "visionzip received": (get_method("visionzip", attention="received"), zipped_without_class),
    "prumerge": (get_method("prumerge"), pruned),
    "prumerge adaptive": (
        get_method("prumerge", count="adaptive"), lambda p: pruned(p, "adaptive")
    ),
    "prumerge 5": (get_method("prumerge", neighbours=5), lambda p: pruned(p, neighbours=5)),
    "prumerge+": (get_method("prumerge+"), lambda p: pruned(p, plus=True)),
    "prumerge+ adaptive": (
        get_method("prumerge+", count="adaptive", neighbours=3),
        lambda p: pruned(p, "adaptive", plus=True, neighbours=3),
    ),
    "apet": (get_method("apet"), lambda p: apet(embeddings=p.embeddings, keep=p.keep)),
    "apet cosine": (
        get_method("apet", distance="cosine", basis=4, ridge=0.5),
        lambda p: apet(
            embeddings=p.embeddings, keep=p.keep, distance="cosine", basis=4, ridge=0.5
        ),
    ),
    "visionzip mean": (get_method("visionzip", combine="mean"), lambda p: zipped(p, "mean")),
    "trim": (get_method("trim"), trimmed),
    "trim towards": (get_method("trim", sign=1.0), lambda p: trimmed(p, sign=1)),
    "trim adaptive": (get_method("trim", adaptive=True), adaptively_trimmed),
}  # fmt: skip


def batch(problems: list[Problem]) -> tuple[VisualTokens, PromptContext, jax.Array]:
    """Problems side by side; padding is NaN, and lies between the tokens too."""
    rng = np.random.default_rng(problems[0].keep)
    places = [np.sort(rng.permutation(N)[: len(p.embeddings)]) for p in problems]

    def spread(values: Callable[[Problem], np.ndarray], *rest: int) -> jax.Array:
        table = np.full((len(problems), N, *rest), np.nan, np.float32)
        for row, (place, p) in enumerate(zip(places, problems, strict=True)):
            table[row, place] = values(p)
        return jnp.asarray(table)

    valid = np.zeros((len(problems), N), bool)
    for row, place in enumerate(places):
        valid[row, place] = True
    visual = VisualTokens(
        spread(lambda p: p.embeddings, D), jnp.asarray(valid),
        features=spread(lambda p: p.features, V), saliency=spread(lambda p: p.saliency),
        received=spread(lambda p: p.received),
        coords=spread(lambda p: np.argwhere(np.ones(p.grid)), 2),
        class_features=spread(lambda p: np.broadcast_to(p.own, (len(p.features), V)), V),
        encoder_keys=spread(lambda p: p.heads.mean(axis=1), H),
        clip_patches=spread(lambda p: p.clip, C),
        next_saliency=spread(lambda p: p.beyond), next_keys=spread(lambda p: p.keys, V),
    )  # fmt: skip
    size = len(problems)
    text = jnp.asarray(np.stack([p.text for p in problems]))
    prompt = PromptContext(
        jnp.zeros((size, 1, D)), jnp.zeros((size, 1), bool), text, jnp.ones((size, 1), bool)
    )
    return visual, prompt, jnp.asarray([p.keep for p in problems], jnp.int32)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.deep if case.endswith(" received") else ())
        for case in CASES
    ],
)
def test_merged_rows_are_the_oracles(case: str) -> None:
    method, oracle = CASES[case]
    most = K + method.beside
    run = jax.jit(lambda visual, prompt, limit: method.select(visual, prompt, most, limit=limit))
    compared, worst = 0, 0.0
    for start in range(0, PROBLEMS, ROWS):
        problems = [problem(seed) for seed in range(start, start + ROWS)]
        visual, prompt, limits = batch(problems)
        made = run(visual, prompt, limits)
        valid = np.asarray(visual.valid)
        seats = np.asarray(method.seats(made, visual.valid))
        for row, p in enumerate(problems):
            wanted, count = oracle(p), int(made.count[row])
            assert wanted.merged is not None and made.rows is not None
            assert count == len(wanted.merged) <= p.keep + method.beside
            own = np.asarray(made.rows)[row]
            scale = np.abs(wanted.merged).max()
            worst = max(worst, float(np.abs(own[:count] - wanted.merged).max() / scale))
            assert not own[count:].any()
            rank = [*(np.cumsum(valid[row]) - 1).tolist(), -1]
            named = [rank[i] for i in np.asarray(made.indices)[row, :count]]
            if method.sequence == "listed" or -1 not in wanted.indices:
                assert named == wanted.indices, (start + row, named, wanted.indices)
            at = seats[row, :count]
            assert (np.diff(at) > 0).all() and valid[row, at].all(), (start + row, at)
            assert (seats[row, count:] == N).all()
            compared += count
        assert worst < 1e-5
    print(f"{case}: {compared} rows compared, worst {worst:.1e} of the largest entry")


@pytest.mark.deep
@pytest.mark.parametrize("kind", ["visionzip", "pooling", "prumerge", "trim", "apet"])
def test_a_fault_in_a_merge_is_seen(kind: str, monkeypatch: Any) -> None:
    """Each of these is one operator, one place or one axis away from the rule."""
    faults: dict[str, tuple[str, str]] = {
        "contextual = (10 * limit + 32)": ("visionzip", "contextual = (10 * limit + 31)"),
        "rank < dominant - first": ("visionzip", "rank < dominant"),
        "jnp.where(there, -self.att": ("visionzip", "jnp.where(there, self.att"),
        '== "class" else 0  # rows': ("visionzip received", '== "class" else 1  # rows'),
        "first + jnp.cumsum(leading) - 1": ("visionzip received", "jnp.cumsum(leading)"),
        "(number < contextual)": ("visionzip", "(number <= contextual)"),
        "-jnp.inf), axis=1)": ("visionzip", "-jnp.inf), axis=0)"),
        "group = wide + total / jnp.maximum(count, 1)": ("visionzip", "group = wide + total"),
        "jnp.sum(others) // jnp.maximum(contextual, 1)": (
            "visionzip", "jnp.sum(there) // jnp.maximum(contextual, 1)"
        ),
        "self.sign * jnp.matmul(own, text[0]": ("trim", "-self.sign * jnp.matmul(own, text[0]"),
        "(rank < count)": ("trim", "(rank <= count)"),
        "jnp.cumsum(kept) - 1, keep": ("trim", "jnp.cumsum(kept), keep"),
        "dropped = there & ~kept": ("trim", "dropped = there"),
        "jnp.sum(wide, axis=0, where=dropped[:, None])": (
            "trim", "jnp.sum(wide, axis=1, where=dropped[:, None]).mean()"
        ),
        "count + (left > 0)": ("trim", "count"),
        "1.5 * (third - first)": ("trim adaptive", "1.5 * (third + first)"),
        "quantile(0.25), quantile(0.75)": ("trim adaptive", "quantile(0.25), quantile(0.7)"),
        "jnp.where(valid, scores, jnp.inf)": ("trim adaptive", "scores"),
        "wide = jnp.minimum(columns, limit // high)": (
            "pooling", "wide = jnp.minimum(columns, limit // high + 1)"
        ),
        "jnp.maximum(own / other, other / own)": ("pooling", "own / other"),
        "end = -(-(part + 1) * length // count)": ("pooling", "end = (part + 1) * length // count"),
        "number // wide), (columns": ("pooling", "number % high), (columns"),
        "most = limit - 1": ("prumerge", "most = limit"),
        "jnp.where(there, -weight, jnp.inf)": ("prumerge", "jnp.where(there, weight, jnp.inf)"),
        "cosines(image.next_keys[own], image.next_keys)": (
            "prumerge 5", "cosines(image.next_keys[own], image.next_keys * (1 + image.next_keys))"
        ),
        "(jnp.arange(size) != own[:, None])": ("prumerge 5", "(own[:, None] >= 0)"),
        "min(self.neighbours, size)": ("prumerge 5", "min(self.neighbours + 1, size)"),
        "jnp.where(kept, mixed, rest)": ("prumerge", "jnp.where(kept, mixed, -rest)"),
        "third + 1.5 * (third - first)": ("prumerge adaptive", "third + 1.5 * third"),
        "jnp.divmod(number * jnp.maximum(total - 1, 0), 4)": (
            "prumerge adaptive", "jnp.divmod(number * total, 4)"
        ),
        "total // count // 3": ("prumerge+", "total // (3 * count + 1)"),
        "place < total - 1": ("prumerge+", "place < total"),
        "own + beside + 1 <= limit": ("prumerge+", "own + beside <= limit"),
        "total / jnp.maximum(held, 1)": ("pooling", "total / jnp.maximum(held - 1, 1)"),
        "used = jnp.arange(len(sampled)) < limit": (
            "apet", "used = jnp.arange(len(sampled)) < limit + 1"
        ),
        "valid & ~own, -error": ("apet", "valid & ~own, error"),
        "squares[place] - 2 *": ("apet", "-2 *"),
        "jnp.where(valid, norms, -jnp.inf)": ("apet", "jnp.where(valid, -norms, -jnp.inf)"),
        "gap = jnp.minimum(gap, jnp.sum(": ("apet", "gap = jnp.add(0 * gap, jnp.sum("),
        "jnp.sqrt(ridge) *": ("apet cosine", "ridge *"),
    }  # fmt: skip
    seen = []
    monkeypatch.setattr(sys.modules[__name__], "PROBLEMS", 5 * ROWS)
    faults = {text: own for text, own in faults.items() if own[0].startswith(kind)}
    for text, (name, instead) in faults.items():
        case = CASES[name]
        source = _source(case[0])
        assert source.count(text) == 1, text
        module: dict[str, Any] = {"__name__": f"planted_{name}"}
        exec(compile(source.replace(text, instead), name, "exec"), module)
        settings = {f.name: getattr(case[0], f.name) for f in fields(case[0])}
        planted = module[type(case[0]).__name__](**settings)
        monkeypatch.setitem(CASES, name, (planted, case[1]))
        with pytest.raises(AssertionError):
            test_merged_rows_are_the_oracles(name)
        monkeypatch.setitem(CASES, name, case)
        seen.append(text)
    print(f"{len(seen)} of {len(faults)} planted faults were seen")


def _source(method: Method) -> str:
    return inspect.getsource(sys.modules[type(method).__module__])
