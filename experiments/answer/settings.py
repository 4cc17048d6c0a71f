"""Whether two runs ask alike: the settings of result rows, also those of earlier versions."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resprune_jax.errors import shown
from resprune_jax.models.prompts.generation_file import DEFAULT_NEW_TOKENS, GenerationSettings
from resprune_jax.models.prompts.options import CallOptions

# A file of an earlier version says nothing of options that it did not have.
_UNSAID = {option.name: option.default for option in dataclasses.fields(CallOptions)} | {
    "method_settings": [],
    "text": "nouns",
}

# What None stands for where the checkpoint's own sampling is not asked for.
_PLAIN = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}

# What None stands for where the checkpoint says nothing.
_CHECKPOINTS = {"max_new_tokens": DEFAULT_NEW_TOKENS, "repetition_penalty": 1.0,
                "no_repeat_ngram_size": 0}  # fmt: skip


@dataclass
class Alike:
    """What is to hold of a checkpoint, so that rows and a run are of the same settings.

    Attributes:
        early: whether a row was written before `generation_config.json` was obeyed.
        values: what the checkpoint must say, or leave at its default.
    """

    early: bool = False
    values: dict[str, Any] = field(default_factory=dict)

    def differences(self, theirs: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
        """Compare a row's settings with a run's; what the checkpoint decides is noted.

        Args:
            theirs: the settings of the row.
            own: those of the run.

        Returns:
            What differs whatever the checkpoint says, in words.
        """
        self.early |= "sample" not in theirs  # all options of drawing came together
        theirs, own = _UNSAID | dict(theirs), _UNSAID | dict(own)
        plain = not theirs["sample"] and not own["sample"]
        found = []
        for name in sorted({*theirs, *own}):
            pair = theirs.get(name), own.get(name)
            if plain and name in _PLAIN:
                pair = tuple(_PLAIN[name] if value is None else value for value in pair)  # type: ignore[assignment]
            if pair[0] == pair[1]:
                continue
            if name in _CHECKPOINTS and None in pair and _CHECKPOINTS[name] in pair:
                self.values[name] = _CHECKPOINTS[name]
                continue
            found.append(f"{name} {theirs.get(name)!r} there, {own.get(name)!r} here")
        return found

    def refuted(self, checkpoint: GenerationSettings) -> str:
        """What a checkpoint says against it, in words; "" if nothing."""
        applied = checkpoint.applied
        ends = ("max_new_tokens", "max_length") if "max_new_tokens" in self.values else ()
        names = list(applied) if self.early else [n for n in applied if n in (*self.values, *ends)]
        return ", ".join(f"{name}={shown(applied[name])}" for name in names)
