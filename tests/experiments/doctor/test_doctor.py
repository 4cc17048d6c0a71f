"""`resprune doctor`: each thing that is broken is told in one clear line, and the rest goes on."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants
from PIL import features

from resprune_jax import experiments, nouns
from resprune_jax.experiments import cli, start, stopping
from resprune_jax.experiments.doctor import (
    command,
    folders,
    hardware,
    packages,
    requirements,
    trial,
)
from resprune_jax.experiments.doctor.findings import Finding, Look, look
from resprune_jax.experiments.pocket.scenes import shapes
from resprune_jax.models import load

pytestmark = pytest.mark.package

Absent = Callable[..., None]
ROOT = Path(__file__).parents[3]


def one(about: Look, name: str) -> Finding:
    """The one finding of a name."""
    (found,) = [each for each in look(name, about) if each.name == name]
    assert found.line.isprintable() and len(found.line) <= 500
    return found


def others(about: Look, name: str) -> set[str]:
    """The statuses of all findings but those of a name."""
    return {each.status for each in look(name, about) if each.name != name}


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What is put in counts as the installed version; None is not installed."""
    planted: dict[str, str | None] = {}
    real = requirements.version_of

    def version_of(package: str) -> str | None:
        return planted[package] if package in planted else real(package)

    monkeypatch.setattr(requirements, "version_of", version_of)
    return planted


def plant(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A module of that name comes before the one that is installed."""
    (folder / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(folder)
    # Also where nothing of that name was imported before, the planted one is gone behind the test.
    monkeypatch.setitem(sys.modules, name, None)
    del sys.modules[name]


def test_flax_and_jax_that_do_not_go_together(versions: dict[str, str | None]) -> None:
    versions |= {"flax": "0.12.8", "jax": "0.11.1"}
    found = one(packages.needed, "flax")
    assert found.status == "FAULT"
    assert found.line == "flax 0.12.8 does not work with jax 0.11.1 → pip install 'flax>=0.12.9'"
    versions |= {"flax": "0.12.9"}
    assert [each for each in packages.needed() if each.name == "flax"] == []


def test_a_version_that_is_not_allowed(versions: dict[str, str | None]) -> None:
    versions["transformers"] = "5.17.3"
    assert one(packages.needed, "transformers").line == (
        "transformers 5.17.3 is installed, and transformers>=5.18 needed →"
        " pip install 'transformers>=5.18'"
    )
    assert others(packages.needed, "transformers") == {"ok"}


def test_a_package_that_is_needed_and_not_there(versions: dict[str, str | None]) -> None:
    versions["pyarrow"] = None
    found = one(packages.needed, "pyarrow")
    assert found.status == "FAULT" and found.facts["usable"] is False
    assert found.line == "it is needed and not installed → pip install 'pyarrow>=18'"


def test_packages_that_stand_on_a_broken_one_are_not_tried(absent: Absent) -> None:
    absent("jax")
    found = {each.name: each for each in packages.needed()}
    assert [name for name, each in found.items() if each.status == "FAULT"] == ["jax"]
    assert "importing jax fails: No module named 'jax'" in found["jax"].line
    assert "pip install --force-reinstall" in found["jax"].remedy
    assert found["flax"].status == "not tried" and "needs jax" in found["flax"].line
    assert found["commands"].status == found["nouns"].status == "ok"


def test_an_import_that_raises_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "textblob", monkeypatch, "raise RuntimeError('one\\x1b[31m\\nword')")
    found = one(packages.needed, "textblob")
    assert found.status == "FAULT" and r"fails: RuntimeError: one\x1b[31m word →" in found.line


def test_an_extra_without_its_package(absent: Absent) -> None:
    absent("uvicorn", "av")
    found = one(packages.optional, "serve")
    assert found.status == "missing" and found.facts["absent"] == ["uvicorn"]
    assert found.line == (
        f"optional: resprune serve (needs uvicorn) → pip install -e '{ROOT}[serve]'"
    )
    assert one(packages.optional, "video").facts["absent"] == ["av"]


def test_an_extra_that_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, "av", monkeypatch, "raise OSError('libavcodec.so: cannot open')")
    found = one(packages.optional, "video")
    assert found.status == "FAULT" and "libavcodec.so: cannot open" in found.line
    assert found.remedy == "pip install --force-reinstall av"
    assert "FAULT" not in others(packages.optional, "video")


def test_an_extra_of_an_old_version(versions: dict[str, str | None]) -> None:
    versions["starlette"] = "0.1"
    assert one(packages.optional, "serve").line.startswith("starlette 0.1 is installed, and star")


def test_an_installed_package_names_itself_in_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "own_folder", lambda: None)
    assert requirements.install("serve") == "pip install 'resprune-jax[serve]'"
    requirements._declared.cache_clear()
    try:  # of the metadata, what pyproject.toml says
        installed = {extra: requirements.declared(extra) for extra in requirements.extras()}
        needed = requirements.declared()
    finally:
        requirements._declared.cache_clear()
    monkeypatch.undo()
    # An editable install may be older than the checkout in what developers alone ask for.
    for extra in set(requirements.extras()) - set(requirements.FOR_DEVELOPERS):
        assert {str(each.name) for each in installed[extra]} == {
            str(each.name) for each in requirements.declared(extra)
        }
    assert {"jax", "flax", "tyro"} <= {each.name for each in needed}
    assert not {"uvicorn", "av"} & {each.name for each in needed}


def test_the_code_and_what_is_installed_differ(versions: dict[str, str | None]) -> None:
    versions["resprune-jax"] = "0.0.9"
    found = one(packages.own, "resprune-jax")
    assert found.status == "FAULT" and found.line.endswith(
        f"is {packages.__version__}, what is installed 0.0.9 → pip install -e '{ROOT}'"
    )


def test_all_that_is_declared_has_a_place() -> None:
    named = {requirements.canonicalize_name(name) for names in packages.GROUPS.values()
             for name in names}  # fmt: skip
    declared = {requirements.canonicalize_name(each.name) for each in requirements.declared()}
    assert named - declared == {"jaxlib", "tokenizers"} and declared <= named
    assert set(packages.PURPOSES) == set(requirements.extras()) - set(requirements.FOR_DEVELOPERS)


def test_a_gpu_that_jax_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Finding:
        return one(lambda: hardware.accelerators(tmp_path), "accelerator")

    assert found().status == "ok" and "no GPU or TPU" in found().line
    card = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    card.mkdir(parents=True)
    (card / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/nvidiactl").touch()
    monkeypatch.setattr(requirements, "lacking", lambda wanted: ["jax-cuda13-plugin"])
    assert found().line == (
        "optional: 1 x NVIDIA H100 80GB HBM3 is there, and JAX does not use it: no"
        f" jax-cuda13-plugin → pip install -e '{ROOT}[cuda]'"
    )
    monkeypatch.setattr(requirements, "lacking", lambda wanted: [])
    monkeypatch.setattr(hardware, "_setting", lambda name: "cpu")
    assert found().line.endswith("JAX_PLATFORMS is cpu → unset JAX_PLATFORMS")
    monkeypatch.setattr(hardware, "_setting", lambda name: None)
    assert found().status == "FAULT"
    assert "JAX_PLATFORMS=cuda python -c 'import jax; jax.devices()' says why" in found().line


def test_a_tpu_that_jax_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, device in enumerate(["0x0063", "0x0063", "0x0042"]):  # two chips, a network card
        place = tmp_path / f"sys/bus/pci/devices/{number}"
        place.mkdir(parents=True)
        (place / "vendor").write_text("0x1ae0\n")
        (place / "device").write_text(f"{device}\n")
    monkeypatch.setattr(requirements, "lacking", lambda wanted: ["libtpu"])
    found = one(lambda: hardware.accelerators(tmp_path), "accelerator")
    assert "2 x TPU v5e is there" in found.line and found.remedy.endswith("[tpu]'")


@pytest.mark.parametrize("kind", [RuntimeError, AssertionError])
def test_a_backend_that_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: type[Exception]
) -> None:
    """JAX raises the second where JAX_PLATFORMS names one whose plug-in is not there."""
    import jax

    def fail() -> None:
        raise kind("Unable to initialize")

    monkeypatch.setattr(jax, "devices", fail)
    monkeypatch.setattr(jax, "default_backend", fail)
    monkeypatch.setattr(hardware, "_setting", lambda name: "cuda")
    found = one(hardware.devices, "backend")
    assert found.status == "FAULT" and found.remedy == "unset JAX_PLATFORMS"
    assert f"(JAX_PLATFORMS=cuda): {kind.__name__}: Unable to initialize" in found.line
    sections = {name: command.SECTIONS[name] for name in ("Devices", "Trial")}
    monkeypatch.setattr(command, "SECTIONS", sections)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "1 fault: backend"
    assert re.findall(r"not tried (\S+) +it needs backend", said) == [
        "float32", "selection", "answer",
    ]  # fmt: skip


def test_the_memory_of_a_container(tmp_path: Path) -> None:
    for name, text in {"proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 6291456 kB\n",
                       "sys/fs/cgroup/memory.max": "2147483648\n",
                       "sys/fs/cgroup/memory.current": "1073741824\n"}.items():  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = one(lambda: hardware.memory(tmp_path), "machine")
    assert "1.0 GiB of 2.0 GiB of memory free" in found.line
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    found = one(lambda: hardware.memory(tmp_path), "machine")
    assert "6.0 GiB of 8.0 GiB of memory free" in found.line


@pytest.mark.parametrize("named", ["XDG_CACHE_HOME", folders.PROGRAMS])
def test_programs_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.delenv(folders.PROGRAMS, raising=False)
    monkeypatch.setenv(named, str(tmp_path / "kept"))
    assert one(folders.programs, "programs").status == "ok"
    assert list(tmp_path.rglob("tmp*")) == []
    (tmp_path / "file").touch()
    monkeypatch.setenv(named, str(tmp_path / "file" / "kept"))
    found = one(folders.programs, "programs")
    assert found.status == "FAULT" and "Not a directory" in found.line
    assert found.remedy.startswith(f"set {folders.PROGRAMS} to a folder")


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv(folders.PROGRAMS, str(tmp_path))
    monkeypatch.setattr(folders.tempfile, "TemporaryFile", full)
    assert f"in {tmp_path}: No space left" in one(folders.programs, "programs").line


def test_programs_that_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(folders.PROGRAMS, "")
    found = one(folders.programs, "programs")
    assert found.status == "missing" and found.remedy == f"unset {folders.PROGRAMS}"


def test_the_hub_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "models--a--b").mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert f"{tmp_path}, 1 model," in one(folders.hub, "hub").line
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    found = one(folders.hub, "hub")
    assert found.status == "FAULT" and found.remedy.startswith("set HF_HOME")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # it is not written to
    assert one(folders.hub, "hub").status == "ok"


def test_codecs_and_fonts_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"webp"}
    monkeypatch.setattr(features, "check", lambda codec: codec not in gone)
    found = one(folders.pictures, "pictures")
    assert found.status == "missing" and "does not read WebP" in found.line
    gone.add("jpg")
    assert one(folders.pictures, "pictures").status == "FAULT"
    assert [each.name for each in folders.pictures()] == ["pictures"]

    def no_font(name: str, size: int) -> None:
        raise OSError("cannot open resource")

    monkeypatch.setattr(shapes, "load_font", no_font)
    assert "cannot open resource" in one(folders.pictures, "fonts").line


def test_no_tagger(
    absent: Absent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    absent(nouns.MODEL)
    found = one(folders.nouns, "tagger")
    assert found.status == "missing" and found.remedy == nouns.INSTALL
    assert "lexicon" in found.line and caplog.records == []  # said once, here
    absent("textblob", "textblob.en")
    found = one(folders.nouns, "tagger")
    assert found.status == "FAULT" and "lexicon does not load" in found.line
    assert nouns.INSTALL in found.line


def test_a_tagger_that_does_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, nouns.MODEL, monkeypatch, "def load(**_):\n    raise OSError('E050')\n")
    found = one(folders.nouns, "tagger")
    assert found.status == "FAULT" and "does not load (OSError: E050)" in found.line


def test_a_selection_that_is_not_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = one(trial.selection, "selection")
    assert fine.status == "ok" and fine.facts["steps"] == trial.KEEP and fine.facts["decided"] > 60
    made = trial.chosen

    def swapped(tokens: np.ndarray, relevance: np.ndarray) -> Any:
        chosen = made(tokens, relevance)
        picks = np.asarray(chosen.indices).copy()
        picks[[3, 40]] = picks[[40, 3]]
        return dataclasses.replace(chosen, indices=picks)

    monkeypatch.setattr(trial, "chosen", swapped)
    found = one(trial.selection, "selection")
    assert (
        found.status == "FAULT" and "chose wrongly" in found.line and "step 3: pick" in found.line
    )
    assert "engine=feature" in found.remedy and found.facts["violations"]


class Pocket:
    """Answers what it is told to."""

    config = SimpleNamespace(num_visual_tokens=144)

    def __init__(self, text: str, error: str | None = None) -> None:
        self.made = SimpleNamespace(texts=[text], errors=[error], kept=[trial.BUDGET])

    def generate(self, images: list[Any], prompts: list[str], **given: Any) -> Any:
        assert given["keep"] == trial.BUDGET and "printed" in prompts[0]
        return self.made


@pytest.mark.parametrize(
    ("text", "error", "status", "said"),
    [
        ("Play", None, "ok", "'Play', which is right, from 48 of 144"),
        ("pear", None, "FAULT", "said 'pear' where 'play' is right → send"),
        ("", "not finite", "FAULT", "and failed: not finite"),
    ],
)
def test_an_answer(
    monkeypatch: pytest.MonkeyPatch, text: str, error: str | None, status: str, said: str
) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_, **__: Pocket(text, error))
    found = one(trial.answer, "answer")
    assert found.status == status and said in found.line


def ok() -> Iterator[Finding]:
    yield Finding("fine", "ok", "[bold]as it should be[/bold]")


def broken() -> Iterator[Finding]:
    yield from ok()
    raise ValueError("of some library")


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sections that take no time."""
    sections: dict[str, Any] = {"Packages": {"own": (ok, ())}, "Trial": {"answer": (ok, ("jax",))}}
    monkeypatch.setattr(command, "SECTIONS", sections)
    return sections


def test_the_whole_report(light: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr()
    assert said.err == "" and said.out.splitlines() == [
        "Packages", "  ok        fine         [bold]as it should be[/bold]",
        "Trial", "  ok        fine         [bold]as it should be[/bold]",
        "Everything that was tried works.",
    ]  # fmt: skip
    assert cli.main(["doctor", "--quick"]) == 0
    assert "  not tried answer       left out by --quick" in capsys.readouterr().out


def test_what_stops_one_look_stops_no_other(
    light: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    light["Packages"]["more"] = (broken, ())
    light["Packages"]["jax"] = (
        lambda: [Finding("jax", "FAULT", "gone", "bring it", {"usable": False})], ()
    )  # fmt: skip
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr()
    assert said.err == ""
    assert "  FAULT     more         fails: ValueError: of some library" in said.out
    assert "  FAULT     jax          gone → bring it" in said.out
    assert "  not tried answer       it needs jax" in said.out
    assert said.out.splitlines()[-1] == "2 faults: more, jax"
    assert cli.main(["doctor", "--debug"]) == 1
    assert "ValueError: of some library" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["usable"] is False and len(report["faults"]) == 2
    assert [each["status"] for each in report["sections"]["Packages"]] == [
        "ok", "ok", "FAULT", "FAULT",
    ]  # fmt: skip


def test_where_the_commands_cannot_be_imported(
    light: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "resprune_jax.experiments.cli", None)
    monkeypatch.delattr(experiments, "cli")
    monkeypatch.setitem(sys.modules, "rich.text", None)  # nor what prints in colour
    monkeypatch.setitem(sys.modules, "rich.console", None)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["resprune", *words])
        with stopping.listening():
            return start.main()

    assert run("answer") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("resprune: the commands cannot") and line.endswith("resprune doctor")
    assert run("doctor") == 0
    assert "  ok        fine         [bold]as it should be[/bold]" in capsys.readouterr().out
    assert run("doctor", "--quik") == 2
    assert "--quick" in capsys.readouterr().err
