"""The pocket model's tokenizer and chat template: whole words, lower case, digits one by one.

A unigram model over the words that scenes and questions use, so that a question is a dozen tokens
and a noun is one; anything else is spelt in letters. It is written in Hugging Face's files, as
every other checkpoint's.
"""

from typing import Any

from resprune_jax.experiments.pocket.scenes.words import CHARACTERS, COLOURS, SHAPES, SIZES, WORDS

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
UNKNOWN, START, END, PAD, IMAGE = range(len(SPECIALS))

# What questions, instructions and captions are made of, beside the words of `words.py`.
_FUNCTION_WORDS = (
    "user", "assistant", "system", "a", "an", "the", "is", "are", "there", "in", "on", "of", "to",
    "or", "and", "do", "does", "you", "see", "it", "at", "with", "image", "picture", "contain",
    "how", "many", "what", "which", "where", "color", "shape", "size", "object", "word", "number",
    "text", "side", "left", "right", "top", "bottom", "center", "above", "below", "under",
    "directly", "printed", "written", "say", "yes", "no", "none", "background", "answer",
    "question", "using", "single", "phrase", "please", "give", "short", "briefly", "respond", "one",
    "only", "describe", "list", "all", "objects", "texts", "nothing", "near", "first",
    "second", "third",
)  # fmt: skip
_PUNCTUATION = tuple("?.,:;!'\"-()\n")
SPACE = "▁"

TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | upper }}: "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ ' ' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
"""Vicuna's form, as LLaVA-1.5 uses it."""


def pieces() -> list[str]:
    """The vocabulary in the order of ids."""
    whole = dict.fromkeys((*_FUNCTION_WORDS, *SHAPES, *COLOURS, *SIZES, *WORDS))
    return [
        *SPECIALS,
        SPACE,
        *CHARACTERS,
        *(SPACE + mark for mark in _PUNCTUATION),
        *(SPACE + word for word in whole),
    ]


VOCAB_SIZE = -(-len(pieces()) // 32) * 32
"""Rows of the embedding table: the vocabulary rounded up to a multiple of 32."""


def piece_id(word: str) -> int:
    """The id of a word, or of a single digit or letter as it is printed in a scene."""
    return pieces().index(word if word in CHARACTERS else SPACE + word)


def make_tokenizer() -> Any:
    """Build the tokenizer.

    Returns:
        A `tokenizers.Tokenizer`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from tokenizers import processors as post

    # A whole word must cost less than any spelling of it, and letters must stay possible.
    scores = [
        (piece, 0.0 if i < len(SPECIALS) else -1.0 if len(piece) > 1 else -10.0)
        for i, piece in enumerate(pieces())
    ]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(
                Regex("[" + "".join("\\" + m for m in "?.,:;!'\"-()") + "\n]"), "isolated"
            ),
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    tokenizer.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.post_processor = post.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", START)]
    )
    return tokenizer
