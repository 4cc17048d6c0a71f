"""What names a run: contents, not the names that they stand under."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from resprune_jax.experiments.harness.arguments import read
from resprune_jax.experiments.harness.identity import settings_of
from resprune_jax.experiments.words import OWN, version_of


def told(folder: Path, size: int = 8, tagger: str = "lexicon 1", **given: object) -> str:
    """The settings of a run as its journal is named by them."""
    lvlm = SimpleNamespace(
        path=folder, clip=SimpleNamespace(path=folder / "clip"),
        extractor=lambda name, strict: SimpleNamespace(backend=tagger),
    )  # fmt: skip
    arguments = read({"pretrained": "pocket", "version": version_of(OWN), **given})
    options = replace(arguments.options, image_aspect=arguments.aspect or "processor")
    return json.dumps(settings_of(arguments, lvlm, options, size), sort_keys=True)


def test_all_that_decides_an_answer_names_a_run(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    files = {name: tmp_path / name for name in ("config.json", "own.py", "a.jinja")}
    files["clip"] = tmp_path / "clip" / "config.json"
    for path in files.values():
        path.write_text("one")
    given = {
        "method": f"{files['own.py']}:Own", "clip": str(tmp_path / "clip"),
        "template": str(files["a.jinja"]), "keep": 0.25,
    }  # fmt: skip
    first = told(tmp_path, **given)
    assert told(tmp_path, **given) == first
    changed = [
        told(tmp_path, 4, **given),
        told(tmp_path, tagger="en_core_web_sm 3.8.0", **given),
        told(tmp_path, **{**given, "keep": 0.5}),
        told(tmp_path, **given, precision="bfloat16"),
        told(tmp_path, **given, image_aspect="pad"),
        told(tmp_path, **given, rng_seed=1),
    ]
    for path in files.values():
        path.write_text("two")
        changed.append(told(tmp_path, **given))
        path.write_text("one")
    assert len({first, *changed}) == 1 + len(changed)
    assert told(tmp_path, **given) == first


def test_a_run_without_a_method_loads_no_tagger(tmp_path: Path) -> None:
    made = json.loads(told(tmp_path, method="none"))
    assert made["tagger"] is None and made["own_methods"] == {} and made["clip"] is None
