"""`resprune verify` passes on every family and points planted faults out, each at its own line."""

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from resprune_jax.experiments import cli
from resprune_jax.experiments.verify import command as verify
from resprune_jax.experiments.verify import findings as verify_findings
from resprune_jax.experiments.verify.checks import STEPS, Check, run_checks
from resprune_jax.experiments.verify.ours import Ours
from resprune_jax.experiments.verify.reference import Continued, Reference
from resprune_jax.experiments.verify.theirs import load_processor, make_reference, prompt_text
from resprune_jax.models.families.onevision import packing
from tests.checkpoints.llava import tiny_llava
from tests.checkpoints.llava_next import tiny_next
from tests.checkpoints.onevision import tiny_onevision
from tests.checkpoints.qwen_vl import tiny_qwen
from tests.checkpoints.siglip import tiny_interleave


def tiny_stretched(directory: Path) -> Path:
    """Qwen2-VL with RoPE of type yarn, its original context far shorter than the prompt."""
    folder = tiny_qwen(directory, variant="qwen2")
    config = json.loads((folder / "config.json").read_text())
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 12}
    config["text_config"]["rope_parameters"].update(yarn)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


FAMILIES = {
    "llava": tiny_llava,
    "next": tiny_next,
    "qwen": tiny_qwen,
    "qwen2": tiny_stretched,
    "interleave": tiny_interleave,
    "onevision": tiny_onevision,
}
OFTEN = ("llava",)
"""Those that `make test` runs; the others are in make test-deep."""
NO_CLASS_TOKEN = ("qwen", "qwen2", "interleave", "onevision")
QUESTION = "What colour is the dog near the window?"


@lru_cache(maxsize=1)
def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3))
    return Image.fromarray(noise.astype(np.uint8))


@lru_cache(maxsize=len(FAMILIES))
def folder(family: str) -> Path:
    return FAMILIES[family](Path(mkdtemp()) / family)


@lru_cache(maxsize=len(FAMILIES))
def reference(family: str) -> Reference:
    return make_reference(folder(family), picture(), QUESTION, dtype="float32", device="cpu")


def checks(there: Reference, here: Path, until: str | None = None) -> list[Check]:
    made = list(run_checks(Ours(there, here, picture(), QUESTION, "float32"), until=until))
    for line in made:
        print(f"{line.name:22}{line.state:8}{line.found}")
    return made


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.deep] * (name not in OFTEN)) for name in FAMILIES],
)
def test_every_check_passes(family: str) -> None:
    made = checks(reference(family), folder(family))
    assert [line.name for line in made if line.state != "passed"] == []
    wanted = [name for name in STEPS if family not in NO_CLASS_TOKEN or name != "CLS attention"]
    assert [line.name for line in made] == wanted
    there = reference(family)
    assert len(there.full.tokens) == 16 and len(there.picks) >= (3 if family == "interleave" else 5)
    assert (family in ("next", "onevision")) == there.newline.any()
    assert family.startswith("qwen") == bool(there.grid)


SETTINGS = {
    "repetition_penalty": 0.6,
    "no_repeat_ngram_size": 3,
    "min_new_tokens": 5,
    "suppress_tokens": [9, 17],
    "do_sample": True,
    "top_k": 4,
}


@pytest.mark.parametrize("obeyed", [pytest.param(True, marks=pytest.mark.deep), False])
def test_generation_config_is_in_place_on_both_sides(obeyed: bool, tmp_path: Path) -> None:
    """A file that ours would not obey shows at the tokens, full and pruned."""
    own = edited("qwen", tmp_path / "own", "generation_config.json", lambda x: x.update(SETTINGS))
    there = make_reference(own, picture(), QUESTION, dtype="float32", device="cpu")
    made = {line.name: line for line in checks(there, own if obeyed else folder("qwen"))}
    failed = [name for name, line in made.items() if line.state != "passed"]
    assert failed == ([] if obeyed else ["greedy tokens, full", "greedy tokens, pruned"])
    assert there.full.tokens.tolist() != reference("qwen").full.tokens.tolist()


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    # The command sets the cache where the environment does not: this process shall keep its own.
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "1.0")
    picture().save(tmp_path / "noise.png")
    own = ["--image", str(tmp_path / "noise.png"), "--question", QUESTION]
    return ["verify", "--model", str(folder("llava")), *own]


OWN_TEMPLATES = [
    "{% for m in messages %}{{ m.role }}> {% for c in m.content %}{% if c.type == 'image' %}<image>"
    "{% else %} {{ c.text }}{% endif %}{% endfor %}{% endfor %}\nanswer>",
    "<s>[INST] {% for c in messages[0].content %}{{ '<image>' if c.type == 'image' else c.text }}"
    "{% endfor %} [/INST]",
    "{{ '<image>' }}{% set q = messages[-1].content[-1] %} Q: {{ q.text if q.text else q }} A:",
]


@pytest.mark.parametrize("template", OWN_TEMPLATES)
def test_a_template_that_was_given_is_used_on_both_sides(template: str) -> None:
    own = folder("llava")
    processor, _ = load_processor(own)
    there, templated = prompt_text(processor, QUESTION, template)
    plain, _ = prompt_text(processor, QUESTION)
    here = Ours(SimpleNamespace(text=there), own, picture(), QUESTION, "float32", template)  # type: ignore[arg-type]
    assert templated and there == here.encoder.encode(QUESTION).text != plain


def test_the_command_prints_a_report(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "mine.jinja"
    assert cli.main([*words, "--chat-template", str(given)]) == 2
    assert "mine.jinja" in capsys.readouterr().err
    given.write_text(OWN_TEMPLATES[0])
    assert cli.main([*words, "--chat-template", str(given)]) == 0
    report = capsys.readouterr().out
    assert "template  mine.jinja" in report
    assert report.rstrip().endswith(f"{len(STEPS)} passed")
    for name in ("transformers==5", "torch==2", "jax==0", "float32", "LLaVA-1.5", "noise.png"):
        assert name in report
    assert str(folder("llava").parent) not in report, "a path of the user's machine"
    assert all(len(line) <= verify.WIDTH for line in report.splitlines())


@pytest.mark.deep
def test_bfloat16_passes_at_its_own_bound() -> None:
    there = make_reference(folder("qwen"), picture(), QUESTION, dtype="bfloat16", device="cpu")
    ours = Ours(there, folder("qwen"), picture(), QUESTION, "bfloat16")
    made = list(run_checks(ours, until="logits, full"))
    assert {line.state for line in made} == {"passed"}
    errors = [line.found for line in made if "rms d" in line.found]
    assert len(errors) == 4, errors
    print("\n".join(errors))


def edited(family: str, target: Path, name: str, change: Callable[[Any], None]) -> Path:
    """A copy of a family's checkpoint, one of its JSON files changed."""
    shutil.copytree(folder(family), target)
    content = json.loads((target / name).read_text())
    change(content)
    (target / name).write_text(json.dumps(content))
    return target


def setting(path: str, value: Any) -> Callable[[Any], None]:
    """Sets an entry of nested objects: "text_config.rms_norm_eps"."""

    def change(content: Any) -> None:
        *front, last = path.split(".")
        for part in front:
            content = content[part]
        assert content[last] != value
        content[last] = value

    return change


def swap(target: Path, family: str, first: str, second: str) -> Path:
    """A copy in which two layers have each other's weights."""
    shutil.copytree(folder(family), target)
    tensors = load_file(target / "model.safetensors")
    names = [key for key in tensors if f".{first}." in key]
    assert names
    for key in names:
        other = key.replace(f".{first}.", f".{second}.")
        tensors[key], tensors[other] = tensors[other], tensors[key]
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def plant(fault: str, family: str, target: Path) -> Path:
    """A copy of a family's checkpoint with one fault."""
    match fault:
        case "epsilon":
            return edited(family, target, "config.json", setting("text_config.rms_norm_eps", 1e-7))
        case "vision epsilon":
            own = "vision_config.layer_norm_eps"
            epsilon = 1e-5 if family in ("interleave", "onevision") else 1e-6
            return edited(family, target, "config.json", setting(own, epsilon))
        case "theta":
            theta = "text_config.rope_parameters.rope_theta"
            base = 1.01e6 if family == "qwen" else 10100.0
            return edited(family, target, "config.json", setting(theta, base))
        case "stretch":
            own = "text_config.rope_parameters.factor"
            return edited(family, target, "config.json", setting(own, 4.5))
        case "gelu":
            own = "projector_hidden_act"
            return edited(family, target, "config.json", setting(own, "gelu_pytorch_tanh"))
        case "vision gelu":
            own = "vision_config.hidden_act"
            return edited(family, target, "config.json", setting(own, "gelu"))
        case "template":
            shutil.copytree(folder(family), target)
            path = target / "chat_template.jinja"
            text = path.read_text()
            old, new = ("assistant", "Assistant") if family == "qwen" else ("upper", "lower")
            assert old in text
            path.write_text(text.replace(old, new))
            return target
        case "swapped layer":
            return swap(target, family, "layers.0.mlp", "layers.1.mlp")
        case "swapped vision layer":
            names = ("layers.1", "layers.2")
            if family.startswith("qwen"):
                names = ("blocks.0", "blocks.1")
            return swap(target, family, f"{names[0]}.mlp", f"{names[1]}.mlp")
    assert fault == "mean"

    def shift(content: Any) -> None:
        content.get("image_processor", content)["image_mean"][1] += 0.01

    name = "preprocessor_config.json" if family == "qwen" else "processor_config.json"
    return edited(family, target, name, shift)


FAULTS = [
    # (fault, families, the line that must fail, what its explanation must name)
    ("swapped layer", "llava next qwen", "weights", "layers.0, "),
    ("swapped vision layer", "llava next", "weights", "1, "),
    ("swapped vision layer", "qwen qwen2", "weights", "blocks."),
    ("template", "llava next qwen", "chat template", "chat template"),
    ("mean", "llava next qwen", "image pixels", "image_mean"),
    ("vision epsilon", "llava next interleave", "vision features", "layer_norm_eps"),
    ("vision gelu", "llava next onevision", "vision features", "hidden_act"),
    ("gelu", "llava next", "projector output", "projector_hidden_act"),
    ("epsilon", "llava next qwen", "logits, full", "from the first token on"),
    ("theta", "llava next qwen", "logits, full", "rope_theta"),
    ("stretch", "qwen2", "logits, full", "rope scaling"),
]


@pytest.mark.deep
@pytest.mark.parametrize(
    ("fault", "family", "line", "named"),
    [(fault, own, line, named) for fault, all_, line, named in FAULTS for own in all_.split()],
)
def test_a_planted_fault_fails_at_its_own_line(
    fault: str, family: str, line: str, named: str, tmp_path: Path
) -> None:
    here = plant(fault, family, tmp_path / "faulty")
    *before, last = checks(reference(family), here, until=line)
    assert last.name == line and last.state == "FAILED"
    assert named in last.found + last.means, (last.found, last.means)
    assert before and all(each.state == "passed" for each in before)


@pytest.mark.parametrize("fault", ["nearest", "newline in front"])
def test_onevisions_packing(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packing.picture.cache_clear()
    if fault == "nearest":
        own = packing._axis

        def nearest(n: int, m: int) -> Any:
            made = own(n, m)
            return dataclasses.replace(made, share=np.round(made.share))

        monkeypatch.setattr(packing, "_axis", nearest)
    else:
        join = packing._behind_each_row

        def in_front(plane: Any, line: Any, rows: int) -> Any:
            made = join(plane, line, rows)
            at = np.arange(len(made.index)).reshape(rows, -1)
            order = np.roll(at, 1, axis=1).ravel()
            moved = {name: getattr(made, name)[order] for name in ("index", "weight", "kind")}
            return dataclasses.replace(made, **moved)

        monkeypatch.setattr(packing, "_behind_each_row", in_front)
    *before, last = checks(reference("onevision"), folder("onevision"), until="visual tokens")
    packing.picture.cache_clear()
    assert last.state == "FAILED" and all(each.state == "passed" for each in before)


def test_a_gelu_in_qwens_vision_tower(tmp_path: Path) -> None:
    """Fixed in the port, so the fault is planted in what torch reads."""
    other = edited("qwen", tmp_path / "faulty", "config.json",
                   setting("vision_config.hidden_act", "gelu"))  # fmt: skip
    there = make_reference(other, picture(), QUESTION, dtype="float32", device="cpu")
    *before, last = checks(there, folder("qwen"), until="vision features")
    assert last.state == "FAILED" and all(each.state == "passed" for each in before)


def test_faults_of_the_tokenizer_and_of_bos(tmp_path: Path) -> None:
    def no_bos(content: Any) -> None:
        content["post_processor"] = None

    here = edited("llava", tmp_path / "bos", "tokenizer.json", no_bos)
    *before, last = checks(reference("llava"), here, until="BOS")
    assert last.state == "FAILED" and last.found == "0 here, 1 there"
    assert all(each.state == "passed" for each in before)

    def no_merges(content: Any) -> None:
        content["model"]["merges"] = content["model"]["merges"][:40]

    here = edited("qwen", tmp_path / "merges", "tokenizer.json", no_merges)
    *before, last = checks(reference("qwen"), here, until="tokenizer")
    assert last.state == "FAILED" and "What is on the table" in last.found
    assert all(each.state == "passed" for each in before)


def test_weights_that_cannot_be_read_leave_the_other_checks(tmp_path: Path) -> None:
    here = shutil.copytree(folder("llava"), tmp_path / "broken")
    tensors = load_file(here / "model.safetensors")
    del tensors["language_model.model.norm.weight"]
    save_file(tensors, here / "model.safetensors", metadata={"format": "pt"})
    states = {line.name: line for line in checks(reference("llava"), here)}
    assert states["keys and shapes"].state == "FAILED"
    assert "language_model.norm.weight" in states["keys and shapes"].found
    ran = [name for name, line in states.items() if line.state == "passed"]
    assert ran == list(verify_findings.WITHOUT_WEIGHTS)
    assert {line.state for name, line in states.items() if name not in ran} == {"FAILED", "not run"}


def test_greedy_tokens_may_part_at_a_tie_alone() -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[:, 1], logits[1, 2] = 1, 1 - 1e-5
    want = Continued(np.array([1, 1, 1]), logits)
    for tokens, passes in (([1, 1, 1], True), ([1, 2, 3], True), ([1, 3, 1], False), ([1], False)):
        found = verify_findings.continued(np.array(tokens), want, "float32")
        assert found.passed == passes, (tokens, found)


def test_a_pick_that_breaks_the_rule_is_named() -> None:
    there = reference("llava")
    assert verify_findings.picks(there.picks, there).passed
    wrong = there.picks.copy()
    wrong[2] = next(i for i in range(16) if i not in there.picks)
    found = verify_findings.picks(wrong, there)
    assert not found.passed and "step 2" in found.text


def test_numbers_that_are_not_finite_fail() -> None:
    there = reference("llava")
    spoilt = there.logits.copy()
    spoilt[3] = np.nan
    for dtype in verify_findings.BOUNDS:
        found = verify_findings.logits(spoilt, there.logits, there.rows, dtype, pruned=False)
        assert not found.passed and "the first is 3" in found.text


@pytest.mark.deep
def test_a_failed_check_is_status_1(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, options = cli.parse(words)
    other = plant("template", "llava", tmp_path / "faulty")
    assert verify.run(options, reference_folder=other) == 1
    report = capsys.readouterr().out.splitlines()
    (line,) = [each for each in report if each.startswith("chat template")]
    assert "FAILED" in line and any("'user: " in each for each in report)
    assert any("likely: another chat template" in each for each in report)
    assert "FAILED" in report[-1]


def test_wrong_calls_are_status_2(
    words: list[str], absent: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*more: str) -> str:
        assert cli.main([*words, *more]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "--torch-device nowhere" in said("--torch-device", "nowhere")
    words[words.index("--model") + 1] = "no/such/folder"
    assert "no such folder" in said()
    words[words.index("--question") + 1] = " "
    assert "--question is empty" in said()
    absent("torch")
    assert "torch, which is not installed" in said()


def test_memory_that_may_not_suffice_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(verify, "free_memory", lambda: 300_000)
    with caplog.at_level(logging.WARNING, "resprune_jax"):
        verify.say_memory(folder("llava"), "float32")
    assert "--dtype bfloat16" in caplog.text
