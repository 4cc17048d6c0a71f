"""The spaCy pipelines that find the nouns of a prompt, loaded only when asked for.

The paper tags prompts with spaCy's `en_core_web_sm`. Where that model is not installed, a blank
English spaCy pipeline carries one component instead, which sets `tag_` and `pos_` from the Brill
lexicon that TextBlob bundles (no download, no NLTK data). Both give tokens with character offsets
and `pos_`, so the code that reads them is one.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from resprune_jax.errors import CallError, RunError, say_once

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

MODEL = "en_core_web_sm"
LEXICON = "lexicon"
BACKENDS = ("auto", MODEL, LEXICON)
INSTALL = f"python -m spacy download {MODEL}"

_COMPONENT = "resprune_lexicon_tagger"
_ENDS = frozenset(".?!:")
_STRAIGHT = str.maketrans("‘’“”", "''\"\"")  # the lexicon knows only these
# Penn Treebank tag (or its first two letters) -> universal part of speech; others are X.
_UNIVERSAL = {
    "NN": "NOUN",
    "NNP": "PROPN",
    "NNPS": "PROPN",
    "VB": "VERB",
    "MD": "AUX",
    "JJ": "ADJ",
    "RB": "ADV",
    "WR": "ADV",
    "CD": "NUM",
    "DT": "DET",
    "PD": "DET",
    "WD": "DET",
    "IN": "ADP",
    "CC": "CCONJ",
    "PR": "PRON",
    "WP": "PRON",
    "EX": "PRON",
    "TO": "PART",
    "PO": "PART",
    "RP": "PART",
    "UH": "INTJ",
}


def load_pipeline(backend: str = "auto", *, strict: bool = False) -> tuple["Language", str]:
    """Load the pipeline that tags prompts, and say which one it is.

    Args:
        backend: "en_core_web_sm" (the paper's), "lexicon" (the one that is always there), or
            "auto", the first where it is installed and else the second, said once aloud.
        strict: refuse anything but `en_core_web_sm`.

    Returns:
        The spaCy pipeline, and its name for the records: "en_core_web_sm 3.8.0" or
        "lexicon (textblob 0.20.1)".

    Raises:
        CallError: an unknown backend, or `en_core_web_sm` asked for (by name or by `strict`) where
            it is not installed.
        RunError: a model or lexicon that is installed and does not load.
    """
    if backend not in BACKENDS:
        raise CallError(f"backend={backend!r} is unknown: choose one of {', '.join(BACKENDS)}")
    if strict and backend == LEXICON:
        raise CallError(
            f"strict=True refuses backend='{LEXICON}': leave strict out, or install {MODEL} "
            f"({INSTALL}) and ask for backend='{MODEL}'"
        )
    if backend != LEXICON and importlib.util.find_spec(MODEL) is not None:
        return _load_model()
    if backend == MODEL or strict:
        raise CallError(
            f"nouns by {MODEL} were asked for, and it is not installed: run `{INSTALL}`, or accept "
            f"the bundled lexicon with backend='{LEXICON}'"
        )
    pipeline, name = _load_lexicon()
    if backend == "auto":
        say_once(
            "nouns-lexicon",
            f"{MODEL} is not installed: nouns come from the {name}, and the selections they guide "
            f"can differ from those of the paper's tagger; `{INSTALL}` installs it, strict=True "
            "refuses this fallback",
        )
    return pipeline, name


def _load_model() -> tuple["Language", str]:
    try:
        module = importlib.import_module(MODEL)
        # Both run after the last component that sets pos_, so the nouns are the full pipeline's.
        pipeline = module.load(exclude=["ner", "lemmatizer"])
    except Exception as error:  # whatever a broken third-party package raises
        raise RunError(
            f"{MODEL} is installed and does not load ({type(error).__name__}: {error}): reinstall "
            f"it with `{INSTALL}`, or ask for backend='{LEXICON}'"
        ) from error
    return pipeline, f"{MODEL} {pipeline.meta['version']}"


def _load_lexicon() -> tuple["Language", str]:
    import spacy
    from spacy.language import Language

    with warnings.catch_warnings():
        # textblob leaves the lexicon's file for the garbage collector to close.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            from textblob.en import parser

            parser.find_tags(["image"])  # reads the lexicon now, not at the first prompt
        except (ImportError, AttributeError, OSError) as error:
            raise RunError(
                f"textblob's bundled lexicon does not load ({type(error).__name__}: {error}): "
                f"install textblob 0.20.1, or {MODEL} (`{INSTALL}`)"
            ) from error

    if not Language.has_factory(_COMPONENT):
        Language.component(_COMPONENT, func=_tag)
    pipeline = spacy.blank("en")
    pipeline.add_pipe(_COMPONENT)
    return pipeline, f"{LEXICON} (textblob {version('textblob')})"


def _tag(doc: "Doc") -> "Doc":
    """Set tag_ and pos_ of every word of one line from the lexicon."""
    from textblob.en import parser

    shouted = doc.text.isupper()  # the lexicon is case-sensitive: IS is no word, is is a verb
    for sentence in _sentences([token for token in doc if not token.is_space]):
        words = [token.text.translate(_STRAIGHT) for token in sentence]
        if shouted:
            words = [word.lower() for word in words]
        for token, (word, tag) in zip(sentence, parser.find_tags(words), strict=True):
            # An unknown word is a noun to the lexicon; a dash, an emoji or a full stop is no word.
            if tag.startswith("NN") and not any(letter.isalnum() for letter in word):
                tag = "SYM"
            token.tag_ = tag
            token.pos_ = _UNIVERSAL.get(tag) or _UNIVERSAL.get(tag[:2], "X")
    return doc


def _sentences(tokens: Sequence["Token"]) -> Iterator[Sequence["Token"]]:
    """Split at sentence ends: only a first word is looked up without its capital."""
    start = 0
    for end, token in enumerate(tokens, start=1):
        if token.text in _ENDS or end == len(tokens):
            yield tokens[start:end]
            start = end
