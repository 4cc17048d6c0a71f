"""Relevance, gate and seed rules against obvious NumPy formulas in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.certificate import certify
from resprune_jax.errors import CallError
from resprune_jax.methods import PromptContext, ResPrune, VisualTokens, get_method
from resprune_jax.relevance import cosines, gate, relevance
from resprune_jax.seeds import seed_token

N, M, D = 12, 5, 7  # one shape for the whole file: everything compiles once

_relevance = jax.jit(
    lambda tokens, text, text_valid, valid, aggregate, nonnegative: relevance(
        tokens, text, text_valid=text_valid, valid=valid, aggregate=aggregate,
        nonnegative=nonnegative,
    ),
    static_argnames=("aggregate", "nonnegative"),
)  # fmt: skip


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook cosine, 0 for a zero vector."""
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return 0.0 if norms == 0 else float(a @ b / norms)


def oracle(tokens, text, text_valid, valid, aggregate, nonnegative):
    """Relevance of one image, token by token, in float64."""
    tokens, text = tokens.astype(np.float64), text.astype(np.float64)
    nouns = [t for t, ok in zip(text, text_valid, strict=True) if ok]
    if not nouns:
        return np.where(valid, 1.0, 0.0)
    if aggregate == "pooled":
        cos = [cosine(v, np.mean(nouns, axis=0)) for v in tokens]
    else:
        reduce = max if aggregate == "max" else (lambda x: sum(x) / len(x))
        cos = [reduce([cosine(v, t) for t in nouns]) for v in tokens]
    if nonnegative == "clip":
        weight = [max(c, 0.0) for c in cos]
    elif nonnegative == "shift":
        weight = [(1 + c) / 2 for c in cos]
    else:
        real = [c for c, ok in zip(cos, valid, strict=True) if ok]
        low, high = min(real), max(real)
        weight = [1.0 if high == low else (c - low) / (high - low) for c in cos]
    return np.where(valid, weight, 0.0)


@pytest.mark.parametrize("nonnegative", ["clip", "shift", "minmax"])
@pytest.mark.parametrize("aggregate", ["max", "mean", "pooled"])
def test_relevance_is_the_formula(aggregate, nonnegative):
    compared = 0
    for rng_seed in range(20):
        rng = np.random.default_rng(rng_seed)
        tokens = rng.normal(size=(N, D)).astype(np.float32)
        tokens[rng.integers(N)] = 0
        text = rng.normal(size=(M, D)).astype(np.float32)
        text_valid = rng.random(M) < (0.0 if rng_seed == 0 else 0.6)
        valid = rng.random(N) < 0.8
        valid[rng.integers(N)] = True
        tokens[~valid] = np.inf  # padding must have no effect, whatever it holds
        text[~text_valid] = np.nan
        got = _relevance(tokens, text, text_valid, valid, aggregate, nonnegative)
        finite = np.where(valid[:, None], tokens, 0)
        want = oracle(finite, np.nan_to_num(text), text_valid, valid, aggregate, nonnegative)
        # minmax divides by the spread of the cosines, which magnifies their rounding.
        atol = 1e-5 if nonnegative == "minmax" else 1e-6
        np.testing.assert_allclose(got, want, atol=atol)
        assert np.all(np.asarray(got) >= 0)
        compared += int(valid.sum())
    print(f"{compared} relevances compared")


def test_cosines_survive_any_scale():
    rng = np.random.default_rng(3)
    tokens = rng.normal(size=(N, D)).astype(np.float32)
    text = rng.normal(size=(M, D)).astype(np.float32)
    want = cosines(tokens, text)
    for scale in (2.0**-100, 2.0**100):
        chex.assert_trees_all_equal(cosines(tokens * np.float32(scale), text), want)
    assert not np.any(cosines(jnp.zeros((N, D)), text))


@settings(max_examples=100, deadline=None)
@given(
    r=st.just(0.0) | st.floats(2.0**-60, 1, width=32),
    alpha=st.sampled_from([0.0, 0.25, 0.3, 0.75, 1.0, 1.25]),
)
def test_gate_is_a_power_with_an_exact_zero(r, alpha):
    got = float(gate(jnp.float32(r), jnp.float32(alpha)))
    if alpha == 0:
        assert got == 1.0
    elif r == 0:
        assert got == 0.0
    else:
        assert got > 0
        np.testing.assert_allclose(got, float(np.float32(r)) ** alpha, rtol=1e-5)


def test_gate_has_finite_gradients_at_zero():
    slope = jax.grad(lambda r: gate(r, jnp.float32(0.75)).sum())(jnp.asarray([0.0, 0.5]))
    assert np.all(np.isfinite(slope))


def rules_input():
    """Tokens on which the five rules of Table VII choose five different seeds."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(N, D)).astype(np.float32)
    tokens[3] *= 30  # largest norm
    mean = np.delete(tokens, 3, axis=0).mean(axis=0) + tokens[3] / (N - 1)
    tokens[7] = mean / np.linalg.norm(mean)  # along the mean, short
    r = rng.random(N).astype(np.float32) * 0.5
    r[5] = 0.9
    saliency = rng.random(N).astype(np.float32) * 0.5
    saliency[9] = 0.8
    rows, columns = np.divmod(np.arange(N), 4)  # a 3 x 4 grid: the centre is (1, 1.5)
    coords = np.stack([rows, columns], axis=-1).astype(np.float32)
    return tokens, r, saliency, coords


def test_seed_rules():
    tokens, r, saliency, coords = rules_input()
    valid = np.ones(N, bool)
    inputs = {"relevance": r, "saliency": saliency, "coords": coords}
    want = {
        "cls_attention": int(saliency.argmax()),
        "max_norm": int(np.linalg.norm(tokens.astype(np.float64), axis=-1).argmax()),
        "text": int(r.argmax()),
        "mean_similarity": int(np.argmax([cosine(v, tokens.mean(axis=0)) for v in tokens])),
        "center": 5,  # (1, 1) and (1, 2) tie: the lower index
    }
    got = {rule: int(seed_token(rule, tokens, valid, **inputs)) for rule in want}
    assert got == want
    assert len(set(want.values())) == 4  # "text" and "center" share token 5

    for rule, winner in want.items():  # a winner that is padding or a newline gives way
        invalid = valid.copy()
        invalid[winner] = False
        assert int(seed_token(rule, tokens, invalid, **inputs)) != winner
        assert int(seed_token(rule, tokens, valid, candidates=invalid, **inputs)) != winner


@pytest.mark.parametrize(
    ("rule", "missing"),
    [("cls_attention", "saliency"), ("text", "relevance"), ("center", "coords")],
)
def test_a_seed_rule_says_what_it_lacks(rule, missing):
    with pytest.raises(CallError, match=missing):
        seed_token(rule, np.ones((N, D), np.float32), np.ones(N, bool))


def test_unknown_names_are_refused():
    x = np.ones((N, D), np.float32)
    with pytest.raises(CallError, match="first"):
        seed_token("first", x, np.ones(N, bool))  # type: ignore[arg-type]
    with pytest.raises(CallError, match="median"):
        relevance(x, x, aggregate="median")  # type: ignore[arg-type]
    with pytest.raises(CallError, match="abs"):
        relevance(x, x, nonnegative="abs")  # type: ignore[arg-type]
    with pytest.raises(CallError, match="fastpv"):
        get_method("fastpv")
    with pytest.raises(CallError, match="temperature"):
        get_method("resprune", temperature=1.0)


def visual_batch(batch: int) -> tuple[VisualTokens, PromptContext]:
    rng = np.random.default_rng(11)
    tokens, _, saliency, coords = rules_input()
    visual = VisualTokens(
        embeddings=jnp.asarray(rng.normal(size=(batch, N, D)) + tokens, jnp.float32),
        valid=jnp.asarray(rng.random((batch, N)) < 0.9).at[:, :4].set(True),
        saliency=jnp.asarray(np.stack([np.roll(saliency, i) for i in range(batch)])),
        coords=jnp.broadcast_to(coords, (batch, N, 2)),
    )
    text = jnp.asarray(rng.normal(size=(batch, M, D)), jnp.float32)
    return visual, PromptContext(text, jnp.asarray(rng.random((batch, M)) < 0.5))


def test_the_method_is_its_parts():
    visual, prompt = visual_batch(3)
    method = get_method("resprune", alpha=0.5)
    assert isinstance(method, ResPrune) and method.stage == "tokens"
    assert get_method("resprune").needs == {"text", "saliency"}
    chosen = method.select(visual, prompt, 6)
    for row in range(3):
        weight = relevance(visual.embeddings[row], prompt.text[row],
                           text_valid=prompt.text_valid[row], valid=visual.valid[row])  # fmt: skip
        assert int(chosen.indices[row, 0]) == int(
            jnp.argmax(jnp.where(visual.valid[row], visual.saliency[row], -1))
        )

        result = certify(
            np.asarray(visual.embeddings[row]), np.asarray(chosen.indices[row]),
            count=int(chosen.count[row]), relevance=np.asarray(weight), alpha=0.5,
            first=int(chosen.indices[row, 0]), valid=np.asarray(visual.valid[row]),
            energy=np.asarray(chosen.energy[row]),
        )  # fmt: skip
        assert result.ok, result.violations


@pytest.mark.deep
def test_alpha_is_a_leaf_that_a_sweep_can_vmap():
    visual, prompt = visual_batch(2)
    alphas = jnp.asarray([0.0, 0.75, 1.25])
    swept = jax.vmap(lambda a: ResPrune(alpha=a).select(visual, prompt, 6))(alphas)
    chex.assert_shape(swept.indices, (3, 2, 6))
    for i, alpha in enumerate([0.0, 0.75, 1.25]):
        alone = ResPrune(alpha=alpha).select(visual, prompt, 6)
        chex.assert_trees_all_equal(swept.indices[i], alone.indices)
    assert np.any(swept.indices[0] != swept.indices[2])
