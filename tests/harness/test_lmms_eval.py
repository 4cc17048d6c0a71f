"""`lmms-eval eval --model resprune`: answers, scores, the response cache, a run that was killed."""

import json
import signal
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.words import OWN, version_of
from tests.harness.conftest import (
    SCENES,
    Home,
    configuration,
    finished,
    lines,
    results,
    rows_of,
    samples,
    started,
)

pytestmark = pytest.mark.harness

TASKS = ("resprune_pope", "resprune_vqav2")
REQUESTS = 5 * SCENES


def said(content: bytes) -> list[str]:
    """The answers of a file of samples."""
    return [row["filtered_resps"] for row in rows_of(content)]


def pictures(home: Home, task: str) -> list[Any]:
    """The pictures of a task's rows."""
    from resprune_jax.experiments.benchmark.run.data import open_benchmark

    name = task.removeprefix("resprune_")
    opened = open_benchmark(name, str(home.tasks / f"{name}.parquet"))
    known = {example.key: example.images[0].load() for example in opened.examples}
    return [known[row["key"]] for row in home.rows(task)]


@pytest.mark.parametrize("task", TASKS)
def test_answers_are_those_of_the_model_asked_one_by_one(
    task: str, home: Home, runs: str, model: Any
) -> None:
    want = [
        model.lvlm.generate(picture, row["prompt"], keep=0.25, tagger="lexicon")
        for picture, row in zip(pictures(home, task), home.rows(task), strict=True)
    ]
    got = rows_of(samples(home.folder / "first", task))
    assert [row["filtered_resps"] for row in got] == [made.texts[0] for made in want]
    for row, made in zip(got, want, strict=True):
        (counts,) = row["token_counts"]
        prompt = model.lvlm.encoder.encode(row["input"])
        assert counts["output_tokens"] == len(made.tokens[0])
        assert counts["input_tokens"] == len(prompt.ids) - 1 + 36


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_resprune_benchmark(
    task: str, home: Home, runs: str, model: Any
) -> None:
    from resprune_jax.experiments.benchmark.run.answers import read_answers
    from resprune_jax.experiments.cli import main
    from resprune_jax.experiments.harness.tasks.functions import FIGURES, plain

    name = task.removeprefix("resprune_")
    out = home.folder / f"benchmark-{name}"
    words = ["benchmark", "--name", name, "--data", str(home.tasks / f"{name}.parquet")]
    words += ["--model", "pocket", "--dtype", "float32", "--method", "resprune", "--keep", "0.25"]
    words += ["--tagger", "lexicon", "--max-new-tokens", "128", "--output", str(out)]
    assert main(words) == 0
    (answers,) = read_answers(out).values()
    got = said(samples(home.folder / "first", task))
    assert [answers[row["key"]].answer for row in home.rows(task)] == got
    (scored,) = json.loads((out / "scores.json").read_text())["configurations"]
    ours = results(home.folder / "first")["results"][task]
    for figure in FIGURES[name]:
        value = scored["figures"][figure]
        assert ours[f"{plain(figure)},none"] == pytest.approx(value["value"], abs=1e-9), figure


def test_the_response_cache_gives_old_answers_to_the_same_call_alone(home: Home, runs: str) -> None:
    first, again, more = (home.folder / name for name in ("first", "again", "more"))
    assert f"all {REQUESTS} requests served from cache" in runs
    for task in TASKS:
        assert said(samples(again, task)) == said(samples(first, task))
        # What comes of the cache has no counts: nothing was generated.
        assert all(row["token_counts"] == [None] for row in rows_of(samples(again, task)))
        assert results(first)["results"][task] == results(again)["results"][task]
    pope = "resprune_pope"
    for few, many in zip(rows_of(samples(first, pope)), rows_of(samples(more, pope)), strict=True):
        (few,), (many,) = few["token_counts"], many["token_counts"]
        assert many["input_tokens"] == few["input_tokens"] + 36
    # The audit log holds the answers of both calls under keys of their own.
    keys = [row["cache_key"] for row in lines(home.folder / "cache" / "cache.audit.jsonl")]
    assert len(keys) == len(set(keys)) == REQUESTS + SCENES


def test_a_run_that_was_killed_goes_on_and_gives_the_same_file(home: Home, runs: str) -> None:
    config = configuration(
        home, "killed", more="keep=0.25,resume=finished", use_cache="killed-cache"
    )
    log = home.folder / "killed.log"
    process = started(home, [config], log)
    journal = home.folder / "finished"
    stop = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < stop:
        found = list(journal.glob("*.jsonl")) if journal.exists() else []
        if found and found[0].read_bytes().count(b"\n") > 8:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(timeout=60) == -signal.SIGKILL, log.read_text()
    (path,) = journal.glob("*.jsonl")
    before = path.read_bytes()
    assert 8 < before.count(b"\n") <= REQUESTS, "it was over before it was killed"
    assert not list((home.folder / "killed").rglob("*.jsonl"))

    again = home.folder / "killed-again.log"
    finished(started(home, [config], again), again)
    whole = path.read_bytes()
    assert whole.startswith(before[: before.rindex(b"\n") + 1])
    assert whole.count(b"\n") == 1 + REQUESTS
    for task in TASKS:
        assert samples(home.folder / "killed", task) == samples(home.folder / "first", task)


def test_other_kinds_of_tasks(home: Home, runs: str) -> None:
    answers = said(samples(home.folder / "first", "resprune_pope"))
    right = results(home.folder / "first")["results"]["resprune_pope"]["accuracy,none"]
    choice = results(home.folder / "choice")["results"]["pocket_choice"]
    rounds = results(home.folder / "rounds")["results"]["pocket_rounds"]
    assert set(answers) <= {"yes", "no"}  # so the likelier of the two is what it says
    assert choice["acc,none"] == pytest.approx(right / 100)
    assert rounds["agreed,none"] == pytest.approx(right / 100)


def test_a_wrong_argument_is_one_line_and_ends_that_run_alone(home: Home, runs: str) -> None:
    line = "model_args: 'keap' is no argument of resprune: did you mean keep?"
    assert sum(line in each for each in runs.splitlines()) >= 1
    assert not (home.folder / "wrong").exists()


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"batch_size": "auto"}, "--batch_size auto is no whole number"),
        ({"device": "cuda:0"}, "--device cuda:0 was asked for, and JAX runs on cpu"),
        ({"device": "cpu:1"}, "--device cpu:1 was asked for"),
        ({"method": "trim", "keep": 8}, "clip"),
        ({"version": None}, "version is missing"),
        ({"version": "0.0.1"}, f"{version_of(OWN)} is installed"),
    ],
)
def test_what_cannot_run_is_refused_before_the_first_row(
    given: dict[str, Any], why: str, model: Any
) -> None:
    base = {"pretrained": "pocket", "version": version_of(OWN), "device": "cpu"}
    words = {name: value for name, value in {**base, **given}.items() if value is not None}
    with pytest.raises(CallError) as caught:
        type(model)(**words)
    assert why in str(caught.value)


def test_several_processes_are_refused(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CallError, match="resprune runs as one process"):
        type(model)(pretrained="pocket", version=version_of(OWN))


def request(picture: Any, text: str, row: int, **kwargs: Any) -> Any:
    """A chat request, and what the task's dictionary holds of it."""
    parts = [{"type": "image", "url": picture}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": parts}]
    return SimpleNamespace(args=(text, lambda doc: messages, kwargs, row, "task", "test"))


def test_until_ends_an_answer_and_batches_are_ragged(home: Home, model: Any) -> None:
    task = "resprune_pope"
    images, rows = pictures(home, task), home.rows(task)
    model.task_dict["task"] = {"test": rows}
    asked = [request(images[n], rows[n]["prompt"], n, until=["\n\n"]) for n in range(11)]
    whole = [made.text for made in model.generate_until(asked)]
    asked = [request(images[n], rows[n]["prompt"], n, until=["s", "o"]) for n in range(11)]
    cut = [made.text for made in model.generate_until(asked)]
    assert set(whole) == {"yes", "no"} and set(cut) == {"ye", "n"}
    assert [text[:-1] for text in whole] == cut


def test_likelihoods_are_those_of_the_logits(home: Home, model: Any) -> None:
    import jax

    from resprune_jax.experiments.harness.likelihood import Continued, losses
    from resprune_jax.experiments.harness.requests import Content
    from resprune_jax.models.prompts.options import CallOptions

    images, rows = pictures(home, "resprune_vqav2"), home.rows("resprune_vqav2")
    lvlm = model.lvlm
    picked = range(0, 12, 3)
    asked = [Content((images[n],), rows[n]["prompt"]) for n in picked]
    ends = [" yes", " red", " two circles", " 7"]
    got = losses(lvlm, CallOptions(), [Continued(*pair) for pair in zip(asked, ends, strict=True)])
    prompts = [lvlm.encoder.encode(content.text) for content in asked]
    texts = [prompt.text + end for prompt, end in zip(prompts, ends, strict=True)]
    shown = [content.images[0] for content in asked]
    logits, valid = lvlm.logits(shown, texts, chat_template=False)
    for place, (loss, greedy) in enumerate(got):
        ids = lvlm.encoder.encode(texts[place], chat_template=False).ids
        count = len(ids) - len(prompts[place].ids)
        last = int(np.asarray(valid[place]).sum())
        logs = np.asarray(jax.nn.log_softmax(logits[place, last - count - 1 : last - 1]))
        want = -np.mean([logs[n, token] for n, token in enumerate(ids[-count:])])
        assert loss == pytest.approx(want, abs=1e-4)
        assert greedy == (logs.argmax(axis=-1) == ids[-count:]).all()
    # Pruned, what the model says is what it finds likeliest.
    options = CallOptions(keep=0.25, tagger="lexicon")
    texts = lvlm.generate(shown, [content.text for content in asked], options=options).texts
    own = [Continued(content, f" {text}") for content, text in zip(asked, texts, strict=True)]
    assert all(greedy for _, greedy in losses(lvlm, options, own))
