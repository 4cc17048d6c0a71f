"""`resprune explore`: one self-contained page that shows what is kept at every budget."""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.errors import CallError, ResPruneError, printable
from resprune_jax.experiments.answer.rows import Row, read_rows
from resprune_jax.experiments.common import (
    ChatOptions,
    ClipCheckpoint,
    ProductPrecision,
    WeightsDType,
    check_file,
    check_number,
    check_target,
    console,
    load_asked,
    method_and_settings,
    parse_keep,
    reason,
    shown,
)
from resprune_jax.experiments.explore.data import Page
from resprune_jax.experiments.progress import compiles, progress
from resprune_jax.experiments.words import OWN, version_of
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.options import CallOptions, ImageAspect

logger = logging.getLogger("resprune_jax")

RATIOS = (2 / 3, 1 / 2, 1 / 3, 2 / 9, 1 / 9, 1 / 18, 1 / 36)
"""Budgets that are answered where none is given, beside the full model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExploreOptions(ChatOptions):
    """Write a page that shows what every budget keeps of a picture, and where the answer turns."""

    image: Annotated[Path | None, shown("FILE")] = None
    """The image."""
    prompt: Annotated[tuple[str, ...], shown("TEXT [TEXT ...]")] = ()
    """The question, or several about the same image; with --rows, that of rows that have none."""
    rows: Annotated[
        Path | None,
        shown(
            "FILE.jsonl",
            help_text='JSON lines {"image": ..., "prompt": ...} in place of --image: a gallery.'
            ' Rows about the same image stand side by side; a row\'s own "keep" joins the'
            " budgets.",
        ),
    ] = None
    method: Annotated[tuple[str, ...], shown("NAME ...", None)] = ("resprune",)
    """Methods by name, with settings as resprune:alpha=0; FILE.py:NAME for your own."""
    keep: Annotated[
        tuple[str, ...], shown("COUNT|RATIO ...", "2/3, 1/2, 1/3, 2/9, 1/9, 1/18, 1/36")
    ] = ()
    """Budgets that are answered, beside the full model; the slider shows every one between."""
    out: Annotated[Path, shown("PAGE.html", None)]
    """The page."""
    image_aspect: ImageAspect = "processor"
    """How LLaVA-1.5's pictures become squares: as the checkpoint says, or padded."""
    tagger: Annotated[str, shown("NAME", None)] = "auto"
    """What finds the nouns: auto (spaCy's en_core_web_sm, else the lexicon), lexicon, or any spaCy
    pipeline by the name of its package or its folder."""
    max_new_tokens: Annotated[int, shown("N", None)] = 32
    """The most tokens of an answer."""
    batch_size: Annotated[int, shown("B", None)] = 8
    """Answers that are made together."""
    dtype: WeightsDType = None
    precision: ProductPrecision = None
    clip: ClipCheckpoint = None
    quiet: bool = False
    """Do not show on standard error how far it is, and what is being compiled."""


def check(options: ExploreOptions) -> list[Keep]:
    """Refuse what can be seen to be wrong before a model is loaded.

    Returns:
        The budgets.

    Raises:
        CallError: one line that names the option, its value and what it should be.
    """
    if (options.image is None) == (options.rows is None):
        given = "both were" if options.image else "neither was"
        raise CallError(f"--image or --rows: {given} given: give one of them")
    if options.image is not None:
        check_file(options.image, "--image")
        if not options.prompt:
            raise CallError("no question was given: add --prompt TEXT")
    elif len(options.prompt) > 1:
        raise CallError("--prompt with --rows is the question of rows that have none: give one")
    for prompt in options.prompt:
        if not prompt.strip():
            raise CallError("--prompt is empty: write a question")
    if options.template is not None:
        check_file(options.template, "--chat-template")
    for name, given_twice in (("--prompt", options.prompt), ("--method", options.method)):
        if len(set(given_twice)) < len(given_twice):
            raise CallError(f"{name} holds the same one twice: give each once")
    if not options.method:
        raise CallError("--method is empty: name one, such as resprune")
    for written in options.method:
        name, settings = method_and_settings(written)
        if name == "none":
            raise CallError("--method none keeps every token: that is every page's largest budget")
        if written != "resprune":  # the usual call imports JAX only once it is known to be right
            _check_method(written, name, settings)
    check_number("--max-new-tokens", options.max_new_tokens, 1)
    check_number("--batch-size", options.batch_size, 1)
    check_target(options.out, "--out", (".html", ".htm"))
    inputs = {"--image": options.image, "--rows": options.rows}
    for name, path in inputs.items():
        if path is not None and path.exists() and options.out.exists():
            _check_apart(options.out, path, name)
    return [parse_keep(written) for written in options.keep] or list(RATIOS)


def _check_method(written: str, name: str, settings: dict[str, Any]) -> None:
    from resprune_jax.experiments.explore.build import check_shown
    from resprune_jax.methods import get_method

    check_shown(get_method(name, settings), written)


def _check_apart(out: Path, path: Path, name: str) -> None:
    if out.samefile(path):
        raise CallError(f"--out {out} is the {name} itself: give another file")


def run(options: ExploreOptions, *, load: Callable[[ExploreOptions], Any] | None = None) -> int:
    """Carry out `resprune explore`.

    Args:
        options: the command's options.
        load: makes the model; by default `load_model`.

    Returns:
        0, or 1 if a row of a gallery failed.

    Raises:
        CallError, RunError: a wrong call; a picture or an answer that failed, where it is the only
            one.
    """
    budgets = check(options)
    rows = _rows(options)
    lvlm = (load or load_asked)(options)
    from resprune_jax.experiments.explore import build, page

    methods = {}
    for written in options.method:
        name, settings = method_and_settings(written)
        methods[_label(written)] = CallOptions(
            keep=1, method=name, method_settings=settings, image_aspect=options.image_aspect,
            tagger=options.tagger, max_new_tokens=options.max_new_tokens,
        )  # fmt: skip
    begin = time.perf_counter()
    asked = [
        build.Asked(
            ", ".join(path.name for path in paths), paths, tuple(prompts),
            tuple(dict.fromkeys([*budgets, *(row.keep for row in own if row.keep is not None)])),
        )
        for paths, own in _by_picture(rows).items()
        for prompts in [list(dict.fromkeys(row.prompt for row in own if row.prompt is not None))]
    ]  # fmt: skip
    cards, failed = [], [f"row {row.index}: {row.error}" for row in rows if row.error]
    first: ResPruneError | None = None
    most_bytes = page.FOR_PICTURES // max(1, sum(len(one.images) for one in asked))
    with (
        progress("pictures", len(asked), 0, quiet=options.quiet) as step,
        compiles(quiet=options.quiet, beside=True),
    ):
        for one in asked:
            try:
                cards.append(
                    build.make_card(
                        lvlm, one, methods, batch_size=options.batch_size, most_bytes=most_bytes
                    )
                )
            except ResPruneError as error:
                first = first or error
                failed.append(f"{one.name}: {reason(error)}")
            step()
    if not cards:
        assert first is not None  # `_rows` gives one that can be asked
        raise first
    made = Page(_short(options.model), f"{OWN} {version_of(OWN)}", tuple(cards))
    size = page.write(made, options.out)
    seconds = time.perf_counter() - begin
    for why in failed:
        logger.warning("left out: %s", printable(why))
    console().print(
        f"{options.out}: {size / 1e6:.2f} MB, made in {seconds:.1f} s", markup=False, style="dim"
    )
    return 1 if failed else 0


def _label(written: str) -> str:
    """A method as readers elsewhere see it: of one in a file, the file without its folder."""
    path, mark, rest = written.partition(".py:")
    return f"{Path(path).name}{mark}{rest}" if mark else written


def _short(model: str) -> str:
    """The checkpoint's name for readers elsewhere: of a folder the last part of its path."""
    path = Path(model)
    return path.resolve().name if path.is_dir() else model


def _rows(options: ExploreOptions) -> list[Row]:
    """The questions, one a row.

    Raises:
        CallError: rows of which none can be asked.
    """
    if options.image is not None:
        name = str(options.image)
        return [
            Row(number, name, prompt, paths=(options.image,))
            for number, prompt in enumerate(options.prompt)
        ]
    assert options.rows is not None
    first = options.prompt[0] if options.prompt else None
    rows = []
    for row in read_rows(options.rows, keep=None, prompt=first):
        if row.error is None and row.video_path is not None:
            why = "a page shows images, not videos: give frames of it as images"
            row = dataclasses.replace(row, error=why)
        elif row.error is None and not row.paths:
            row = dataclasses.replace(row, error="a page shows images, and the row has none")
        rows.append(row)
    if all(row.error for row in rows):
        raise CallError(f"--rows {options.rows} holds no row to show: {rows[0].error}")
    return rows


def _by_picture(rows: list[Row]) -> dict[tuple[Path, ...], list[Row]]:
    """The rows that can be asked, by their images, in the order of the first of each."""
    found: dict[tuple[Path, ...], list[Row]] = {}
    for row in rows:
        if row.error is None:
            found.setdefault(row.paths, []).append(row)
    return found
