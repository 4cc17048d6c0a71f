"""A whole report: what is in it, what is left out and why, and its files."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resprune_jax.errors import RunError, printable
from resprune_jax.experiments.report import formats, others, tables
from resprune_jax.experiments.report.measured import Measured
from resprune_jax.experiments.report.reading import Results, read_results
from resprune_jax.experiments.report.settings import Choice
from resprune_jax.experiments.report.tables import Maker, NoTableError

if TYPE_CHECKING:
    from resprune_jax.experiments.report.command import ReportOptions

TABLES: Mapping[str, str] = {**tables.NAMES, **others.NAMES}
"""Every table, by what `--tables` calls it."""


@dataclass(frozen=True)
class Report:
    """A report.

    Attributes:
        title: a line.
        about: what was measured, and how: paragraphs.
        tables: those that the results hold.
        left_out: what they do not hold, and why.
        maker: the figures that pictures are drawn from.
    """

    title: str
    about: Sequence[str]
    tables: Sequence[formats.Table]
    left_out: Mapping[str, str]
    maker: Maker

    def markdown(self, figures: Sequence[tuple[str, str]] = ()) -> str:
        """The report in Markdown.

        Args:
            figures: (file, caption) of pictures to show.
        """
        parts = [f"# {self.title}\n", *(f"{paragraph}\n" for paragraph in self.about)]
        parts += [formats.markdown(table) for table in self.tables]
        parts += [f"![{caption}]({file})\n\n*{caption}*\n" for file, caption in figures]
        if self.left_out:
            lines = [f"- {what}: {why}" for what, why in self.left_out.items()]
            parts.append("## Left out\n\n" + "\n".join(lines) + "\n")
        return "\n".join(parts)


def report(options: "ReportOptions", asked: Sequence[str] = ()) -> Report:
    """Make a report.

    Args:
        options: the command's options.
        asked: the tables, keys of TABLES; all by default.

    Raises:
        CallError: a wrong call.
        RunError: results that are broken or not finished, or that hold no table that is asked for.
    """
    results = read_results(options.folders)
    choice = Choice(results, options.against, options.backbone, options.base)
    measured = Measured(results, choice.settings, choice.full, rng_seed=options.rng_seed)
    maker = Maker(choice, measured, options.backbone)
    made: list[formats.Table] = []
    left_out = not_asked(results)
    for name in asked or TABLES:
        try:
            make = maker.make if name in tables.NAMES else partial(others.make, maker)
            made += make(name)
        except NoTableError as error:
            left_out[TABLES[name]] = str(error)
    if not made:
        why = "; ".join(f"{what}: {reason}" for what, reason in left_out.items())
        raise RunError(f"the results hold no table that is asked for: {why}")
    title = f"{results.run['model']} on {results.run['data']}"
    return Report(printable(title), about(results, options), made, left_out, maker)


def not_asked(results: Results) -> dict[str, str]:
    """What the sweep itself left out: how many configurations of a method, and why the first."""
    said = results.run.get("left_out")
    first: dict[str, str] = {}
    for name, why in (said if isinstance(said, dict) else {}).items():
        first.setdefault(f"method {str(name).partition(' ')[0]}", str(why))
    many = Counter(f"method {str(name).partition(' ')[0]}" for name in said or {})
    return {
        name if many[name] == 1 else f"{name} ({many[name]} configurations)": why
        for name, why in first.items()
    }


def about(results: Results, options: "ReportOptions") -> list[str]:
    """What was measured, and how its figures come about."""
    run = results.run
    clusters = int(results.clusters.max()) + 1
    said = (
        f"{len(results.configurations):,} configurations on {len(results.keys):,} examples about"
        f" {clusters:,} images (up to {run['visual_tokens']} visual tokens, {run['precision']},"
        f" nouns by {run['tagger']}, {run['code']})."
    )
    how = (
        "Intervals are 95 % percentile intervals of 2,000 bootstrap samples of the images, the same"
        " samples for every figure (Wilson's where an accuracy is 0 or 100); differences are"
        f" paired. The seed of the random generator is {options.rng_seed}."
    )
    return [said, how, *_failures(results)]


def _failures(results: Results) -> list[str]:
    if not results.failed:
        return []
    first, many = results.failed[0], len(results.failed)
    of = len({one.configuration for one in results.failed})
    return [
        f"{many:,} of {results.scores.size:,} rows failed, in {of} configurations; they count as"
        f" wrong answers. The first: {first.configuration}, {first.example}:"
        f" {printable(first.error, 200)}"
    ]


def write(made: Report, folder: Path, kinds: Sequence[str], case: str | None = None) -> list[Path]:
    """Write a report.

    Args:
        made: the report.
        folder: that exists.
        kinds: of `command.FORMATS`.
        case: the key of an example to draw.

    Returns:
        The files, in the order in which they were written.
    """
    files: dict[str, str | bytes] = {}
    shown: list[tuple[str, str]] = []
    drawn = [kind for kind in ("png", "pdf") if kind in kinds]
    if drawn:
        from resprune_jax.experiments.report.figures import figures

        for name, (caption, draw) in figures(made.maker).items():
            shown.append((name, caption))
            for kind, picture in draw(drawn).items():
                files[f"figures/{name}.{kind}"] = picture
    cases: list[Path] = []
    if case is not None:
        from resprune_jax.experiments.report.study import draw_case

        (folder / "figures").mkdir(exist_ok=True)
        cases = draw_case(made.maker, case, folder / "figures", drawn)
        shown.append(("case", f"Example {case}: what methods keep at one budget, and answer."))
    for table in made.tables:
        if "csv" in kinds:
            files[f"tables/{table.name}.csv"] = formats.comma_separated(table)
        if "tex" in kinds:
            files[f"tables/{table.name}.tex"] = formats.latex(table)
    if "csv" in kinds:
        files["configurations.csv"] = formats.comma_separated(others.every(made.maker))
    if "tex" in kinds:
        pages = [(f"figures/{n}.pdf", c) for n, c in shown if "pdf" in kinds]
        files["report.tex"] = formats.document(made.title, made.about, made.tables, pages)
    if "md" in kinds:
        pictures = [(f"figures/{n}.png", c) for n, c in shown if "png" in kinds]
        files["report.md"] = made.markdown(pictures)
    return cases + [_put(folder / name, content) for name, content in files.items()]


def _put(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    data: Any = content.encode("utf-8") if isinstance(content, str) else content
    path.write_bytes(data)
    return path
