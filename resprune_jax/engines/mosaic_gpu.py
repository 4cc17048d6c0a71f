"""The `mosaic_gpu` engine: the whole greedy loop of an image in one launch, by a cluster of blocks.

The recursion is that of `gram`, the program that of `cluster.py`: a thread owns a token, the blocks
of a cluster tell each other their candidates and the pick's column through distributed shared
memory, and G is read one row a pick. Pallas's Mosaic GPU back-end compiles and launches it; a
batch, or many questions about one image, is the grid of clusters: `vmap` adds the axis.

Where the blocks' shared memory does not hold the factor, the same program runs once a panel, some
60 picks at a time. Between two launches a matrix product takes from G what the panel's rows
explain, so that a launch knows of earlier picks by G alone and holds no more than its own panel's
rows:

    G <- G - L_panel^T L_panel.

The whole GPU does that product, reading and writing G once a panel of b picks, 2 N^2 K / b
numbers. One cluster that reads the earlier rows at every pick would read N K^2 / 2 through its 8
multiprocessors, several times as long (docs/explanation/kernels.md). Launches follow one
another, so what one writes to global memory the next one sees; within a launch no thread reads what
any has written there.

Clusters of blocks need compute capability 9.0 (H100, H200) or later.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.errors import CallError

from . import cluster, kernels
from .exchange import MOST_THREADS, TOGETHER, WARPGROUP, Plan
from .gram import largest_growth
from .kernels import CONDITIONS, ENERGY, SCORE
from .loop import Outcome
from .product import dot

SHARED_BYTES = 220 * 1024
"""Shared memory that a block may take; Hopper has 227 KiB, and Mosaic takes some for itself."""

BLOCKS = 8
"""Of a cluster: as many as every Hopper GPU grants."""


PANEL = 64
"""Most picks of a panel: each reads half its rows, and the product goes over G once a panel."""


def plan_of(n: int, keep: int) -> Plan:
    """How a problem of N tokens is divided among the blocks of a cluster, and into launches."""
    tokens = -(-n // BLOCKS)
    each = 1 if tokens <= MOST_THREADS else 2
    plan = Plan(n, keep, BLOCKS, max(1, -(-tokens // (each * WARPGROUP))), each=each)
    most = PANEL
    while plan.shared_bytes > SHARED_BYTES and most:
        picks = -(-keep // -(-keep // most))  # the same in every launch, as far as it goes
        plan = dataclasses.replace(plan, keep=picks, panel=True)
        most -= TOGETHER
    return plan


def fits(n: int, keep: int) -> bool:
    """Whether clusters take a problem of N tokens with K kept."""
    plan = plan_of(n, keep)
    return plan.sound and plan.shared_bytes <= SHARED_BYTES


def timed() -> bool:
    """Whether programs that are traced now are for a kind of GPU on which this was ahead: Hopper.

    Later GPUs have clusters, too, but none has run this.
    """
    return (kernels.compute_capability() or (0, 0))[0] == 9


def check_device() -> None:
    """Refuse a GPU that has no clusters of blocks.

    Raises:
        CallError: its compute capability is below 9.0.
    """
    capability = kernels.compute_capability()
    if capability is not None and capability < (9, 0):
        raise CallError(
            "engine 'mosaic_gpu' needs a GPU of compute capability 9.0 or later, this one has"
            f" {capability[0]}.{capability[1]}: choose pallas_gpu"
        )


def factor(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int
) -> Outcome:
    """Greedy selection by pivoted Cholesky, one launch or one a panel; arguments as `gram.factor`.

    The size must be one that `fits`.
    """
    plan = plan_of(gram.shape[0], keep)
    if plan.panel:
        return in_panels(gram, gate, first, valid, keep, plan)
    return planned(gram, gate, first, valid, plan)[0]


class _State(NamedTuple):
    residual: jax.Array  # [N, N], G without what the panels so far explain
    tokens: jax.Array  # [STATE, N], energy, score and drift


def in_panels(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, keep: int, plan: Plan
) -> Outcome:
    """`factor` by launches of this plan, `plan.keep` picks each, and one for the rest."""
    known = kernels.conditions(gram, gate, first, valid, plan.n)
    drift = jnp.ones_like(first, shape=(plan.n,), dtype=jnp.float32)
    tokens = jnp.stack([known[ENERGY], known[SCORE], drift])
    before = -(-keep // plan.keep) - 1
    last = dataclasses.replace(plan, keep=keep - before * plan.keep)

    def turn(state: _State, _: None) -> tuple[_State, tuple[jax.Array, jax.Array]]:
        picks, totals, tokens, rows = _panel(state, known, plan)
        return _State(state.residual - dot(rows.T, rows.T), tokens), (picks, totals)

    state, (picks, totals) = lax.scan(turn, _State(gram, tokens), length=before)
    others, rest, tokens, _ = _panel(state, known, last)
    picks = jnp.concatenate([picks.reshape(-1), others])
    totals = jnp.concatenate([totals.reshape(-1), rest])
    return kernels.outcome(gram, valid, picks, totals, tokens[-1])


def _panel(
    state: _State, known: jax.Array, plan: Plan
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """One launch: picks (b,), energies after each (b,), the tokens' state, rows (b, N)."""
    picks, sums, tokens, _, rows = launch(
        cluster.program(plan),
        plan,
        (
            ((plan.keep,), jnp.int32),
            ((plan.keep + 1, plan.senders), jnp.float32),
            ((cluster.STATE, plan.n), jnp.float32),
            ((plan.senders, 8), jnp.int32),
            ((plan.keep, plan.n), jnp.float32),
        ),
        state.residual,
        known,
        state.tokens,
    )
    return picks, jnp.sum(sums[1:], axis=-1), tokens, rows


def planned(
    gram: jax.Array, gate: jax.Array, first: jax.Array, valid: jax.Array, plan: Plan
) -> tuple[Outcome, jax.Array]:
    """`factor` by this plan, and the cycles that a clocked one writes, (senders, 8) int32."""
    given = kernels.conditions(gram, gate, first, valid, plan.n)
    picks, sums, drift, cycles = launch(
        cluster.program(plan),
        plan,
        (
            ((plan.keep,), jnp.int32),
            ((plan.keep + 1, plan.senders), jnp.float32),
            ((plan.n,), jnp.float32),
            ((plan.senders, 8), jnp.int32),
        ),
        gram,
        given,
    )
    return _outcome(picks, sums, drift, valid), cycles


def _outcome(picks: jax.Array, sums: jax.Array, drift: jax.Array, valid: jax.Array) -> Outcome:
    """What the engine gives back, from what one launch wrote.

    Args:
        picks: (K,) int32.
        sums: (K + 1, senders) float32, parts of the energy before each pick and behind the last.
        drift: (N,) float32, the last one.
        valid: (N,) bool.
    """
    # No token's energy rises, and rounding keeps the order of two sums that are added up alike:
    # totals do not rise. Written out, the sums are a part of the kernels that read them.
    totals = reduce(jnp.add, (sums[:, sender] for sender in range(sums.shape[1])))
    return Outcome(picks, totals, largest_growth(drift, valid))


def launch(
    text: str, plan: Plan, out: Sequence[tuple[tuple[int, ...], Any]], *given: jax.Array
) -> tuple[jax.Array, ...]:
    """Run a program on one cluster.

    Args:
        text: PTX; its operands are the shared memory, the arguments, the results.
        plan: of which the cluster, its threads and its shared memory are used.
        out: shapes and types of the results.
        given: the arguments.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu  # takes a quarter of a second

    kind = jax.typeof(given[0]).manual_axis_type
    results = tuple(
        jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind) for shape, dtype in out
    )
    scratch = [plgpu.SMEM((plan.shared_bytes // 4,), jnp.float32)]
    named: dict[str, Any] = {"out_type": results, "scratch_types": scratch}
    if "out_type" not in inspect.signature(plgpu.kernel).parameters:  # jax 0.10.0
        named = {"out_shape": results, "scratch_shapes": scratch}
    return plgpu.kernel(
        partial(_kernel, text=text),
        **named,
        cluster=(plan.blocks,),
        cluster_names=("block",),
        num_threads=plan.warpgroups,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, reduction_scratch_bytes=0
        ),
        kernel_name="resprune_picks",
    )(*given)  # fmt: skip


def _kernel(*refs: Any, text: str) -> None:
    """The kernel: nothing but the program; `refs` end with the shared memory."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(),) * len(refs))
    def inlined(context: Any, *arrays: Any) -> None:
        from jax._src.lib.mlir import ir
        from jax._src.lib.mlir.dialects import llvm
        from jax.experimental.mosaic.gpu import utils

        *others, shared = arrays
        word, long = (ir.IntegerType.get_signless(bits) for bits in (32, 64))
        # Addresses as numbers: of shared memory inside the block's window, of the others anywhere.
        operands = [llvm.ptrtoint(word, utils.memref_ptr(shared))]
        operands += [llvm.ptrtoint(long, utils.memref_ptr(array)) for array in others]
        kinds = ",".join(["r"] + ["l"] * len(others))
        nothing = ir.Type.parse("!llvm.void")
        llvm.inline_asm(nothing, operands, text, kinds, has_side_effects=True)

    inlined(*refs)


def bytes_moved(n: int, d: int, keep: int, itemsize: int) -> float:
    """Bytes read and written for one image if caches held nothing between passes."""
    # The tokens, G once and the pivots' rows of it; the factor never leaves the chip.
    moved = n * d * itemsize + 4.0 * (n * n + n * keep + CONDITIONS * n)
    plan = plan_of(n, keep)
    if plan.panel:  # G without what is explained, read and written; the rows, written and read
        moved += 4.0 * ((keep - 1) // plan.keep * 2 * n * n + 2 * n * keep)
    return moved
