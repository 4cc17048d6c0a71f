"""`resprune gpu-check`: the memory and the kernel launches of a GPU's programs, without a GPU."""

import dataclasses
from typing import Annotated, Literal

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import shown
from resprune_jax.experiments.compile_check import command
from resprune_jax.experiments.compile_check.command import CheckOptions
from resprune_jax.experiments.compile_check.gpu.target import GpuTarget, require_plugin
from resprune_jax.experiments.compile_check.target import Target

CardName = Literal["h100", "h200", "a100"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuCheckOptions(CheckOptions):
    """Compile 7B models for a GPU without one, and show memory and kernel launches."""

    card: Annotated[tuple[CardName, ...], shown("{h100,h200,a100} ...", "h100")] = ("h100",)
    """Cards to compile for, each alone."""


def run(options: GpuCheckOptions) -> int:
    """Carry out `resprune gpu-check`.

    Args:
        options: the command's options.

    Returns:
        0 if every program fits and decode updates its cache in place, else 1.

    Raises:
        CallError: an option that cannot work, or no plug-in.
        RunError: the plug-in cannot start.
    """
    command.check(options)
    if not options.card:
        raise CallError("give at least one --card")
    require_plugin()
    targets: dict[str, Target] = {card: GpuTarget(card) for card in options.card}
    return command.carry_out(options, targets, GpuTarget(options.card[0]).facts())
