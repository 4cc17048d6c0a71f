"""Methods that drop inside the decoder against their oracles, drop by drop, on random views."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.methods import VisualTokens, get_method
from resprune_jax.methods.base import without_padding
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import LayerView, PromptContext
from resprune_jax.models.decoder.attention import attention_rows
from tests.methods.decoder.views import FRONT, ROWS, SIZE, M, N, Problem, batch, problem
from tests.methods.oracles.decoder.adaptprune import adaptprune, adaptprune_prior
from tests.methods.oracles.decoder.dart import dart
from tests.methods.oracles.decoder.dpc_knn import dpc_knn
from tests.methods.oracles.decoder.fastv import fastv
from tests.methods.oracles.decoder.pdrop import pdrop_stage
from tests.methods.oracles.decoder.sparsevlm import sparsevlm_raters, sparsevlm_stage
from tests.methods.oracles.decoder.sparsevlm_plus import gravity, sparsevlm_plus_stage

PROBLEMS = 200
K = 16
"""Slots of a keep list."""


def last(p: Problem) -> np.ndarray:
    return p.attention[:, -1]


def rated(p: Problem) -> np.ndarray:
    return p.attention[:, p.raters]


def plus(p: Problem, **options: Any) -> list[int]:
    places = list(range(FRONT + len(p.states) + len(p.text)))
    queries = np.asarray(p.behind)[p.raters].tolist()
    return sparsevlm_plus_stage(
        rated(p), p.visual, queries, places, p.keep, size=SIZE, **options
    )  # fmt: skip


_rows = jax.jit(lambda q, k, valid: attention_rows(q, k, valid=valid))


def next_attention(p: Problem) -> np.ndarray:
    """The model's own way from query and keys to attention, (H, n)."""
    keys = np.zeros((1, FRONT + N + M, *p.keys[:, 0].shape), np.float32)
    keys[0, : p.keys.shape[1]] = p.keys.swapaxes(0, 1)
    valid = np.arange(FRONT + N + M)[None] < p.keys.shape[1]
    rows = _rows(p.query[None, None].astype(np.float32), keys, valid)
    return np.asarray(rows)[0, :, 0, p.visual].T


def gravities(p: Problem) -> np.ndarray:
    places = list(range(FRONT + len(p.states) + len(p.text)))
    return gravity(p.behind, places, SIZE)[:, p.visual]


def asked(p: Problem) -> int:
    return min(len(p.states), 4 + 8 * (p.keep // 8))


Case = tuple[DecoderMethod, Callable[[Problem], list[int]], dict[str, Any]]
CASES: dict[str, Case] = {
    "fastv": (get_method("fastv"), lambda p: fastv(last(p), p.visual, p.keep).kept[0], {}),
    "dart": (
        get_method("dart"),
        lambda p: dart(p.keys, p.final, p.visual, p.behind, p.keep).kept[0],
        {"limit": asked},
    ),
    "dart 2 + 3": (
        get_method("dart", image_pivots=2, text_pivots=3),
        lambda p: dart(
            p.keys, p.final, p.visual, p.behind, p.keep, image_pivots=2, text_pivots=3
        ).kept[0],
        {"limit": lambda p: 2 + 5 * (p.keep // 5)},
    ),
    "adaptprune": (
        get_method("adaptprune"),
        lambda p: adaptprune(last(p), p.bare, p.visual, p.keep, grid=(5, 6)).kept[0],
        {"whole": True},
    ),
    "adaptprune, other constants": (
        get_method("adaptprune", radius=2.0, prior_sigma=4.0, space_sigma=3.0, key_sigma=0.2),
        lambda p: adaptprune(
            last(p), p.bare, p.visual, p.keep, grid=(5, 6), radius=2.0, prior_sigma=4.0,
            space_sigma=3.0, key_sigma=0.2,
        ).kept[0],
        {"whole": True},
    ),
    "pdrop": (
        get_method("pdrop"),
        lambda p: pdrop_stage(p.query, p.keys, p.visual, p.keep),
        {"next_attention": next_attention},
    ),
    "sparsevlm-plus": (
        get_method("sparsevlm-plus", heads=2), lambda p: plus(p, heads=2), {"gravity": gravities}
    ),
    "sparsevlm-plus, all heads": (
        get_method("sparsevlm-plus"), plus, {"gravity": gravities}
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_keep_lists_are_the_oracles(case: str) -> None:
    method, oracle, how = CASES[case]
    run = jax.jit(lambda visual, prompt, limit: method.select(visual, prompt, K, limit=limit))
    wrong = []
    extra = {name: make for name, make in how.items() if name not in ("limit", "whole")}
    for start in range(0, PROBLEMS, ROWS):
        own = [problem(seed, whole=how.get("whole", False)) for seed in range(start, start + ROWS)]
        view = batch(own, **{name: [make(p) for p in own] for name, make in extra.items()})
        limits = [how.get("limit", lambda p: p.keep)(p) for p in own]
        made = run(*view, jnp.asarray(limits, jnp.int32))
        for row, p in enumerate(own):
            kept = sorted(np.asarray(made.indices)[row, : made.count[row]].tolist())
            if kept != oracle(p):
                wrong.append((start + row, kept, oracle(p)))
    assert not wrong, f"{len(wrong)} of {PROBLEMS}: {wrong[:3]}"


def test_adaptprune_on_the_released_grid() -> None:
    """24 x 24, 57 tokens, as released; the second run tells constants apart."""
    rng = np.random.default_rng(0)
    coords = np.argwhere(np.ones((24, 24))).astype(np.float32)
    method = get_method("adaptprune")
    run = jax.jit(
        lambda own, rows, keys: own.select(
            VisualTokens(
                jnp.zeros((1, 576, 1)), jnp.ones((1, 576), bool), coords=jnp.asarray(coords[None]),
                layer=LayerView(jnp.zeros((1, 576), int), attention=rows, bare_keys=keys),
            ),
            PromptContext(jnp.zeros((1, 1, 1)), jnp.ones((1, 1), bool)),
            57,
        )
    )  # fmt: skip
    for changed in ({}, {}, {"prior_sigma": 6.0}, {"radius": 3.0}):
        smooth = rng.random((4, 24, 24)).cumsum(axis=1).cumsum(axis=2) % 3
        rows = np.exp(smooth.reshape(4, 576))
        rows = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
        keys = rng.normal(size=(9, 16))[rng.integers(9, size=576)]
        keys = (keys + 0.1 * rng.normal(size=keys.shape)).astype(np.float32)
        made = run(get_method(method, changed), rows[None], keys[None])
        kept = sorted(np.asarray(made.indices)[0].tolist())
        assert kept == adaptprune(rows, keys, range(576), 57, **changed).kept[0]
        if changed:
            assert kept != adaptprune(rows, keys, range(576), 57).kept[0]


def test_adaptprunes_prior_spans_every_image() -> None:
    """Images side by side in a prompt, strips and single tokens among them."""
    method = get_method("adaptprune", prior_sigma=7.0, half=9.0)
    run = jax.jit(method.prior)
    for grids in ([(3, 4), (1, 12)], [(12, 1), (4, 3)], [(1, 1), (1, 2), (3, 7)], [(2, 2), (4, 5)]):
        coords = np.concatenate([np.argwhere(np.ones(grid)) for grid in grids])
        image = np.repeat(np.arange(len(grids)), [np.prod(grid) for grid in grids])
        fill = 24 - len(image)
        found = run(
            VisualTokens(
                jnp.zeros((24, 1)), jnp.arange(24) < len(image),
                coords=jnp.asarray(np.pad(coords, ((0, fill), (0, 0)))),
                layer=LayerView(jnp.asarray(np.pad(image, (0, fill), constant_values=-1))),
            )
        )  # fmt: skip
        want = [adaptprune_prior(grid, 9.0, 7.0).ravel() for grid in grids]
        np.testing.assert_allclose(found[: len(image)], np.concatenate(want), rtol=1e-6)


def test_raters_are_the_oracles() -> None:
    method = get_method("sparsevlm")
    run = jax.jit(jax.vmap(lambda *view: method.begin(*without_padding(*view))))
    for start in range(0, PROBLEMS, ROWS):
        own = [problem(seed) for seed in range(start, start + ROWS)]
        found = np.asarray(run(*batch(own)))
        for row, p in enumerate(own):
            assert np.flatnonzero(found[row]).tolist() == sparsevlm_raters(p.states, p.text)
    alone = [problem(seed, words=1) for seed in range(ROWS)]
    assert np.asarray(run(*batch(alone))).sum(axis=1).tolist() == [1] * ROWS


def test_sparsevlm_merges_as_its_oracle() -> None:
    """Keep lists exactly, merged states to 1e-5; up to 96 tokens, so that several are merged."""
    method, slots = get_method("sparsevlm"), 96

    def one(visual: VisualTokens, prompt: PromptContext, limit: jax.Array) -> Any:
        made = method.select(visual, prompt, K, limit=limit)
        kept = made.mask(slots) & visual.valid

        def merge(image: VisualTokens, text: PromptContext, stays: jax.Array) -> Any:
            return method.merged(*without_padding(image, text), stays, 8)

        return kept, jax.vmap(merge)(visual, prompt, kept)

    run, several = jax.jit(one), 0
    for start in range(0, PROBLEMS, ROWS):
        own = [problem(seed, slots=slots) for seed in range(start, start + ROWS)]
        limits = jnp.asarray([p.keep for p in own], jnp.int32)
        kept, (rows, count) = run(*batch(own, slots), limits)
        for row, p in enumerate(own):
            want = sparsevlm_stage(rated(p), p.visual, p.states, p.keep)
            stay = [i for i in want.indices if i >= 0]
            assert np.flatnonzero(np.asarray(kept)[row]).tolist() == stay
            entering = np.asarray(want.merged)[len(stay) :]
            assert int(count[row]) == len(entering)
            assert method.entering(len(p.states) - len(stay)) == len(entering)
            np.testing.assert_allclose(rows[row, : len(entering)], entering, atol=1e-5)
            several += len(entering) > 1
    print(f"{several} of {PROBLEMS} with several clusters")
    assert several > PROBLEMS / 4


def test_clusters_are_the_oracles() -> None:
    """More groups than the views above have; every third time with points that repeat."""
    from resprune_jax.methods.decoder.sparsevlm import clusters

    run = jax.jit(lambda points, real, groups: clusters(points, real, groups, 8))
    for seed in range(PROBLEMS):
        rng = np.random.default_rng(seed)
        n, groups = int(rng.integers(8, 25)), int(rng.integers(1, 9))
        points = np.zeros((24, 5), np.float32)
        points[:n] = rng.normal(size=(n, 5))
        if seed % 3 == 0:
            points[:n] = points[rng.integers(n // 2, size=n)]
        found = run(points, np.arange(24) < n, np.int32(groups))
        assert np.asarray(found)[:n].tolist() == dpc_knn(points[:n], groups)[1]
