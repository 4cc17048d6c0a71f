"""The real lmms-eval on the pocket model: few processes, each of which takes its 15 seconds."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from resprune_jax.experiments.words import OWN, version_of
from tests.harness.scenes import write_benchmarks

SCENES = 12
ARGUMENTS = f"pretrained=pocket,version={version_of(OWN)},dtype=float32,tagger=lexicon"
QUIET = {
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled", "JAX_PLATFORMS": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Home:
    """Where a session's runs are.

    Attributes:
        folder: of everything.
        tasks: of the task files, written by `resprune lmms-eval-tasks`.
        environment: of every process.
    """

    folder: Path
    tasks: Path
    environment: dict[str, str]

    def rows(self, task: str) -> list[dict[str, Any]]:
        """The rows of a task, as its file has them."""
        return lines(self.tasks / f"{task}.jsonl")


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """Data and task files."""
    folder = tmp_path_factory.mktemp("harness")
    tasks = folder / "tasks"
    shutil.copytree(Path(__file__).parent / "tasks", tasks)
    environment = {**os.environ, **QUIET, "HF_HOME": str(folder / "hf")}
    # The programs of all runs are compiled once.
    environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "jax")
    for name, path in zip(("pope", "vqav2"), write_benchmarks(tasks, SCENES), strict=True):
        resprune = [sys.executable, "-m", "resprune_jax.experiments"]
        told = ["--name", name, "--data", str(path), "--out", str(tasks)]
        subprocess.run([*resprune, "lmms-eval-tasks", *told], check=True, env=environment)
    return Home(folder, tasks, environment)


def started(home: Home, configs: list[dict[str, Any]], log: Path) -> subprocess.Popen[bytes]:
    """Start `lmms-eval eval` with several configurations, one after the other in one process."""
    path = log.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(configs))
    command = [Path(sys.executable).with_name("lmms-eval"), "eval", "--config", path]
    command += ["--include_path", home.tasks, "--log_samples"]
    with log.open("wb") as file:
        return subprocess.Popen(
            list(map(str, command)), env=home.environment, stdout=file, stderr=subprocess.STDOUT,
            cwd=home.folder,
        )  # fmt: skip


def finished(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait for it; returns what it printed."""
    status = process.wait(timeout=900)
    said = log.read_text(encoding="utf-8")
    assert status == 0, said
    return said


def samples(folder: Path, task: str) -> bytes:
    """The file of a task's samples of the one run in a folder."""
    (path,) = folder.rglob(f"*_samples_{task}.jsonl")
    return path.read_bytes()


def results(folder: Path) -> dict[str, Any]:
    """The results of the one run in a folder."""
    (path,) = folder.rglob("*_results.json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def rows_of(content: bytes) -> list[dict[str, Any]]:
    """Samples by the number of their row."""
    return sorted(map(json.loads, content.splitlines()), key=lambda row: int(row["doc_id"]))


def configuration(home: Home, name: str, **given: Any) -> dict[str, Any]:
    """A run of both benchmarks; `given` changes it, "more" is added to its arguments."""
    more = given.pop("more", "keep=0.25")
    return {
        "model": "resprune",
        "model_args": f"{ARGUMENTS},{more}",
        "tasks": "resprune_pope,resprune_vqav2",
        "batch_size": "8",
        "output_path": str(home.folder / name),
        **given,
    }


@pytest.fixture(scope="session")
def runs(home: Home) -> str:
    """Every run that needs no process of its own; returns what they printed.

    "first" asks, "again" asks the same with the same response cache, "more" keeps more tokens
    (of POPE alone); "choice" and "rounds" are of lmms-eval's other kinds; "wrong" has an argument
    that there is not.
    """
    cache = {"use_cache": str(home.folder / "cache")}
    configs = [
        configuration(home, "first", **cache),
        configuration(home, "again", **cache),
        configuration(home, "more", more="keep=0.5", tasks="resprune_pope", **cache),
        configuration(home, "choice", tasks="pocket_choice", force_simple=True),
        configuration(home, "rounds", tasks="pocket_rounds"),
        configuration(home, "wrong", more="keap=0.5"),
    ]
    log = home.folder / "runs.log"
    return finished(started(home, configs, log), log)


@pytest.fixture(scope="session")
def model(home: Home) -> Iterator[Any]:
    """The plug-in's class inside of this process, as lmms-eval makes it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in home.environment.items():
            patch.setenv(name, value)
        from lmms_eval.models import get_model

        made: Callable[..., Any] = get_model("resprune").create_from_arg_string
        yield made(f"{ARGUMENTS},keep=0.25", {"batch_size": "8", "device": None})
