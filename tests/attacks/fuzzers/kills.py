"""Runs of many rows, killed or stopped at random moments and resumed: every row is there, once.

SIGKILL leaves whatever it leaves; SIGINT and SIGTERM end a run in good order. Signals are sent once
the command listens, before it imports anything slow. One run in five, and every one of a real
model, is a fresh interpreter; the others are forks that have the imports behind them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.attacks.harness import HANG, WRONG, Fault, Fuzzer, draw
from tests.attacks.inputs.forks import ROOT, Fork, hold

NAME = "kills"
ROWS, BATCH = 24, 3
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PATIENCE_S = 60.0

# A command whose model answers after a moment; a fault may be planted in it first. With
# "callbacks", the collector calls back all the time, as JAX makes it: what is raised there is lost.
CHILD = """
import gc, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
from resprune_jax.experiments import start, stopping
from resprune_jax.models.prompts.generation_file import GenerationSettings

class Model:
    settings = GenerationSettings()

    def generate(self, images, prompts, **more):
        end = time.monotonic() + 0.03
        while time.monotonic() < end:
            [[] for _ in range(100)]
        size = len(prompts)
        return SimpleNamespace(
            texts=[f"answer to {p}" for p in prompts], tokens=[[1]] * size, selections=None,
            kept=[4] * size, visual_tokens=[16] * size, nouns=[[]] * size, noun_backend="none",
            errors=[None] * size, prompts=list(prompts), timings={}, drops=[()] * size,
            costs=[None] * size,
        )

def linger(phase, info):
    end = time.monotonic() + 2e-4
    while time.monotonic() < end:
        pass

def main():
    # As a terminal has it: a shell's background jobs ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    exec(sys.argv.pop(1), globals())
    with stopping.listening(for_good=True):
        Path(sys.argv.pop(1)).touch()
        if sys.argv.pop(1) == "callbacks":
            gc.callbacks.append(linger)
            gc.set_threshold(40, 2, 2)
        if sys.argv.pop(1) == "stand-in":
            # What the command imports when it loads a model: nothing of it may be slow here.
            load = SimpleNamespace(load_model=lambda *_, **__: Model())
            config = SimpleNamespace(update=lambda *_: None)
            sys.modules["resprune_jax.models.load"] = load
            sys.modules["jax"] = SimpleNamespace(config=config)
        return start.main()

sys.exit(main())
"""


def _command(folder: Path, rng: np.random.Generator, model: str, fault: str) -> list[str]:
    callbacks = "callbacks" if rng.random() < 0.4 else "plain"
    words = ["answer", "--model", model, "--rows", str(folder / "rows.jsonl"), "--keep", "4"]
    words += ["--output", str(folder / "out.jsonl"), "--batch-size", str(BATCH)]
    if model == "pocket":
        words += ["--max-new-tokens", "2"]
    else:
        words.append("--quiet")  # the stand-in for JAX has nothing to say of what it compiles
    return [fault, str(folder / "ready"), callbacks, model, *words]


def _lines(folder: Path) -> list[bytes]:
    """The whole lines of the results so far."""
    path = folder / "out.jsonl"
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


Child = subprocess.Popen[bytes] | Fork


def _end(child: Child) -> str:
    """Wait for the end; a run hangs once it has worked, or done nothing, for too long."""
    since, begin = _worked(child), time.monotonic()
    while True:
        try:
            return child.communicate(timeout=2.0)[1].decode()
        except subprocess.TimeoutExpired:
            worked, waited = _worked(child) - since, time.monotonic() - begin
        # A busy machine gives a run little of the time that goes by.
        if worked > PATIENCE_S or waited > 10 * PATIENCE_S:
            child.kill()
            child.communicate()
            raise Fault(HANG, f"the run goes on: {worked:.0f} s of CPU in {waited:.0f} s")


def _worked(child: Child) -> float:
    """CPU seconds of a process, all its threads; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _start(words: list[str], folder: Path, *, fresh: bool) -> Child:
    (folder / "ready").unlink(missing_ok=True)
    if not fresh:
        return Fork(CHILD, words, folder / "errors")
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip


def _wait(child: Child, folder: Path, rng: np.random.Generator) -> None:
    """Until a random moment: while it imports, at any time, or behind a number of answers."""
    limit = time.monotonic() + PATIENCE_S

    def until(come: object) -> None:
        while not come() and child.poll() is None and time.monotonic() < limit:  # type: ignore[operator]
            time.sleep(0.002)

    until((folder / "ready").exists)
    if rng.random() < 0.5:
        wanted = len(_lines(folder)) + int(rng.integers(1, ROWS))
        until(lambda: len(_lines(folder)) >= wanted)
        time.sleep(rng.uniform(0, 0.03))
    else:
        time.sleep(rng.uniform(0, 0.4 if isinstance(child, Fork) else 1.2))


_PROGRESS = re.compile(r"note: |resprune: \d+ of \d+ rows in ")


def stop_once(
    words: list[str], folder: Path, rng: np.random.Generator, number: signal.Signals
) -> None:
    """Start a run, send it a signal at a random moment, and see how it ends."""
    before = _lines(folder)
    child = _start(words, folder, fresh="pocket" in words or rng.random() < 0.2)
    _wait(child, folder, rng)
    # Held, so that nothing is answered between the count and the signal.
    hold(child)
    seen = len(_lines(folder))
    child.send_signal(number)
    child.send_signal(signal.SIGCONT)
    said = _end(child)
    after = _lines(folder)
    if after[: len(before)] != before:
        raise Fault(WRONG, f"{number.name}: answers that were there have changed")
    if number is signal.SIGKILL:
        return
    status = child.returncode
    if status not in (0, 128 + number):
        raise Fault(WRONG, f"{number.name}: status {status}: {said[-600:]}")
    lines = [line for line in said.splitlines() if not _PROGRESS.match(line)]
    if status and lines != ["resprune: stopped"]:
        raise Fault(WRONG, f"{number.name}: {said[-600:]!r}")
    # A batch may end while the signal is on its way, and the next one with what was swallowed: also
    # a run that comes to its end may have no more to do than that.
    if len(after) - seen > 2 * BATCH:
        raise Fault(WRONG, f"{number.name}: {len(after) - seen} rows were answered after it")


def finish(words: list[str], folder: Path) -> None:
    """Let the run go on to its end, and count its rows."""
    child = _start(words, folder, fresh="pocket" in words)
    said = _end(child)
    if child.returncode:
        raise Fault(WRONG, f"the resumed run ends with {child.returncode}: {said[-600:]}")
    try:
        results = [json.loads(line) for line in _lines(folder)]
    except ValueError as error:
        raise Fault(WRONG, f"a line of the results is torn: {error}") from None
    if sorted(result["row"] for result in results) != list(range(ROWS)):
        raise Fault(WRONG, f"rows {[result['row'] for result in results]}")
    for result in results:
        asked = f"question {result['row']}?"
        stand_in = words[3] == "stand-in"
        if result["prompt"] != asked or (stand_in and result["answer"] != f"answer to {asked}"):
            raise Fault(WRONG, f"row {result['row']} is {result}")
    if strays := [path.name for path in folder.iterdir() if path.name.startswith(".")]:
        raise Fault(WRONG, f"files are left: {strays}")


def attack(seed: int, model: str, fault: str = "") -> None:
    """One file of rows, up to three signals, and the run that ends it.

    Args:
        seed: of the case.
        model: "stand-in" or "pocket".
        fault: Python that every run starts with; see `planted/`.
    """
    from PIL import Image

    rng = draw(f"{NAME} {model}", seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", (20, 16), "red").save(folder / "a.png")
        rows = [{"image": "a.png", "prompt": f"question {i}?"} for i in range(ROWS)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "rows.jsonl").write_text(text)
        for turn in range(rng.integers(1, 3)):
            number = SIGNALS[(seed + turn) % len(SIGNALS)]
            stop_once(_command(folder, rng, model, fault), folder, rng, number)
        finish(_command(folder, rng, model, fault), folder)


FUZZERS = [
    Fuzzer(NAME, lambda seed: attack(seed, "stand-in"), cases=300, quick=3, wait_s=300.0),
    Fuzzer(
        "kills of a model", lambda seed: attack(seed, "pocket"), cases=12, quick=0, wait_s=600.0
    ),
]
