"""`--model_args`: everything that decides an answer, by name, checked before a model is loaded.

lmms-eval's response cache knows a model by its name and these words alone. So nothing that changes
an answer comes from anywhere else: no environment variable, no file that is looked for, and our own
version is one of the words.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args

from resprune_jax.choices import Precision
from resprune_jax.errors import CallError, one_of, shown
from resprune_jax.experiments.common import DType, check_file, parse_keep
from resprune_jax.experiments.words import OWN, version_of
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import (
    CallOptions,
    ImageAspect,
    PromptOptions,
    PruneOptions,
)

AUTO = "auto"
"""How pictures are prepared where nothing is said: as `resprune benchmark` does."""

LOADING = {
    "pretrained": "Checkpoint folder, Hub id, or pocket for the model that comes with this package."
    " Required.",
    "revision": "Branch, tag or commit of a Hub id; default main.",
    "dtype": "float32, bfloat16 or float16; default the checkpoint's.",
    "precision": "What products of float32 weights are computed in: float32, tensorfloat32 or"
    " bfloat16; default the weights'.",
    "clip": "The CLIP of the model's vision tower, for methods that read its texts (trim,"
    " cdpruner).",
    "template": "File of a Jinja chat template, for a checkpoint that came without.",
}
"""Arguments that load the model, and what they mean."""

RUNNING = {
    "version": "The version of this package, as resprune --version prints it. Required, and it"
    " must be the one that is installed: the response cache then never gives answers of another.",
    "rng_seed": "Seed of the random generator, for tasks that draw; default 0.",
    "resume": "Folder that keeps every finished batch, so that a run that was killed goes on;"
    " default none.",
}
"""Arguments of a run, and what they mean."""

GIVEN = ("batch_size", "max_batch_size", "device")
"""What lmms-eval adds to them from its own options."""

_TEXTS = ("pretrained", "revision", "dtype", "precision", "clip", "template", "resume", "tagger")


def call_arguments() -> dict[str, dataclasses.Field[Any]]:
    """The fields of `CallOptions` that are arguments; how tokens are drawn is the task's affair."""
    # Messages of a task are put into the chat template: there are no whole texts.
    return {
        own.name: own
        for group in (PruneOptions, PromptOptions)
        for own in dataclasses.fields(group)
        if own.name != "chat_template"
    }


@dataclass(frozen=True)
class ModelArguments:
    """What `--model_args` say.

    Attributes:
        pretrained: the checkpoint.
        loading: keywords of `load_model` that were given.
        options: of every call; a task adds how tokens are drawn.
        aspect: how pictures are prepared; None as the model's authors do.
        resume: a folder for finished answers, or None.
    """

    pretrained: str
    loading: dict[str, Any]
    options: CallOptions
    aspect: ImageAspect | None
    resume: Path | None


def known() -> dict[str, str]:
    """Every argument and what it means, as the documents list them."""
    calls = {
        # One value here is for every row.
        name: f"{own.metadata['help'].replace(', for all rows or for each', '')} Default"
        f" {own.metadata['unset'] or own.default}."
        for name, own in call_arguments().items()
    }
    calls["keep"] = (
        "Visual tokens to keep: a count, a ratio in (0, 1) of the image's own number such as 2/9 or"
        " 0.222, or full for every one. Default full."
    )
    calls["method"] = (
        "How the kept tokens are chosen: a name (resprune methods lists them), or a class of your"
        " own as FILE.py:NAME; none keeps every token. Default resprune."
    )
    calls["method_settings"] = (
        "Settings of the method by name, such as combine=add (resprune methods lists them). Default"
        " none."
    )
    calls["image_aspect"] = (
        "How pictures are prepared: auto (as the model's authors do in their benchmarks, who pad"
        " LLaVA-1.5's to a square), processor (as the checkpoint says) or pad. Default auto."
    )
    return {**LOADING, **calls, **RUNNING}


def read(given: Mapping[str, Any]) -> ModelArguments:
    """Read the arguments as lmms-eval hands them over: numbers and truths are no texts any more.

    Args:
        given: by name, without those of `GIVEN`.

    Raises:
        CallError: an unknown name, a value that cannot be, no checkpoint, or another version.
    """
    names = known()
    for name in given:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f": did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"
            raise CallError(f"model_args: {shown(name)} is no argument of resprune{hint}")
    values = {name: _plain(name, value) for name, value in given.items()}
    _check_version(values.pop("version", None))
    if "pretrained" not in values:
        raise CallError(
            "model_args: pretrained is missing: give a checkpoint folder, a Hub id, or pocket"
        )
    pretrained = values.pop("pretrained")
    resume = values.pop("resume", None)
    loading = {name: values.pop(name) for name in LOADING if name in values}
    if "dtype" in loading:
        one_of("dtype", loading["dtype"], get_args(DType))
    if "precision" in loading:
        one_of("precision", loading["precision"], get_args(Precision))
    if "template" in loading:
        path = Path(loading.pop("template"))
        check_file(path, "template")
        loading["chat_template"] = path
    if "keep" in values:
        values["keep"] = _budget(values["keep"])
    if "method_settings" in values:
        values["method_settings"] = _settings(values["method_settings"])
    aspect = values.pop("image_aspect", AUTO)
    one_of("image_aspect", aspect, (AUTO, *get_args(ImageAspect)))
    options = CallOptions(**values)
    if options.keeps_all and options.keep is not None:
        raise CallError(
            f"keep={options.keep} has no meaning with method=none, which keeps every token: drop"
            " one"
        )
    return ModelArguments(
        pretrained,
        loading,
        options,
        None if aspect == AUTO else aspect,
        None if resume is None else Path(resume),
    )


def _plain(name: str, value: Any) -> Any:
    """A value without the quotes that keep it a text; a number where a text is expected."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
            text = text[1:-1]
        if not text:
            raise CallError(f"model_args: {name} is empty: give it a value or leave it out")
        return text
    if name in _TEXTS:
        raise CallError(
            f"model_args: {name} is a text, and lmms-eval read {shown(value)}: write it in quotes,"
            f""" {name}='"..."'"""
        )
    return value


def _check_version(given: Any) -> None:
    own = version_of(OWN)
    if given is None:
        raise CallError(
            f"model_args: version is missing: write version={own}. The response cache of lmms-eval"
            " knows a model by its arguments, and so never gives answers of another version"
        )
    if str(given) != own:
        raise CallError(
            f"model_args: version={given} was asked for, and {own} is installed: write"
            f" version={own} (a response cache then starts anew), or install {OWN}=={given}"
        )


def _budget(value: Any) -> Keep:
    """A budget; also a fraction, which is exact where 0.222 of 2,880 tokens are 639."""
    try:
        found = Fraction(value) if isinstance(value, str) and "/" in value else None
    except (ValueError, ZeroDivisionError):
        found = None
    return parse_keep(value if found is None else float(found), "keep")


def _settings(value: Any) -> Any:
    """Settings of a method: NAME=VALUE, several with a semicolon between them."""
    if not isinstance(value, str):
        return value
    return tuple(part.strip() for part in value.split(";") if part.strip())
