"""A CLIP beside a LLaVA: what is refused, what methods are given, and that nothing recompiles."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.answer.options import AnswerOptions, settings_of
from resprune_jax.experiments.compare import CompareOptions, chosen, compare
from resprune_jax.methods import Method
from resprune_jax.methods.decoder.base import SingleDrop
from resprune_jax.models import load_model
from tests.checkpoints.llava_next import tiny_next
from tests.checkpoints.qwen_vl import tiny_qwen
from tests.checkpoints.siglip import tiny_interleave
from tests.compiles import backend_compiles

TAIL = "\nAnswer the question using a single word or phrase."
LONG = "Is the dog near the old bicycle? " * 30


@pytest.mark.parametrize("method", ["trim", "cdpruner"])
def test_without_a_clip_the_message_says_how_to_give_one(
    lvlm: Any, method: str, photographs: Any
) -> None:
    with pytest.raises(CallError, match=r"clip_patches, clip_text, .*load_model.*clip=.*--clip"):
        lvlm.select(photographs[0], "What is it?", method=method, keep=4)
    with pytest.raises(CallError, match=r"reads clip_patches, .*load_model.*clip="):
        lvlm.encode(photographs[0], needs=["clip_patches"])


@pytest.mark.parametrize("make", [tiny_qwen, tiny_interleave])
def test_a_tower_that_is_not_clips(make: Any, tmp_path: Path, clip_checkpoint: Path) -> None:
    folder = make(tmp_path / "model")
    with pytest.raises(CallError, match="tower is not CLIP's: leave it out"):
        load_model(folder, clip=clip_checkpoint)
    own = load_model(folder, dtype="float32")
    for method in ("trim", "cdpruner"):
        with pytest.raises(CallError, match=r"reads clip_patches, clip_text, .*it gives coords"):
            own.select(np.zeros((40, 40, 3), np.uint8), "What is it?", method=method, keep=4)


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    change(config)
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c["vision_config"].update(hidden_size=64), "width 64, .*gives 48"),
        (lambda c: c["text_config"].update(vocab_size=100), "100 embeddings"),
        (lambda c: c["text_config"].update(eos_token_id=5), "eos_token_id 5"),
        (lambda c: c["text_config"].update(hidden_act="relu"), "hidden_act 'relu'"),
        (lambda c: c["text_config"].update(num_attention_heads=5), "not a multiple of the 5"),
        (lambda c: c.update(model_type="siglip"), "'siglip', .*supported: clip"),
        (lambda c: c.update(quantization_config={"quant_method": "awq"}), "quantised with AWQ"),
    ],
)
def test_a_clip_that_cannot_be(
    change: Any, said: str, checkpoint: Path, clip_checkpoint: Path, tmp_path: Path
) -> None:
    folder = changed(clip_checkpoint, tmp_path / "clip", change)
    with pytest.raises(CallError, match=said):
        load_model(checkpoint, clip=folder)


@pytest.mark.parametrize(
    ("given", "said"), [(3, "folder or a Hub id"), (" ", "Hub id"), ("./nowhere", "no such folder")]
)
def test_what_is_no_checkpoint(given: Any, said: str, checkpoint: Path) -> None:
    with pytest.raises(CallError, match=said):
        load_model(checkpoint, clip=given)
    with pytest.raises(CallError, match="supported: clip"):
        load_model(checkpoint, clip=checkpoint)


def test_weights_are_read_strictly(checkpoint: Path, clip_checkpoint: Path, tmp_path: Path) -> None:
    """All that is wrong is one error; of the vision tower only what is known may be there."""
    shutil.copytree(clip_checkpoint, tmp_path / "clip")
    file = tmp_path / "clip" / "model.safetensors"
    tensors = load_file(file)
    del tensors["text_projection.weight"], tensors["text_model.encoder.layers.1.mlp.fc2.bias"]
    tensors["visual_projection.weight"] = tensors["visual_projection.weight"][:, :-1].copy()
    tensors["vision_model.encoder.layers.7.mlp.fc1.bias"] = np.zeros(3, np.float32)
    tensors["vision_model.encoder.layers.0.mlp.gate.bias"] = np.zeros(3, np.float32)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(RunError) as error:
        load_model(checkpoint, clip=tmp_path / "clip")
    for said in (
        "2 missing: ", "text_projection.weight", "layers.1.mlp.fc2.bias", "2 unknown: ",
        "layers.7.mlp.fc1.bias", "layers.0.mlp.gate.bias", "misshapen: visual_projection.weight",
    ):  # fmt: skip
        assert said in str(error.value)
    # Old files hold buffers; without the vision tower's blocks there is enough.
    tensors = {
        key: value
        for key, value in load_file(clip_checkpoint / "model.safetensors").items()
        if not key.startswith("vision_model.enc")
    }
    tensors["text_model.embeddings.position_ids"] = np.arange(77, dtype=np.float32)[None]
    save_file(tensors, file, metadata={"format": "pt"})
    assert load_model(checkpoint, clip=str(tmp_path / "clip")).clip is not None


@pytest.mark.parametrize(
    ("question", "read"),
    [
        ("How many?" + TAIL, "How many?"),
        ("How many?" + TAIL + " ", "How many?" + TAIL + " "),
        ("How many? Answer the question using a single word or phrase.", None),
        (TAIL + " Why?", None),
    ],
)
def test_only_the_exact_line_is_removed(with_clip: Any, question: str, read: str | None) -> None:
    prompt = with_clip.encoder.encode(question)
    made = with_clip.clip.read([prompt], "question", ["<image>"], size=1)
    ids = with_clip.clip.tokenizer(question if read is None else read)["input_ids"]
    assert made.ids[0, 0][made.real[0, 0]].tolist() == ids
    whole = with_clip.clip.read([prompt], "prompt", ["<image>"], size=2)
    text = prompt.text.replace("<image>", " ")
    assert whole.ids.shape == (2, 1, 77) and "<image>" in prompt.text
    assert whole.ids[1, 0][whole.real[1, 0]].tolist() == with_clip.clip.tokenizer(text)["input_ids"]


def test_long_texts(with_clip: Any) -> None:
    prompts = [with_clip.encoder.encode(text) for text in ("Why?", LONG, LONG[:600])]
    end = with_clip.clip.tokenizer.eos_token_id
    cut = with_clip.clip.read(prompts, "prompt", [], size=4)
    assert cut.ids.shape == (4, 1, 77) and cut.ids[1, 0, -1] == end and cut.real[1].all()
    parts = with_clip.clip.read(prompts, "question", [], size=4)
    counts = [-(-len(with_clip.clip.tokenizer(p.question)["input_ids"]) // 77) for p in prompts]
    assert parts.valid.sum(axis=1).tolist() == [*counts, 1] and counts[1] > counts[2] > 1
    assert parts.ids.shape[1] in (4, 8) and not parts.ids[~parts.real].any()
    assert (parts.ids == end).sum(axis=(1, 2)).tolist() == [1] * 4


@pytest.mark.deep
def test_answers_batches_and_compiles(with_clip: Any, photographs: Any) -> None:
    images, questions = list(photographs[:2]), ["What colour is the dog?", "Is it red?" + TAIL]
    alone = {}
    for method in ("trim", "cdpruner"):
        ahead = with_clip.warm_up(
            ((80, 60),), method=method, keep=4, batch_sizes=(2,), max_new_tokens=4
        )
        assert ahead == 1
        with backend_compiles() as compiles:
            made = with_clip.generate(images, questions, method=method, keep=4, max_new_tokens=4)
        assert not compiles
        beside = int(method == "trim")
        assert made.kept == [4 + beside] * 2 and made.errors == [None, None]
        assert [cost.kept for cost in made.costs] == made.kept
        turned = with_clip.select(images[::-1], questions[::-1], method=method, keep=[7, 4])
        alone[method] = np.asarray(turned.selections.indices)[1]
        own = np.asarray(made.selections.indices)[0]
        assert own[own < 16].tolist() == alone[method][alone[method] < 16].tolist()
        assert (turned.relevance is None) == (method == "trim")
    # Encoded once for both; without what they read it is said.
    seen = with_clip.encode(images, needs=["features", "clip_patches"])
    made = with_clip.select(seen, [[questions[0]], [questions[1]]], method="trim", keep=4)
    assert np.asarray(made.selections.indices)[0, :4].tolist() == alone["trim"][:4].tolist()
    with pytest.raises(CallError, match="encoded without"):
        with_clip.select(with_clip.encode(images), questions, method="cdpruner", keep=4)
    # Beside a prompt without a picture, and several pictures with a budget each.
    mixed = with_clip.select([images[0], None], questions, method="trim", keep=4)
    assert mixed.kept == [5, 0]
    both = [[images[0], images[1]]]
    each = with_clip.select(both, LONG[:200], method="trim", keep=4, budget="per_image")
    assert each.kept == [10]


def test_a_text_changes_the_choice(with_clip: Any, photographs: Any) -> None:
    """Of CDPruner, and back again; padding of the texts has no effect."""
    image = photographs[0]
    made = [
        with_clip.select([image] * 2, asked, method="cdpruner", keep=4)
        for asked in (["Why?", LONG], ["The woman holds an umbrella", "Why?"])
    ]
    np.testing.assert_allclose(made[0].relevance[0], made[1].relevance[1], atol=1e-6)
    assert made[0].mask[0].tolist() == made[1].mask[1].tolist()
    assert np.abs(made[1].relevance[0] - made[1].relevance[1]).max() > 0.01
    assert np.abs(made[0].relevance[0] - made[0].relevance[1]).max() > 0.01


@pytest.mark.deep
def test_newlines_take_no_part(clip_checkpoint: Path, photographs: Any, tmp_path: Path) -> None:
    lvlm = load_model(tiny_next(tmp_path / "next"), dtype="float32", clip=clip_checkpoint)
    seen = lvlm.encode(list(photographs[:2]), needs=["features", "clip_patches"])
    newline = np.asarray(seen.kind == 1)
    assert newline.any() and not np.asarray(seen.clip_patches)[newline].any()
    assert np.asarray(seen.clip_patches)[np.asarray(seen.valid) & ~newline].any(axis=-1).all()
    for method in ("trim", "cdpruner"):
        made = lvlm.select(seen, ["What is it?", "Why?"], method=method, keep=[6, 0.25])
        total = made.visual_tokens[1]
        beside = int(method == "trim")
        assert made.kept == [6 + beside, round(0.25 * total) + beside]
        named = np.asarray(made.selections.indices)
        for row, indices in enumerate(named):
            assert not newline[row][indices[indices < newline.shape[1]]].any()
    always = lvlm.select(seen, ["What is it?"] * 2, method="trim", keep=6, newline="always")
    assert always.kept == [7 + n for n in newline.sum(axis=1).tolist()]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inside(SingleDrop):
    """Reads what is not made inside the decoder."""

    needs = frozenset({"clip_text"})
    clip_text = "question"

    def scores(self, image: Any, prompt: Any) -> jax.Array:
        return image.embeddings[:, 0]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Nearest(Method):
    """A method of one's own: the patches nearest to the question."""

    needs = frozenset({"clip_patches", "clip_text"})
    clip_text = "question"

    def scores(self, image: Any, prompt: Any) -> jax.Array:
        return image.clip_patches @ prompt.clip_text[0]


def test_methods_of_ones_own(with_clip: Any, photographs: Any) -> None:
    with pytest.raises(CallError, match="Inside reads clip_text, which is not made"):
        with_clip.select(photographs[0], "Why?", method=Inside(), keep=4)
    made = with_clip.select(photographs[0], "Why?", method=Nearest(), keep=4)
    seen = with_clip.encode(photographs[0], needs=["clip_patches"])
    read = with_clip.clip.read([with_clip.encoder.encode("Why?")], "question", [], size=1)
    text = np.asarray(with_clip.clip.texts(read)[0])[0, 0]
    best = np.argsort(-(np.asarray(seen.clip_patches)[0] @ text))[:4]
    assert np.asarray(made.selections.indices)[0, :4].tolist() == best.tolist()


@pytest.mark.deep
def test_commands(with_clip: Any, lvlm: Any, photographs: Any, tmp_path: Path) -> None:
    """What compare shows with and without one; a result file knows which it was."""
    photographs[0].save(tmp_path / "a.png")
    options = CompareOptions(
        model="m", image=tmp_path / "a.png", prompt="Why?", keep="4", repeats=1, max_new_tokens=2,
        method=("trim", "visionzip"),
    )  # fmt: skip
    rows = compare(with_clip, options, chosen(options), 4)
    assert {row["method"]: row["kept"] for row in rows} == {
        "none": 16, "trim": 5, "visionzip": 4
    }  # fmt: skip
    rows = compare(lvlm, options, {"trim": chosen(options)["trim"]}, 4)
    assert "Trim reads clip_patches, clip_text" in rows[-1]["error"]
    assert "give the CLIP" in rows[-1]["error"] and "--clip" in rows[-1]["error"]
    given = AnswerOptions(model="m", prompt="Why?", clip="org/clip")
    assert settings_of(given)["clip"] == "org/clip"
    assert "clip" not in settings_of(AnswerOptions(model="m", prompt="Why?"))
