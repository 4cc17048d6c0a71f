"""`generation_config.json`: what is applied, what waits for sampling, what is refused by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from resprune_jax import errors
from resprune_jax.errors import CallError, RunError
from resprune_jax.models.prompts.generation_file import (
    GenerationSettings,
    read_generation_settings,
)
from resprune_jax.models.prompts.options import CallOptions

VOCABULARY = 50


def read(folder: Path, content: Any, model: dict[str, Any] | None = None) -> GenerationSettings:
    (folder / "generation_config.json").write_text(json.dumps(content))
    return read_generation_settings(folder, VOCABULARY, model)


APPLIED: dict[str, Any] = {
    "repetition_penalty": 1.05,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[1], [2, 3]],
    "suppress_tokens": [4, -1, 999, 10**30],
    "begin_suppress_tokens": [5],
    "min_length": 6,
    "min_new_tokens": 7,
    "max_length": 800,
    "max_new_tokens": 90,
}


def test_what_is_applied(tmp_path: Path) -> None:
    made = read(tmp_path, {**APPLIED, "eos_token_id": [1, 2], "do_sample": True, "top_k": 1})
    assert json.loads(json.dumps(made.applied)) == APPLIED
    assert made.sampling == {"do_sample": True, "top_k": 1}
    for name, value in APPLIED.items():  # one at a time too, and none of it by null
        assert list(read(tmp_path, {name: value}).applied) == [name]
        assert read(tmp_path, {name: None}).applied == {}


REFUSED = [
    ("num_beams", 4, [1, None]),
    ("num_beam_groups", 2, [1, None]),
    ("num_return_sequences", 3, [1, None]),
    ("diversity_penalty", 0.5, [0.0, 0, None]),
    ("penalty_alpha", 0.6, [0.0, None]),
    ("guidance_scale", 1.5, [1.0, 1, None]),
    ("encoder_repetition_penalty", 1.2, [1.0, None]),
    ("encoder_no_repeat_ngram_size", 2, [0, None]),
    ("exponential_decay_length_penalty", [5, 1.1], [None]),
    ("sequence_bias", [[[3], 1.0]], [None, [], {}]),
    ("forced_bos_token_id", 1, [None]),
    ("forced_eos_token_id", 0, [None]),
    ("forced_decoder_ids", [[1, 5]], [None, []]),
    ("force_words_ids", [[4]], [None, []]),
    ("constraints", ["x"], [None, []]),
    ("dola_layers", "high", [None]),
    ("prompt_lookup_num_tokens", 3, [None]),
    ("assistant_early_exit", 2, [None]),
    ("use_mtp", True, [False, None]),
    ("token_healing", True, [False, None]),
    ("watermarking_config", {"bias": 2.0}, [None]),
    ("stop_strings", ["."], [None, []]),
    ("max_time", 1.0, [None]),
    ("custom_generate", "me/mine", [None]),
    ("cache_implementation", "quantized", [None, "static", "hybrid"]),
]


@pytest.mark.parametrize(("name", "value", "neutral"), REFUSED)
def test_what_changes_answers_is_refused_by_name(
    tmp_path: Path, name: str, value: Any, neutral: list[Any]
) -> None:
    with pytest.raises(CallError, match=f"generation_config.json asks for {name}=") as refused:
        read(tmp_path, {"repetition_penalty": 1.1, name: value})
    assert "\n" not in str(refused.value)
    for each in neutral:
        assert read(tmp_path, {name: each}).applied == {}


def test_several_are_named_together_and_cut_short(tmp_path: Path) -> None:
    with pytest.raises(CallError) as refused:
        read(tmp_path, {"num_beams": True, "stop_strings": ["x" * 9000]})
    assert "num_beams=True, stop_strings=" in str(refused.value)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("repetition_penalty", bad) for bad in (0, -1.0, "1.1", True, float("nan"), 10**30)),
        *(("no_repeat_ngram_size", bad) for bad in (-1, 2.0, "2", True, 2**31)),
        *(("bad_words_ids", bad) for bad in (5, [5], [[]], [["a"]], [[50]], [[-1]], [[True]])),
        ("bad_words_ids", [[1]] * 1025 + [[2] * 1024]),
        *(("suppress_tokens", bad) for bad in (3, ["3"], [True], [1.0])),
        *(("begin_suppress_tokens", bad) for bad in ({}, [None])),
        *((name, bad) for name in ("min_length", "min_new_tokens") for bad in (-1, 1.5, [3])),
        *((name, bad) for name in ("max_length", "max_new_tokens") for bad in (0, "9", 1e3)),
    ],
)
def test_values_that_cannot_be_are_refused(tmp_path: Path, name: str, value: Any) -> None:
    with pytest.raises(RunError, match=f"{name} of {tmp_path.name}/generation_config.json") as no:
        read(tmp_path, {name: value})
    assert "expected" in str(no.value) or "too many" in str(no.value)
    assert len(str(no.value)) < 300 and "\n" not in str(no.value)


def test_without_the_file_the_configuration_counts(tmp_path: Path) -> None:
    model = {
        "repetition_penalty": 1.2,
        "max_length": 20,
        "hidden_size": 8,
        "text_config": {"repetition_penalty": 9.0, "no_repeat_ngram_size": 4, "num_beams": 1},
    }
    made = read_generation_settings(tmp_path, VOCABULARY, model)
    assert made.applied == {"repetition_penalty": 1.2, "no_repeat_ngram_size": 4}
    assert "config.json" in made.source
    with pytest.raises(CallError, match="asks for num_beams=3"):
        read_generation_settings(tmp_path, VOCABULARY, {"text_config": {"num_beams": 3}})
    assert read(tmp_path, {}, model).applied == {}  # the file is there


def test_the_call_wins_over_the_file(tmp_path: Path) -> None:
    said = read(tmp_path, APPLIED)
    made = said.resolve(CallOptions())
    assert (made.max_new_tokens, made.repetition_penalty, made.no_repeat_ngram_size) == (
        90,
        1.05,
        3,
    )
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.0, 1.0, None, None)
    assert said.resolve(made) == made
    own = CallOptions(max_new_tokens=5, repetition_penalty=1.0, no_repeat_ngram_size=0)
    made = said.resolve(own)
    assert (made.max_new_tokens, made.repetition_penalty, made.no_repeat_ngram_size) == (5, 1.0, 0)
    assert GenerationSettings().resolve(CallOptions()).max_new_tokens == 128
    # max_length bounds prompt and answer only where nothing says how long an answer is.
    assert said.ceiling(CallOptions()) is None
    only = read(tmp_path, {"max_length": 800})
    assert only.ceiling(CallOptions()) == 800 and only.ceiling(own) is None


def test_drawing_is_said_once_and_used_with_sample(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_SAID", set())
    said = read(tmp_path, {"do_sample": True, "temperature": 0.3, "top_k": 7, "min_p": 0.1})
    with caplog.at_level(logging.WARNING, "resprune_jax"):
        assert said.resolve(CallOptions()).temperature == 0
        said.resolve(CallOptions())
    (line,) = caplog.messages
    assert "do_sample=True, temperature=0.3, top_k=7, min_p=0.1" in line and "--sample" in line
    made = said.resolve(CallOptions(sample=True, top_k=2))
    assert (made.temperature, made.top_p, made.top_k, made.min_p) == (0.3, 1.0, 2, 0.1)
    assert said.resolve(made) == made
    warm = said.resolve(CallOptions(temperature=0.9))  # drawn by the call's own words alone
    assert (warm.temperature, warm.top_p, warm.top_k, warm.min_p) == (0.9, 1.0, None, None)


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ({"temperature": 0.0}, {}, "temperature=0.0"),
        ({"temperature": "hot"}, {}, "temperature='hot'"),
        ({"top_p": 1.5}, {}, "top_p=1.5"),
        ({"top_k": -1}, {"temperature": 1.0}, "top_k=-1"),
        ({"min_p": 2}, {}, "min_p=2"),
        ({"typical_p": 0.9}, {}, "typical_p=0.9"),
        ({"epsilon_cutoff": 0.01}, {}, "epsilon_cutoff"),
        ({"eta_cutoff": 0.01}, {}, "eta_cutoff"),
        ({"top_h": 0.4}, {}, "top_h"),
    ],
)
def test_drawing_that_cannot_be_done_is_refused_when_asked_for(
    tmp_path: Path, content: dict[str, Any], options: dict[str, Any], says: str
) -> None:
    said = read(tmp_path, content)
    said.resolve(CallOptions())  # greedy answers do not need it
    with pytest.raises(CallError, match=says):
        said.resolve(CallOptions(sample=True, **options))
    (name,) = content
    if name in ("temperature", "top_p", "min_p"):
        said.resolve(CallOptions(sample=True, **{name: 0.5}))


def test_settings_that_nobody_knows_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_SAID", set())
    with caplog.at_level(logging.WARNING, "resprune_jax"):
        read(tmp_path, {"shiny_new_penalty": 3, "use_cache": True, "pad_token_id": 0})
        read(tmp_path, {"shiny_new_penalty": 3})
    (line,) = caplog.messages
    assert "shiny_new_penalty" in line and "use_cache" not in line
