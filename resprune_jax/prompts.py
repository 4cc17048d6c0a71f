"""From a prompt to the LLM tokens that condition a selection: cleaning, nouns, token ids.

ResPrune (section III of the paper) scores visual tokens against the embeddings of the question's
nouns. Three steps lead there: answer-format instructions are removed by regular expressions, a
part-of-speech tagger finds nouns and proper nouns, and their characters are looked up among the
tokens of the text that the LLM really sees. Everything here is text and NumPy on the host.
"""

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from resprune_jax.choices import OcrLine, TextSource
from resprune_jax.errors import CallError, RunError
from resprune_jax.markup import blank, mask_markup
from resprune_jax.nouns import load_pipeline, reason

OCR_LINES = ("strip", "keep")
TEXTS = ("nouns", "prompt")


@dataclass(frozen=True)
class CleanPrompt:
    """A prompt without its instructions.

    Attributes:
        text: what is left, one line a line, without blank lines: for people to read.
        masked: the prompt with every removed character replaced by a space (line breaks stay), so
            that offsets into it are offsets into the prompt.
    """

    text: str
    masked: str


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


# --- the families of removed text -----------------------------------------------------------------

# An instruction begins a line or follows a sentence (or a label, or a closing quote) ...
_START = r"(?:^|(?<=[.?!:])|(?<=[.?!:]['\")]))[ \t]*"
# ... and runs to the end of a sentence or line. A question mark never ends one, so that a question
# which talks about answers, words or options is left alone.
_END = r"[ \t]*(?:[.!:]+['\")]?|$)"


def _family(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE | re.MULTILINE)


def _instruction(*phrases: str) -> re.Pattern[str]:
    """A family of whole sentences; a space in a phrase stands for any white space."""
    spelled = "|".join(phrase.replace(" ", r"\s+") for phrase in phrases)
    return _family(f"{_START}(?:{spelled}){_END}")


_POLITE = r"(?:please,? )?(?:kindly )?(?:try to )?(?:(?:just|simply|only) )?"
_REPLY = (
    _POLITE + r"(?:answer|respond|reply)(?: to)?(?: (?:the|this|my|a)(?: (?:following|above))?)?"
    r"(?: questions?)?(?: directly)?"
)
_LETTER_VERB = _POLITE + r"(?:select|choose|output|pick|provide|give|return|write)"
_ANSWER = r"(?:answer|response|reply)"
_AMOUNT = (
    r"(?:(?:only|just|at most|no more than|exactly|as few|a|an|one|two|three|\d+|few|single|short"
    r"|brief|concise|simple|complete|full) )*"
)
_UNIT = r"(?:words?|phrases?|numbers?|digits?|numerals?|sentences?)"
_LENGTH = f"{_AMOUNT}{_UNIT}(?: (?:or|and) {_AMOUNT}{_UNIT})*"
_LENGTH_TAIL = (
    r"(?:,? (?:in the language of the question|if possible|only|as possible|or (?:less|fewer)))*"
)
_SHORT = r"(?:short|brief|concise|direct|succinct|(?:one|single)(?:-| )(?:word|sentence|phrase))"
_SHORT = f"(?:very )?{_SHORT}(?:(?: and|,) {_SHORT})*"
_OPTION = r"(?:option'?s? letter|letters?|options?|choices?|answers?)"
_REACH = 300  # how far the rest of an instruction is looked through, in characters
_WHICH = r"(?:only )?(?:the )?(?:(?:correct|right|best|single) )?"


def _rest(stop: str) -> str:
    """The rest of a sentence, at most 60 words of it, up to one of these characters too."""
    return rf"[^\S\n]*+(?:[^\s.?!{stop}]++[^\S\n]*+){{0,60}}+"


_OCR_LINE = _family(r"^[ \t]*(?:reference\s+)?ocr\s+tokens?[ \t]*:[^\n]*")
_INSTRUCTIONS = (
    # Preambles: "First please perform reasoning, and think step by step to ...:"
    _instruction(
        r"(?:first,? )?(?:please )?(?:perform reasoning,? and )?(?:let'?s )?"
        r"think step(?:-| )by(?:-| )step[^\n:.]*"
    ),
    # VizWiz: "When the provided information is insufficient, respond with 'Unanswerable'."
    _instruction(
        r"(?:when|if) the (?:(?:provided|given) )?information is (?:in|not )sufficient,? "
        r"(?:please )?(?:respond|answer|reply) with ['\"]?unanswerable['\"]?"
    ),
    # "Answer the question using a single word or phrase."
    _instruction(
        f"{_REPLY} (?:using|with|in|by) {_LENGTH}{_LENGTH_TAIL}",
        f"{_POLITE}use {_LENGTH} (?:to answer|for your answer)(?: (?:the|this) question)?",
    ),
    # "Answer the question directly", "Provide a short and direct response".
    _instruction(
        f"{_REPLY} (?:briefly|concisely|directly|succinctly|as briefly as possible)",
        f"{_POLITE}(?:provide|give|write)(?: me)? (?:a|an|your|only a) {_SHORT} {_ANSWER}",
        f"your {_ANSWER} (?:must|should) be (?:{_SHORT}|{_LENGTH})",
        f"{_POLITE}(?:keep|make) (?:your|the) {_ANSWER} {_SHORT}",
        r"(?:please )?be (?:brief|concise)",
        r"(?:please )?(?:do not|don't) (?:explain|justify)(?: your (?:answer|reasoning|choice))?",
        r"(?:please )?(?:do not|don't) (?:give|provide|include) (?:an|any) explanations?",
    ),
    # "Please answer yes or no."
    _instruction(
        f"{_REPLY}(?: (?:with|using|in))?(?: (?:only|just|either|a simple))*"
        r" ['\"]?yes['\"]?(?:\s*/\s*| or )['\"]?no['\"]?(?: only)?"
    ),
    # "Answer with the option's letter from the given choices directly." The look-ahead asks for a
    # second word of the kind, since "select the answer" alone can be part of a question.
    _instruction(
        rf"(?:{_REPLY} (?:with|by giving|by choosing|using)|{_LETTER_VERB}) {_WHICH}{_OPTION}\b"
        rf"(?=[^\n.?!]{{0,{_REACH}}}\b(?:options?|choices?|letters?|directly|above|below)\b)"
        # All of the sentence at once or its first clause: to try every end would take time that
        # grows with the square of its length.
        rf"(?:{_rest('')}(?=[\n.!]|\Z)|{_rest(':')}(?=:))",
        f"(?:{_REPLY} (?:with|using)|{_LETTER_VERB}) {_WHICH}(?:option'?s? )?letters?(?: only)?",
    ),
    _family(
        r"请(?:直接|用(?:一个|单个)?(?:单词|词语?)(?:或短语)?)回答(?:选项字母|(?:这个)?问题)\.?"
    ),
    # Labels, which leave the text they introduce.
    _family(
        rf"^[ \t]*(?:options?|choices?)[ \t]*:[ \t]*|{_START}there\s+are\s+several\s+options\s*:"
    ),
    _family(
        r"^[ \t]*(?:question|context|hint|short\s+answer|answer|image|passage)[ \t]*:[ \t]*"
        r"|(?<=[.?!])[ \t]*(?:short\s+)?answer[ \t]*:[ \t]*$"
    ),
)
_OPTION_TAG = _family(r"^[ \t]*\(?[A-H][.):][ \t]+|(?<=[ \t])\([A-H]\)[ \t]+")

# What the patterns see: typographic quotes, full-width punctuation and odd spaces in plain form,
# always one character for one, so that offsets hold.
_PLAIN = str.maketrans("‘’“”？！：。，．\u00a0\u202f\u3000\r", "''\"\"?!:.,.   \n")


def _check(prompt: Any) -> str:
    if not isinstance(prompt, str):
        raise CallError(f"a prompt is a string, not {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise CallError(
            f"the prompt holds half a surrogate pair at character {error.start}: decode it properly"
        ) from error
    return prompt


def _mask(prompt: str, families: Sequence[re.Pattern[str]], *, tags: bool) -> str:
    """`prompt` with chat markup and all matches of `families` blanked, line breaks kept."""
    plain = prompt.replace("\r\n", " \n").translate(_PLAIN)
    view = mask_markup(plain)
    for family in families:
        view = family.sub(blank, view)
    # One line that begins with "A. " may be a name; two are a list of options.
    if tags and len(_OPTION_TAG.findall(view)) > 1:
        view = _OPTION_TAG.sub(blank, view)
    if view == plain:
        return prompt
    return "".join(
        char if seen == before else " "
        for char, seen, before in zip(prompt, view, plain, strict=True)
    )


def clean_prompt(prompt: str, *, ocr_line: OcrLine = "strip") -> CleanPrompt:
    """Remove what is not the question: answer-format instructions, labels, chat markup.

    Options and hints of multiple-choice prompts stay, without their letters and labels. The
    families are those of LLaVA's, lmms-eval's and VLMEvalKit's benchmark prompts.

    Args:
        prompt: the user's question, as asked.
        ocr_line: "strip" removes a TextVQA line "Reference OCR token: ..." with all that it lists,
            "keep" leaves it (the paper does not say which).

    Returns:
        The cleaned text, and the masked prompt, which has the length of `prompt`.

    Raises:
        CallError: `prompt` is no (valid) string, or `ocr_line` is unknown.
    """
    prompt = _check(prompt)
    if ocr_line not in OCR_LINES:
        raise CallError(f"ocr_line={ocr_line!r} is unknown: choose one of {', '.join(OCR_LINES)}")
    first = (_OCR_LINE,) if ocr_line == "strip" else ()
    masked = _mask(prompt, (*first, *_INSTRUCTIONS), tags=True)
    return CleanPrompt("\n".join(" ".join(line.split()) for _, line in _lines(masked)), masked)


def _lines(masked: str) -> Iterator[tuple[int, str]]:
    """(offset, text) of every line that holds more than white space, stripped."""
    for match in re.finditer(r"[^\r\n]+", masked):
        line = match.group().lstrip()
        if line:
            yield match.end() - len(line), line.rstrip()


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
        _at_most(len(_check(prompt)), MAX_CHARACTERS, "characters")
        masked = clean_prompt(prompt, ocr_line=ocr_line).masked
        lines = [_cut(start, line) for start, line in _lines(masked)]
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
    masked = _mask(_check(prompt), (), tags=False)
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
