"""How many kernels the programs of LLaVA-1.5-7B may launch on an H100, at batch 1.

These are what was counted (jax 0.10.2, products by XLA's Triton, attention without cuDNN). A change
that needs fewer lowers them here; none may need more. `prune` had 14 with `pallas_gpu`: the kernel
that a card found faster leaves the largest drift to XLA (docs/explanation/kernels.md).
"""

from typing import NamedTuple


class Bound(NamedTuple):
    """The most that a program may launch.

    Attributes:
        launches: once, loops that are counted included.
        a_trip: in each trip of the loops whose trips nobody knows: decode's steps.
        in_layers: in all layers together, of the program or of a trip.
        reads: host reads, of the program and of a trip.
    """

    launches: int
    a_trip: int = 0
    in_layers: int = 0
    reads: int = 0
    reads_a_trip: int = 0


BOUNDS = {
    ("encode", 576): Bound(launches=291, in_layers=281),
    ("assemble", 576): Bound(launches=8),
    ("prefill", 576): Bound(launches=453, in_layers=448),
    ("decode", 576): Bound(launches=8, a_trip=399, in_layers=385, reads=1, reads_a_trip=1),
    ("prune", 128): Bound(launches=15),
    ("assemble", 128): Bound(launches=8),
    ("prefill", 128): Bound(launches=392, in_layers=387),
    ("decode", 128): Bound(launches=8, a_trip=399, in_layers=385, reads=1, reads_a_trip=1),
}
"""By program and visual tokens that enter the language model."""
