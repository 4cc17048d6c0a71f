"""From a prompt to the LLM tokens that condition a selection: cleaning, nouns, token ids.

ResPrune (section III of the paper) scores visual tokens against the embeddings of the question's
nouns. Three steps lead there: answer-format instructions are removed by regular expressions, a
part-of-speech tagger finds nouns and proper nouns, and their characters are looked up among the
tokens of the text that the LLM really sees. Everything here is text and NumPy on the host.
"""

import os
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from resprune_jax.choices import OcrLine, TextSource
from resprune_jax.errors import CallError, RunError
from resprune_jax.nouns import load_pipeline, reason
from resprune_jax.text.cleaning import CleanPrompt, check_prompt, clean_prompt, lines_of, mask

__all__ = [
    "CleanPrompt",
    "Noun",
    "NounExtractor",
    "clean_prompt",
    "conditioning_spans",
    "noun_token_ids",
]

TEXTS = ("nouns", "prompt")


@dataclass(frozen=True)
class Noun:
    """A word of the prompt that conditions the selection.

    Attributes:
        text: the word as written.
        start: offset of its first character in the original prompt.
        end: offset after its last character.
    """

    text: str
    start: int
    end: int

    def span(self, shift: int = 0) -> tuple[int, int]:
        """Its (start, end) in a text in which the prompt begins at character `shift`."""
        return self.start + shift, self.end + shift


# --- nouns ----------------------------------------------------------------------------------------

MAX_CHARACTERS = 100_000
"""The longest prompt whose nouns are looked for: some 25,000 tokens of a language model."""
MAX_WORDS = 25_000
"""The most words and punctuation marks of such a prompt."""
LONGEST_WORD = 200
"""Characters without white space that a tagger reads in one piece."""

# Taggers take time that grows with the square of such a run, so it is cut: after punctuation where
# there is some in the second half of a piece (Chinese clauses), else anywhere.
_HALF = f"{LONGEST_WORD // 2},{LONGEST_WORD}"
_PIECE = re.compile(rf"\S{{{_HALF}}}(?<=\W)(?=\w)|\S{{1,{LONGEST_WORD}}}")
_LONG_RUN = re.compile(rf"\S{{{LONGEST_WORD + 1},}}")


@dataclass(frozen=True)
class _Line:
    """A line as the tagger reads it: a space stands after every piece of a long run.

    Attributes:
        text: the line with these spaces.
        start: where the line begins in the prompt.
        cuts: where the spaces stand in `text`, in order.
    """

    text: str
    start: int
    cuts: list[int]

    def offset(self, at: int) -> int:
        """The place in the prompt of a character of `text`."""
        return self.start + at - bisect_left(self.cuts, at)


def _cut(start: int, line: str) -> _Line:
    """A line whose runs are at most `LONGEST_WORD` long."""
    ends = [
        run.start() + piece.end()
        for run in _LONG_RUN.finditer(line)
        for piece in _PIECE.finditer(run.group())
        if piece.end() < len(run.group())
    ]
    if not ends:
        return _Line(line, start, [])
    text = " ".join(line[a:b] for a, b in pairwise([0, *ends, len(line)]))
    return _Line(text, start, [end + count for count, end in enumerate(ends)])


class NounExtractor:
    """Finds the nouns and proper nouns of prompts; loads its tagger once, when made.

    Args:
        tagger: "auto", "en_core_web_sm", "lexicon", or any spaCy pipeline by the name of its
            package or by its folder, see `resprune_jax.nouns.load_pipeline`.
        strict: refuse the lexicon that "auto" falls back to.

    Attributes:
        backend: name and version of the tagger in use, for the records of a run.

    Raises:
        CallError: an unknown tagger, one that finds no parts of speech, or `en_core_web_sm`
            demanded and not installed.
        RunError: an installed tagger that does not load.
    """

    def __init__(self, tagger: str | os.PathLike[str] = "auto", strict: bool = False) -> None:
        self._pipeline, self.backend = load_pipeline(tagger, strict=strict)

    def extract(self, prompt: str, *, ocr_line: OcrLine = "strip") -> list[Noun]:
        """The nouns of a prompt, cleaned first, in order, repetitions included.

        The tagger reads line by line: options are not the tail of the question before them. A run
        of more than `LONGEST_WORD` characters without white space is read in pieces.

        Args:
            prompt: the user's question, as asked.
            ocr_line: see `clean_prompt`.

        Returns:
            Nouns with character offsets into `prompt`; none is a fine answer ("What is this?").

        Raises:
            CallError: see `clean_prompt`; more than `MAX_CHARACTERS` or `MAX_WORDS`.
            RunError: a tagger that fails on this text.
        """
        _at_most(len(check_prompt(prompt)), MAX_CHARACTERS, "characters")
        masked = clean_prompt(prompt, ocr_line=ocr_line).masked
        lines = [_cut(start, line) for start, line in lines_of(masked)]
        try:
            docs, words = [], 0
            for line in lines:
                docs.append(self._pipeline.make_doc(line.text))
                words += len(docs[-1])
                _at_most(words, MAX_WORDS, "words and punctuation marks")
            tagged = list(self._pipeline.pipe(docs))
        except CallError:
            raise
        except Exception as error:  # whatever a component of somebody else's raises
            raise RunError(
                f"{self.backend} fails on a prompt of {len(prompt)} characters: {reason(error)}"
            ) from error
        return [
            Noun(token.text, line.offset(token.idx), line.offset(token.idx) + len(token))
            for line, doc in zip(lines, tagged, strict=True)
            for token in doc
            if token.pos_ in ("NOUN", "PROPN")
        ]


def _at_most(count: int, limit: int, what: str) -> None:
    if count > limit:
        raise CallError(
            f"nouns are looked for in prompts of at most {limit:,} {what}, and this one has "
            f"{count:,}: shorten it, or set alpha=0 (no text guidance) or text='prompt'"
        )


def conditioning_spans(
    prompt: str,
    extractor: NounExtractor | None,
    *,
    text: TextSource = "nouns",
    ocr_line: OcrLine = "strip",
) -> list[Noun]:
    """The words of a prompt that condition the selection.

    Args:
        prompt: the user's question, as asked.
        extractor: finds the nouns; not used, and may be None, for `text="prompt"`.
        text: "nouns", or "prompt" for every word, instructions included (Setting-1 of Table IV:
            no text preprocessing); image placeholders and chat markup are no words.
        ocr_line: see `clean_prompt`; "prompt" keeps everything.

    Returns:
        Words with character offsets into `prompt`, in order.

    Raises:
        CallError: `text` is unknown, or nouns are asked for without an extractor.
    """
    if text not in TEXTS:
        raise CallError(f"text={text!r} is unknown: choose one of {', '.join(TEXTS)}")
    if text == "nouns":
        if extractor is None:
            raise CallError("text='nouns' needs an extractor: pass NounExtractor()")
        return extractor.extract(prompt, ocr_line=ocr_line)
    masked = mask(check_prompt(prompt), (), tags=False)
    return [Noun(m.group(), m.start(), m.end()) for m in re.finditer(r"\S+", masked)]


# --- token ids ------------------------------------------------------------------------------------


def noun_token_ids(
    spans: Sequence[tuple[int, int]],
    offsets: Any,
    ids: Any,
    text: str,
    *,
    pieces: Sequence[str] | None = None,
) -> np.ndarray:
    """The ids of the tokens that spell the nouns, in the text that the LLM sees.

    A noun is never tokenized alone: its tokens are those of the whole text whose characters overlap
    it. Offsets of a piece include the space before the word, so starts are not compared. Ids rather
    than positions are returned, since processors repeat the image placeholder afterwards.

    Args:
        spans: (start, end) of each noun in `text`; see `Noun.span`.
        offsets: (T, 2) integers, the tokenizer's offset mapping of `text`.
        ids: (T,) integers, the ids from the same call.
        text: the templated text, image placeholders unexpanded.
        pieces: (T,) the tokens as strings (`convert_ids_to_tokens`). With them, a lone space marker
            that a SentencePiece tokenizer puts before the text's first word is known for what it
            is; without them it counts as part of a noun that opens the text.

    Returns:
        (M,) int32, distinct ids in order of first appearance; empty without nouns.

    Raises:
        CallError: no offsets (a slow tokenizer), lengths that disagree, or a span outside `text`.
    """
    if offsets is None:
        raise CallError("token offsets are missing: the nouns need a fast tokenizer (is_fast)")
    rows = np.asarray(offsets, dtype=np.int64).reshape(-1, 2)  # [T, 2]
    tokens = np.asarray(ids, dtype=np.int64).reshape(-1)  # [T]
    if len(rows) != len(tokens) or (pieces is not None and len(pieces) != len(tokens)):
        counted = "" if pieces is None else f" and {len(pieces)} pieces"
        raise CallError(
            f"{len(tokens)} ids, {len(rows)} offsets{counted}: pass those of one tokenizer call"
        )
    for start, end in spans:
        if not 0 <= start < end <= len(text):
            raise CallError(
                f"span ({start}, {end}) does not lie in a text of {len(text)} characters"
            )
    if not spans:
        return np.zeros(0, np.int32)

    # How many characters of nouns stand before each character of the text.
    covered = np.zeros(len(text) + 1, np.int64)
    for start, end in spans:
        covered[start + 1 : end + 1] = 1
    covered = np.cumsum(covered)
    found: dict[int, None] = {}
    for index, (begin, end) in enumerate(rows.tolist()):
        # Special tokens have no characters; a piece that is only a space spells no noun.
        if end <= begin or not text[begin:end].strip():
            continue
        if pieces is not None and not pieces[index].strip("▁Ġ \n"):
            continue
        if covered[min(end, len(text))] > covered[max(0, min(begin, len(text)))]:
            found[int(tokens[index])] = None
    return np.fromiter(found, dtype=np.int32, count=len(found))
