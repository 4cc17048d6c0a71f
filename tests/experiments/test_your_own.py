"""docs/how_to/your_own.md runs as printed; docs/reference/methods.md is what the methods say."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from resprune_jax import select
from resprune_jax.choices import METHODS
from resprune_jax.experiments import cli
from resprune_jax.experiments.methods import BACKBONES
from resprune_jax.experiments.pocket.scenes.frozen import frozen_set
from resprune_jax.experiments.pocket.scenes.scene import render
from resprune_jax.methods import PromptContext, VisualTokens

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    """The programs of the document by the names in their first lines."""
    text = (ROOT / "docs" / "how_to" / "your_own.md").read_text("utf-8")
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 5
    assert all(len(code.strip().splitlines()) < 40 for _, code in blocks)
    return dict(blocks)


def names(code: str) -> dict[str, Any]:
    known: dict[str, Any] = {"__name__": "document"}
    exec(compile(code, "document", "exec"), known)
    return known


def scene() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    coords = np.stack(np.divmod(np.arange(48), 6), axis=-1).astype(np.float32)
    return rng.normal(size=(2, 48, 16)).astype(np.float32), np.broadcast_to(coords, (2, 48, 2))


def test_the_method_answers_on_the_command_line(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("quiet.py").write_text(files["quiet.py"])
    Image.fromarray(render(frozen_set("cpu", 1)[0][0])).save("scene.png")
    words = [
        "answer",
        "--model",
        "pocket",
        "--image",
        "scene.png",
        "--prompt",
        "What shape is red?",
    ]
    words += ["--keep", "32", "--method", "quiet.py:Quiet", "--max-new-tokens", "3", "--json"]
    assert cli.main([*words, "--method-settings", "power=0.5"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["kept"] == 32 and made["answer"]
    assert made["settings"]["method"] == "quiet.py:Quiet"
    assert made["settings"]["method_settings"] == ["power=0.5"]
    for odd, said in (("power", "combine=add"), ("pover=2", "no setting pover")):
        assert cli.main([*words, "--method-settings", odd]) == 2
        assert said in capsys.readouterr().err
    assert cli.main([*words, "--tolerance", "0.1"]) == 2
    assert "does not measure" in capsys.readouterr().err


def test_the_method_that_merges(files: dict[str, str]) -> None:
    method = names(files["gather.py"])["Gather"]()
    tokens, _ = scene()
    valid = np.ones((2, 48), bool)
    valid[:, 40:] = False
    visual = VisualTokens(jnp.asarray(tokens), jnp.asarray(valid))
    nothing = PromptContext(jnp.zeros((2, 1, 16)), jnp.zeros((2, 1), bool))
    made = jax.jit(lambda v, p: method.select(v, p, 8, limit=jnp.asarray([8, 3])))(visual, nothing)
    assert made.count.tolist() == [8, 3]
    for row, count in enumerate((8, 3)):
        x = tokens[row, :40] / np.linalg.norm(tokens[row, :40], axis=1, keepdims=True)
        kept = np.asarray(made.indices)[row, :count]
        assert (
            kept.tolist() == np.argsort(-np.linalg.norm(tokens[row, :40], axis=1))[:count].tolist()
        )
        home = (x @ x[kept].T).argmax(axis=1)
        for slot in range(count):
            mean = tokens[row, :40][home == slot].mean(axis=0)
            np.testing.assert_allclose(made.rows[row, slot], mean, rtol=1e-5, atol=1e-5)


def test_the_rule(files: dict[str, str]) -> None:
    rule = names(files["rows.py"])["FreshRows"]
    tokens, coords = scene()
    plain = select(tokens, 12).indices
    same = select(tokens, 12, rule=rule(again=1.0), places=coords).indices
    spread = select(tokens, 12, rule=rule(again=0.01), places=coords).indices
    assert same.tolist() == plain.tolist() != spread.tolist()
    # 8 rows of the grid: none has a third token before each has one.
    for row in np.asarray(spread)[:, :8]:
        assert len(set(coords[0, row, 0])) == 8


def test_the_seed_and_the_relevance(files: dict[str, str]) -> None:
    tokens, coords = scene()
    corner = names(files["corner.py"])["from_the_corner"](tokens, jnp.asarray(coords), 5)
    assert corner.indices[:, 0].tolist() == [0, 0]
    near = names(files["centre.py"])["near_the_centre"](tokens, jnp.asarray(coords), 12, width=1.0)
    middle = np.array([3.5, 2.5])
    kept = np.linalg.norm(coords[0][np.asarray(near.indices)] - middle, axis=-1)
    assert kept.mean() < np.linalg.norm(coords - middle, axis=-1).mean() - 1


def test_the_document_of_methods_is_theirs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["methods", "--markdown"]) == 0
    said = capsys.readouterr().out
    assert said == (ROOT / "docs" / "reference" / "methods.md").read_text("utf-8"), (
        "write it again: resprune methods --markdown > docs/reference/methods.md"
    )
    assert cli.main(["methods", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert [one["name"] for one in every] == list(METHODS)
    of = {one["name"]: one for one in every}
    clip, counted = ["LLaVA-1.5", "LLaVA-NeXT"], [x for x in BACKBONES if "Qwen" not in x]
    assert of["fastervlm"]["runs_on"] == clip and of["visionzip"]["runs_on"] == clip
    received = {n: one["runs_on_with_attention_received"] for n, one in of.items()}
    assert received["fastervlm"] == list(BACKBONES) and received["hired"] is None
    assert received["visionzip"] == [*clip, "llava-interleave"]
    assert of["pdrop"]["runs_on"] == counted and of["pdrop"]["positions"] == "reindex"
    assert of["resprune"]["runs_on"] == of["apet"]["runs_on"] == list(BACKBONES)
    assert (of["apet"]["merges"], of["apet"]["positions"]) == ("embeddings", "model")
    assert (of["sparsevlm"]["merges"], of["visionzip"]["positions"]) == ("states", "reindex")
    assert of["fastv"]["positions"] == "original" and of["agilepruner"]["runs_on"] == clip
    assert cli.main(["methods"]) == 0 and cli.main(["methods", "--name", "scope"]) == 0
    assert "combine=multiply" in capsys.readouterr().out
    assert cli.main(["methods", "--name", "scop"]) == 2
    assert "unknown method" in capsys.readouterr().err
