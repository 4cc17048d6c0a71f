"""The pocket model's tokenizer: whole words, digits one by one, nothing unknown."""

from itertools import islice

import pytest

from resprune_jax.experiments.pocket.model import tokenizer
from resprune_jax.experiments.pocket.scenes.frozen import balanced_set
from resprune_jax.experiments.pocket.scenes.labels import VOCABULARY, caption
from resprune_jax.experiments.pocket.scenes.words import CHARACTERS, SHAPES, WORDS, Draw
from resprune_jax.experiments.pocket.training.dense import LABEL_IDS
from resprune_jax.experiments.pocket.training.lessons import lesson


@pytest.fixture(scope="module")
def tok():
    return tokenizer.make_tokenizer()


def test_every_question_and_answer_is_made_of_whole_words(tok):
    letters = {piece for piece in tokenizer.pieces() if piece in CHARACTERS and piece.isalpha()}
    texts, spelt = 0, 0
    for scene, questions in islice(balanced_set("cpu", "validation"), 120):
        draw = Draw(scene.rng_seed, 1)
        said = [q.prompt for q in questions] + [q.answer for q in questions]
        said += [part for _ in range(8) if (made := lesson(scene, draw)) for part in made]
        said.append(caption(scene, draw))
        for text in said:
            tokens = tok.encode(text, add_special_tokens=False).tokens
            texts += 1
            assert "<unk>" not in tokens, text
            # The plural is the one thing spelt: "circles" is "circle" and "s".
            extra = [t for t in tokens if t in letters and t != "s"]
            spelt += len(extra)
            assert not extra, (text, tokens)
    print(f"{texts} texts, {spelt} letters spelt")
    assert texts > 2000


def test_answers_come_back_as_they_were(tok):
    for answer in (*SHAPES, *WORDS, "0", "4", "42", "427", "109", "yes"):
        ids = tok.encode(f" {answer}", add_special_tokens=False).ids
        assert tok.decode(ids).strip() == answer
    assert len(tok.encode(" 427", add_special_tokens=False).ids) == 4  # a blank, three digits


def test_a_noun_is_one_token_in_singular_and_plural(tok):
    for shape in SHAPES:
        one = tok.encode(f"the {shape}", add_special_tokens=False).ids[-1]
        many = tok.encode(f"the {shape}s?", add_special_tokens=False).ids[1]
        assert one == many == tokenizer.piece_id(shape)


def test_labels_are_distinct_rows_inside_the_table():
    assert len(set(LABEL_IDS)) == len(VOCABULARY)
    assert max(LABEL_IDS) < len(tokenizer.pieces()) <= tokenizer.VOCAB_SIZE


def test_unknown_words_are_spelt_and_unknown_characters_are_marked(tok):
    assert tok.encode("zebra", add_special_tokens=False).tokens == ["▁", *"zebra"]
    assert tokenizer.UNKNOWN in tok.encode("Ω", add_special_tokens=False).ids
