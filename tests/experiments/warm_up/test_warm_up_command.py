"""`resprune warm-up`: what it asks the model for, what it says, and wrong calls."""

import re
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.experiments import cli
from resprune_jax.experiments.warm_up import command
from resprune_jax.models import LVLM, load


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs that is not JAX's own: other tests see the same JAX."""
    (tmp_path / "one").write_bytes(bytes(1_500_000))
    monkeypatch.setattr(command, "use_compilation_cache", lambda: tmp_path)
    return tmp_path


@pytest.mark.deep
@pytest.mark.usefixtures("nothing_found")
def test_the_small_model_is_warmed_up(
    place: Path, lvlm: LVLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    def load_model(model: str, **options: Any) -> LVLM:
        asked.update(options, model=model)
        return lvlm

    monkeypatch.setattr(load, "load_model", load_model)
    words = ["--model", "m", "--keep", "9", "0.5", "--max-new-tokens", "9", "--quiet"]
    for _ in range(2):
        assert cli.main(["warm-up", *words, "--dtype", "float32"]) == 0
    assert asked["model"] == "m" and asked["dtype"] == "float32"
    out, err = capsys.readouterr()
    first, kept, second, _ = out.splitlines()
    assert re.fullmatch(r"1 shape: \d programs compiled, 0 found, in [\d.]+ s", first)
    assert second.startswith("1 shape: 0 programs compiled, 0 found")  # this process has them
    assert kept == f"kept in {place}: 1.5 MB with those of other models" and err == ""


def test_sizes_batches_and_budgets_are_handed_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    class Fake:
        def warm_up(self, sizes: Any, *, announce: Any, **asked: Any) -> int:
            seen.update(asked, sizes=sizes)
            return 3

    monkeypatch.setattr(load, "load_model", lambda *_, **__: Fake())
    words = ["--size", "48x64", "2x30x40", "--keep", "full", "7", "0.1", "--batch-size", "1", "4"]
    assert (
        cli.main(["warm-up", "--model", "m", *words, "--prompt-tokens", "60", "--alpha", "0"]) == 0
    )
    assert seen["sizes"] == [(48, 64), (2, 30, 40)]
    assert seen["options"].keep == [None, 7, 0.1] and seen["options"].alpha == 0
    assert seen["batch_sizes"] == (1, 4) and seen["prompt_lengths"] == (60,)
    assert capsys.readouterr().out.startswith("3 shapes: 0 programs compiled")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--size", "48"], "HEIGHTxWIDTH"),
        (["--size", "48x64", "48*64"], "--size '48*64'"),
        (["--keep", "0"], "keeps no visual token"),
        (["--keep", "9", "1.0"], "--keep 1.0"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--prompt-tokens", "-1"], "--prompt-tokens"),
        (["--method", "none", "--alpha", "1"], "method 'none' has no settings"),
    ],
)
def test_a_wrong_call_loads_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    words: list[str], said: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    assert cli.main(["warm-up", "--model", "m", *words]) == 2
    assert said in capsys.readouterr().err
