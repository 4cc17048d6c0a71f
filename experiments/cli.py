"""The `resprune` command: sub-commands from typed dataclasses, exit statuses, one-line errors.

Exit status 0: done. 1: a right call that failed, or rows that failed. 2: a wrong call. 130: stopped
with Ctrl-C. 143: stopped by SIGTERM. Nothing here imports JAX or transformers, so that
`resprune --help` is quick.
"""

import contextlib
import functools
import io
import logging
import operator
import re
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from resprune_jax.errors import CallError, ResPruneError, printable
from resprune_jax.experiments import compare, demo, info, methods, stopping, streams, words
from resprune_jax.experiments.answer import command as answer
from resprune_jax.experiments.bench import rules as bench_rules
from resprune_jax.experiments.bench import selection as bench_selection
from resprune_jax.experiments.bench.generation import command as bench_generate
from resprune_jax.experiments.bench.serving import command as bench_serve
from resprune_jax.experiments.bench.start import command as bench_start
from resprune_jax.experiments.benchmark.run import command as benchmark
from resprune_jax.experiments.common import Command, reason
from resprune_jax.experiments.compile_check.gpu import command as gpu_check
from resprune_jax.experiments.compile_check.tpu import command as tpu_check
from resprune_jax.experiments.doctor import command as doctor
from resprune_jax.experiments.explore import command as explore
from resprune_jax.experiments.harness import command as lmms_eval_tasks
from resprune_jax.experiments.pocket import commands as pocket
from resprune_jax.experiments.pocket.evaluation import command as evaluate
from resprune_jax.experiments.pocket.training import command as train
from resprune_jax.experiments.report import command as report
from resprune_jax.experiments.serve import command as serve
from resprune_jax.experiments.sweep import bench as bench_sweep
from resprune_jax.experiments.sweep import command as sweep
from resprune_jax.experiments.verify import command as verify
from resprune_jax.experiments.warm_up import command as warm_up

COMMANDS: dict[str, Command] = {
    "answer": Command(answer.AnswerOptions, answer.run),
    "info": Command(info.InfoOptions, info.run),
    "explore": Command(explore.ExploreOptions, explore.run),
    "compare": Command(compare.CompareOptions, compare.run),
    "methods": Command(methods.MethodsOptions, methods.run),
    "sweep": Command(sweep.SweepOptions, functools.partial(sweep.run, report=report.of_folder)),
    "benchmark": Command(benchmark.BenchmarkOptions, benchmark.run),
    "verify": Command(verify.VerifyOptions, verify.run),
    "report": Command(report.ReportOptions, report.run),
    "demo": Command(demo.DemoOptions, demo.run),
    "doctor": Command(doctor.DoctorOptions, doctor.run),
    "serve": Command(serve.ServeOptions, serve.run),
    "warm-up": Command(warm_up.WarmUpOptions, warm_up.run),
    "lmms-eval-tasks": Command(lmms_eval_tasks.TasksOptions, lmms_eval_tasks.run),
    "tpu-check": Command(tpu_check.TpuCheckOptions, tpu_check.run),
    "gpu-check": Command(gpu_check.GpuCheckOptions, gpu_check.run),
    "bench selection": Command(bench_selection.SelectionOptions, bench_selection.run),
    "bench rules": Command(bench_rules.RulesOptions, bench_rules.run),
    "bench generate": Command(bench_generate.GenerateOptions, bench_generate.run),
    "bench serve": Command(bench_serve.ServeBenchOptions, bench_serve.run),
    "bench start": Command(bench_start.StartOptions, bench_start.run),
    "bench sweep": Command(bench_sweep.SweepBenchOptions, bench_sweep.run),
    "pocket train": Command(train.TrainOptions, train.run),
    "pocket eval": Command(evaluate.EvalOptions, evaluate.run),
    "pocket export": Command(pocket.ExportOptions, pocket.export_run),
    "pocket scenes": Command(pocket.ScenesOptions, pocket.scenes),
}
"""By name; "group command" is a command of a group, which GROUPS describes."""

GROUPS = {
    "bench": "What choosing the tokens costs, and what it saves, on this machine.",
    "pocket": "The pocket model, a test bench: its scenes, training, weights and accuracy.",
}

DESCRIPTION = "ResPrune: answer questions about images from a fraction of the visual tokens."

logger = logging.getLogger("resprune_jax")


def _complain(message: str) -> None:
    print(printable(f"resprune: {message}", 500), file=sys.stderr)


# How tyro reports a word that an optional value cannot be made of.
_NO_VALUE = re.compile(
    r"Error parsing (--\S+): no type matching \{None\}\|(\S+) .* from \[(.*?)\]\."
)

_NO_NUMBER = re.compile(
    r"Error parsing (--\S+): (invalid literal for int|could not convert string to float).*?: ('.*)"
)


def _from_box(text: str) -> str:
    """One line out of tyro's report of a call that it could not parse: a box, coloured or not."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│╭╮╰╯─ ") for line in plain.splitlines()]
    title = ""
    body: list[str] = []
    for line in lines:
        if not line.strip("-"):  # a rule, or an empty line
            if body:
                break
        elif title:
            body.append(line)
        else:
            title = line
    said = " ".join(" ".join(body).split())
    if no_value := _NO_VALUE.search(said):
        name, kind, word = no_value.groups()
        what = {"INT": "a whole number", "FLOAT": "a number"}.get(kind, kind)
        said = f"{name} cannot be {word}: give {what}"
    elif no_number := _NO_NUMBER.search(said):
        name, kind, word = no_number.groups()
        what = "a whole number" if kind == "invalid literal for int" else "a number"
        said = f"{name} cannot be {word}: give {what}"
    elif not said.startswith(title):
        said = f"{title}: {said}"
    # "None" is how the parser writes an option that was left out.
    said = re.sub(r"(, 'None'(?=[,)}\]])|'None', )", "", said)
    found = re.search(r"resprune(?: [a-z-]+)* --help", " ".join(lines))
    return f"{said} (try: {found[0] if found else 'resprune --help'})"


def _commands() -> Any:
    """Every command's options as the union that tyro makes sub-commands of, groups nested."""
    groups: dict[str, list[Any]] = {"": []}
    for name, command in COMMANDS.items():
        group, _, own = name.rpartition(" ")
        member = Annotated[command.options, tyro.conf.subcommand(own)]  # type: ignore[name-defined]
        groups.setdefault(group, []).append(member)
    members = groups.pop("")
    for group, own_members in groups.items():
        about = tyro.conf.subcommand(group, description=GROUPS[group])
        members.append(Annotated[functools.reduce(operator.or_, own_members), about])
    return functools.reduce(operator.or_, members)


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """Turn command-line words into a command name and its options.

    Args:
        argv: the words after `resprune`.

    Returns:
        The name of the command, a key of `COMMANDS`, and an instance of its options.

    Raises:
        CallError: words that no command understands, or an option that was given twice.
        SystemExit: after the help text or the version was printed.
    """
    if list(argv) == ["--version"]:
        print(words.version())
        raise SystemExit(0)
    words.check(argv, {name: command.options for name, command in COMMANDS.items()}, GROUPS)
    reports = io.StringIO()
    try:
        with contextlib.redirect_stderr(reports):
            chosen = tyro.cli(
                _commands(),
                prog="resprune",
                description=DESCRIPTION,
                args=list(argv),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise CallError(_from_box(reports.getvalue())) from None
    name = next(name for name, one in COMMANDS.items() if type(chosen) is one.options)
    return name, chosen


class _Notes(logging.Handler):
    """Shows the library's own notes, a line each, on whatever standard error is at that time.

    A live progress bar stands in for it while it runs, so that a note goes above the bar.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        said = self.format(record)
        # A debug record carries its traceback, on lines of its own.
        print(
            f"note: {said}" if record.exc_info else printable(f"note: {said}", 500), file=sys.stderr
        )


def _listen(debug: bool) -> logging.Handler:
    """Show notes from now on, and with `debug` the library's debug records."""
    handler = _Notes()
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if debug else logging.WARNING)
    logger.propagate = False
    return handler


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after `resprune`; those of the process by default.

    Returns:
        The exit status: 0, 1 for a failed run, 2 for a wrong call, 130 after Ctrl-C, 143 after
        SIGTERM.
    """
    with stopping.listening(), streams.safe():
        return _run(list(sys.argv[1:] if argv is None else argv))


def _run(argv: list[str]) -> int:
    debug = "--debug" in argv
    handler: logging.Handler | None = None
    try:
        name, options = parse(argv)
        handler = _listen(debug)
        status = COMMANDS[name].run(options)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that went away can be dealt with
        return status
    except KeyboardInterrupt:
        return _stopped()
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        streams.settle()
        return 1
    except Exception as error:
        if stopping.asked():  # something made another error of the interrupt
            return _stopped()
        if debug:
            traceback.print_exc()
        hint = "" if debug or isinstance(error, ResPruneError) else " (--debug shows where)"
        _complain(f"{reason(error)}{hint}")
        streams.settle()
        return 2 if isinstance(error, CallError) else 1
    finally:
        if handler is not None:
            logger.removeHandler(handler)
            logger.propagate = True


def _stopped() -> int:
    status = stopping.status()
    _complain("stopped")
    return status


if __name__ == "__main__":  # `python -m resprune_jax.experiments` hears signals from its start
    sys.exit(main())
