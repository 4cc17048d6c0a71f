"""Local folders, the Hub's cache, and what is fetched from the Hub (a stand-in on this machine)."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.checkpoint.hub import resolve_checkpoint
from tests.models.checkpoint.hub_server import COMMITS, StandInHub

ID = "some-lab/llava-small"
SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX_NAME = "model.safetensors.index.json"
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()

# Contents differ: the cache fetches equal ones only once.
NEEDED = {
    "config.json": b"{}",
    "generation_config.json": b'{"of": "generation"}',
    INDEX_NAME: INDEX,
    SHARDS[0]: b"one",
    SHARDS[1]: b"two",
    "preprocessor_config.json": b'{"of": "images"}',
    "tokenizer.json": b'{"of": "tokens"}',
    "tokenizer_config.json": b'{"of": "tokenizer"}',
    "tokenizer.model": b"sp",
    "chat_template.jinja": b"{{ x }}",
}
NOT_NEEDED = {
    "README.md": b"#",
    ".gitattributes": b"",
    "pytorch_model-00001-of-00002.bin": b"pickle",
    "pytorch_model.bin.index.json": b"{}",
    "original/consolidated.00.pth": b"pickle",
    "original/config.json": b"{}",
    "onnx/model.onnx": b"graph",
    "training_args.bin": b"pickle",
    "consolidated.safetensors": b"again",
    "model-00003-of-00003.safetensors": b"left over",
    "example.png": b"picture",
}


def fabricate(cache: Path, files: dict[str, bytes], revision: str = "main") -> Path:
    """Write a repository into a Hub cache folder as a download leaves it."""
    root = cache / ("models--" + ID.replace("/", "--"))
    snapshot = root / "snapshots" / COMMITS[revision]
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir(exist_ok=True)
    (root / "refs" / revision).write_text(COMMITS[revision])
    for name, content in files.items():
        (snapshot / name).write_bytes(content)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return folder


@pytest.fixture
def offline(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return cache


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    server = StandInHub()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    server.repositories[ID] = {
        "main": NEEDED | NOT_NEEDED,
        "v2": {"config.json": b'{"v": 2}', "model.safetensors": b"all", "model.bin": b"pickle"},
    }
    yield server
    server.close()


def test_a_local_folder_comes_first(
    tmp_path: Path, offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ID
    folder.mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    fabricate(offline, NEEDED)
    assert resolve_checkpoint(folder) == folder
    assert resolve_checkpoint(ID) == Path(ID)
    with pytest.raises(CallError, match=r"revision 'v2' was given, but .* is a local folder"):
        resolve_checkpoint(ID, revision="v2")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("./llava", "no such folder: ./llava"),
        ("/data/models/llava", "no such folder: /data/models/llava"),
        ("~/llava-nowhere", "no such folder: ~/llava-nowhere"),
        ("a/b/c", "no such folder: a/b/c"),
        ("llava/", "no such folder: llava/"),
        ("C:\\models\\llava", "no such folder"),
        (Path("some-lab/llava"), "no such folder: some-lab/llava"),
        ("models-here/weights.bin", "is a file"),
        ("an id with spaces", "neither a folder nor a Hugging Face Hub id"),
    ],
)
def test_a_wrong_path_is_not_taken_to_the_hub(
    given: str | Path,
    said: str,
    tmp_path: Path,
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "models-here/llava-small").mkdir(parents=True)
    (tmp_path / "models-here/weights.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallError, match=said):
        resolve_checkpoint(given)
    assert hub.tokens == set(), "the Hub was asked"


@pytest.mark.parametrize("inside", [[], ["tiny-llav"], ["tiny-llava-2", "other"]])
def test_a_folder_named_like_the_owner_hides_no_hub_id(
    tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch, inside: list[str]
) -> None:
    owner = ID.split("/")[0]
    (tmp_path / owner).mkdir()
    for name in inside:
        (tmp_path / owner / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_checkpoint(ID).name == COMMITS["main"]


def test_a_misspelt_folder_is_named_where_the_hub_does_not_know_it(
    tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models-here/llava-small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallError, match=r"no folder .* \(is it models-here/llava-small\?\)"):
        resolve_checkpoint("models-here/llava-smal")


@pytest.mark.parametrize(
    "given", ["~nobody-of-this-name/x", "a" * 5000, "loop", "loop/inside", "zero\0byte"]
)
def test_names_that_no_folder_can_have(
    given: str, tmp_path: Path, hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CallError) as caught:
        resolve_checkpoint(given)
    assert str(caught.value).isprintable() and len(str(caught.value)) <= 500


def test_the_hub_gives_what_is_needed_and_nothing_else(hub: StandInHub) -> None:
    folder = resolve_checkpoint(ID)
    assert sorted(hub.fetched) == sorted(NEEDED)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == NEEDED
    assert folder.name == COMMITS["main"]
    assert hub.tokens == {None}
    print(f"{len(NEEDED)} files of {len(NEEDED | NOT_NEEDED)} fetched")
    hub.fetched.clear()
    assert resolve_checkpoint(ID) == folder
    assert hub.fetched == []


def test_the_revision_is_the_one_asked_for(hub: StandInHub) -> None:
    for revision in ("v2", COMMITS["v2"]):
        folder = resolve_checkpoint(ID, revision=revision)
        assert folder.name == COMMITS["v2"]
        assert (folder / "config.json").read_bytes() == b'{"v": 2}'
    assert sorted(hub.fetched) == ["config.json", "model.safetensors"]
    with pytest.raises(CallError, match=f"{ID} has no revision 'v3'"):
        resolve_checkpoint(ID, revision="v3")


def test_weights_come_from_the_commit_of_the_index(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = hub._answer

    def moving(request: object, *, with_body: bool) -> None:
        answer(request, with_body=with_body)  # type: ignore[arg-type]
        if INDEX_NAME in hub.fetched:
            # The branch moves on as soon as the index is out.
            hub.repositories[ID]["main"] = NEEDED | NOT_NEEDED
            monkeypatch.setitem(COMMITS, "main", "c" * 40)
            hub.repositories[ID]["old"] = NEEDED | NOT_NEEDED
            monkeypatch.setitem(COMMITS, "old", "a" * 40)

    monkeypatch.setattr(hub, "_answer", moving)
    folder = resolve_checkpoint(ID)
    assert folder.name == "a" * 40
    assert all((folder / name).is_file() for name in SHARDS)


def test_unknown_private_and_gated_repositories(hub: StandInHub) -> None:
    with pytest.raises(CallError, match="no folder some-lab/typo, and the Hub has no such repo"):
        resolve_checkpoint("some-lab/typo")
    hub.gated.add(ID)
    for token in (None, "wrong"):
        with pytest.raises(RunError, match=rf"access to {ID} is restricted: .* pass token="):
            resolve_checkpoint(ID, token=token)
    assert "config.json" in [p.name for p in resolve_checkpoint(ID, token="letmein").iterdir()]
    assert "Bearer letmein" in hub.tokens


def test_a_repository_without_safetensors(hub: StandInHub) -> None:
    hub.repositories["lab/old"] = {"main": {"config.json": b"{}", "pytorch_model.bin": b"pickle"}}
    with pytest.raises(RunError, match=r"neither model\.safetensors nor .* only safetensors"):
        resolve_checkpoint("lab/old")
    assert hub.fetched == ["config.json"]
    hub.repositories["lab/gap"] = {"main": {"config.json": b"{}", INDEX_NAME: INDEX}}
    with pytest.raises(RunError, match=f"lacks {SHARDS[0]}, {SHARDS[1]}"):
        resolve_checkpoint("lab/gap")
    hub.repositories["lab/bad"] = {"main": {"config.json": b"{}", INDEX_NAME: b"{"}}
    with pytest.raises(RunError, match=r"model\.safetensors\.index\.json is not readable JSON"):
        resolve_checkpoint("lab/bad")


def test_names_in_an_index_are_not_patterns(hub: StandInHub) -> None:
    index = json.dumps({"weight_map": {"a": "*", "b": "../x.safetensors", "c": SHARDS[0]}})
    hub.repositories[ID]["main"][INDEX_NAME] = index.encode()
    resolve_checkpoint(ID)
    assert [name for name in hub.fetched if name.endswith((".safetensors", ".bin"))] == SHARDS[:1]


def test_a_hub_that_is_down(hub: StandInHub) -> None:
    folder = resolve_checkpoint(ID)
    hub.close()
    assert resolve_checkpoint(ID) == folder, "the cache serves what it has"
    with pytest.raises(RunError, match=r"some-lab/other is not in the cache .* cannot be reached"):
        resolve_checkpoint("some-lab/other")


def test_the_cache_serves_offline(offline: Path) -> None:
    main = fabricate(offline, NEEDED)
    second = fabricate(offline, {"config.json": b"{}", "model.safetensors": b"all"}, "v2")
    assert resolve_checkpoint(ID) == main
    assert resolve_checkpoint(ID, revision="v2") == second
    assert resolve_checkpoint(ID, revision=COMMITS["v2"]) == second
    with pytest.raises(RunError, match=r"at revision 'v3' is not in the cache .*HF_HUB_OFFLINE"):
        resolve_checkpoint(ID, revision="v3")
    with pytest.raises(RunError, match=r"some-lab/other is not in the cache .*HF_HUB_OFFLINE"):
        resolve_checkpoint("some-lab/other")


@pytest.mark.parametrize("gone", ["config.json", SHARDS[1]])
def test_a_partial_cache_offline(offline: Path, gone: str) -> None:
    fabricate(offline, {name: x for name, x in NEEDED.items() if name != gone})
    with pytest.raises(RunError, match=rf"only partly in the cache \({gone} missing\)"):
        resolve_checkpoint(ID)


def test_a_file_that_nobody_needs_may_be_missing_offline(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve_checkpoint(ID)
    (folder / "tokenizer.model").unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_checkpoint(ID) == folder


def test_environment_variables_of_the_hub_are_honoured(tmp_path: Path) -> None:
    snapshot = fabricate(tmp_path / "hub", NEEDED, "v2")
    code = (
        "from resprune_jax.models.checkpoint.hub import resolve_checkpoint as r;"
        f"print(r({ID!r}, revision='v2'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **{key: x for key, x in os.environ.items() if not key.startswith("HF_")},
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(Path(__file__).parents[3]),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == snapshot
