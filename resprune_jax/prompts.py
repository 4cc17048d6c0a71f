"""From a prompt to the LLM tokens that condition a selection: cleaning, nouns, token ids.

ResPrune (section III of the paper) scores visual tokens against the embeddings of the question's
nouns. Three steps lead there: answer-format instructions are removed by regular expressions, a
part-of-speech tagger finds nouns and proper nouns, and their characters are looked up among the
tokens of the text that the LLM really sees. Everything here is text and NumPy on the host.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from resprune_jax.choices import OcrLine, TextSource
from resprune_jax.errors import CallError
from resprune_jax.nouns import load_pipeline

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
_WHICH = r"(?:only )?(?:the )?(?:(?:correct|right|best|single) )?"

_OCR_LINE = _family(r"^[ \t]*(?:reference\s+)?ocr\s+tokens?[ \t]*:[^\n]*")
_PLACEHOLDER = _family(
    r"<(?:image|video|audio)(?:_\d+)?>|<\|(?:vision_start|vision_end|image_pad|video_pad)\|>"
)
# The roles of a Vicuna conversation, with the system sentences that LLaVA-1.5 may put before them.
_CHAT = (
    _family(r"\AA chat between a curious (?:user|human) and an artificial [^\n]*?(?=USER:|$)"),
    _family(r"^[ \t]*(?:USER|ASSISTANT)[ \t]*:[ \t]*|\bASSISTANT:[ \t]*(?=\Z)"),
)
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
        r"(?=[^\n.?!]*\b(?:options?|choices?|letters?|directly|above|below)\b)[^\n.?!]*",
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


def _blank(match: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", match.group())


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
    """`prompt` with all matches of `families` blanked, line breaks kept."""
    plain = prompt.replace("\r\n", " \n").translate(_PLAIN)
    view = plain
    for family in families:
        view = family.sub(_blank, view)
    # One line that begins with "A. " may be a name; two are a list of options.
    if tags and len(_OPTION_TAG.findall(view)) > 1:
        view = _OPTION_TAG.sub(_blank, view)
    if view == plain:
        return prompt
    return "".join(
        char if seen == before else " "
        for char, seen, before in zip(prompt, view, plain, strict=True)
    )


def clean_prompt(prompt: str, *, ocr_line: OcrLine = "strip") -> CleanPrompt:
    """Remove what is not the question: answer-format instructions, labels, placeholders, roles.

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
    masked = _mask(prompt, (*first, _PLACEHOLDER, *_CHAT, *_INSTRUCTIONS), tags=True)
    return CleanPrompt("\n".join(" ".join(line.split()) for _, line in _lines(masked)), masked)


def _lines(masked: str) -> Iterator[tuple[int, str]]:
    """(offset, text) of every line that holds more than white space, stripped."""
    for match in re.finditer(r"[^\r\n]+", masked):
        line = match.group().lstrip()
        if line:
            yield match.end() - len(line), line.rstrip()


# --- nouns ----------------------------------------------------------------------------------------


class NounExtractor:
    """Finds the nouns and proper nouns of prompts; loads its tagger once, when made.

    Args:
        backend: "auto", "en_core_web_sm" or "lexicon", see `resprune_jax.nouns.load_pipeline`.
        strict: refuse the lexicon that "auto" falls back to.

    Attributes:
        backend: name and version of the tagger in use, for the records of a run.

    Raises:
        CallError: an unknown backend, or `en_core_web_sm` demanded and not installed.
        RunError: an installed tagger that does not load.
    """

    def __init__(self, backend: str = "auto", strict: bool = False) -> None:
        self._pipeline, self.backend = load_pipeline(backend, strict=strict)

    def extract(self, prompt: str, *, ocr_line: OcrLine = "strip") -> list[Noun]:
        """The nouns of a prompt, cleaned first, in order, repetitions included.

        The tagger reads line by line: options are not the tail of the question before them.

        Args:
            prompt: the user's question, as asked.
            ocr_line: see `clean_prompt`.

        Returns:
            Nouns with character offsets into `prompt`; none is a fine answer ("What is this?").

        Raises:
            CallError: see `clean_prompt`.
        """
        starts, lines = [], []
        for start, line in _lines(clean_prompt(prompt, ocr_line=ocr_line).masked):
            starts.append(start)
            lines.append(line)
        return [
            Noun(token.text, start + token.idx, start + token.idx + len(token))
            for start, doc in zip(starts, self._pipeline.pipe(lines), strict=True)
            for token in doc
            if token.pos_ in ("NOUN", "PROPN")
        ]


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
            no text preprocessing); image placeholders are no words.
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
    masked = _mask(_check(prompt), (_PLACEHOLDER,), tags=False)
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

    found: dict[int, None] = {}
    for index, (begin, end) in enumerate(rows.tolist()):
        # Special tokens have no characters; a piece that is only a space spells no noun.
        if end <= begin or not text[begin:end].strip():
            continue
        if pieces is not None and not pieces[index].strip("▁Ġ \n"):
            continue
        if any(begin < b and end > a for a, b in spans):
            found[int(tokens[index])] = None
    return np.fromiter(found, dtype=np.int32, count=len(found))
