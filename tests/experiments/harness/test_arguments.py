"""`--model_args`: what lmms-eval hands over, read; what is wrong, refused by name."""

import dataclasses
from pathlib import Path

import pytest

from resprune_jax.errors import CallError
from resprune_jax.experiments.harness import arguments
from resprune_jax.experiments.words import OWN, version_of
from resprune_jax.models.prompts.options import CallOptions, PromptOptions, PruneOptions

VERSION = version_of(OWN)
BASE = {"pretrained": "pocket", "version": VERSION}


def test_values_as_lmms_eval_reads_them() -> None:
    # It makes numbers and truths of the words, and keeps quotes.
    own = arguments.read(
        {**BASE, "keep": 0.222, "alpha": 1, "method": '"resprune"', "strict_nouns": True,
         "positions": "original", "dtype": "float32", "method_settings": "combine=add;alpha=0.5",
         "revision": '"0123"', "resume": "finished"}
    )  # fmt: skip
    assert own.pretrained == "pocket" and own.resume == Path("finished")
    assert own.loading == {"dtype": "float32", "revision": "0123"}
    assert own.options.keep == 0.222 and own.options.alpha == 1 and own.options.strict_nouns
    assert own.options.method == "resprune" and own.options.positions == "original"
    assert own.options.method_settings == {"combine": "add", "alpha": 0.5}


@pytest.mark.parametrize(
    "keep, found",
    [("full", None), (32, 32), ("64", 64), (0.5, 0.5), ("2/9", 2 / 9), ("1/3", 1 / 3)],
)
def test_budgets(keep: object, found: object) -> None:
    assert arguments.read({**BASE, "keep": keep}).options.keep == found


@pytest.mark.parametrize(
    "word, found", [("auto", None), ("pad", "pad"), ("processor", "processor")]
)
def test_pictures_are_prepared_as_the_authors_do_unless_it_is_said(
    word: str, found: str | None
) -> None:
    assert arguments.read({**BASE, "image_aspect": word}).aspect == found
    assert arguments.read(BASE).aspect is None


def test_a_template_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{{ messages }}")
    assert arguments.read({**BASE, "template": str(path)}).loading == {"chat_template": path}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keap": 3}, "'keap' is no argument of resprune: did you mean keep?"),
        ({"chat_template": False}, "'chat_template' is no argument"),
        ({"temperature": 0.5}, "'temperature' is no argument"),
        ({"max_new_tokens": 5}, "'max_new_tokens' is no argument"),
        ({"keep": 1.0}, "keep 1.0 could mean one token or all"),
        ({"keep": 0}, "keep 0 keeps no visual token"),
        ({"keep": "9/2"}, "keep 4.5 is neither a count nor a ratio below 1"),
        ({"keep": "2/0"}, "keep '2/0' is not a number"),
        ({"keep": "a/b"}, "keep 'a/b' is not a number"),
        ({"keep": True}, "keep True is not a number"),
        ({"keep": "half"}, "keep 'half' is not a number"),
        ({"method": "none", "keep": 8}, "keep=8 has no meaning with method=none"),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"precision": "fast"}, "unknown precision 'fast'"),
        ({"revision": 123}, "revision is a text, and lmms-eval read 123"),
        ({"template": "nowhere.jinja"}, "template nowhere.jinja does not exist"),
        ({"image_aspect": "square"}, "unknown image_aspect 'square'"),
        ({"positions": "sideways"}, "unknown positions 'sideways'"),
        ({"alpha": -1}, "alpha must be finite and non-negative"),
        ({"alpha": "strong"}, "alpha must be finite"),
        ({"tagger": ""}, "tagger is empty"),
        ({"resume": '""'}, "resume is empty"),
        ({"method_settings": "combine"}, "method settings are a mapping"),
        ({"version": "0.0.1"}, f"version=0.0.1 was asked for, and {VERSION} is installed"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], said: str) -> None:
    with pytest.raises(CallError) as caught:
        arguments.read({**BASE, **given})
    assert said in str(caught.value), caught.value


@pytest.mark.parametrize("missing", ["version", "pretrained"])
def test_what_is_missing_is_named(missing: str) -> None:
    given = {name: value for name, value in BASE.items() if name != missing}
    with pytest.raises(CallError, match=f"{missing} is missing"):
        arguments.read(given)


def test_every_field_of_a_call_is_an_argument_or_the_tasks_affair() -> None:
    names = {own.name for own in dataclasses.fields(CallOptions)}
    groups = [*dataclasses.fields(PruneOptions), *dataclasses.fields(PromptOptions)]
    drawn = names - {own.name for own in groups}
    assert names - set(arguments.known()) == drawn - {"rng_seed"} | {"chat_template"}


def test_the_document_lists_every_argument() -> None:
    page = (Path(__file__).parents[3] / "docs" / "how_to" / "lmms_eval.md").read_text("utf-8")
    for name, about in arguments.known().items():
        assert f"| `{name}` | {about} |" in page, name
