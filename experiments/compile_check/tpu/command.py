"""`resprune tpu-check`: does it fit a TPU? The real compiler's answer, without a TPU.

Models of 7 billion parameters are sharded over a described topology; `--selection` compiles the
selection engines for one of its chips.
"""

import dataclasses
from typing import Annotated

from resprune_jax.choices import TokenDType
from resprune_jax.errors import CallError
from resprune_jax.experiments.common import check_number, shown
from resprune_jax.experiments.compile_check import command
from resprune_jax.experiments.compile_check.command import CheckOptions
from resprune_jax.experiments.compile_check.tpu.target import TpuTarget, require_libtpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuCheckOptions(CheckOptions):
    """Compile 7B models for TPU without one, and show the memory that each chip would need."""

    topology: Annotated[str, shown("CHIP:GRID", "v5e:2x2")] = "v5e:2x2"
    """Chips that a model is sharded over; --selection compiles for one of them."""
    chips: Annotated[int | None, shown("COUNT", "all")] = None
    """How many chips of the topology."""
    batch: Annotated[tuple[int, ...], shown("ROWS ...", "1 8")] = (1, 8)
    """Prompts in a batch, each about an image of its own."""
    dtype: Annotated[tuple[TokenDType, ...], shown("{bfloat16,float32} ...", "bfloat16")] = (
        "bfloat16",
    )
    """Number formats of the tokens that --selection is compiled for."""


def run(options: TpuCheckOptions) -> int:
    """Carry out `resprune tpu-check`.

    Args:
        options: the command's options.

    Returns:
        0 if every program fits and decode updates its cache in place, else 1.

    Raises:
        CallError: an option that cannot work, or no libtpu.
        RunError: libtpu cannot start.
    """
    target = TpuTarget(options.topology, options.chips, options.dtype)
    command.check(options)
    if options.chips is not None:
        check_number("--chips", options.chips, 1)
    if not options.dtype:
        raise CallError("give at least one --dtype")
    if options.selection and options.chips is not None:
        raise CallError("--selection compiles for one chip: leave out --chips")
    require_libtpu()
    about = target.facts()
    if options.selection:
        del about["chips"]
    return command.carry_out(options, {"": target}, about)
