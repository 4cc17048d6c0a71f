"""Ctrl-C and SIGTERM end a command, wherever in the program they come."""

import contextlib
import gc
import json
import signal
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.experiments import cli, common, start, stopping
from resprune_jax.experiments.answer import command as answer
from tests.experiments.fakes import FakeLVLM, picture


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Shells start what runs in the background with Ctrl-C ignored; here it counts as pressed."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}


class _Dies:
    """Something whose end is told to a callback."""


def plainly(send: Callable[[], None]) -> None:
    send()


def in_a_callback_of_the_collector(send: Callable[[], None]) -> None:
    """Python prints what is raised here, and goes on."""

    def callback(phase: str, _: Any) -> None:
        gc.callbacks.remove(callback)
        send()

    gc.callbacks.append(callback)
    gc.collect()


def in_a_finalizer(send: Callable[[], None]) -> None:
    mortal = _Dies()
    weakref.finalize(mortal, send)
    del mortal


def in_a_callback_of_a_reference(send: Callable[[], None]) -> None:
    mortal = _Dies()
    keep = weakref.ref(mortal, lambda _: send())
    del mortal, keep


def where_it_is_swallowed(send: Callable[[], None]) -> None:
    with contextlib.suppress(BaseException):
        send()


def where_it_becomes_another_error(send: Callable[[], None]) -> None:
    try:
        send()
    except KeyboardInterrupt as interrupt:
        raise RuntimeError("INTERNAL: a callback failed: KeyboardInterrupt") from interrupt


PLACES = [
    plainly, in_a_callback_of_the_collector, in_a_finalizer, in_a_callback_of_a_reference,
    where_it_is_swallowed, where_it_becomes_another_error,
]  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", PLACES)
def test_a_run_ends_within_one_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    place: Callable[[Callable[[], None]], None], number: signal.Signals,
) -> None:  # fmt: skip
    picture(tmp_path / "a.png")
    rows = [{"image": "a.png", "prompt": f"question {i}?"} for i in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    class Stopped(FakeLVLM):
        def generate(self, *given: Any, **more: Any) -> Any:
            if len(self.batches) == 2:
                place(lambda: signal.raise_signal(number))
            return super().generate(*given, **more)

    monkeypatch.setattr(answer, "load_asked", lambda _: Stopped())
    out = tmp_path / "out.jsonl"
    words = ["answer", "--model", "m", "--rows", str(tmp_path / "rows.jsonl")]
    words += ["--output", str(out), "--batch-size", "2"]
    handlers = [signal.getsignal(each) for each in STATUS]
    assert cli.main(words) == STATUS[number]
    assert [signal.getsignal(each) for each in STATUS] == handlers
    assert capfd.readouterr().err == "resprune: stopped\n"
    assert [json.loads(line)["row"] for line in out.read_text().splitlines()] == [0, 1, 2, 3]
    monkeypatch.setattr(answer, "load_asked", lambda _: FakeLVLM())
    assert cli.main(words) == 0
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [result["row"] for result in found] == list(range(9))
    assert all("answer" in result for result in found)


def test_a_section_is_not_torn() -> None:
    done = []
    with stopping.listening():
        with pytest.raises(KeyboardInterrupt), stopping.whole():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")
        assert done == ["the rest"] and stopping.asked()
        assert stopping.status() == 130
        stopping.check()  # the command is over: nothing is left to interrupt
    assert not stopping.asked()


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping.listening():
            signal.raise_signal(signal.SIGINT)
            assert not stopping.asked()
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_changes_nothing() -> None:
    before = signal.getsignal(signal.SIGINT)

    def listen() -> None:
        with stopping.listening():
            assert signal.getsignal(signal.SIGINT) is before

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()


@pytest.mark.parametrize("raised", [KeyboardInterrupt, ImportError])
def test_a_signal_while_the_command_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: type
) -> None:
    def interrupted() -> int:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        raise raised

    before = [signal.getsignal(each) for each in STATUS]
    monkeypatch.setattr(cli, "main", interrupted)
    try:
        assert start.main() == 143
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # until the process has ended
    finally:
        for each, handler in zip(STATUS, before, strict=True):
            signal.signal(each, handler)
    assert capsys.readouterr().err == "resprune: stopped\n"


def test_a_signal_during_the_imports_of_a_model_is_heard_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Raised inside an extension module that starts up, it ended Python with a crash."""
    seen: list[str] = []

    def slow(name: str) -> None:
        signal.raise_signal(signal.SIGTERM)
        seen.append(name)

    monkeypatch.setattr(common.importlib, "import_module", slow)
    with stopping.listening(), pytest.raises(KeyboardInterrupt):
        common.use_compilation_cache()
    assert seen == ["resprune_jax.models.load"]
