"""lmms-eval's `async_openai` asks `resprune serve`, and gets what the plug-in answers."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.conftest import Home, finished, rows_of, samples, started

pytestmark = pytest.mark.harness


@pytest.fixture(scope="module")
def address(home: Home, runs: str) -> Iterator[str]:
    """Where the pocket model is served with the plug-in's options."""
    log = home.folder / "serve.log"
    command = [sys.executable, "-m", "resprune_jax.experiments", "serve", "--model", "pocket"]
    command += ["--port", "0", "--keep", "0.25", "--dtype", "float32", "--tagger", "lexicon"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=home.environment, stdout=file, stderr=file)
    stop = time.monotonic() + 120
    try:
        yield _said(log, process, stop)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()


def _said(log: Path, process: subprocess.Popen[bytes], stop: float) -> str:
    while time.monotonic() < stop and process.poll() is None:
        if found := re.search(r" at (http://\S+/v1)", log.read_text(encoding="utf-8")):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(log.read_text(encoding="utf-8"))


def test_async_openai_gets_the_answers_of_the_plug_in(home: Home, runs: str, address: str) -> None:
    config = {
        "model": "async_openai",
        "model_args": f"model=pocket,base_url={address},api_key=none,num_cpus=8",
        "tasks": "resprune_pope,resprune_vqav2",
        "output_path": str(home.folder / "served"),
    }
    log = home.folder / "served.log"
    finished(started(home, [config], log), log)
    for task in ("resprune_pope", "resprune_vqav2"):
        own = rows_of(samples(home.folder / "first", task))
        served = rows_of(samples(home.folder / "served", task))
        assert [row["filtered_resps"] for row in served] == [row["filtered_resps"] for row in own]
        # The server counts as the plug-in does: what was kept is in the prompt's tokens.
        assert [row["token_counts"][0]["input_tokens"] for row in served] == [
            row["token_counts"][0]["input_tokens"] for row in own
        ]
