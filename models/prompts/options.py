"""What a call can be told, written down once.

`LVLM.generate`, `logits`, `warm_up`, the command line and the sweeps take these fields by name;
their meaning, defaults and checks stand here alone. Nothing here imports JAX, so that a command's
help does not wait for it.
"""

import dataclasses
import difflib
import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, TypeVar, get_args

from resprune_jax.arguments import LARGEST, numbers, settings_by_name, whole
from resprune_jax.choices import (
    SMALLEST_TOLERANCE,
    Aggregate,
    NonNegative,
    OcrLine,
    SeedRule,
    TextSource,
)
from resprune_jax.errors import CallError, one_of, shown
from resprune_jax.models.prompts import budgets
from resprune_jax.models.prompts.budgets import Keep

ImageAspect = Literal["processor", "pad"]
"""How LLaVA-1.5's pictures become squares: as the checkpoint's processor does, or padded."""

Budget = Literal["total", "per_image"]
"""Whether a prompt's images share its budget or have one each."""

Newline = Literal["candidate", "always"]
"""Whether newline tokens compete for the budget, or are kept beside it."""

Positions = Literal["reindex", "original"]
"""Position ids after pruning: consecutive again (LLaVA's way), or those of the unpruned prompt.

On Qwen2.5-VL's three axes, "reindex" closes up behind the outermost token kept of each image."""


def _option(default: Any, about: str, *, unset: str | None = None) -> Any:
    """A field with its meaning, and what None stands for; both show in every help."""
    return field(default=default, metadata={"help": about, "unset": unset})


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """Which visual tokens enter the LLM."""

    keep: Keep | Sequence[Keep] = _option(
        None,
        "Visual tokens to keep, for all rows or for each: a count (capped at the image's number), a"
        " ratio in (0, 1) of the image's own number, or None for every one.",
    )
    method: Any = _option(
        "resprune",
        "How the kept tokens are chosen: a name, a class of your own as FILE.py:NAME, or a method"
        " with settings of its own such as ResPrune(alpha=0.5); none keeps every token.",
    )
    method_settings: Any = _option(
        (),
        "Settings of the method by name, such as combine=add (resprune methods lists them).",
    )
    alpha: Any = _option(
        None,
        "Strength of the guidance by the question's nouns, for all rows or for each; 0 leaves the"
        " text out.",
        unset="the method's",
    )
    aggregate: Aggregate | None = _option(
        None, "Relevance over several noun tokens (Table VI).", unset="the method's"
    )
    nonnegative: NonNegative | None = _option(
        None, "How negative cosines become weights.", unset="the method's"
    )
    seed_rule: SeedRule | None = _option(
        None, "Which visual token is chosen first (Table VII).", unset="the method's"
    )
    tolerance: float | None = _option(
        None, "Stop choosing at this share of energy left out; keep stays the most.", unset="off"
    )
    budget: Budget = _option("total", "Whether the images of a prompt share keep or have it each.")
    newline: Newline = _option(
        "candidate",
        "LLaVA-NeXT's newline tokens: candidate: they compete for the budget. always: they are kept"
        " beside it.",
    )
    positions: Positions | None = _option(
        None,
        "Position ids after pruning: closed up, or those of the full prompt.",
        unset="the model's",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        for name, choices in _OPTIONAL.items():
            if (value := getattr(self, name)) is not None:
                one_of(name.replace("_", " "), value, choices)
        one_of("budget", self.budget, get_args(Budget))
        one_of("newline", self.newline, get_args(Newline))
        stop = self.tolerance
        if stop is not None and not SMALLEST_TOLERANCE <= _number(stop) < 1:
            raise CallError(f"tolerance must lie in [{SMALLEST_TOLERANCE:g}, 1), got {shown(stop)}")
        if self.method is None:
            raise CallError("method is a name or an instance, got None: write none to keep all")
        if self.alpha is not None:
            strength = numbers(self.alpha)
            each = strength if isinstance(strength, tuple) else (strength,)
            if not each or any(one is None or not 0 <= one <= LARGEST for one in each):
                raise CallError(
                    "alpha must be finite and non-negative, one number or one for each prompt, got"
                    f" {shown(self.alpha)}"
                )
            object.__setattr__(self, "alpha", strength)
        object.__setattr__(self, "method_settings", settings_by_name(self.method_settings))
        if given := [name for name in self.settings if self.keeps_all]:
            raise CallError(f"method 'none' has no settings, but {', '.join(given)} was given")

    @property
    def keeps_all(self) -> bool:
        """Whether no method chooses, so that every token is kept."""
        return isinstance(self.method, str) and self.method == "none"

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings that were given, by name."""
        names = ("alpha", "aggregate", "nonnegative", "seed_rule")
        own = {name: value for name in names if (value := getattr(self, name)) is not None}
        return {**settings_by_name(self.method_settings), **own}

    def budgets(self, rows: int) -> list[Keep]:
        """`keep` for each of `rows` prompts.

        Raises:
            CallError: an impossible budget, or another number of them.
        """
        return budgets.parse(self.keep, rows, pruning=not self.keeps_all)


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """How pictures and questions are read."""

    text: TextSource | None = _option(
        None,
        "What conditions the choice: the question's nouns, or every word of the prompt (Setting-1"
        " of Table IV).",
        unset="the method's, nouns for resprune",
    )
    ocr_line: OcrLine = _option(
        "strip",
        "TextVQA's line of reference OCR tokens: strip: it stays out of the nouns. keep: it"
        " counts.",
    )
    tagger: str = _option(
        "auto",
        "What finds the nouns: auto (spaCy's en_core_web_sm, else the lexicon), lexicon, or any"
        " spaCy pipeline by the name of its package or its folder.",
    )
    strict_nouns: bool = _option(
        False, "Refuse to run without spaCy's en_core_web_sm, in place of taking the lexicon."
    )
    chat_template: bool = _option(
        True,
        "Put the question into the checkpoint's chat template; else it is the whole text, image"
        " placeholders included.",
    )
    image_aspect: ImageAspect = _option(
        "processor",
        "processor: as the checkpoint says (LLaVA-1.5: centre crop). pad: the whole image on a"
        " square of the mean colour, as in the original LLaVA.",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        one_of("image_aspect", self.image_aspect, get_args(ImageAspect))
        if self.text is not None:
            one_of("text", self.text, get_args(TextSource))
        one_of("ocr_line", self.ocr_line, get_args(OcrLine))
        for name in ("strict_nouns", "chat_template"):
            if not isinstance(getattr(self, name), bool):
                raise CallError(f"{name} is True or False, got {shown(getattr(self, name))}")


_DRAWING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_new_tokens": (lambda x: _is_whole(x) and 1 <= x < 2**31, "be at least 1"),
    "temperature": (
        lambda x: _is_number(x) and 0 <= x <= LARGEST,
        "be finite and at least 0",
    ),
    "top_p": (lambda x: _is_number(x) and 0 < x <= 1, "lie in (0, 1]"),
    "top_k": (lambda x: _is_whole(x) and 0 <= x < 2**31, "be a whole number of at least 0"),
    "min_p": (lambda x: _is_number(x) and 0 <= x <= 1, "lie in [0, 1]"),
    "repetition_penalty": (lambda x: _is_number(x) and 1e-6 <= x <= 1e6, "lie in [1e-6, 1e6]"),
    "no_repeat_ngram_size": (
        lambda x: _is_whole(x) and 0 <= x < 2**31,
        "be a whole number of at least 0",
    ),
}


@dataclass(frozen=True, kw_only=True)
class DrawOptions:
    """How an answer's tokens are drawn."""

    max_new_tokens: int | None = _option(
        None,
        "The most tokens to generate; a row stops at its end-of-sequence id.",
        unset="the checkpoint's, else 128",
    )
    sample: bool = _option(
        False,
        "Draw tokens as the checkpoint's generation_config.json says (temperature, top_p, top_k,"
        " min_p), each unless it is given here; else the likeliest token is taken.",
    )
    temperature: float | None = _option(
        None,
        "0 takes the likeliest token; above 0 tokens are drawn.",
        unset="0; with sample the checkpoint's, else 1",
    )
    top_p: float | None = _option(
        None,
        "Draw from the likeliest tokens that hold this probability together.",
        unset="1; with sample the checkpoint's",
    )
    top_k: int | None = _option(
        None,
        "Draw from so many likeliest tokens; 0 for all.",
        unset="0; with sample the checkpoint's",
    )
    min_p: float | None = _option(
        None,
        "Draw from tokens of at least this share of the likeliest one's probability.",
        unset="0; with sample the checkpoint's",
    )
    repetition_penalty: float | None = _option(
        None,
        "Above 1, ids that prompt or answer hold already are less likely; 1 is off.",
        unset="the checkpoint's, else 1",
    )
    no_repeat_ngram_size: int | None = _option(
        None,
        "No run of so many ids occurs twice in prompt and answer; 0 is off.",
        unset="the checkpoint's, else 0",
    )
    rng_seed: int | Sequence[int] = _option(
        0,
        "Seed of the random generator for drawing; with one for each row, a row draws the same in"
        " any batch.",
    )

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        for name, (fits, wanted) in _DRAWING.items():
            value = getattr(self, name)
            if value is None:
                continue
            plain = numbers(value)
            if not fits(plain):
                raise CallError(f"{name} must {wanted}, got {shown(value)}")
            object.__setattr__(self, name, plain)
        if not isinstance(self.sample, bool):
            raise CallError(f"sample is True or False, got {shown(self.sample)}")
        if self.sample and self.temperature == 0:
            raise CallError("sample draws tokens and temperature 0 takes the likeliest: drop one")
        object.__setattr__(self, "rng_seed", _seeds(self.rng_seed))

    def check_seeds(self, rows: int) -> None:
        """Refuse seeds of rows that there are not.

        Raises:
            CallError: another number of them than rows.
        """
        own = self.rng_seed
        if isinstance(own, tuple) and len(own) != rows:
            raise CallError(f"{len(own)} rng_seeds were given for {rows} prompts")


@dataclass(frozen=True, kw_only=True)
class CallOptions(DrawOptions, PromptOptions, PruneOptions):
    """Everything that a call of `LVLM.generate` can be told beside its images and prompts."""

    def __post_init__(self) -> None:
        """Check every group."""
        for group in (PruneOptions, PromptOptions, DrawOptions):
            group.__post_init__(self)


_OPTIONAL = {
    "aggregate": get_args(Aggregate),
    "nonnegative": get_args(NonNegative),
    "seed_rule": get_args(SeedRule),
    "positions": get_args(Positions),
}

Result = TypeVar("Result")


def takes_options(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let a method of `LVLM` take `CallOptions` as one argument, as keywords, or as both.

    The method is written with one parameter `options`; whoever calls it sees every field as a
    keyword, in `help()` too. Keywords change the fields of `options` where both are given.

    Raises (when called):
        CallError: a keyword that is no option, with the nearest one named.
    """
    own = inspect.signature(function)
    fields = {option.name: option for option in dataclasses.fields(CallOptions)}
    known = [*own.parameters, *fields]

    @functools.wraps(function)
    def call(*args: Any, options: CallOptions | None = None, **given: Any) -> Result:
        changes = {name: given.pop(name) for name in list(given) if name in fields}
        for name in given:
            if name not in own.parameters:
                near = difflib.get_close_matches(name, known, 1)
                hint = f": did you mean {near[0]}?" if near else f"; options: {', '.join(fields)}"
                raise CallError(f"{function.__name__} has no option {name[:40]!r}{hint}")
        if options is not None and not isinstance(options, CallOptions):
            raise CallError(f"options is a CallOptions, got {type(options).__name__}")
        made = dataclasses.replace(options or CallOptions(), **changes)
        return function(*args, options=made, **given)

    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [
        inspect.Parameter(name, keyword, default=option.default, annotation=option.type)
        for name, option in fields.items()
    ]
    about = "".join(
        f"\n    {name} (default {option.metadata['unset'] or repr(option.default)}): "
        f"{option.metadata['help']}"
        for name, option in fields.items()
    )
    call.__doc__ = f"{inspect.getdoc(function)}\n\nOptions, each a keyword:{about}\n"
    call.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[*own.parameters.values(), *extra]
    )
    return call


def _is_number(value: Any) -> bool:
    return isinstance(numbers(value), Real)


def _is_whole(value: Any) -> bool:
    return isinstance(numbers(value), Integral)


def _number(value: Any) -> float:
    """One real number, NaN for anything else, so that no comparison with it holds."""
    found = numbers(value)
    return math.nan if found is None or isinstance(found, tuple) else found


def _seeds(given: Any) -> int | tuple[int, ...]:
    """A seed of the random generator, or one for each row.

    Raises:
        CallError: something else, or out of range.
    """
    own = budgets.listed(given)
    each = own if isinstance(own, list | tuple) else [given]
    try:
        found = [whole("rng_seed", seed, least=0) for seed in each]
    except CallError:
        found = []
    if not found or max(found) >= 2**32:
        raise CallError(
            "rng_seed must lie in [0, 2^32), a whole number or a list of one for each row, got"
            f" {shown(given)}"
        )
    return tuple(found) if isinstance(own, list | tuple) else found[0]
