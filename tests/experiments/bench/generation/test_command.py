"""`resprune bench generate` on a tiny model: its parts, its report, and what does not pay."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from resprune_jax.experiments import cli
from resprune_jax.experiments.bench import generate as bench_generate
from resprune_jax.experiments.bench import model as bench_model
from resprune_jax.experiments.bench import selection as bench_selection
from resprune_jax.experiments.bench import timing as bench_timing
from resprune_jax.models.families.llava.config import LlavaConfig
from tests.compiles import backend_compiles

TINY: dict[str, Any] = deepcopy(bench_model.SMALL)
TINY["vision_config"] |= {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 56, "projection_dim": 32,
}  # fmt: skip
TINY["text_config"] |= {
    "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 160,
}  # fmt: skip
MODEL_CONFIG = bench_model.model_config
WORDS = ("--keep", "6", "--batch", "2", "--new-tokens", "3", "--repeats", "2")


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model, one thread, a machine that is measured on small arrays."""
    import torch

    torch.set_num_threads(1)
    monkeypatch.setattr(bench_timing, "threads", lambda: 1)
    monkeypatch.setattr(bench_selection, "speeds", lambda: bench_timing.speeds(size=1 << 14))
    monkeypatch.setattr(bench_model, "model_config", lambda name: (TINY, "float32"))


def bench(out: Path, *words: str) -> dict[str, Any]:
    assert cli.main(["bench", "generate", *WORDS, *words, "--out", str(out)]) == 0
    report: dict[str, Any] = json.loads((out / "generate.json").read_text())
    return report


@pytest.mark.deep
def test_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        with backend_compiles() as seen:
            times = bench_timing.interleave_parts(*arguments, **options)
        inside.append(len(seen))
        return times

    monkeypatch.setattr(bench_generate, "interleave_parts", counted)
    report = bench(tmp_path)
    assert inside == [0]  # nothing compiles while passes are timed
    assert report["kind"] == "generate" and report["torch"] is None
    assert report["model"]["visual_tokens"] == 16 and report["model"]["parameters"] > 1000
    (row,) = report["rows"].values()
    assert (row["batch"], row["new_tokens"]) == (2, 3) and not row["left_out"]
    sides = {(side["where"], side["keep"]): side for side in row["sides"]}
    assert set(sides) == {
        ("here", None), ("here", 6), ("transformers", None), ("transformers", 6),
    }  # fmt: skip
    for (_, keep), side in sides.items():
        ms = side["ms"]
        assert set(ms) == {"encode", "select", "prefill", "decode", "first_token", "token"}
        assert all(part["runs"] == 2 and part["median"] > 0 for part in ms.values())
        # The choice is inside the time to the first token.
        assert ms["first_token"]["least"] >= ms["select"]["least"] + ms["prefill"]["least"]
        assert ms["token"]["median"] == pytest.approx(ms["decode"]["median"] / 2)
        assert ("speedup" in side) == (keep is not None)
        assert keep is None or (side["speedup"] > 1) != ("why" in side)
    assert sides["here", 6]["memory"]["planned"] > 0
    # One and the same model on both sides: the same weights, the same answers.
    assert row["tokens_equal"] == 1.0
    words = (tmp_path / "generate.md").read_text()
    assert words.count("\n| batch 2") == 4
    with Image.open(tmp_path / "generate.png") as picture:
        assert picture.width > 500
    printed = capsys.readouterr().out
    assert "batch 2, milliseconds" in printed and "100.0% of the tokens equal" in printed


@pytest.mark.deep
def test_without_torch_and_spacy_and_resumed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    absent: Callable[..., None],
) -> None:
    absent("torch", "spacy")
    first = bench(tmp_path)
    assert first["torch"] == "torch is not installed"
    (row,) = first["rows"].values()
    assert [side["where"] for side in row["sides"]] == ["here", "here"]
    monkeypatch.setattr(bench_generate.Bench, "measure", None)
    again = bench(tmp_path, "--resume")
    assert again["rows"] == first["rows"]
    assert "batch 2: kept" in capsys.readouterr().err


def test_transformers_with_weights_of_its_own() -> None:
    from resprune_jax.experiments.bench import hf as bench_hf

    inputs = bench_model.make_inputs(LlavaConfig.from_hf(TINY), 1, 12)
    with bench_hf.loaded(TINY, None, "cpu", same_weights=False) as model:
        assert {str(p.dtype) for p in model.parameters()} == {"torch.bfloat16"}
        made = bench_hf.make_pass(model, inputs, 6, 3, "cpu")
        seconds = made.run()
    assert set(seconds) == {"encode", "select", "prefill", "decode"}
    assert made.tokens().shape == (1, 3)


@pytest.mark.deep
def test_random_weights_are_the_same_every_time() -> None:
    config = LlavaConfig.from_hf(TINY)
    leaves, again = (jax.tree.leaves(bench_model.random_state(config, np.float32)) for _ in "12")
    assert all(np.isfinite(leaf).all() for leaf in leaves)
    assert all(np.array_equal(a, b) for a, b in zip(leaves, again, strict=True))
    assert len({leaf.tobytes() for leaf in map(np.asarray, leaves) if leaf.std() > 0}) > 10


def test_a_row_that_does_not_pay_says_why() -> None:
    def side(keep: int | None, select: float, prefill: float, spread: float = 0.0) -> Any:
        first = 10 + select + prefill
        parts = {"select": select, "prefill": prefill}
        ms = {name: {"median": value} for name, value in parts.items()}
        ms["first_token"] = {"median": first, "low": first - spread, "high": first + spread}
        return {"where": "here", "keep": keep, "ms": ms}

    sides = [side(None, 0, 20), side(64, 1, 10), side(128, 9, 12), side(192, 0.5, 19.6, 2.0)]
    bench_generate.compare(sides)
    assert "speedup" not in sides[0]
    assert sides[1]["speedup"] == pytest.approx(30 / 21) and "why" not in sides[1]
    assert sides[2]["why"] == "choosing takes 9 ms and prefill is 8 ms shorter"
    assert "why" in sides[3] and sides[3]["speedup"] < 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep", "16"], "the model has 16 visual tokens; keep fewer"),
        (["--keep", "0"], "--keep is 0"),
        (["--new-tokens", "1"], "--new-tokens is 1"),
    ],
)
def test_wrong_calls(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "generate", *words, "--out", str(tmp_path)]) == 2
    assert said in capsys.readouterr().err


def test_the_models_of_the_benchmark() -> None:
    for name, hidden, layers, dtype in (
        ("small", 512, 12, "float32"), ("llava-1.5-7b", 4096, 32, "bfloat16"),
    ):  # fmt: skip
        hf, weights = MODEL_CONFIG(name)
        config = LlavaConfig.from_hf(hf)
        assert config.num_visual_tokens == 576 and weights == dtype
        assert (config.text.hidden_size, config.text.num_layers) == (hidden, layers)
