"""How many kernels the programs of LLaVA-1.5-7B may launch on an H100, at batch 1.

These are what was counted (jax 0.10.2, products by XLA's Triton). A change that needs fewer lowers
them here; none may need more.
"""

from typing import NamedTuple


class Bound(NamedTuple):
    """The most that a program may launch.

    Attributes:
        launches: once, loops that are counted included.
        a_trip: in each trip of the loops whose trips nobody knows: decode's steps, the guard's
            second try at a doubtful selection.
        in_layers: in all layers together, of the program or of a trip.
        reads: host reads, of the program and of a trip.
    """

    launches: int
    a_trip: int = 0
    in_layers: int = 0
    reads: int = 0
    reads_a_trip: int = 0


BOUNDS = {
    "encode": Bound(launches=360, in_layers=350),
    "prune": Bound(launches=41, a_trip=2188, reads=1, reads_a_trip=2),
    "assemble": Bound(launches=8),
    "prefill": Bound(launches=527, in_layers=522),
    "decode": Bound(launches=7, a_trip=495, in_layers=481, reads=1, reads_a_trip=1),
}
