"""Consoles of other encodings, closed and full outputs."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from resprune_jax.experiments import cli, streams
from resprune_jax.experiments.answer import command as answer
from tests.experiments.fakes import FakeLVLM, picture

TEXTS = ["这是什么?", "naïve café?", "Is there 🙂?", "half \udce9?", "a\u2028b \x1b?"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "cp437", "UTF8", "utf-16"])
@pytest.mark.parametrize("text", TEXTS)
def test_json_is_json_on_every_stream(
    monkeypatch: pytest.MonkeyPatch, encoding: str, text: str
) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with streams.safe():
        streams.print_json({"answer": text})
    stream.flush()
    assert json.loads(stream.buffer.getvalue().decode(encoding)) == {"answer": text}  # type: ignore[attr-defined]
    assert json.loads(streams.json_bytes({"answer": text})) == {"answer": text}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp437"])
def test_an_answer_is_printed_on_every_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    image = picture(tmp_path / "a.png")
    monkeypatch.setattr(answer, "load_asked", lambda _: FakeLVLM())
    for more in ([], ["--json"]):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        words = ["answer", "--model", "m", "--image", str(image), "--prompt", "这🙂?", *more]
        assert cli.main(words) == 0
        stream.flush()
        said = stream.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert "\\u8fd9" in said


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"\xff.png", b"\x80\x81 \xfe.png"])
def test_a_file_name_that_is_not_utf8_is_answered_and_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: bytes
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    path.write_bytes(picture(tmp_path / "a.png").read_bytes())
    monkeypatch.setattr(answer, "load_asked", lambda _: FakeLVLM())
    out = tmp_path / "out.jsonl"
    words = ["answer", "--model", "m", "--image", str(path), "--prompt", "w", "--output", str(out)]
    assert cli.main(words) == 0
    content = out.read_bytes()
    (line,) = content.decode().splitlines()
    assert json.loads(line)["image"] == str(path)
    monkeypatch.setattr(answer, "load_asked", None)  # it is answered already
    assert cli.main(words) == 0 and out.read_bytes() == content


def ask(words: list[str], shell: str) -> subprocess.CompletedProcess[str]:
    call = " ".join([sys.executable, "-m", "resprune_jax.experiments", *words])
    return subprocess.run(["sh", "-c", f"{call} {shell}"], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("shell", "said"),
    [(">&-", "standard output is closed"), (">/dev/full", "No space left on device")],
)
def test_an_output_that_takes_nothing(shell: str, said: str) -> None:
    done = ask(["--version"], shell)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 1 and said in line and line.startswith("resprune: ")
