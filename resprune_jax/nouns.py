"""The spaCy pipelines that find the nouns of a prompt, loaded only when asked for.

The paper tags prompts with spaCy's `en_core_web_sm`. Where that model is not installed, a blank
English spaCy pipeline carries one component instead, which sets `tag_` and `pos_` from the Brill
lexicon that TextBlob bundles (no download, no NLTK data). Both give tokens with character offsets
and `pos_`, so the code that reads them is one. Any other spaCy pipeline can be named instead.
"""

import contextlib
import importlib
import importlib.util
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from resprune_jax.errors import CallError, RunError, say_once

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc, Token

MODEL = "en_core_web_sm"
LEXICON = "lexicon"
TAGGERS = ("auto", MODEL, LEXICON)
INSTALL = f"python -m spacy download {MODEL}"

_KNOWN = (
    f"give one of {', '.join(TAGGERS)}, the name of an installed spaCy pipeline, or the path of its"
    " folder"
)
# Components that set no part of speech, by the name of their factory.
_NO_PARTS_OF_SPEECH = {
    *("ner", "lemmatizer", "trainable_lemmatizer", "entity_linker", "entity_ruler", "senter"),
    *("sentencizer", "textcat", "textcat_multilabel", "spancat", "spancat_singlelabel"),
    *("span_finder", "span_ruler"),
}
_PUBLISHED = re.compile(r"[a-z]{2,3}_\w+_(?:sm|md|lg|trf)")
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


def load_pipeline(
    tagger: str | os.PathLike[str] = "auto", *, strict: bool = False
) -> tuple["Language", str]:
    """Load the pipeline that tags prompts, and say which one it is.

    Args:
        tagger: "en_core_web_sm" (the paper's), "lexicon" (the one that is always there), "auto",
            the first where it is installed and else the second, said once aloud; or any spaCy
            pipeline of any language, by the name of its installed package or by its folder.
        strict: refuse anything but `en_core_web_sm`.

    Returns:
        The spaCy pipeline, and its name for the records: "en_core_web_sm 3.8.0" or
        "lexicon (textblob 0.20.1)".

    Raises:
        CallError: nothing of that name or no pipeline there, one that sets no parts of speech, a
            folder that does not load, or `en_core_web_sm` asked for (by name or by `strict`) where
            it is not installed.
        RunError: a model or lexicon that is installed and does not load.
    """
    if not isinstance(tagger, str | os.PathLike):
        raise CallError(f"tagger is a name or a path, not {type(tagger).__name__}: {_KNOWN}")
    if strict and tagger not in ("auto", MODEL):
        raise CallError(
            f"strict_nouns refuses any tagger but {MODEL}, and tagger={_shown(tagger)} was given: "
            f"leave one of the two out"
        )
    if tagger not in TAGGERS:
        return _load_other(tagger)
    if tagger != LEXICON and importlib.util.find_spec(MODEL) is not None:
        return _load_package(MODEL)
    if tagger == MODEL or strict:
        raise CallError(
            f"nouns by {MODEL} were asked for, and it is not installed: run `{INSTALL}`, or accept "
            f"the bundled lexicon with tagger='{LEXICON}'"
        )
    pipeline, name = _load_lexicon()
    if tagger == "auto":
        say_once(
            "nouns-lexicon",
            f"{MODEL} is not installed: nouns come from the {name}, and the selections they guide "
            f"can differ from those of the paper's tagger; `{INSTALL}` installs it, "
            "strict_nouns=True (--strict-nouns) refuses this fallback",
        )
    return pipeline, name


def reason(error: BaseException) -> str:
    """What another package's error says: one short line of printable characters."""
    line = " ".join(str(error).split())[:200]
    said = "".join(char if char.isprintable() else "?" for char in line)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _shown(tagger: str | os.PathLike[str]) -> str:
    text = ascii(os.fspath(tagger))
    return text if len(text) <= 100 else f"{text[:60]} ... {text[-30:]}"


def _load_package(name: str) -> tuple["Language", str]:
    """An installed pipeline package, by the name that it is imported by."""
    try:
        module = importlib.import_module(name)
        # Both run after the last component that sets pos_, so the nouns are the full pipeline's.
        pipeline = module.load(exclude=["ner", "lemmatizer"] if name == MODEL else [])
        return pipeline, f"{name} {_version(pipeline)}"
    except Exception as error:  # whatever a broken third-party package raises
        again = f" with `{INSTALL}`" if name == MODEL else ""
        raise RunError(
            f"{name} is installed and does not load ({reason(error)}): reinstall it{again}, or ask "
            f"for tagger='{LEXICON}'"
        ) from error


def _load_other(tagger: str | os.PathLike[str]) -> tuple["Language", str]:
    """A pipeline that somebody names: an installed package, else a folder."""
    given, name = _shown(tagger), os.fspath(tagger)
    package = name.replace("-", "_") if isinstance(name, str) else ""
    # A name with a dot or a slash in it is no package; `find_spec` would import what is before it.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is not None and spec.origin and (Path(spec.origin).parent / "meta.json").is_file():
        pipeline, record = _load_package(package)
    else:
        pipeline, record = _load_folder(name, given, installed=spec is not None)
    if not _sets_parts_of_speech(pipeline):
        left_out = ", ".join(pipeline.disabled)
        raise CallError(
            f"the spaCy pipeline {given} sets no part of speech (components: "
            f"{', '.join(pipeline.pipe_names) or 'none'}{'; disabled: ' * bool(left_out)}"
            f"{left_out}): nouns need one with a tagger, such as {MODEL}"
        )
    _leave_out_the_rest(pipeline)
    return pipeline, record


def _load_folder(name: object, given: str, *, installed: bool) -> tuple["Language", str]:
    """A pipeline that lies in a folder, as `Language.to_disk` writes it."""
    try:
        folder = Path(name).expanduser() if isinstance(name, str) and name else None
        found = folder is not None and folder.is_dir()
    except (OSError, ValueError, RuntimeError):  # no home, a name that no file can have
        folder, found = None, False
    if folder is None or not found:
        what = "an installed package and no spaCy pipeline" if installed else "not installed"
        if isinstance(name, str) and _PUBLISHED.fullmatch(name.replace("-", "_")):
            what += f" (`python -m spacy download {name.replace('-', '_')}` may get it)"
        raise CallError(f"the tagger {given} is {what}, and no folder: {_KNOWN}")
    if not (folder / "config.cfg").is_file():
        raise CallError(
            f"the tagger {given} is a folder without a config.cfg, so no spaCy pipeline: give the "
            "folder that holds it (a package has it in a folder named after its version)"
        )
    import spacy

    try:
        pipeline = spacy.load(folder)
        meta = pipeline.meta
        return pipeline, f"{meta['lang']}_{meta['name'] or 'pipeline'} {_version(pipeline)}"
    except Exception as error:  # spaCy, its configuration, its weights: each has its own
        raise CallError(
            f"the spaCy pipeline in {given} does not load ({reason(error)}): write it again with "
            "nlp.to_disk, under this version of spaCy"
        ) from error


def _version(pipeline: "Language") -> str:
    return str(pipeline.meta.get("version") or "without a version")[:40]


def _sets_parts_of_speech(pipeline: "Language") -> bool:
    """Try it: what a component sets depends on its data more than on its kind."""
    sentences = ["The dog is in Paris.", "dog"]
    with contextlib.suppress(ImportError, AttributeError):
        sentences += importlib.import_module(f"spacy.lang.{pipeline.lang}.examples").sentences
    try:
        return any(token.pos for sentence in sentences for token in pipeline(sentence))
    except Exception as error:  # a component that was saved untrained, or of somebody else
        raise CallError(
            f"the spaCy pipeline {_shown(pipeline.meta.get('name') or '')} fails on a sentence "
            f"({reason(error)}): give one that is trained"
        ) from error


def _leave_out_the_rest(pipeline: "Language") -> None:
    """Switch off what runs after the last component that can set a part of speech."""
    while pipeline.pipe_names:
        last = pipeline.pipe_names[-1]
        if pipeline.get_pipe_meta(last).factory not in _NO_PARTS_OF_SPEECH:
            return
        pipeline.disable_pipe(last)


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
                f"textblob's bundled lexicon does not load ({reason(error)}): "
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
