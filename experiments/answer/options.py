"""The options of `resprune answer`, and what is refused before a model is loaded."""

import dataclasses
import hashlib
import math
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    ChatOptions,
    ClipCheckpoint,
    Keep,
    ProductPrecision,
    WeightsDType,
    call_options,
    check_file,
    check_number,
    check_target,
    model_name,
    parse_keep,
    shown,
    status_of,
)
from resprune_jax.models.prompts.options import CallOptions

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionOptions(ChatOptions):
    """What is asked, and where answers go."""

    image: Annotated[tuple[Path, ...], shown("FILE [FILE ...]")] = ()
    """The image, or several that are all asked the same question."""
    together: bool = False
    """The images belong to one prompt, in this order; else each is asked by itself."""
    video: Annotated[Path | None, shown("FILE|FOLDER")] = None
    """A video, behind the images of its prompt: a folder of frames, or a file (needs the video
    extra). For models that take videos."""
    fps: Annotated[float | None, shown("N", "what the video says")] = None
    """Frames a second of --video, where it does not say."""
    prompt: Annotated[str | None, shown("TEXT")] = None
    """The question; with --rows, the question of rows that have none."""
    rows: Annotated[
        Path | None,
        shown(
            "FILE.jsonl",
            help_text='JSON lines {"image": ..., "prompt": ...} in place of --image; "image" may'
            ' be a list for one prompt, a row may carry a "video" with its "fps", its own "keep"'
            ' and an "id". Relative paths start at the folder of this file.',
        ),
    ] = None
    output: Annotated[
        Path | None,
        shown(
            "OUT.jsonl",
            help_text="Append a JSON line a row to this file. Rows that it answers already are"
            " skipped, rows that failed are asked again; without it, several rows go to standard"
            " output.",
        ),
    ] = None


@dataclasses.dataclass(frozen=True, kw_only=True)
@call_options
class AnswerOptions(CallOptions, QuestionOptions):
    """Answer a question about an image, or a file of them, from a part of the visual tokens."""

    keep: Annotated[
        str,
        shown(
            "COUNT|RATIO|full",
            None,
            "Visual tokens to keep: a count such as 128, a ratio such as 0.222 of the image's own"
            " number, or full for every one. 1.0 is refused: it could mean one token or all.",
        ),
    ] = "full"  # type: ignore[assignment]
    method: Annotated[str, shown("NAME|FILE.py:NAME", None)] = "resprune"
    """How the kept tokens are chosen: a name (resprune methods lists them), or a class of your own
    in a file; none keeps every token."""
    method_settings: Annotated[tuple[str, ...], shown("NAME=VALUE [NAME=VALUE ...]")] = ()
    """Settings of the method, such as combine=add; resprune methods lists them."""

    chat_template: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.arg(help="The prompts are whole texts with their image placeholders."),
    ] = True

    rng_seed: Annotated[int, shown("N", None)] = 0
    """Seed of the random generator for drawing; a row draws by it and its own number."""
    batch_size: Annotated[int, shown("B", None)] = 4
    """Rows that run together."""
    dtype: WeightsDType = None
    precision: ProductPrecision = None
    clip: ClipCheckpoint = None

    overlay: Annotated[Path | None, shown("OUT.png")] = None
    """Draw the images with their kept tokens clear and the others hatched; for one prompt."""
    json: bool = False
    """Print JSON in place of text."""
    quiet: bool = False
    """Do not show on standard error how far a run is, and what is being compiled."""

    def __post_init__(self) -> None:
        """Nothing yet: `check` names the options as they are written on the command line."""

    def call(self, keep: Keep | Sequence[Keep], **changes: Any) -> CallOptions:
        """The call's options, for rows with these budgets."""
        names = [option.name for option in dataclasses.fields(CallOptions)]
        own = {name: getattr(self, name) for name in names}
        return CallOptions(**{**own, "keep": None if self.method == "none" else keep, **changes})


_DRAWING = (
    ("max_new_tokens", 1, math.inf, False),
    ("temperature", 0.0, math.inf, False),
    ("top_p", 0.0, 1.0, True),
    ("top_k", 0, 2**31 - 1, False),
    ("min_p", 0.0, 1.0, False),
    ("repetition_penalty", 1e-6, 1e6, False),
    ("no_repeat_ngram_size", 0, 2**31 - 1, False),
)
"""Options of drawing: name, least and most, and whether the least is left out."""


def check(options: AnswerOptions) -> Keep:
    """Refuse what can be seen to be wrong before a model is loaded.

    Returns:
        The budget.

    Raises:
        CallError: one line that names the option, its value and what it should be.
    """
    if options.image and options.rows:
        raise CallError("--image and --rows were both given: give one of them")
    if options.video and options.rows:
        raise CallError('--video and --rows were both given: write "video" into the rows')
    if not options.image and not options.rows and not options.video:
        raise CallError("no image was given: give --image FILE --prompt TEXT, or --rows FILE.jsonl")
    if (options.image or options.video) and options.prompt is None:
        raise CallError("no question was given: add --prompt TEXT")
    if options.prompt is not None and not options.prompt.strip():
        raise CallError("--prompt is empty: write a question")
    for path in options.image:
        check_file(path, "--image")
    if options.template is not None:
        check_file(options.template, "--chat-template")
    if options.video:
        status = status_of(options.video, "--video")
        if status is None or not stat.S_ISDIR(status.st_mode):
            check_file(options.video, "--video")
    if options.fps is not None:
        if options.video is None:
            raise CallError("--fps is the speed of a --video, and none was given: drop it")
        check_number("--fps", options.fps, 0.0, above=True)
    if options.video and len(options.image) > 1 and not options.together:
        raise CallError("--video with several images asks one prompt: add --together")
    keep = parse_keep(options.keep)
    if options.method == "none":
        given = [
            name
            for name, value in {
                "--keep": keep,
                **{f"--{name.replace('_', '-')}": own for name, own in options.settings.items()},
                "--tolerance": options.tolerance,
            }.items()
            if value is not None
        ]
        if given:
            raise CallError(
                f"{given[0]} has no meaning with --method none, which keeps every token: drop one"
            )
    elif options.method not in METHODS or options.method_settings:
        from resprune_jax.methods import get_method

        get_method(options.method, options.settings)
    if options.alpha is not None:
        check_number("--alpha", options.alpha, 0.0)
    if options.tolerance is not None:
        check_number("--tolerance", options.tolerance, 1e-5, 1.0, below=True)
    for name, low, high, above in _DRAWING:
        value = getattr(options, name)
        if value is not None:
            check_number(f"--{name.replace('_', '-')}", value, low, high, above=above)
    if options.sample and options.temperature == 0:
        raise CallError("--sample draws tokens and --temperature 0 takes the likeliest: drop one")
    check_number("--rng-seed", options.rng_seed, 0, 2**32 - 1)
    check_number("--batch-size", options.batch_size, 1)
    if options.output:
        check_target(options.output, "--output")
        _check_inputs(options, options.output, "--output")
    if options.overlay:
        single = len(options.image) == 1 or options.together or options.video is not None
        if not single or options.rows or options.output:
            raise CallError(
                "--overlay draws one prompt: give one --image, several --together, or a --video,"
                " and no --output"
            )
        check_target(options.overlay, "--overlay", PICTURES)
        _check_inputs(options, options.overlay, "--overlay")
    return keep


def _check_inputs(options: AnswerOptions, target: Path, name: str) -> None:
    """Refuse to write over what is asked about."""
    inputs = [*options.image, *(path for path in (options.video, options.rows) if path)]
    for path in inputs:
        if target.exists() and path.exists() and target.samefile(path):
            raise CallError(f"{name} {target} is the input {path} itself: give another file")


def settings_of(options: AnswerOptions) -> dict[str, Any]:
    """What decides an answer, as it is stored in every result row; budgets are the rows' own."""
    names = [option.name for option in dataclasses.fields(CallOptions) if option.name != "keep"]
    chosen = {name: getattr(options, name) for name in ("revision", "dtype", "precision", *names)}
    chosen["method_settings"] = sorted(options.method_settings)
    if options.text is None:
        chosen["text"] = "nouns"
        if options.method not in ("none", "resprune"):
            from resprune_jax.methods import method_class

            chosen["text"] = method_class(options.method).text
    if options.template is not None:
        content = options.template.read_bytes()
        chosen["template"] = f"sha256 {hashlib.sha256(content).hexdigest()}"
    if options.clip is not None:
        chosen["clip"] = model_name(options.clip)
    return {"model": model_name(options.model), **chosen}
