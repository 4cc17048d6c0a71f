"""What every method that drops inside the decoder must do, whatever its rule."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.methods import (
    DecoderMethod,
    Method,
    PromptContext,
    SingleDrop,
    VisualTokens,
    check_method,
    get_method,
    method_class,
)
from resprune_jax.methods.base import without_padding
from resprune_jax.models import LVLM, CallOptions
from tests.compiles import backend_compiles
from tests.methods.decoder.views import ROWS, H, N, batch, problem

INSIDE = [name for name in METHODS if method_class(name).stage == "decoder"]
K = 16
ASKED = [13, 3, 9, 1, 12, 8, 2, 14]

STATES = ("keys", "text_keys", "final_states", "text_final_states", "bare_keys")


def inputs(seed: int) -> tuple[VisualTokens, PromptContext]:
    """A batch with all parts of a view."""
    own = [problem(ROWS * seed + row, words=5 + row % 3) for row in range(ROWS)]
    rng = np.random.default_rng(seed)
    shapes = [(len(p.text), len(p.states)) for p in own]
    gravity = [rng.uniform(0.1, 1, shape) for shape in shapes]
    return batch(own, gravity=gravity, next_attention=[rng.random((H, n)) for _, n in shapes])


def changed(view: tuple[VisualTokens, PromptContext], change: Any) -> Any:
    """A batch whose floats are changed."""

    def one(leaf: jax.Array) -> jax.Array:
        return change(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, view)


@pytest.mark.parametrize("name", INSIDE)
def test_the_contract(name: str) -> None:
    method = get_method(name)
    limits = [method.drops(N, keep, 32)[0].kept if name == "dart" else keep for keep in ASKED]

    def both(method: Any, view: Any, limit: jax.Array) -> Any:
        made = method.select(*view, K, limit=limit)
        if not method.merges:
            return made, jnp.zeros(())
        kept = made.mask(N) & view[0].valid

        def merge(image: VisualTokens, text: PromptContext, stays: jax.Array) -> Any:
            return method.merged(*without_padding(image, text), stays, 8)

        return made, jax.vmap(merge)(*view, kept)

    run = jax.jit(both)

    def check(view: Any, order: Any = None) -> Any:
        asked = np.asarray(limits)[order] if order is not None else np.asarray(limits)
        made, entering = run(method, view, jnp.asarray(asked, jnp.int32))
        assert made.count.tolist() == asked.tolist()
        for row, count in enumerate(asked):
            own = np.asarray(made.indices)[row]
            assert len(set(own[:count].tolist())) == count
            assert np.asarray(view[0].valid)[row, own[:count]].all()
            assert set(own[count:].tolist()) <= {N}
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(entering))
        return made

    view = inputs(0)
    made = check(view)
    # Nothing between tokens, few different ones: still so many different places.
    check(changed(view, jnp.zeros_like))
    check(changed(view, jnp.ones_like))
    check(changed(view, lambda leaf: jnp.round(leaf)))
    # A row in another place of the batch keeps the same.
    order = np.roll(np.arange(ROWS), 3)
    turned = check(jax.tree.map(lambda leaf: leaf[order], view), order)
    assert np.asarray(turned.indices)[3].tolist() == np.asarray(made.indices)[0].tolist()
    # Other prompts, other numbers: nothing is compiled again.
    numbers = jax.tree.map(lambda leaf: leaf * 0.9 if isinstance(leaf, float) else leaf, method)
    fresh = inputs(1)
    with backend_compiles() as compiles:
        run(numbers, fresh, np.asarray(limits, np.int32))
    assert not compiles
    # States and keys in bfloat16, attention as always in float32.
    own = {part: getattr(view[0].layer, part).astype(jnp.bfloat16) for part in STATES}
    image = replace(
        view[0], embeddings=view[0].embeddings.astype(jnp.bfloat16),
        layer=replace(view[0].layer, **own),
    )  # fmt: skip
    narrow = image, replace(view[1], text=view[1].text.astype(jnp.bfloat16))
    assert run(method, narrow, jnp.asarray(limits, jnp.int32))[0].count.tolist() == limits
    # Scores that are not finite fail their row alone.
    broken = replace(view[0], embeddings=view[0].embeddings.at[1, 2, 0].set(jnp.nan))
    counts = run(method, (broken, view[1]), jnp.asarray(limits, jnp.int32))[0].count
    assert counts.tolist() == [0 if row == 1 else n for row, n in enumerate(limits)]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Outside(Method):
    needs = frozenset({"attention"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Upstart(Method):
    stage = "decoder"
    needs = frozenset({"attention"})

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        return -image.embeddings[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NoRule(SingleDrop):
    needs = frozenset({"attention"})


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NoDrops(DecoderMethod):
    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        return -image.embeddings[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class NoMerged(NoRule):
    merges = "states"

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        return -image.embeddings[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Early(NoDrops):
    stage = "tokens"


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Embedded(NoMerged):
    merges = "embeddings"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UpstartWithout(Method):
    stage = "decoder"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (NoRule(), "NoRule cannot run: it decides nothing: write its scores or its order"),
        (NoDrops(), "NoDrops cannot run: it drops nowhere: write its drops"),
        (NoMerged(), "NoMerged cannot run: it merges states and has no merged"),
        (Early(), "whose stage is decoder, not tokens"),
        (Embedded(), "merges is states or empty"),
        (UpstartWithout(), "UpstartWithout cannot run: it decides nothing"),
    ],
)
def test_what_a_method_inside_lacks_is_named(given: Any, said: str, lvlm: LVLM) -> None:
    with pytest.raises(CallError, match=said):
        lvlm.method_of(CallOptions(method=given, keep=4))


def test_a_view_is_for_methods_inside_alone(lvlm: LVLM, photographs: Any) -> None:
    with pytest.raises(CallError, match=r"Outside.needs names attention.*DecoderMethod"):
        check_method(Outside())
    with pytest.raises(CallError, match=r"subclass of resprune_jax.methods.DecoderMethod"):
        lvlm.select(photographs[0], "What is red?", keep=4, method=Upstart())
