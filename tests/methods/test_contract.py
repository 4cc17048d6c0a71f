"""What every method must do, whatever its rule: one matrix over all of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.methods import (
    Method,
    PromptContext,
    VisualTokens,
    check_method,
    get_method,
    method_class,
)
from resprune_jax.methods.base import Merged
from resprune_jax.methods.encoder.base import ByAttention
from resprune_jax.methods.inputs import NEEDS, OPTIONAL
from tests.compiles import backend_compiles
from tests.methods.toy_tower import tower

B, N, D, V, M, H, C, K = 4, 20, 8, 6, 3, 4, 5, 8
LIMITS = jnp.asarray([8, 3, 5, 1], jnp.int32)
OFTEN = ("random", "scope", "resprune", "visionzip", "trim")
"""Of every way to be written one: for what `make test` asks less often."""
ROWS = {"pooling": [8, 3, 5, 1]}
"""What a method makes of these budgets on a grid of 4 x 5, where it is not the budget itself."""
AT_MOST = {"prumerge+"}
"""What makes as many rows as the image has it, at most the budget."""
REQUIRED = {"agilepruner": {"average": 3.0, "most": 0.5}, "resprune": {"seed_rule": "max_norm"}}
TOWER = tower(V, 5)
TOKENS = [name for name in METHODS if method_class(name).stage not in ("pixels", "decoder")]
RECEIVED = [
    f"{name}, attention=received" for name in TOKENS if issubclass(method_class(name), ByAttention)
]
EVERY = [*TOKENS, *(pytest.param(name, marks=pytest.mark.deep) for name in RECEIVED)]


def method(name: str) -> Method:
    name, received, _ = name.partition(", attention=received")
    own = REQUIRED.get(name, {})
    return get_method(name, {**own, "attention": "received"} if received else own)


def inputs(seed: int, dtype: Any = jnp.float32) -> tuple[VisualTokens, PromptContext]:
    rng = np.random.default_rng(seed)
    visual = VisualTokens(
        jnp.asarray(rng.normal(size=(B, N, D)), dtype),
        jnp.ones((B, N), bool),
        features=jnp.asarray(rng.normal(size=(B, N, V)), dtype),
        saliency=jnp.asarray(rng.random((B, N)), jnp.float32),
        received=jnp.asarray(np.random.default_rng(seed + 100).random((B, N)), jnp.float32),
        class_features=jnp.asarray(rng.normal(size=(B, N, V)), dtype),
        encoder_keys=jnp.asarray(rng.normal(size=(B, N, H)), jnp.float32),
        early_saliency=jnp.asarray(rng.random((B, N)), jnp.float32),
        next_saliency=jnp.asarray(rng.random((B, N)), jnp.float32),
        next_keys=jnp.asarray(rng.normal(size=(B, N, V)), jnp.float32),
        tile=jnp.zeros((B, N, 3), jnp.int32),
        entering=jnp.asarray(rng.normal(size=(B, N, V)), dtype),
        class_entering=jnp.asarray(np.repeat(rng.normal(size=(B, 1, V)), N, axis=1), dtype),
        blocks=TOWER,
        coords=jnp.asarray(np.broadcast_to(np.argwhere(np.ones((4, 5))), (B, N, 2)), jnp.float32),
    )
    text = jnp.asarray(rng.normal(size=(B, M, D)), dtype)
    clip = jnp.asarray(rng.normal(size=(B, 2, C)), jnp.float32)
    prompt = PromptContext(text, jnp.ones((B, M), bool), clip, jnp.ones((B, 2), bool))
    return replace(
        visual, clip_patches=jnp.asarray(rng.normal(size=(B, N, C)), jnp.float32)
    ), prompt


# The method is an argument, so that its numbers are traced.
run = jax.jit(
    lambda method, visual, prompt, limit: method.select(
        visual, prompt, K + method.beside, limit=limit
    )
)


def alike(kind: str, seed: int) -> tuple[VisualTokens, PromptContext]:
    """Tokens with nothing between them, or few different ones."""
    visual, prompt = inputs(seed)
    if kind == "zero":
        changes: Any = {name: jnp.zeros_like(getattr(visual, name)) for name in _PARTS}
    elif kind == "constant":
        changes = {name: jnp.ones_like(getattr(visual, name)) for name in _PARTS}
    else:
        which = jnp.arange(N) % 3
        changes = {name: getattr(visual, name)[:, which] for name in _PARTS}
    return replace(visual, **changes), prompt


_PARTS = ("embeddings", *sorted(frozenset(OPTIONAL) - {"coords", "kind", "tile"}))


def counts(chosen: Method, name: str, limits: jax.Array) -> list[int]:
    """How many rows enter for each budget."""
    made = dict(zip(LIMITS.tolist(), ROWS.get(name, LIMITS.tolist()), strict=True))
    return [made[limit] + chosen.beside for limit in limits.tolist()]


@pytest.mark.parametrize("name", EVERY)
def test_the_contract(name: str) -> None:
    chosen = method(name)
    assert frozenset(chosen.needs) <= NEEDS

    def check(visual: VisualTokens, prompt: PromptContext, limits: jax.Array = LIMITS) -> Any:
        made = run(chosen, visual, prompt, limits)
        if name in AT_MOST:
            assert ((made.count > 0) & (made.count <= limits)).all()
        else:
            assert made.count.tolist() == counts(chosen, name, limits)
        seats = np.asarray(chosen.seats(made, visual.valid) if chosen.merges else made.indices)
        for row, count in zip(seats, made.count.tolist(), strict=True):
            own = row[:count].tolist()
            assert len(set(own)) == count and min(own) >= 0 and max(own) < N
            assert set(row[count:].tolist()) <= {N}
        assert (made.rows is not None) == bool(chosen.merges)
        assert made.rows is None or jnp.isfinite(made.rows).all()
        return made

    batch = check(*inputs(0))
    # Tokens that are alike, that repeat, that are nothing at all: still so many different ones.
    for kind in ("zero", "constant", "repeated"):
        check(*alike(kind, 1))
    # A row alone gives what it gives in the batch.
    visual, prompt = inputs(0)
    for row in range(B):
        turned = jnp.asarray([row, *range(row), *range(row + 1, B)])
        own = check(*jax.tree.map(lambda x: x[turned], (visual, prompt)), LIMITS[turned])  # noqa: B023
        assert own.indices[0].tolist() == batch.indices[row].tolist()
        if chosen.merges:
            np.testing.assert_allclose(own.rows[0], batch.rows[row], rtol=1e-5, atol=1e-6)
    # Other images, other numbers: nothing is compiled again.
    numbers = jax.tree.map(lambda leaf: leaf * 0.9 if isinstance(leaf, float) else leaf, chosen)
    fresh = inputs(7)
    with backend_compiles() as compiles:
        run(numbers, *fresh, LIMITS)
    assert not compiles
    # bfloat16 tokens keep as many.
    made = run(chosen, *inputs(0, jnp.bfloat16), LIMITS)
    assert made.count.tolist() == batch.count.tolist()


@pytest.mark.parametrize(
    "name",
    [
        name if name in OFTEN else pytest.param(name, marks=pytest.mark.deep)
        for name in (*TOKENS, *RECEIVED)
    ],
)
def test_a_row_that_is_not_finite_fails_alone(name: str) -> None:
    chosen = method(name)
    visual, prompt = inputs(3)
    broken = replace(visual, embeddings=visual.embeddings.at[1, 2, 0].set(jnp.nan))
    attention = sorted({"saliency", "received"} & chosen.needs)
    for part in attention:
        broken = replace(broken, **{part: getattr(visual, part).at[2, 4].set(jnp.inf)})
    failed = [1, 2] if attention else [1]
    if "clip_text" in chosen.needs:
        assert visual.clip_patches is not None and prompt.clip_text is not None
        patch = visual.clip_patches.at[3, 5, 1].set(jnp.nan)
        text = prompt.clip_text.at[2, 0, 0].set(jnp.inf)
        broken, failed = replace(broken, clip_patches=patch), [1, 2, 3]
        prompt = replace(prompt, clip_text=text)
    made = run(chosen, broken, prompt, LIMITS)
    whole = run(chosen, *inputs(3), LIMITS)
    expected = [0 if row in failed else n for row, n in enumerate(whole.count.tolist())]
    assert made.count.tolist() == expected
    assert made.indices[0].tolist() == whole.indices[0].tolist()


def test_the_order_of_choice_is_the_same_set() -> None:
    """DivPrune unsorted: rows that are the tokens themselves, one after the other."""
    visual, prompt = inputs(5)
    ours = get_method("divprune", sort=False)
    listed = run(ours, visual, prompt, LIMITS)
    usual = get_method("divprune")
    assert (ours.merges, usual.merges) == ("embeddings", "")
    made = run(usual, visual, prompt, LIMITS)
    assert made.rows is None and listed.indices.tolist() == made.indices.tolist()
    assert listed.count.tolist() == LIMITS.tolist() and listed.rows is not None
    seats = ours.seats(listed, visual.valid)
    moved = 0
    for row, count in enumerate(LIMITS.tolist()):
        own = made.indices[row, :count]
        np.testing.assert_array_equal(listed.rows[row, :count], visual.embeddings[row][own])
        assert seats[row, :count].tolist() == list(range(count))
        moved += sorted(own.tolist()) != own.tolist()
    assert moved


@pytest.mark.parametrize("layout", ["rows", "grid"])
def test_uniform_on_grids_that_are_none(layout: str) -> None:
    """Coordinates of tiles, of frames one over the other, of newlines: still different patches."""
    chosen = get_method("uniform", layout=layout)
    visual, prompt = inputs(0)
    rng = np.random.default_rng(0)
    for turn in range(6):
        coords = rng.uniform(-0.4, 5, (B, N, 2))  # of a tile between the others
        coords[1] = np.argwhere(np.ones((2, 2)))[np.arange(N) % 4]  # five frames
        coords[2] = 3  # nothing between them
        kind = rng.random((B, N)) < 0.3
        limits = jnp.asarray(rng.integers(1, K + 1, B), jnp.int32)
        odd = replace(
            visual, coords=jnp.asarray(coords, jnp.float32), kind=jnp.asarray(kind, jnp.int8)
        )
        made = run(chosen, odd, prompt, limits)
        for row, limit in enumerate(limits.tolist()):
            own = np.asarray(made.indices)[row, : int(made.count[row])].tolist()
            assert 0 < len(set(own)) == len(own) <= limit, (turn, row)
            assert not kind[row, own].any()
        most = np.minimum(limits, [16, 4, 16, 16])  # a frame has four places
        patches = (~kind).sum(axis=1)
        if layout == "rows":
            assert made.count.tolist() == np.minimum(most, patches).tolist()
    frames = replace(visual, coords=jnp.asarray(coords, jnp.float32))
    made = run(chosen, frames, prompt, jnp.full(B, 4, jnp.int32))
    # One frame after the other, not the first for all four places.
    assert made.indices[1, :4].tolist() == [0, 4 + 1, 8 + 2, 12 + 3]


def test_random_draws_by_row_and_seed() -> None:
    visual, prompt = inputs(0)
    full = jnp.full(B, K, jnp.int32)
    alike_rows = run(get_method("random", rng_seed=5), visual, prompt, full).indices
    own = run(get_method("random", rng_seed=np.arange(B)), visual, prompt, full).indices
    assert len({tuple(row) for row in alike_rows.tolist()}) == 1
    assert len({tuple(row) for row in own.tolist()}) == B
    counts = np.zeros(N)
    for seed in range(200):
        made = run(get_method("random", rng_seed=np.arange(B) + B * seed), visual, prompt, full)
        counts += np.bincount(np.asarray(made.indices).ravel(), minlength=N)
    # 800 draws of 8 of 20: 320 each, standard deviation sqrt(800 0.4 0.6) = 13.9.
    assert np.abs(counts - 320).max() < 5 * 13.9


def test_attention_is_what_the_option_says_and_never_the_other() -> None:
    visual, prompt = inputs(0)
    given, received = method("fastervlm"), method("fastervlm, attention=received")
    assert (given.needs, received.needs) == ({"saliency"}, {"received"})
    for own, part in ((given, "saliency"), (received, "received")):
        made = run(own, visual, prompt, LIMITS)
        values = np.asarray(getattr(visual, part))[0]
        assert made.indices[0].tolist() == np.argsort(-values, kind="stable")[:K].tolist()
        with pytest.raises(AssertionError):
            jax.eval_shape(run, own, replace(visual, **{part: None}), prompt, LIMITS)


@pytest.mark.deep
def test_a_class_token_that_is_there_takes_no_part_in_received_attention() -> None:
    """As where tokens were encoded for several methods."""
    visual, prompt = inputs(0)
    zipped = method("visionzip, attention=received")
    alone = run(zipped, replace(visual, class_features=None, saliency=None), prompt, LIMITS)
    beside = run(zipped, visual, prompt, LIMITS)
    assert alone.indices.tolist() == beside.indices.tolist()
    np.testing.assert_array_equal(alone.rows, beside.rows)
    usual = run(method("visionzip"), visual, prompt, LIMITS)
    assert N not in beside.indices[0].tolist() and usual.indices[0].tolist().count(N) == 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Typo(Method):
    needs = frozenset({"saliancy"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Upstairs(Method):
    stage = "upstairs"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Speechless(Method):
    """Reads CLIP's text, and does not say which."""

    needs = frozenset({"clip_text"})

    def scores(self, image: Any, prompt: Any) -> jax.Array:
        return image.embeddings @ prompt.text[0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Talkative(Speechless):
    clip_text = "everything"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Unasked(Speechless):
    clip_text = "prompt"
    needs = frozenset({"clip_patches"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Idle(Method):
    pass


@dataclass(frozen=True)
class NotRegistered(Method):
    pass


class NotADataclass(Method):
    pass


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Wordy(Method):
    how: str = "well"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MergesNothing(Method):
    merges = "features"

    def scores(self, image: Any, prompt: Any) -> jax.Array:
        return image.embeddings[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MergesInSilence(Method):
    def merge(self, image: Any, prompt: Any, keep: int, limit: jax.Array) -> Merged:
        raise AssertionError

    def scores(self, image: Any, prompt: Any) -> jax.Array:
        return image.embeddings[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StatesOutside(Method):
    merges = "states"

    def scores(self, image: Any, prompt: Any) -> jax.Array:
        return image.embeddings[:, 0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (Typo(), "saliancy"),
        (Upstairs(), "stage"),
        (Idle(), "decides nothing"),
        (Speechless(), "clip_text is '': where needs names clip_text it is prompt or question"),
        (Talkative(), "clip_text is 'everything'"),
        (Unasked(), "clip_text is 'prompt'"),
        (Wordy(), "static"),
        (MergesNothing(), "MergesNothing cannot run: it merges features and has no merge"),
        (MergesInSilence(), "has a merge and merges nothing"),
        (StatesOutside(), "states are merged inside the decoder"),
        (NotRegistered(), "pytree"),
        (NotADataclass(), "frozen dataclass"),
        (Typo, "an instance"),
        (object(), "an instance"),
    ],
)
def test_what_is_no_method_is_refused(given: Any, said: str) -> None:
    with pytest.raises(CallError, match=said):
        check_method(given)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("dvprune", {}, "unknown method"),
        ("scope", {"combine": "divide"}, "combine"),
        ("visionzip", {"attention": "rows"}, "attention must be one of class, received"),
        ("hired", {"attention": "received"}, "no setting attention"),
        ("prumerge", {"attention": "received"}, "no setting attention"),
        ("trim", {"attention": "received"}, "no setting attention"),
        ("scope", {"beta": 1.0}, "no setting beta; it has alpha"),
        ("agilepruner", {}, "average, most"),
        ("agilepruner", {"average": 2.0}, "needs most"),
        ("divprune", {"alpha": 1.0}, "no setting alpha"),
        ("scope", {"alpha": "high"}, "alpha must be a finite number"),
        ("scope", {"alpha": -0.5}, "from 0 to 100"),
        ("scope", {"heads": 2.5}, "heads must be a whole number"),
        ("vispruner", {"important": 1.5}, "from 0 to 1"),
        ("lrcp", {"centred": "maybe"}, "true or false"),
        ("apet", {"basis": 0}, "basis must be a whole number from 1"),
        ("apet", {"distance": "far"}, "euclidean, cosine"),
        ("uniform", {"layout": "cells"}, "raster, rows, grid"),
        ("divprune", {"sort": 2}, "true or false"),
        ("pooling", {"bins": "square"}, "adaptive, partition"),
        ("pdrop", {"layers": b"8"}, "a row of numbers"),
        ("pdrop", {"layers": (2, "x")}, "layers must be a whole number"),
        ("resprune", {"relevance_sign": [1, -1]}, "relevance_sign"),
        ("random", {"rng_seed": [0.5, 1]}, "rng_seed"),
        ("adaptprune", {"radius": float("nan")}, "radius must be"),
        ("nowhere.py:Mine", {}, "no file"),
    ],
)
def test_names_and_settings_that_cannot_be(name: str, settings: Any, said: str) -> None:
    with pytest.raises(CallError, match=said):
        get_method(name, settings)


OWN = '''
from dataclasses import dataclass
import jax
from resprune_jax.methods import Method

@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Quietest(Method):
    """The tokens that the class token attends to least."""
    power: float = 1.0
    needs = frozenset({"saliency"})

    def scores(self, image, prompt):
        return -image.saliency**self.power
'''


def test_a_method_in_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    chosen = get_method(f"{path}:Quietest", {"power": 2.0})
    visual, prompt = inputs(0)
    made = run(chosen, visual, prompt, LIMITS)
    assert visual.saliency is not None
    expected = np.argsort(np.asarray(visual.saliency)[0])[:8].tolist()
    assert made.indices[0].tolist() == expected
    texts = (("x = 1", "holds no"), ("Quietest = 3", "is no method"), ("1 / 0", "cannot"))
    for text, said in texts:
        path.write_text(text)
        with pytest.raises(CallError, match=said):
            get_method(f"{path}:Quietest")
