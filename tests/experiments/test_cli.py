"""The command line: exit statuses, one clear line for a wrong call, no traceback unless asked."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import cli, common
from resprune_jax.experiments import words as typed
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.common import Command, parse_keep
from tests.experiments.fakes import FakeLVLM, picture


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with an image, rows, and a model that must not be loaded."""
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / "rows.jsonl").write_text('{"image": "a.png", "prompt": "what?"}\n')
    (tmp_path / "keeps.jsonl").write_text('{"image": "a.png", "prompt": "what?", "keep": 3}\n')
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "linked.png").symlink_to("a.png")

    def refuse(_: Any) -> Any:
        raise AssertionError("a wrong call reached the model")

    monkeypatch.setattr(answer, "load_asked", refuse)
    return tmp_path


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


ASK = ["answer", "--model", "m", "--image", "a.png", "--prompt", "what?"]
ROWS = ["answer", "--model", "m", "--rows", "rows.jsonl"]

# What the call itself shows to be wrong: (words, what the line must say).
WRONG: list[tuple[list[str], list[str]]] = [
    ([], ["answer", "info", "demo", "pocket"]),
    (["anser"], ["anser", "--help"]),
    (["answr"], ["'answr'", "did you mean 'answer'"]),
    (["infos"], ["did you mean 'info'"]),
    (["pocket", "evl"], ["did you mean 'pocket eval'"]),
    (["bench", "x" * 10_000], ["bench --help"]),
    (["answer", "--modle", "m"], ["did you mean --model?"]),
    (["answer", "--batchsize=3"], ["did you mean --batch-size?"]),
    ([*ASK, "--positions", "x"], ["'--positions'", "reindex", "original"]),
    ([*ASK, "--prompt", "again?"], ["--prompt", "twice", "--rows"]),
    ([*ASK, "--keep", "3", "--keep", "4"], ["--keep", "twice", "one value"]),
    ([*ASK, "--batch_size", "3", "--batch-size", "4"], ["--batch-size", "twice"]),
    ([*ASK[:4], "https://example.org/a.jpg", *ASK[5:]], ["https:// links are not fetched"]),
    ([*ASK[:4], "s3://bucket/a.jpg", *ASK[5:]], ["links are not fetched"]),
    ([*ASK[:4], "zero\0byte", *ASK[5:]], ["null byte"]),
    ([*ASK[:4], "loop", *ASK[5:]], ["Too many levels"]),
    ([*ASK[:4], "y" * 5000, *ASK[5:]], ["name too long"]),
    ([*ASK[:4], "half \ud83d", *ASK[5:]], ["no path"]),
    ([*ASK[:4], "red \x1b[31m\n", *ASK[5:]], [r"red \x1b[31m", "does not exist"]),
    ([*ASK, "--output", "loop"], ["loop", "Too many levels"]),
    ([*ASK, "--output", "a.png"], ["a.png", "the input"]),
    ([*ASK, "--overlay", "a.png"], ["a.png", "the input"]),
    ([*ASK, "--overlay", "linked.png"], ["the input"]),
    ([*ROWS, "--output", "rows.jsonl"], ["the input"]),
    ([*ASK, "--max-new-tokens", "\x1b[31m"], ["--max-new-tokens", r"\x1b", "whole number"]),
    (["answer"], ["--model", "answer --help"]),
    (["answer", "--model", "m"], ["no image", "--image", "--rows"]),
    (["answer", "--model", "m", "--image", "a.png"], ["no question", "--prompt"]),
    ([*ASK, "--kep", "3"], ["--kep", "--help"]),
    ([*ASK, "--method", "magic"], ["magic", "resprune"]),
    ([*ASK, "--seed-rule", "magic"], ["magic", "cls_attention"]),
    ([*ASK, "--max-new-tokens", "2.5"], ["--max-new-tokens", "2.5"]),
    ([*ASK, "--alpha", "much"], ["--alpha", "much", "number"]),
    ([*ASK, "--image", "b.png"], ["--image", "twice"]),
    ([*ASK, "--keep", "0"], ["--keep 0", "128", "0.222", "full"]),
    ([*ASK, "--keep", "-5"], ["--keep -5", "128", "0.222", "full"]),
    ([*ASK, "--keep", "-0.5"], ["--keep -0.5", "0.222"]),
    ([*ASK, "--keep", "nan"], ["--keep nan", "0.222"]),
    ([*ASK, "--keep", "inf"], ["--keep inf", "0.222"]),
    ([*ASK, "--keep", "1.5"], ["--keep 1.5", "0.222"]),
    ([*ASK, "--keep", "1.0"], ["--keep 1.0", "one token or all"]),
    ([*ASK, "--keep", "many"], ["--keep 'many'", "0.222"]),
    ([*ASK, "--keep", "9" * 30], ["--keep", "count"]),
    ([*ASK, "--alpha", "-1"], ["--alpha", "-1", "at least 0"]),
    ([*ASK, "--alpha", "nan"], ["--alpha", "nan"]),
    ([*ASK, "--alpha", "inf"], ["--alpha", "inf"]),
    ([*ASK, "--tolerance", "0"], ["--tolerance", "1e-05"]),
    ([*ASK, "--tolerance", "1"], ["--tolerance", "below 1"]),
    ([*ASK, "--temperature", "-0.1"], ["--temperature", "at least 0"]),
    ([*ASK, "--temperature", "nan"], ["--temperature", "nan"]),
    ([*ASK, "--sample", "--temperature", "0"], ["--sample", "--temperature 0", "drop one"]),
    ([*ASK, "--top-k", "-1"], ["--top-k", "at least 0"]),
    ([*ASK, "--repetition-penalty", "0"], ["--repetition-penalty", "at least 1e-06"]),
    ([*ASK, "--top-p", "0"], ["--top-p", "above 0"]),
    ([*ASK, "--top-p", "1.1"], ["--top-p", "at most 1"]),
    ([*ASK, "--max-new-tokens", "0"], ["--max-new-tokens", "at least 1"]),
    ([*ASK, "--rng-seed", "-1"], ["--rng-seed", "at least 0"]),
    ([*ASK, "--rng-seed", str(2**32)], ["--rng-seed", "at most"]),
    ([*ASK, "--batch-size", "0"], ["--batch-size", "at least 1"]),
    ([*ASK, "--method", "none", "--keep", "3"], ["--keep", "--method none"]),
    ([*ASK, "--method", "none", "--alpha", "0"], ["--alpha", "--method none"]),
    ([*ASK, "--rows", "rows.jsonl"], ["--image", "--rows", "one of them"]),
    ([*ASK, "--overlay", "out.xyz"], ["out.xyz", ".png"]),
    ([*ASK, "--overlay", "no/out.png"], ["no/out.png", "does not exist"]),
    ([*ASK, "--overlay", "o.png", "--output", "o.jsonl"], ["--overlay", "--output"]),
    ([*ASK, "--output", "no/out.jsonl"], ["no/out.jsonl", "does not exist"]),
    ([*ASK, "--output", "folder"], ["folder", "not a regular file"]),
    ([*ASK, "--output", "rows.jsonl"], ["rows.jsonl", "not a result row"]),
    ([*ASK[:-1], ""], ["--prompt", "empty"]),
    ([*ASK[:-1], " \n\t "], ["--prompt", "empty"]),
    (["answer", "--model", "m", "--image", "c.png", "--prompt", "w"], ["c.png", "does not exist"]),
    (["answer", "--model", "m", "--image", "folder", "--prompt", "w"], ["folder", "not a file"]),
    (["answer", "--model", "m", "--image", "a.png", "x", "--prompt", "w"], ["x", "not exist"]),
    ([*ROWS[:-1], "none.jsonl"], ["none.jsonl", "does not exist"]),
    ([*ROWS[:-1], "empty.jsonl"], ["empty.jsonl", "no row"]),
    ([*ROWS[:-1], "latin.jsonl"], ["latin.jsonl", "UTF-8"]),
    ([*ROWS[:-1], "keeps.jsonl", "--method", "none"], ["row 0", "--method none"]),
    ([*ROWS, "--overlay", "o.png"], ["--overlay", "one --image"]),
]


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_wrong_call_gives_one_line_and_status_2(
    place: Path, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    words, expected = WRONG[number]
    before = sorted(path.name for path in place.iterdir())
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("resprune: ") and len(line) <= 500 and line.isprintable(), line
    assert "None" not in line
    for word in expected:
        assert word in line, line
    assert sorted(path.name for path in place.iterdir()) == before, "a wrong call left files"


def test_debug_adds_the_traceback(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*ASK, "--keep", "0", "--debug"]) == 2
    said = lines(capsys)
    assert said[0].startswith("Traceback") and said[-1].startswith("resprune: --keep 0")


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (CallError("no such\n folder: x"), 2, "resprune: no such folder: x"),
        (RunError("the file\nis broken"), 1, "resprune: the file is broken"),
        (ZeroDivisionError("1/0"), 1, "resprune: unexpected ZeroDivisionError: 1/0 (--debug shows"),
        (OSError(28, "No space left on device", "o"), 1, "resprune: No space left on device: o"),
        (MemoryError(), 1, "resprune: unexpected MemoryError"),
        (KeyboardInterrupt(), 130, "resprune: stopped"),
    ],
)
@pytest.mark.parametrize("debug", [False, True])
def test_the_exit_status_tells_whose_fault_it_was(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: BaseException, status: int, said: str, debug: bool,
) -> None:  # fmt: skip
    def fail(_: Any) -> int:
        raise error

    command = cli.COMMANDS["answer"]
    monkeypatch.setitem(cli.COMMANDS, "answer", Command(command.options, fail))
    assert cli.main([*ASK, *(["--debug"] if debug else [])]) == status
    captured = lines(capsys)
    assert captured[-1].startswith(said.split(" (")[0])
    if not debug:
        assert len(captured) == 1 and captured[0].startswith(said)
    elif status != 130:
        assert captured[0].startswith("Traceback")


def test_one_image_is_answered(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeLVLM()
    monkeypatch.setattr(answer, "load_asked", lambda _: fake)
    assert cli.main([*ASK, "--keep", "4", "--alpha", "0.5", "--seed-rule", "max_norm"]) == 0
    out = capsys.readouterr().out
    assert "what? a.png" in out and "4 of 16 visual tokens (25.0%)" in out
    assert "cup (fake)" in out
    (call,) = fake.calls
    assert (call["keep"], call["alpha"], call["seed_rule"]) == ([4], 0.5, "max_norm")

    assert cli.main([*ASK, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["answer"] == "what? a.png" and result["kept"] == 16
    assert result["settings"]["method"] == "resprune" and result["keep"] is None


def test_one_broken_image_fails_the_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answer, "load_asked", lambda _: FakeLVLM())
    (place / "a.png").write_bytes((place / "a.png").read_bytes()[:50])
    assert cli.main([*ASK, "--output", "out.jsonl"]) == 1
    (line,) = lines(capsys)
    assert line.startswith("resprune: ") and "a.png" in line
    assert (place / "out.jsonl").read_text() == ""
    picture(place / "a.png")
    assert cli.main([*ASK[:-1], "NaN", "--output", "out.jsonl"]) == 1
    (line,) = lines(capsys)
    assert "a.png" in line and "finite" in line


def test_an_answer_with_markup_is_printed_as_it_is(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answer, "load_asked", lambda _: FakeLVLM())
    prompt = "[red]is[/red] this [link=x]ok[/wrong] " + "long " * 30
    assert cli.main([*ASK[:-1], prompt]) == 0
    assert f"{prompt} a.png" in capsys.readouterr().out


def test_what_has_no_effect_is_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answer, "load_asked", lambda _: FakeLVLM())
    assert cli.main([*ASK, "--alpha", "0.5"]) == 0
    (line,) = lines(capsys)
    assert line.startswith("note: --alpha has no effect")
    # A setting that is the budget has.
    budget = ["--method", "fastv", "--method-settings", "keep_average=12"]
    assert cli.main([*ASK, *budget]) == 0
    assert "note" not in "".join(lines(capsys))
    assert cli.main([*ASK, "--method", "fastv", "--method-settings", "k=3"]) == 0
    assert lines(capsys)[0].startswith("note: --k has no effect")


@pytest.mark.parametrize(
    ("text", "budget"),
    [("128", 128), ("0.222", 0.222), ("1", 1), (" 64 ", 64), ("full", None), ("None", None),
     ("1e-1", 0.1), ("+7", 7), (3, 3), (0.5, 0.5), (None, None)],
)  # fmt: skip
def test_budgets_as_people_write_them(text: object, budget: common.Keep) -> None:
    found = parse_keep(text)
    assert found == budget and type(found) is type(budget)


@pytest.mark.parametrize("text", ["", "1.0", "128.0", "-0", "1e400", "0.0", True, [1], {}, "1,5"])
def test_no_budgets(text: object) -> None:
    with pytest.raises(CallError):
        parse_keep(text)


def test_help_needs_no_model_code() -> None:
    """One process for all: what one command imports would be there behind it."""
    code = (
        "import contextlib, io, json, sys\n"
        "from resprune_jax.experiments import cli\n"
        "heavy = {'jax', 'flax', 'transformers', 'spacy', 'torch', 'matplotlib', 'safetensors'}\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    said = io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(said):\n"
        "            cli.main([*command.split(), '--help'])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0, command\n"
        "    usage = f'usage: resprune {command}'.strip()\n"
        "    assert usage in said.getvalue(), (usage, said.getvalue())\n"
        "    assert not heavy & set(sys.modules), (command, heavy & set(sys.modules))\n"
    )
    commands = json.dumps(["", *cli.GROUPS, *cli.COMMANDS])
    done = subprocess.run(
        [sys.executable, "-c", code, commands], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from resprune_jax.experiments import cli\n"
        "def talk(_):\n    time.sleep(0.3)\n    print('x')\n    return 0\n"
        "cli.COMMANDS['info'] = cli.Command(cli.COMMANDS['info'].options, talk)\n"
        "sys.exit(cli.main(['info', '--model', 'm']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 1)
    process.stderr.close()


def test_the_compilation_cache_is_set_by_commands_alone(tmp_path: Path) -> None:
    """And the second process compiles nothing: what took a moment is kept too."""
    code = (
        "import jax, resprune_jax, resprune_jax.models, resprune_jax.experiments.cli\n"
        "from resprune_jax.experiments.common import use_compilation_cache\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
        "use_compilation_cache()\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
        "print(jax.config.jax_persistent_cache_min_compile_time_secs)\n"
        # Where XLA keeps what it measures on a GPU: inside of that folder.
        "print(jax.config.jax_persistent_cache_enable_xla_caches)\n"
        "from resprune_jax.models.running.compiling import compiling\n"
        "with compiling() as watch:\n"
        "    for function in (lambda x: x @ x, lambda x: x + 1, lambda x: jax.numpy.sin(x) @ x):\n"
        "        jax.jit(function)(jax.numpy.ones((3, 3)))\n"
        "print(sum(not each.found for each in watch.programs))\n"
        "print(sum(each.found for each in watch.programs))\n"
    )

    def ask(**env: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"HOME": str(tmp_path), "PATH": "", **env},
        )  # fmt: skip
        return done.stdout.split()

    cache = tmp_path / "cache"
    own = str(cache / "resprune-jax" / "jax")
    tuned = "xla_gpu_per_fusion_autotune_cache_dir"
    *first, compiled, found = ask(XDG_CACHE_HOME=str(cache))
    assert first == ["None", own, "0.0", tuned]
    assert int(compiled) >= 3 and found == "0"
    # The same folder by name, from another place: `compiled` programs are found, none is made.
    assert ask(JAX_COMPILATION_CACHE_DIR=own) == [own, own, "0.0", tuned, "0", compiled]


@pytest.mark.parametrize(("named", "kept"), [("", None), ("some/where", "some/where"), ("x", "x")])
def test_an_empty_name_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, named: str, kept: str | None
) -> None:
    """With an empty one XLA would keep what it measures on a GPU in the working folder."""
    import jax

    told: dict[str, object] = {}
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", named)
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", raising=False)
    monkeypatch.setattr(jax.config, "update", lambda name, value: told.update({name: value}))
    folder = common.use_compilation_cache()
    assert folder == (None if kept is None else Path(kept))
    assert told == {
        "jax_compilation_cache_dir": kept, "jax_persistent_cache_min_compile_time_secs": 0.0
    }  # fmt: skip


def test_the_version_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--version"])
    assert stop.value.code == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("resprune-jax 0.") and "jax " in line and "Python " in line


@pytest.mark.parametrize("content", [b"no picture", b"%PDF-1.7\n", b"\n\5\1\x08" + bytes(99), b""])
def test_what_is_no_picture_is_said_before_the_model_is_loaded(
    place: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    (place / "a.png").write_bytes(content)
    assert cli.main(ASK) == 1
    (line,) = lines(capsys)
    assert "a.png" in line


@pytest.mark.parametrize("kind", ["nobody", "forbidden", "a file", "a name that is not UTF-8"])
def test_a_home_that_is_not_there_or_not_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").write_text("")
    homes = {"a file": tmp_path / "file", "a name that is not UTF-8": tmp_path / "\udce9"}
    monkeypatch.setenv("HOME", str(homes.get(kind, tmp_path)))
    if kind == "nobody":
        monkeypatch.setattr(Path, "home", nowhere)
    if kind == "forbidden":
        monkeypatch.setattr(common.os, "access", lambda *_: False)
    common.use_compilation_cache()  # sets nothing: other tests see the same JAX
    (record,) = caplog.records
    assert "not kept between runs" in record.getMessage()


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_words_that_are_known_are_those_of_the_parser(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some options have another name than their field."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*name.split(), "--help"])
    assert ended.value.code == 0
    shown = re.findall(r"(?<![\w-])--[a-z][a-z-]+(?= |$)", capsys.readouterr().out, re.MULTILINE)
    known = set(typed._options(cli.COMMANDS[name].options))
    assert known <= set(shown), known - set(shown)


@pytest.mark.parametrize(
    ("words", "switch"),
    [
        (["answer", "--model", "m", "--json=1"], "--json"),
        (["answer", "--model", "m", "--no-chat-template=x"], "--no-chat-template"),
        (["bench", "selection", "--without_compile=yes"], "--without-compile"),
        (["info", "--model", "m", "--help=now"], "--help"),
    ],
)
def test_a_switch_with_a_value_is_named(
    words: list[str], switch: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said == f"resprune: {switch} is a switch and takes no value: write it alone\n"
