"""The whole path against transformers: logits, answers, pruned logits, embeddings and selection."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from resprune_jax import select
from resprune_jax.certificate import certify
from resprune_jax.models import LVLM, load_model
from resprune_jax.relevance import cosines, relevance
from tests.checkpoints.llava import DIALECTS, NUM_VISUAL_TOKENS, rename_dialect

QUESTIONS = [
    "What is on the table next to the window?",
    "How many people are in the picture, and what colour is the dog near the old bicycle?",
    "Is there a dog in the image?\nAnswer the question using a single word or phrase.",
]
NEW = 32


def bound(reference: np.ndarray) -> float:
    """The parity gate of this project: 1e-5, or that share of the logits' deviation."""
    return 1e-5 * max(1.0, float(reference.std()))


def processed(checkpoint: Path, images: list[Image.Image], texts: list[str]) -> dict[str, Any]:
    """What transformers' own processor makes of a batch, left padded."""
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(checkpoint)
    return processor(images=images, text=texts, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def texts(lvlm: LVLM) -> list[str]:
    return [lvlm.encoder.encode(question).text for question in QUESTIONS]


@pytest.fixture(scope="module")
def features(checkpoint: Path, reference: Any, photographs: list[Image.Image]) -> torch.Tensor:
    """torch's projected visual tokens of the first three photographs."""
    pixels = processed(checkpoint, photographs[:3], ["<image>"] * 3)["pixel_values"]
    with torch.no_grad():
        hidden = reference.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        return reference.model.multi_modal_projector(hidden[:, 1:])


def test_ids_and_pixels_are_the_processors(checkpoint, lvlm, photographs, texts):
    from resprune_jax.models.prompts.expansion import expand

    want = processed(checkpoint, photographs[:3], texts)
    np.testing.assert_array_equal(
        lvlm.family.processor(photographs[:3]), want["pixel_values"].numpy()
    )
    for row, question in enumerate(QUESTIONS):
        prompt = lvlm.encoder.encode(question)
        ids, _ = expand(prompt.ids, lvlm.config.image_token_id, [NUM_VISUAL_TOKENS])
        real = want["attention_mask"][row].bool()
        np.testing.assert_array_equal(ids, want["input_ids"][row][real].numpy())


def test_full_logits(checkpoint, reference, lvlm, photographs, texts):
    """A ragged batch of three: every valid row of logits."""
    batch = processed(checkpoint, photographs[:3], texts)
    with torch.no_grad():
        want = reference(**batch).logits.numpy()
    got, valid = map(np.asarray, lvlm.logits(photographs[:3], QUESTIONS))
    compared, worst = 0, 0.0
    for row in range(3):
        real = batch["attention_mask"][row].bool().numpy()
        ours = got[row][valid[row]]
        assert ours.shape == want[row][real].shape
        worst = max(worst, np.abs(ours - want[row][real]).max() / bound(want[row][real]))
        compared += ours.size
    print(f"{compared} logits, worst {worst:.2f} of the bound")
    assert worst <= 1


def test_logits_of_a_long_prompt(checkpoint, reference, lvlm, photographs):
    """Beyond 500 tokens, where a wrong rotation that short prompts hide would show."""
    question = " ".join(QUESTIONS[1] for _ in range(18))
    text = lvlm.encoder.encode(question).text
    batch = processed(checkpoint, photographs[:1], [text])
    assert batch["input_ids"].shape[1] > 500
    with torch.no_grad():
        want = reference(**batch).logits[0].numpy()
    got, valid = map(np.asarray, lvlm.logits(photographs[0], question))
    worst = np.abs(got[0][valid[0]] - want).max() / bound(want)
    print(f"{want.shape[0]} positions, worst {worst:.2f} of the bound")
    assert worst <= 1


def generated(reference: Any, batch: dict[str, Any]) -> list[list[int]]:
    """torch's greedy tokens, up to and with the end-of-sequence id."""
    with torch.no_grad():
        rows = reference.generate(**batch, do_sample=False, max_new_tokens=NEW, pad_token_id=3)
    rows = rows[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


def test_greedy_tokens_of_one_prompt_and_of_a_ragged_batch(
    checkpoint, reference, lvlm, photographs, texts
):
    tokens = 0
    for chosen in ([0], [1], [0, 1, 2]):
        batch = processed(checkpoint, [photographs[i] for i in chosen], [texts[i] for i in chosen])
        want = generated(reference, batch)
        got = lvlm.generate(
            [photographs[i] for i in chosen], [QUESTIONS[i] for i in chosen], max_new_tokens=NEW
        )
        assert [row.tolist() for row in got.tokens] == want
        assert got.errors == [None] * len(chosen)
        tokens += sum(map(len, want))
    assert tokens >= 3 * NEW  # random weights rarely say "end"
    print(f"{tokens} greedy tokens equal")


@pytest.mark.parametrize("positions", ["reindex", "original"])
def test_pruned_logits(reference, lvlm, photographs, features, positions):
    """torch is fed the same kept tokens; budgets differ by row, one row keeps everything."""
    keep = [5, 0.222, None]
    picked = lvlm.generate(photographs[:3], QUESTIONS, keep=keep, max_new_tokens=1)
    assert picked.kept == [5, round(0.222 * NUM_VISUAL_TOKENS), NUM_VISUAL_TOKENS]
    got, valid = lvlm.logits(photographs[:3], QUESTIONS, keep=keep, positions=positions)
    worst = 0.0
    for row, question in enumerate(QUESTIONS):
        kept = np.arange(NUM_VISUAL_TOKENS)
        if keep[row] is not None:
            kept = np.sort(picked.selections.indices[row][: picked.kept[row]])
            assert picked.selections.count[row] == picked.kept[row]
        ids = torch.tensor(lvlm.encoder.encode(question).ids)
        at = int((ids == lvlm.config.image_token_id).nonzero()[0, 0])
        table = reference.model.language_model.embed_tokens
        parts = [table(ids[:at]), features[row][kept], table(ids[at + 1 :])]
        places = [
            np.arange(at), at + kept, at + NUM_VISUAL_TOKENS + np.arange(len(ids) - at - 1)
        ]  # fmt: skip
        ids_of = np.concatenate(places) if positions == "original" else None
        with torch.no_grad():
            embeds = torch.cat(parts)[None]
            want = reference(
                inputs_embeds=embeds,
                position_ids=None if ids_of is None else torch.tensor(ids_of)[None],
            ).logits[0]
        ours = np.asarray(got[row])[np.asarray(valid[row])]
        assert ours.shape == want.shape
        worst = max(worst, np.abs(ours - want.numpy()).max() / bound(want.numpy()))
    print(f"{positions}: worst {worst:.2f} of the bound")
    assert worst <= 1


def test_pruned_answers_decode_as_torch_does(reference, lvlm, photographs, features):
    """Greedy tokens after pruning: the cache and the positions of the answer are right too."""
    got = lvlm.generate(photographs[0], QUESTIONS[0], keep=6, max_new_tokens=NEW)
    kept = np.sort(got.selections.indices[0])
    ids = torch.tensor(lvlm.encoder.encode(QUESTIONS[0]).ids)
    at = int((ids == lvlm.config.image_token_id).nonzero()[0, 0])
    table = reference.model.language_model.embed_tokens
    embeds = torch.cat([table(ids[:at]), features[0][kept[:6]], table(ids[at + 1 :])])[None]
    want: list[int] = []
    with torch.no_grad():
        while len(want) < NEW and (not want or want[-1] != 2):
            want.append(int(reference(inputs_embeds=embeds).logits[0, -1].argmax()))
            embeds = torch.cat([embeds, table(torch.tensor([[want[-1]]]))], dim=1)
    assert got.tokens[0].tolist() == want
    print(f"{len(want)} greedy tokens equal at 6 of {NUM_VISUAL_TOKENS} visual tokens")


def test_visual_tokens_and_saliency(checkpoint, reference, lvlm, photographs, features):
    visual = lvlm.encode(photographs[:3])
    np.testing.assert_allclose(visual.embeddings, features, atol=1e-5)
    pixels = processed(checkpoint, photographs[:3], ["<image>"] * 3)["pixel_values"]
    with torch.no_grad():
        attention = reference.model.vision_tower(pixels, output_attentions=True).attentions[-2]
    np.testing.assert_allclose(visual.saliency, attention.mean(dim=1)[:, 0, 1:], atol=1e-6)
    grid = int(NUM_VISUAL_TOKENS**0.5)
    assert np.asarray(visual.coords[0, grid + 2]).tolist() == [1, 2]


def test_selection_on_torchs_own_embeddings(reference, lvlm, features):
    """Cosines agree to 1e-5, and the picks made from torch's arrays carry the certificate."""
    table = reference.model.language_model.embed_tokens.weight.detach()
    decided = steps = 0
    for row, question in enumerate(QUESTIONS):
        prompt = lvlm.encoder.encode(question)
        nouns = lvlm.extractor().extract(prompt.question)
        assert nouns
        ids = [i for n in nouns for i in lvlm.encoder.tokenizer(" " + n.text)["input_ids"][1:]]
        text = table[sorted(set(ids))]
        want = torch.nn.functional.cosine_similarity(
            features[row][:, None].double(), text[None].double(), dim=-1
        )
        got = cosines(jnp.asarray(features[row].numpy()), jnp.asarray(text.numpy()))
        np.testing.assert_allclose(got, want, atol=1e-5)
        weight = relevance(jnp.asarray(features[row].numpy()), jnp.asarray(text.numpy()))
        for engine in ("feature", "gram"):
            chosen = select(features[row].numpy(), NUM_VISUAL_TOKENS, relevance=weight, alpha=0.75,
                            engine=engine)  # fmt: skip
            result = certify(
                features[row].numpy(), np.asarray(chosen.indices), relevance=np.asarray(weight),
                alpha=0.75, energy=np.asarray(chosen.energy),
            )  # fmt: skip
            assert result.ok, result.violations
            decided, steps = decided + result.decided, steps + result.steps
    print(f"{decided} of {steps} steps decided")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_key_dialect_loads(checkpoint, lvlm, photographs, tmp_path, dialect):
    renamed = rename_dialect(checkpoint, tmp_path / dialect, dialect, shards=1 + (dialect == "A"))
    other = load_model(renamed, dtype="float32")
    jax.tree.map(np.testing.assert_array_equal, other.state, lvlm.state)
    got, _ = other.logits(photographs[0], QUESTIONS[0])
    want, _ = lvlm.logits(photographs[0], QUESTIONS[0])
    np.testing.assert_array_equal(got, want)
