"""`resprune warm-up`: compile ahead what answers run, and keep it for the commands to come."""

import dataclasses
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    ClipCheckpoint,
    ModelOptions,
    ProductPrecision,
    WeightsDType,
    call_options,
    check_number,
    parse_keep,
    shown,
    use_compilation_cache,
)
from resprune_jax.experiments.progress import warming
from resprune_jax.models.prompts.options import CallOptions

if TYPE_CHECKING:
    from resprune_jax.models.running.warm_up import Step


@dataclasses.dataclass(frozen=True, kw_only=True)
@call_options
class WarmUpOptions(CallOptions, ModelOptions):
    """Compile ahead what answers run, so that the next command finds it."""

    keep: Annotated[
        tuple[str, ...], shown("COUNT|RATIO|full ...", None, "Budgets of the answers to come.")
    ] = ("full",)  # type: ignore[assignment]
    method: Annotated[str, shown("NAME|FILE.py:NAME", None)] = "resprune"
    """How the kept tokens are chosen."""
    method_settings: Annotated[tuple[str, ...], shown("NAME=VALUE [NAME=VALUE ...]")] = ()
    """Settings of the method."""
    chat_template: Annotated[bool, shown("", None, "The prompts are whole texts.")] = True
    rng_seed: Annotated[int, shown("N", None)] = 0
    """As of the answers to come."""

    size: Annotated[tuple[str, ...], shown("HEIGHTxWIDTH ...", "those of the family")] = ()
    """Sizes of the pictures to come, in pixels; FRAMESxHEIGHTxWIDTH for a video."""
    prompt_tokens: Annotated[tuple[int, ...], shown("N ...", "64")] = (64,)
    """Tokens of the prompts to come, without visual tokens."""
    batch_size: Annotated[tuple[int, ...], shown("B ...", "1")] = (1,)
    """Prompts of a call, each with a picture of its own."""
    dtype: WeightsDType = None
    precision: ProductPrecision = None
    clip: ClipCheckpoint = None
    quiet: bool = False
    """Do not show on standard error what is being compiled."""

    def __post_init__(self) -> None:
        """Nothing yet: `check` names the options as they are written on the command line."""

    def call(self) -> CallOptions:
        """The call's options, with every budget.

        Raises:
            CallError: one that cannot work.
        """
        own = {
            option.name: getattr(self, option.name) for option in dataclasses.fields(CallOptions)
        }
        keep = [parse_keep(value) for value in self.keep]
        return CallOptions(**{**own, "keep": keep})


def sizes_of(options: WarmUpOptions) -> list[tuple[int, ...]]:
    """The sizes as they were written.

    Raises:
        CallError: something else than numbers with an x between them.
    """
    found = []
    for written in options.size:
        if not re.fullmatch(r"\d{1,9}(x\d{1,9}){1,2}", written):
            raise CallError(
                f"--size {written!r}: write HEIGHTxWIDTH in pixels, 336x336 for example, or"
                " FRAMESxHEIGHTxWIDTH for a video"
            )
        found.append(tuple(map(int, written.split("x"))))
    return found


def run(options: WarmUpOptions) -> int:
    """Carry out `resprune warm-up`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a checkpoint that cannot be read.
    """
    if not options.keep:
        raise CallError("give at least one --keep")
    for name, counts in (("--prompt-tokens", options.prompt_tokens),
                         ("--batch-size", options.batch_size)):  # fmt: skip
        for count in counts:
            check_number(name, count, 1)
    call, sizes = options.call(), sizes_of(options)
    folder = use_compilation_cache()
    from resprune_jax.models.load import load_model

    lvlm = load_model(
        options.model, revision=options.revision, dtype=options.dtype,
        precision=options.precision, clip=options.clip,
    )  # fmt: skip
    steps: list[Any] = []
    begin = time.perf_counter()
    with warming(quiet=options.quiet) as show:

        def announce(step: "Step") -> None:
            show(step)
            if step.done:
                steps.append(step)

        shapes = lvlm.warm_up(
            sizes or lvlm.family.usual_sizes(lvlm.config),
            options=call, prompt_lengths=options.prompt_tokens, batch_sizes=options.batch_size,
            announce=announce,
        )  # fmt: skip
    found = sum(step.found for step in steps)
    print(
        f"{shapes} {'shape' if shapes == 1 else 'shapes'}: {len(steps) - found} programs compiled,"
        f" {found} found, in {time.perf_counter() - begin:.1f} s"
    )
    if folder is not None:
        print(f"kept in {folder}: {size_of(folder) / 1e6:.1f} MB with those of other models")
    return 0


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
