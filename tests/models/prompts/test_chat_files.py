"""What a checkpoint's files say: template, end of an answer, and what is broken about them."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.prompts.chat import PromptEncoder
from tests.models.prompts.chats import (
    TEMPLATES,
    TOKENIZERS,
    byte_tokenizer,
    config,
    conversation,
    processor,
    save,
)


def test_where_a_template_comes_from(tmp_path: Path) -> None:
    """Every place that transformers reads, in its order of precedence."""
    tokenizer = TOKENIZERS["byte"]
    folder = save(tmp_path, tokenizer, None)

    def write(name: str, **entries: Any) -> None:
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(content | entries))

    def template(mark: str) -> str:
        return TEMPLATES["parts"].replace("ASSISTANT:", mark)

    def check(mark: str) -> None:
        text = PromptEncoder.from_checkpoint(folder, config(tokenizer)).encode("Hm?").text
        assert text == f"USER: <image>\nHm? {mark}"

    check("ASSISTANT:")  # Vicuna's
    write("tokenizer_config.json", chat_template=template("one"))
    check("one")
    several = [{"name": "rag", "template": "no"}, {"name": "default", "template": template("two")}]
    write("tokenizer_config.json", chat_template=several)
    check("two")
    (folder / "chat_template.jinja").write_text(template("three"))
    check("three")
    write("chat_template.json", chat_template=template("four"))
    check("four")
    write("processor_config.json", chat_template=template("five"))
    check("five")
    write("processor_config.json", chat_template={"rag": "no"})
    with pytest.raises(CallError, match="templates rag, none of them named default"):
        check("six")


def test_vicuna_without_a_template(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said once, and equal to the published template's text."""
    tokenizer = TOKENIZERS["llama"]
    ours = PromptEncoder.from_checkpoint(save(tmp_path, tokenizer, None), config(tokenizer))
    with caplog.at_level(logging.WARNING, logger="resprune_jax"):
        got = [
            ours.encode(question, ("image",) * n) for question in ("What?", "Why?") for n in (1, 2)
        ]
    assert [prompt.text for prompt in got] == [
        "USER: <image>\nWhat? ASSISTANT:",
        "USER: <image>\n<image>\nWhat? ASSISTANT:",
        "USER: <image>\nWhy? ASSISTANT:",
        "USER: <image>\n<image>\nWhy? ASSISTANT:",
    ]
    assert got[1].question_start == len("USER: <image>\n<image>\n")
    said = [r for r in caplog.records if "Vicuna's is used" in r.message]
    assert len(said) == 1
    theirs = processor(tokenizer, TEMPLATES["parts"])
    chat = conversation("What?", None, 1, parts=True)
    assert theirs.apply_chat_template(chat, add_generation_prompt=True) == got[0].text


def test_another_model_without_a_template_is_not_vicuna(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["llama"]
    folder = save(tmp_path, tokenizer, None, model_type="mistral")
    ours = PromptEncoder.from_checkpoint(folder, config(tokenizer))
    with pytest.raises(CallError, match=r"there is none.*chat_template=False"):
        ours.encode("What?")
    assert ours.encode("<image> What?", chat_template=False).question == "<image> What?"


def test_folders_that_do_not_work(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte"]
    with pytest.raises(CallError, match="has no tokenizer"):
        PromptEncoder.from_checkpoint(tmp_path, config(tokenizer))
    folder = save(tmp_path, tokenizer, None)
    for wrong in (9999, 300):  # beyond the vocabulary; an ordinary piece of it
        other = replace(config(tokenizer), image_token_id=wrong)
        with pytest.raises(CallError, match=f"no image placeholder with the id {wrong}"):
            PromptEncoder.from_checkpoint(folder, other)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(RunError, match=r"generation_config.json is not readable JSON"):
        PromptEncoder.from_checkpoint(folder, config(tokenizer))
    (folder / "generation_config.json").write_text("[]")
    with pytest.raises(RunError, match="holds no JSON object"):
        PromptEncoder.from_checkpoint(folder, config(tokenizer))
    (folder / "generation_config.json").unlink()
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(RunError, match="not a text in UTF-8"):
        PromptEncoder.from_checkpoint(folder, config(tokenizer))
    (folder / "chat_template.jinja").unlink()
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer in .* cannot be loaded"):
        PromptEncoder.from_checkpoint(folder, config(tokenizer))


def test_where_the_end_of_an_answer_comes_from(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, tokenizer, None, eos_token_id=7)

    def ids() -> list[int]:
        return PromptEncoder.from_checkpoint(folder, config(tokenizer)).eos_ids.tolist()

    def write(found: Any) -> None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": found}))

    assert tokenizer.eos_token_id == 1
    assert ids() == [7, 1]
    for found, wanted in [(5, [5]), ([5, 9, 5], [5, 9]), (None, [7, 1]), (0, [0])]:
        write(found)
        assert ids() == wanted
    for found in (-1, "</s>", [True]):
        write(found)
        with pytest.raises(RunError, match="eos_token_id is"):
            ids()
    (folder / "generation_config.json").unlink()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    assert ids() == [7]


@pytest.mark.parametrize(
    ("rows", "added", "vicuna"),
    [
        (32000, [], True),
        (32064, ["<pad>"], True),
        (32064, ["<|im_start|>", "<|im_end|>"], False),  # a ChatML model with Llama 2's vocabulary
        (64064, [], False),  # Yi
        (128320, ["<|eot_id|>"], False),  # Llama 3
    ],
)
def test_vicuna_is_known_by_its_vocabulary(
    tmp_path: Path, rows: int, added: list[str], vicuna: bool
) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(added)
    folder = save(tmp_path, tokenizer, None)
    text = replace(config(tokenizer).text, vocab_size=rows)
    ours = PromptEncoder.from_checkpoint(folder, replace(config(tokenizer), text=text))
    if vicuna:
        assert ours.encode("What?").text == "USER: <image>\nWhat? ASSISTANT:"
    else:
        with pytest.raises(CallError, match=r"is not Vicuna's kind; .*--chat-template FILE"):
            ours.encode("What?")


def test_a_template_can_be_given(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte"]
    folder = save(tmp_path, tokenizer, TEMPLATES["parts"], model_type="mistral")
    path = tmp_path / "own.jinja"
    path.write_text(TEMPLATES["string"])
    for given in (path, TEMPLATES["string"]):
        ours = PromptEncoder.from_checkpoint(folder, config(tokenizer), chat_template=given)
        assert ours.encode("What?").text == "[user] <image>\nWhat? GO"
    for wrong, said in {
        "own.jinja": r"is no Jinja template: a file is given as Path",
        tmp_path / "none.jinja": "there is no chat template",
        7: "a Jinja text or the Path of a file, got 7",
    }.items():
        with pytest.raises(CallError, match=said):
            PromptEncoder.from_checkpoint(folder, config(tokenizer), chat_template=wrong)  # type: ignore[arg-type]


def test_ids_that_no_embedding_has(tmp_path: Path) -> None:
    """A tokenizer that was extended, and a model that was not."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["zebra"])
    folder = save(tmp_path, tokenizer, TEMPLATES["parts"])
    rows = tokenizer.convert_tokens_to_ids("zebra")

    def load(size: int) -> PromptEncoder:
        text = replace(config(tokenizer).text, vocab_size=size)
        return PromptEncoder.from_checkpoint(folder, replace(config(tokenizer), text=text))

    for size, said in ((rows, rf"gives 'zebra' the id {rows}"), (rows - 1, ""), (40, "the id 40")):
        with pytest.raises(CallError, match=rf"{said}.* but the model has {size} embeddings"):
            load(size)
    assert load(rows + 1).encode("a zebra?").ids.max() < rows + 1


@pytest.mark.parametrize("token_id", [50000, 0, -3, 10**12])
def test_added_tokens_keep_their_ids_or_are_refused(tmp_path: Path, token_id: int) -> None:
    """The library gives a token the next free id where the file's own does not follow."""
    tokenizer = byte_tokenizer()
    folder = save(tmp_path, tokenizer, TEMPLATES["parts"])
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    own = {**content["added_tokens"][-1], "content": "gnu", "special": False}
    for added, fine in ((len(tokenizer), True), (token_id, False)):
        lines = [*content["added_tokens"], {**own, "id": added}]
        path.write_text(json.dumps({**content, "added_tokens": lines}))
        if fine:
            PromptEncoder.from_checkpoint(folder, config(tokenizer))
            continue
        with pytest.raises(RunError, match=r"'gnu' the id|cannot be loaded"):
            PromptEncoder.from_checkpoint(folder, config(tokenizer))


def test_tokenizers_that_nothing_here_can_read(tmp_path: Path) -> None:
    tokenizer = TOKENIZERS["byte"]
    folder = save(tmp_path, tokenizer, TEMPLATES["parts"])
    content = json.loads((folder / "tokenizer.json").read_text())
    unknown = {"SpecialToken": {"id": "<?>", "type_id": 0}}
    content["post_processor"] = {
        "type": "TemplateProcessing", "pair": [], "special_tokens": {},
        "single": [unknown, {"Sequence": {"id": "A", "type_id": 0}}],
    }  # fmt: skip
    for damaged in (
        content,
        {**content, "normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {**content, "model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
        [[[]]] * 9,
    ):
        (folder / "tokenizer.json").write_text(json.dumps(damaged))
        with pytest.raises(RunError, match=r"the tokenizer in .* (cannot be loaded|is broken)"):
            PromptEncoder.from_checkpoint(folder, config(tokenizer))
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"pieces")
    with pytest.raises((CallError, RunError), match=r"sentencepiece|cannot be loaded"):
        PromptEncoder.from_checkpoint(folder, config(tokenizer))
