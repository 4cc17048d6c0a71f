"""Python of the README, docs/how_to/python.md and docs/explanation/pocket.md runs as printed."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.models import CallOptions

ROOT = Path(__file__).parents[2]


def blocks(document: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text("utf-8"), re.DOTALL)


def names(code: str, known: dict[str, Any]) -> dict[str, Any]:
    exec(compile(code, "document", "exec"), known)
    return known


@pytest.fixture(scope="module")
def first() -> dict[str, Any]:
    code = blocks("README.md")[0]
    assert 'load_model("pocket")' in code and len(code.strip().splitlines()) <= 12
    return names(code, {})


def test_the_first_example_of_the_readme(first: dict[str, Any]) -> None:
    made = first["made"]
    assert made.kept == [48, 32, 144] and all(made.texts) and made.errors == [None] * 3


def test_the_settings_of_a_call(first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call is judged up to the method that it makes: what comes behind compiles for long."""
    told: list[Any] = []
    lvlm = first["lvlm"]

    def generate(images: Any, prompts: Any, options: Any = None, **given: Any) -> None:
        made = dataclasses.replace(options or CallOptions(), **given)
        told.append({**given, **({} if options is None else {"options": options})})
        assert made.budgets(1) == [48] and lvlm.method_of(made) is not None

    monkeypatch.setattr(lvlm, "generate", generate)
    image = first["render"](first["frozen_set"](scenes=1)[0][0])
    code = next(code for code in blocks("docs/how_to/python.md") if "CallOptions(" in code)
    names(code, {"lvlm": lvlm, "images": [image]})
    assert len(told) == 4
    said = {name for one in told for name in one} | set(re.findall(r"(\w+)=", code))
    assert {"aggregate", "nonnegative", "text", "ocr_line", "seed_rule", "method"} <= said


@pytest.mark.deep
def test_the_example_of_the_pocket_test_set(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/explanation/pocket.md")
    right = names(code, {})["right"]
    assert len(right) == 20 and sum(right) >= 16
    assert capsys.readouterr().out == f"{sum(right)} of 20 right\n"
