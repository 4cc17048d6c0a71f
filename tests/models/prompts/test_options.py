"""What a call can be told: said once, seen everywhere, refused early."""

import dataclasses
import inspect
import warnings
from typing import Any

import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.answer.options import AnswerOptions, settings_of
from resprune_jax.models import LVLM, CallOptions
from resprune_jax.models.prompts.options import takes_options

FIELDS = {option.name for option in dataclasses.fields(CallOptions)}


@takes_options
def told(first: str, *, options: CallOptions, extra: int = 0) -> tuple[str, CallOptions, int]:
    """Give back what came in."""
    return first, options, extra


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.longdouble])
def test_numbers_of_narrow_and_wide_dtypes_become_plain(dtype: Any) -> None:
    with warnings.catch_warnings():  # of an overflow, in a comparison with what the dtype lacks
        warnings.simplefilter("error")
        made = CallOptions(
            keep=dtype(0.5), alpha=dtype(0.5), tolerance=dtype(0.25), temperature=dtype(0.75),
            top_p=dtype(0.5), min_p=dtype(0.125), repetition_penalty=dtype(1.5),
        )  # fmt: skip
    drawn = (made.alpha, made.temperature, made.top_p, made.min_p, made.repetition_penalty)
    assert drawn == (0.5, 0.75, 0.5, 0.125, 1.5)
    if dtype is not np.longdouble:
        assert {type(value) for value in drawn} == {float}


def test_fields_are_keywords_and_change_the_options() -> None:
    assert told("a") == ("a", CallOptions(), 0)
    assert told("a", keep=3, extra=2) == ("a", CallOptions(keep=3), 2)
    base = CallOptions(keep=0.5, alpha=0.1, budget="per_image")
    assert told("a", options=base, alpha=0.2) == (
        "a", CallOptions(keep=0.5, alpha=0.2, budget="per_image"), 0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"kep": 4}, "told has no option 'kep': did you mean keep?"),
        ({"seedrule": "text"}, "did you mean seed_rule?"),
        ({"x" * 999: 1}, "told has no option 'xxxx"),
        ({"options": {"keep": 3}}, "options is a CallOptions, got dict"),
        ({"text": "words"}, "unknown text 'words': choose one of nouns, prompt"),
        ({"ocr_line": None}, "unknown ocr_line None"),
        ({"aggregate": "sum"}, "unknown aggregate 'sum'"),
        ({"max_new_tokens": 2.0}, "max_new_tokens must be at least 1, got 2.0"),
        ({"temperature": "warm"}, "temperature must be finite"),
        ({"rng_seed": True}, "rng_seed must lie"),
        ({"tolerance": float("nan")}, "tolerance must lie"),
        ({"method": "none", "aggregate": "max"}, "method 'none' has no settings, but aggregate"),
    ],
)
def test_a_wrong_option_is_refused_by_name(given: dict[str, Any], says: str) -> None:
    with pytest.raises(CallError, match=says.replace("?", r"\?")) as refused:
        told("a", **given)
    assert len(str(refused.value)) < 500 and "\n" not in str(refused.value)


@pytest.mark.parametrize("function", [LVLM.generate, LVLM.logits, LVLM.warm_up])
def test_every_option_shows_in_python(function: Any) -> None:
    assert set(inspect.signature(function).parameters) >= FIELDS
    about = inspect.getdoc(function) or ""
    missing = [name for name in FIELDS if f"{name} (default" not in about]
    assert not missing


def test_the_command_line_has_every_option_and_records_it() -> None:
    made = AnswerOptions(model="m")
    assert {option.name for option in dataclasses.fields(made)} >= FIELDS
    assert made.call([None]) == CallOptions(keep=[None])
    changed = AnswerOptions(model="m", alpha=0.5, text="prompt", keep="7", rng_seed=4)
    assert changed.call([7], rng_seed=5) == CallOptions(
        keep=[7], alpha=0.5, text="prompt", rng_seed=5
    )
    assert set(settings_of(changed)) >= FIELDS - {"keep"}
