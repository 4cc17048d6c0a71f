"""Prompts without their instructions: answer formats, option letters, chat markup.

What is removed is blanked, not cut, so that offsets into what is left are offsets into the prompt.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resprune_jax.choices import OcrLine
from resprune_jax.errors import CallError
from resprune_jax.text.markup import blank, mask_markup

OCR_LINES = ("strip", "keep")


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


def check_prompt(prompt: Any) -> str:
    """`prompt` if it is text that can be encoded.

    Raises:
        CallError: something else.
    """
    if not isinstance(prompt, str):
        raise CallError(f"a prompt is a string, not {type(prompt).__name__}")
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise CallError(
            f"the prompt holds half a surrogate pair at character {error.start}: decode it properly"
        ) from error
    return prompt


def mask(prompt: str, families: Sequence[re.Pattern[str]], *, tags: bool) -> str:
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
    prompt = check_prompt(prompt)
    if ocr_line not in OCR_LINES:
        raise CallError(f"ocr_line={ocr_line!r} is unknown: choose one of {', '.join(OCR_LINES)}")
    first = (_OCR_LINE,) if ocr_line == "strip" else ()
    masked = mask(prompt, (*first, *_INSTRUCTIONS), tags=True)
    return CleanPrompt("\n".join(" ".join(line.split()) for _, line in lines_of(masked)), masked)


def lines_of(masked: str) -> Iterator[tuple[int, str]]:
    """(offset, text) of every line that holds more than white space, stripped."""
    for match in re.finditer(r"[^\r\n]+", masked):
        line = match.group().lstrip()
        if line:
            yield match.end() - len(line), line.rstrip()
