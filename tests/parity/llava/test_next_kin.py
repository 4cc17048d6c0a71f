"""LLaVA-NeXT's kin: Yi's rotary base (v1.6-34b), a chat template that begins with the BOS
(llama3-llava-next-8b); grouped heads in both."""

import shutil
from pathlib import Path

from resprune_jax.models import load_model
from tests.parity.llava.next_pairs import SIZES, pair
from tests.parity.llava.test_next_answers import lvlm, pictures, reference, references
from tests.parity.whole_path import QUESTIONS, check_greedy, check_logits
from tests.prompt_data import lexicon

ROWS = [[size] for size in SIZES[:3]]


def test_a_ragged_batch_with_yi_s_base() -> None:
    model = lvlm("yi")
    assert model.config.text.rope_theta == 5e6 and model.config.text.num_kv_heads == 2
    rows = references("yi", ROWS, QUESTIONS[:3])
    check_logits(model, pictures(ROWS), QUESTIONS[:3], rows)
    assert check_greedy(model, pictures(ROWS), QUESTIONS[:3], rows) >= 64


def test_a_template_that_begins_with_the_bos_gives_one(tmp_path: Path) -> None:
    folder = shutil.copytree(pair("yi").directory, tmp_path / "llama3")
    template = folder / "chat_template.jinja"
    template.write_text("{{ bos_token }}" + template.read_text())
    model = load_model(folder, dtype="float32")
    model._extractor = lexicon()
    texts = [model.encoder.encode(question).text for question in QUESTIONS[:3]]
    assert all(text.startswith("<s>") for text in texts)
    # transformers' processor puts a BOS in front by itself.
    plain = [text.removeprefix("<s>") for text in texts]
    rows = [reference(pair("yi"), row, text) for row, text in zip(ROWS, plain, strict=True)]
    assert all((row.ids == 1).sum() == 1 for row in rows)
    check_logits(model, pictures(ROWS), QUESTIONS[:3], rows)
    assert check_greedy(model, pictures(ROWS), QUESTIONS[:3], rows) >= 64
