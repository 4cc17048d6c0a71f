"""The options of `resprune answer`, and what is refused before a model is loaded."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    DType,
    Keep,
    ModelOptions,
    check_file,
    check_number,
    check_target,
    model_name,
    parse_keep,
)

SeedRule = Literal["cls_attention", "max_norm", "text", "mean_similarity", "center"]
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".pdf", ".svg")


def _arg(metavar: str, default: str | None = "", help_text: str | None = None) -> Any:
    """How an option shows in the help: its value's name, and what stands for its default."""
    hint = f"(default: {default})" if default else default
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint, help=help_text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions(ModelOptions):
    """Answer a question about an image, or a file of them, from a part of the visual tokens."""

    image: Annotated[tuple[Path, ...], _arg("FILE [FILE ...]")] = ()
    """The image, or several that are all asked the same question."""
    together: bool = False
    """The images belong to one prompt, in this order; else each is asked by itself."""
    video: Annotated[Path | None, _arg("FILE|FOLDER")] = None
    """A video, behind the images of its prompt: a folder of frames, or a file (needs the video
    extra). For models that take videos."""
    fps: Annotated[float | None, _arg("N", "what the video says")] = None
    """Frames a second of --video, where it does not say."""
    prompt: Annotated[str | None, _arg("TEXT")] = None
    """The question; with --rows, the question of rows that have none."""
    rows: Annotated[
        Path | None,
        _arg(
            "FILE.jsonl",
            help_text='JSON lines {"image": ..., "prompt": ...} in place of --image; "image" may'
            ' be a list for one prompt, a row may carry a "video" with its "fps", its own "keep"'
            ' and an "id". Relative paths start at the folder of this file.',
        ),
    ] = None
    output: Annotated[
        Path | None,
        _arg(
            "OUT.jsonl",
            help_text="Append a JSON line a row to this file. Rows that it answers already are"
            " skipped, rows that failed are asked again; without it, several rows go to standard"
            " output.",
        ),
    ] = None

    keep: Annotated[
        str,
        _arg(
            "COUNT|RATIO|full",
            None,
            "Visual tokens to keep: a count such as 128, a ratio such as 0.222 of the image's own"
            " number, or full for every one. 1.0 is refused: it could mean one token or all.",
        ),
    ] = "full"
    budget: Literal["total", "per_image"] = "total"
    """Whether the images of a prompt share --keep or have it each."""
    newline: Annotated[
        Literal["candidate", "always"],
        _arg(
            "{candidate,always}",
            None,
            "LLaVA-NeXT's newline tokens: candidate: they compete for the budget. always: they are"
            " kept beside it.",
        ),
    ] = "candidate"
    positions: Annotated[
        Literal["reindex", "original"] | None, _arg("{reindex,original}", "the model's")
    ] = None
    """Position ids after pruning: closed up, or those of the full prompt."""
    method: Literal["resprune", "none"] = "resprune"
    """How the kept tokens are chosen; none keeps every token."""
    alpha: Annotated[float | None, _arg("A", "the method's")] = None
    """Strength of the guidance by the question's nouns; 0 leaves the text out."""
    seed_rule: Annotated[
        SeedRule | None, _arg(f"{{{','.join(get_args(SeedRule))}}}", "the method's")
    ] = None
    """Which visual token is chosen first."""
    tolerance: Annotated[float | None, _arg("T", "off")] = None
    """Stop choosing at this share of energy left out; --keep stays the most."""
    strict_nouns: bool = False
    """Refuse to run without spaCy's en_core_web_sm, in place of taking the lexicon."""
    image_aspect: Annotated[
        Literal["processor", "pad"],
        _arg(
            "{processor,pad}",
            None,
            "processor: as the checkpoint says (LLaVA-1.5: centre crop). pad: the whole image on a"
            " square of the mean colour, as in the original LLaVA.",
        ),
    ] = "processor"

    max_new_tokens: Annotated[int, _arg("N", None)] = 128
    """The most tokens to generate."""
    temperature: Annotated[float, _arg("T", None)] = 0.0
    """0 takes the likeliest token; above 0 tokens are drawn."""
    top_p: Annotated[float, _arg("P", None)] = 1.0
    """Draw from the likeliest tokens that hold this probability together."""
    rng_seed: Annotated[int, _arg("N", None)] = 0
    """Seed of the random generator for drawing."""
    batch_size: Annotated[int, _arg("B", None)] = 4
    """Rows that run together."""
    dtype: Annotated[DType | None, _arg(f"{{{','.join(get_args(DType))}}}", "the checkpoint's")] = (
        None
    )
    """Number format of the weights."""

    overlay: Annotated[Path | None, _arg("OUT.png")] = None
    """Draw the images with their kept tokens clear and the others dimmed; for one prompt."""
    json: bool = False
    """Print JSON in place of text."""


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
    if options.video and not options.video.exists():
        raise CallError(f"--video {options.video} does not exist: check the path")
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
                "--alpha": options.alpha,
                "--seed-rule": options.seed_rule,
                "--tolerance": options.tolerance,
            }.items()
            if value is not None
        ]
        if given:
            raise CallError(
                f"{given[0]} has no meaning with --method none, which keeps every token: drop one"
            )
    if options.alpha is not None:
        check_number("--alpha", options.alpha, 0.0)
    if options.tolerance is not None:
        check_number("--tolerance", options.tolerance, 1e-5, 1.0, below=True)
    check_number("--temperature", options.temperature, 0.0)
    check_number("--top-p", options.top_p, 0.0, 1.0, above=True)
    check_number("--max-new-tokens", options.max_new_tokens, 1)
    check_number("--rng-seed", options.rng_seed, 0, 2**32 - 1)
    check_number("--batch-size", options.batch_size, 1)
    if options.output:
        check_target(options.output, "--output")
    if options.overlay:
        single = len(options.image) == 1 or options.together or options.video is not None
        if not single or options.rows or options.output:
            raise CallError(
                "--overlay draws one prompt: give one --image, several --together, or a --video,"
                " and no --output"
            )
        check_target(options.overlay, "--overlay", PICTURES)
    return keep


def settings_of(options: AnswerOptions) -> dict[str, Any]:
    """What decides an answer, as it is stored in every result row."""
    names = ["revision", "dtype", "method", "alpha", "seed_rule", "tolerance", "strict_nouns"]
    names += ["image_aspect", "budget", "newline", "positions"]
    names += ["max_new_tokens", "temperature", "top_p", "rng_seed"]
    chosen = {name: getattr(options, name) for name in names}
    return {"model": model_name(options.model), **chosen}
