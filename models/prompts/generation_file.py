"""What a checkpoint says of its answers: `generation_config.json` is read once, judged and obeyed.

Settings that shape greedy answers are applied (`running/processors.py`), those of sampling wait for
`sample=True`, and one that would change greedy answers in a way that is not done here is refused.
Where the file is missing, `config.json` may hold the same names, as in old checkpoints.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, RunError, say_once, shown
from resprune_jax.models.checkpoint.files import is_file, read_json
from resprune_jax.models.prompts.options import CallOptions

NAME = "generation_config.json"

DEFAULT_NEW_TOKENS = 128
"""The most tokens of an answer where neither the call nor the file says."""

_LARGEST = 2**31
_MOST_IDS = 1 << 20  # places of a table: lists times the length of the longest one

# Settings of drawing, with the values that change nothing.
_SAMPLING: dict[str, tuple[Any, ...]] = {
    "do_sample": (False,),
    "temperature": (1.0,),
    "top_p": (1.0,),
    "top_k": (0, 50),  # 50 is what transformers fills in for every file
    "min_p": (0.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "top_h": (1.0,),
}
_NOT_DRAWN_BY = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h")

# Settings that change greedy answers and are not done here, with the values that change nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "diversity_penalty": (0.0,),
    "penalty_alpha": (0.0,),
    "guidance_scale": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "sequence_bias": ({}, []),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "force_words_ids": ([],),
    "constraints": ([],),
    "dola_layers": (),
    "prompt_lookup_num_tokens": (),
    "assistant_early_exit": (),
    "use_mtp": (False,),
    "token_healing": (False,),
    "watermarking_config": (),
    "stop_strings": ([],),
    "max_time": (),
    "custom_generate": (),
    "cache_implementation": (
        *("dynamic", "dynamic_full", "static", "offloaded", "offloaded_static", "hybrid"),
        *("sliding_window", "hybrid_chunked", "paged"),
    ),
}

# What says nothing of greedy tokens: other outputs, speed, beams alone, the file itself. Scores
# that are not finite fail their row here, so that nothing is left to be removed.
_WITHOUT_EFFECT = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("transformers_version", "_from_model_config", "_commit_hash", "chat_format"),
    *("use_cache", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "return_legacy_cache", "early_stopping", "length_penalty"),
    *("renormalize_logits", "remove_invalid_values", "compile_config", "disable_compile"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind"),
    *("assistant_ensemble_weight", "max_matching_ngram_size", "speculation_type"),
    *("continuous_batching_config", "trust_remote_code"),
}


@dataclass(frozen=True)
class GenerationSettings:
    """The settings of a checkpoint that are applied to its answers.

    Attributes:
        source: the file that they are from, for messages.
        repetition_penalty: scores of ids that the prompt or the answer holds already are divided
            by it, or multiplied where they are negative.
        no_repeat_ngram_size: no run of so many ids occurs twice in prompt and answer; 0 for any.
        bad_words_ids: runs of ids that an answer never holds.
        suppress_tokens: ids that are never taken.
        begin_suppress_tokens: ids that no answer begins with.
        min_length: tokens of prompt and answer before the answer may end.
        min_new_tokens: tokens of the answer before it may end; goes before `min_length`.
        max_length: the most tokens of prompt and answer, where nothing says `max_new_tokens`.
        max_new_tokens: the most tokens of the answer, where the call does not say.
        sampling: what the file says of drawing, not judged yet: greedy answers do not need it.
    """

    source: str = NAME
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    min_length: int = 0
    min_new_tokens: int | None = None
    max_length: int | None = None
    max_new_tokens: int | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def applied(self) -> dict[str, Any]:
        """The settings that greedy answers are shaped by, those that change nothing left out."""
        plain = GenerationSettings()
        names = [each.name for each in dataclasses.fields(self)]
        return {
            name: getattr(self, name)
            for name in names
            if name not in ("source", "sampling") and getattr(self, name) != getattr(plain, name)
        }

    def resolve(self, options: CallOptions) -> CallOptions:
        """The call's options with this checkpoint's values where the call gave none.

        Greedy stays the default: what the file says of drawing is said once, and used with
        `sample=True`. Options that are resolved stay as they are.

        Raises:
            CallError: `sample=True`, and the file's sampling cannot be done here.
        """
        drawing = options.sample or bool(options.temperature)
        drawn: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0}
        if options.sample:
            given = {name: getattr(options, name) for name in (*drawn, "top_k", "min_p")}
            drawn |= self._drawing({name for name, own in given.items() if own is not None})
        elif not drawing:
            drawn["temperature"] = 0.0
            self._say_sampling()
        own = {
            **drawn,
            "max_new_tokens": self.max_new_tokens or DEFAULT_NEW_TOKENS,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
        }
        changes = {name: value for name, value in own.items() if getattr(options, name) is None}
        return dataclasses.replace(options, **changes)

    def ceiling(self, options: CallOptions) -> int | None:
        """The most tokens of prompt and answer together; None where only the answer is bounded.

        Args:
            options: the call's, before `resolve`.
        """
        if options.max_new_tokens is not None or self.max_new_tokens is not None:
            return None
        return self.max_length

    def _drawing(self, given: set[str]) -> dict[str, Any]:
        """The file's settings of drawing but for what the call gave, judged."""
        checks: dict[str, tuple[Callable[[Any], bool], str]] = {
            "temperature": (lambda x: _finite(x) and x > 0, "a number above 0"),
            "top_p": (lambda x: _finite(x) and 0 < x <= 1, "a number in (0, 1]"),
            "top_k": (lambda x: type(x) is int and 0 <= x < _LARGEST, "a whole number, 0 for all"),
            "min_p": (lambda x: _finite(x) and 0 <= x <= 1, "a number in [0, 1]"),
        }
        found = {}
        for name, (fits, wanted) in checks.items():
            value = self.sampling.get(name)
            if value is None or name in given:
                continue
            if not fits(value):
                raise CallError(
                    f"{self.source} says {name}={shown(value)}, expected {wanted}: give {name}"
                    " with sample=True, or answer greedily"
                )
            found[name] = value
        for name in _NOT_DRAWN_BY:
            if name in self.sampling and not _neutral(self.sampling[name], _SAMPLING[name]):
                raise CallError(
                    f"{self.source} draws by {name}={shown(self.sampling[name])}, which is not"
                    " done here: give a temperature (and top_p, top_k) without sample, or answer"
                    " greedily"
                )
        return found

    def _say_sampling(self) -> None:
        """Say once what the file says of drawing, which greedy answers leave out."""
        said = {
            name: value
            for name, value in self.sampling.items()
            if not _neutral(value, _SAMPLING[name])
        }
        if said:
            say_once(
                f"sampling {self.source}",
                f"{self.source} says {_listed(said)}: answers here are greedy,"
                " sample (--sample) draws as it says",
            )


def read_generation_settings(
    folder: Path, vocabulary: int, model: Mapping[str, Any] | None = None
) -> GenerationSettings:
    """Read and judge what a checkpoint says of its answers.

    Args:
        folder: the checkpoint's folder.
        vocabulary: rows of the decoder's head: ids lie below.
        model: its parsed `config.json`, which counts where `generation_config.json` is missing.

    Returns:
        The settings.

    Raises:
        CallError: a setting that changes greedy answers and is not done here, by name.
        RunError: a file that cannot be read, or a value that cannot be one.
    """
    path = folder / NAME
    content = read_json(path)
    if not is_file(path):
        content, path = _of_model(model or {}), folder / "config.json"
    content = {name: value for name, value in content.items() if value is not None}
    source = f"{folder.name}/{path.name}"
    refused = {
        name: content[name]
        for name, neutral in _REFUSED.items()
        if name in content and not _neutral(content[name], neutral)
    }
    if refused:
        raise CallError(
            f"{source} asks for {_listed(refused)}, which is not done here and would change the"
            f" answers: take {'it' if len(refused) == 1 else 'them'} out of the file to answer"
            " without"
        )
    known = {*_READERS, *_SAMPLING, *_REFUSED, *_WITHOUT_EFFECT}
    if others := [shown(name) for name in sorted(content) if name not in known]:
        more = f" and {len(others) - 5} more" if len(others) > 5 else ""
        say_once(
            f"settings {path}",
            f"{source} holds settings that are not known here and have no effect: "
            f"{', '.join(others[:5])}{more}",
        )
    made = {
        name: read(f"{name} of {source}", content[name], vocabulary)
        for name, read in _READERS.items()
        if name in content
    }
    sampling = {name: content[name] for name in _SAMPLING if name in content}
    return GenerationSettings(source, **made, sampling=sampling)


def _of_model(model: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that an old `config.json` holds among those of the architecture.

    Lengths are left out: version 4 wrote its own defaults there (20 tokens), which nobody chose.
    """
    text = model.get("text_config")
    names = {*_READERS, *_SAMPLING, *_REFUSED} - {"max_length", "min_length"}
    parts = [part for part in (text, model) if isinstance(part, Mapping)]
    return {
        name: part[name]
        for part in parts  # the outer one wins
        for name in names
        if part.get(name) is not None
    }


def _neutral(value: Any, neutral: tuple[Any, ...]) -> bool:
    """Whether a value changes nothing; a truth value is no number here."""
    return any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in neutral
    )


def _finite(value: Any) -> bool:
    # Whole numbers beyond a float's range are none that a setting can have.
    return (type(value) is float and math.isfinite(value)) or (
        type(value) is int and abs(value) < _LARGEST
    )


def _penalty(what: str, value: Any, _: int) -> float:
    # Scores are float32: a factor that is none there would make infinities or zeros of them.
    if not (_finite(value) and 1e-6 <= value <= 1e6):
        raise RunError(f"{what} is {shown(value)}, expected a number in [1e-6, 1e6], 1 for none")
    return float(value)


def _count(least: int) -> Callable[[str, Any, int], int]:
    def read(what: str, value: Any, _: int) -> int:
        if type(value) is not int or not least <= value < _LARGEST:
            raise RunError(f"{what} is {shown(value)}, expected a whole number from {least} on")
        return value

    return read


def _ids(what: str, value: Any, _: int) -> tuple[int, ...]:
    """Ids, of which those outside of the vocabulary mean nothing."""
    whole = isinstance(value, list) and all(type(i) is int for i in value)
    if not whole or len(value) > _MOST_IDS:
        raise RunError(f"{what} is {shown(value)}, expected a list of ids")
    return tuple(dict.fromkeys(value))


def _runs(what: str, value: Any, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    good = isinstance(value, list) and all(isinstance(run, list) and run for run in value)
    if not good or any(type(i) is not int for run in value for i in run):
        raise RunError(f"{what} is {shown(value)}, expected lists of one or more ids")
    for run in value:
        for i in run:
            if not 0 <= i < vocabulary:
                raise RunError(f"{what} has the id {shown(i)}, expected ids below {vocabulary}")
    if len(value) * max(map(len, value), default=0) > _MOST_IDS:
        raise RunError(f"{what} has {len(value)} lists, too many for their length")
    return tuple(dict.fromkeys(map(tuple, value)))


_READERS: dict[str, Callable[[str, Any, int], Any]] = {
    "repetition_penalty": _penalty,
    "no_repeat_ngram_size": _count(0),
    "bad_words_ids": _runs,
    "suppress_tokens": _ids,
    "begin_suppress_tokens": _ids,
    "min_length": _count(0),
    "min_new_tokens": _count(0),
    "max_length": _count(1),
    "max_new_tokens": _count(1),
}


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={shown(value)}" for name, value in values.items())
