"""What a run of the plug-in is, so that finished answers are never taken for another run's."""

from pathlib import Path
from typing import Any

from resprune_jax.experiments.common import model_name
from resprune_jax.experiments.harness.arguments import ModelArguments
from resprune_jax.experiments.sweep.identity import fingerprint, own_methods
from resprune_jax.experiments.words import OWN, version_of
from resprune_jax.models.prompts.options import CallOptions

PACKAGES = (
    OWN, "jax", "jaxlib", "flax", "transformers", "tokenizers", "pillow", "spacy", "textblob",
)  # fmt: skip
"""Packages that have a say in an answer; the tagger says its own name and version."""


def settings_of(
    arguments: ModelArguments, lvlm: Any, options: CallOptions, batch_size: int
) -> dict[str, Any]:
    """Everything that decides an answer beside the question.

    What has a name is there with its content: the name stays when what it stands for changes.

    Args:
        arguments: what --model_args say.
        lvlm: the `LVLM` that they load.
        options: of every call.
        batch_size: questions that run together.

    Raises:
        CallError, RunError: a file or a tagger that cannot be read.
    """
    template, clip = (arguments.loading.get(name) for name in ("chat_template", "clip"))
    methods = [options.method] if isinstance(options.method, str) else []
    tagger = None
    if not options.keeps_all:
        tagger = lvlm.extractor(options.tagger, strict=options.strict_nouns).backend
    return {
        **{name: value for name, value in arguments.loading.items() if name != "chat_template"},
        "model": model_name(arguments.pretrained),
        "checkpoint": fingerprint(lvlm.path),
        "clip": None if clip is None else [clip, fingerprint(lvlm.clip.path)],
        "template": None if template is None else Path(template).read_text(encoding="utf-8"),
        "options": repr(options),
        "own_methods": own_methods(methods),
        "tagger": tagger,
        "batch_size": batch_size,
        "packages": {name: version_of(name) for name in PACKAGES},
    }
