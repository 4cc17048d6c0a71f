"""What happens to one row of a batch happens to it alone: numbers that break, and draws."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.models import LVLM
from resprune_jax.models.prompts import expansion
from tests.compiles import backend_compiles

QUESTIONS = ["How many people are there?", "What colour is the dog?", "Is there a cup?"]


def poisoned(lvlm: LVLM, token: int) -> Any:
    """The parameters, with an embedding that is no number: the step behind that token breaks."""

    def poison(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        return leaf.at[token].set(jnp.nan) if "embed_tokens" in name else leaf

    return jax.tree_util.tree_map_with_path(poison, lvlm.state)


@pytest.mark.parametrize(("step", "keep"), [(0, None), (1, 5), (3, 5)])
def test_a_step_that_is_not_finite_fails_its_row_alone(
    lvlm: LVLM, photographs: list[Any], monkeypatch: pytest.MonkeyPatch, step: int, keep: int | None
) -> None:
    def ask() -> Any:
        return lvlm.generate(
            photographs[:3], QUESTIONS, keep=keep, max_new_tokens=6, temperature=3.0, rng_seed=5
        )

    whole = ask()
    prompts = set(np.concatenate([lvlm.encoder.encode(q).ids for q in QUESTIONS]).tolist())
    row, token = next(
        (i, int(own[step]))
        for i, own in enumerate(whole.tokens)
        if len(own) > step + 1
        and int(own[step]) not in prompts
        and own.tolist().index(own[step]) == step
        and not any(own[step] in other for j, other in enumerate(whole.tokens) if j != i)
    )
    monkeypatch.setattr(lvlm, "state", poisoned(lvlm, token))
    got = ask()
    for i in range(3):
        if i == row:
            assert "not finite" in got.errors[i] and got.texts[i] == "" and len(got.tokens[i]) == 0
        else:
            assert got.errors[i] is None and got.tokens[i].tolist() == whole.tokens[i].tolist()


@pytest.mark.deep
def test_a_row_with_its_own_seed_draws_the_same_in_any_batch(
    lvlm: LVLM, photographs: list[Any]
) -> None:
    settings = {"keep": 6, "max_new_tokens": 5, "temperature": 2.0, "top_p": 0.95}
    seeds = [7, 2**32 - 1, 0]

    def ask(rows: list[int]) -> dict[int, list[int]]:
        made = lvlm.generate(
            [photographs[i] for i in rows], [QUESTIONS[i] for i in rows],
            rng_seed=[seeds[i] for i in rows], **settings,
        )  # fmt: skip
        return {row: own.tolist() for row, own in zip(rows, made.tokens, strict=True)}

    whole = ask([0, 1, 2])
    assert ask([2, 0]) | ask([1]) == whole == ask([1, 2, 0])
    same = lvlm.generate(photographs[0], [QUESTIONS[0]] * 3, rng_seed=[1, 2, 3], **settings).tokens
    assert len({tuple(own.tolist()) for own in same}) > 1


@pytest.mark.parametrize(
    "seeds", [[1], [1, 2, 3, 4], [], [1, 2, -1], [1, 2, 0.5], "12", (1, 2, True)]
)
def test_other_seeds_are_refused(lvlm: LVLM, photographs: list[Any], seeds: Any) -> None:
    with pytest.raises(CallError, match="rng_seed"):
        lvlm.generate(photographs[:3], QUESTIONS, rng_seed=seeds, max_new_tokens=1)


def test_too_many_pictures_are_refused_before_they_are_seen(
    lvlm: LVLM, photographs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expansion, "MOST_VISUAL", 40)  # 16 tokens a picture
    asked = [photographs[:2], photographs[:3]]
    with backend_compiles() as compiles, pytest.raises(CallError, match=r"48 visual tokens .* 40"):
        lvlm.generate(asked, ["What is it?"] * 2, keep=4, max_new_tokens=2)
    assert not compiles
