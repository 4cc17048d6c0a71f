"""`resprune report`: the paper's tables and figures from the results of sweeps.

The module is light: NumPy, pyarrow and matplotlib come in when a report is made.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

import tyro

from resprune_jax.errors import CallError, one_of
from resprune_jax.experiments.common import check_number, console, make_folder, shown

FORMATS = ("md", "csv", "tex", "png", "pdf")

NUMERALS = {"i": "1", "iv": "4", "v": "5", "vi": "6", "vii": "7"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Tables and figures of finished sweeps: the paper's layout, intervals, paired tests."""

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER...")]
    """Results folders of one sweep, several where hosts wrote apart."""
    output: Annotated[Path | None, shown("DIR", "print Markdown")] = None
    """Write report.md, tables/ and figures/ into this folder."""
    tables: Annotated[str, shown("NAME,...", "all that the results hold")] = ""
    """Which tables: 1, 4, 5, 6, 7 of the paper; nonnegative, relevance_sign, text, ocr_line,
    tagger, positions, tolerance; hard, what downsample gets wrong; costs; cases, examples on which
    methods part."""
    base: Annotated[tuple[str, ...], shown("AXIS=VALUE", "the paper's")] = ()
    """What is varied around, where it is not the paper's full method: the values at which axes
    stand where another is varied, such as alpha=0.5."""
    against: Annotated[str, shown("METHOD", None)] = "resprune"
    """The method that others are tested against, and whose axes the tables vary."""
    backbone: Literal["llava-1.5", "llava-next", "qwen2.5-vl"] = "llava-1.5"
    """Whose defaults axes stand at that a configuration does not name, and whose numbers of the
    paper stand beside."""
    format: Annotated[str, shown("FORMAT,...", None)] = ",".join(FORMATS)
    """What to write: md, csv and tex of tables, png and pdf of figures."""
    case: Annotated[str | None, shown("KEY", "none")] = None
    """Draw the tokens that methods keep of this example's picture, with their answers: loads model
    and data (the table cases names examples)."""
    rng_seed: Annotated[int, shown("N", None)] = 0
    """Seed of the bootstrap and of the tests."""
    debug: bool = False
    """Show the traceback when something fails."""


def run(options: ReportOptions) -> int:
    """Carry out `resprune report`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: a wrong call.
        RunError: results that are broken or not finished.
    """
    check_number("--rng-seed", options.rng_seed, 0, 2**32 - 1)
    formats = _listed("--format", options.format, FORMATS)
    from resprune_jax.experiments.report.whole import TABLES, report, write

    asked = _listed("--tables", options.tables, tuple(TABLES)) if options.tables else []
    if options.case is not None and (options.output is None or not {"png", "pdf"} & set(formats)):
        raise CallError("--case draws a picture: give --output, and png or pdf among --format")
    if options.output is not None:
        make_folder(options.output, "--output")
    made = report(options, asked)
    if options.output is None:
        print(made.markdown())
        return 0
    for path in write(made, options.output, formats, options.case):
        console().print(f"{path}", markup=False)
    for what, why in made.left_out.items():
        console().print(f"left out: {what}: {why}", markup=False)
    return 0


def of_folder(folder: Path, output: Path) -> int:
    """Report a finished sweep as the command does without options; see `run`."""
    return run(ReportOptions(folders=(folder,), output=output))


def _listed(option: str, given: str, known: tuple[str, ...]) -> list[str]:
    """Words between commas.

    Raises:
        CallError: none, an unknown one, or one that is given twice.
    """
    words = [word.strip().lower() for word in given.split(",") if word.strip()]
    words = [NUMERALS.get(word, word) if option == "--tables" else word for word in words]
    if not words:
        raise CallError(f"{option} is empty: choose of {', '.join(known)}")
    for n, word in enumerate(words):
        one_of(f"{option} word", word, known)
        if word in words[:n]:
            raise CallError(f"{option} names {word} twice")
    return words
