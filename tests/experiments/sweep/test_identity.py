"""What a folder of results is of: contents of files, whose names may stay."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.sweep.command import GridOptions, manifest_of
from resprune_jax.experiments.sweep.identity import own_methods
from resprune_jax.experiments.sweep.shards import Shards


def manifest(folder: Path, method: str, clip: Path | None = None) -> dict[str, object]:
    """The manifest of a sweep of one method."""
    engine = SimpleNamespace(
        lvlm=SimpleNamespace(
            extractor=lambda: SimpleNamespace(backend="lexicon"),
            config=SimpleNamespace(text=SimpleNamespace(num_layers=2)),
            clip=SimpleNamespace(path=clip),
        ),
        data=SimpleNamespace(name="rows", fingerprint="f", examples=[]),
        tokens=12, left_out={},
        answerer=SimpleNamespace(options=SimpleNamespace(max_new_tokens=6)),
        configurations=[SimpleNamespace(method=method, record=lambda: {"name": method})],
    )  # fmt: skip
    options = GridOptions(output=folder, clip=None if clip is None else str(clip))
    return manifest_of(options, engine, "aa")


def test_a_method_whose_file_has_changed_is_another_sweep(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("one")
    out = tmp_path / "out"
    for _ in range(2):
        with Shards(out, manifest(out, f"{file}:Own")):
            pass
    file.write_text("two")
    with pytest.raises(CallError, match="holds another sweep"):
        Shards(out, manifest(out, f"{file}:Own"))
    assert own_methods(["none", "resprune", "a:b"]) == {}
    assert "own_methods" not in manifest(out, "resprune")
    file.unlink()
    with pytest.raises(CallError, match=r"own\.py cannot be read"):
        own_methods([f"{file}:Own"])


def test_another_clip_in_the_same_folder_is_another_sweep(tmp_path: Path) -> None:
    clip, out = tmp_path / "clip", tmp_path / "out"
    clip.mkdir()
    (clip / "config.json").write_text("{}")
    with Shards(out, manifest(out, "trim", clip)):
        pass
    (clip / "config.json").write_text("[]")
    with pytest.raises(CallError, match="clip_fingerprint"):
        Shards(out, manifest(out, "trim", clip))
