"""How the greedy loop runs fast: one file an engine, and the one place that chooses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from resprune_jax.errors import CallError, one_of, say_once

from . import blocked, feature, gram, kernels, lazy, mosaic_gpu, pallas_gpu, pallas_tpu, schur
from .loop import Outcome

Engine = Callable[[Any, jax.Array, jax.Array, jax.Array, int], Outcome]
"""(matrix, gate (N,), first (), valid (N,), keep) -> the picks.

The matrix is the Gram matrix (N, N) of scaled tokens; for the engines in `FROM_TOKENS` it is the
scaled tokens (N, d) themselves; for those in `AS_GIVEN` `lazy.Tokens`: the tokens as the
caller gave them, and their norms."""

ENGINES: dict[str, Engine] = {
    "feature": feature.factor,
    "gram": gram.factor,
    "blocked": blocked.factor,
    "lazy": lazy.factor,
    "schur": schur.factor,
    "pallas_tpu": pallas_tpu.factor,
    "pallas_gpu": pallas_gpu.factor,
    "mosaic_gpu": mosaic_gpu.factor,
}

FROM_TOKENS = frozenset({"feature"})

AS_GIVEN = frozenset({"lazy"})

RULED = frozenset({"feature", "gram"})
"""The engines that run any rule; the others have the paper's in their inner loops."""

KERNELS = {
    "pallas_tpu": ("tpu", pallas_tpu.fits),
    "mosaic_gpu": ("gpu", mosaic_gpu.fits),
    "pallas_gpu": ("gpu", pallas_gpu.fits),
}
"""The engines that are a kernel: their backend, and whether they hold a problem of (N, K). Of two
that a backend has, "auto" takes the first that is ahead there."""

PTX = frozenset({"mosaic_gpu"})
"""Kernels that no interpreter of Pallas runs."""


class Crossings(NamedTuple):
    """The sizes at which another engine becomes the fastest on a backend.

    Attributes:
        kernel: the most tokens at which the backend's Pallas kernel is ahead of XLA's loop;
            `None`: all that it holds.
        lazy: the tokens from which on `lazy` is the fastest where at most half of them are kept;
            `None`: nowhere, since a matrix unit makes the whole product in less time.
        blocked: the size of the factor, N K, from which on `blocked` is ahead of `loop`; `None`:
            nowhere.
        loop: the loop of XLA's below that.
    """

    kernel: int | None = None
    lazy: int | None = None
    blocked: int | None = blocked.BLOCKED_FROM
    loop: str = "gram"


CROSSINGS = {
    # Measured on 2 cores (docs/explanation/performance.md).
    "cpu": Crossings(lazy=256),
    # What an H100 timed (docs/explanation/performance.md): `mosaic_gpu` at every size that it
    # holds, where the card has clusters. On other cards nothing was measured: they keep the kernel
    # whose end lies between two sizes of the H100's, and beyond it the loop that was ahead there.
    "gpu": Crossings(kernel=768, blocked=None, loop="schur"),
    # By the compiler's plans, not measured on a chip (docs/how_to/tpu.md): the kernel wherever
    # it fits.
    "tpu": Crossings(blocked=2**21),
}
"""By backend; a backend that is not here is taken for the last."""


def resolve(
    name: str,
    n: int = 1,
    keep: int = 1,
    d: int = 1,
    *,
    shared: bool = False,
    max_bytes: int | None = None,
    ruled: bool = False,
) -> str:
    """The engine that `name` stands for.

    Args:
        name: "auto" for the fastest at this size here, or an engine. A kernel that does not hold
            a problem of this size is replaced by XLA's loop, and that is said.
        n: tokens of an image, N.
        keep: tokens to keep, K.
        d: their dimension.
        shared: whether the Gram matrix is there already, for many selections on one image.
        max_bytes: beside arguments and result; where the fastest takes more for a single image,
            "auto" is `lazy`, which keeps fewer rows, or `feature`, the smallest at any size.
        ruled: whether a rule of somebody's own decides.

    Raises:
        CallError: no engine has that name, it runs no rule, or it is a kernel for another backend.
    """
    one_of("engine", name, ("auto", *ENGINES))
    if ruled:
        if name not in ("auto", *RULED):
            raise CallError(
                f"engine {name!r} runs the paper's rule alone: with a rule choose one of auto,"
                f" {', '.join(sorted(RULED))}"
            )
        fits_in = shared or max_bytes is None or sum(memory("gram", n, d, keep)) <= max_bytes
        return name if name != "auto" else "gram" if fits_in else "feature"
    here = jax.default_backend()
    at = CROSSINGS.get(here, CROSSINGS["tpu"])
    by_size = "blocked" if at.blocked is not None and n * keep >= at.blocked else at.loop

    def within(engine: str) -> bool:
        return max_bytes is None or sum(memory(engine, n, d, keep)) <= max_bytes

    if name == "auto":
        for kernel, (backend, fits) in KERNELS.items():
            ahead = mosaic_gpu.timed() if kernel in PTX else at.kernel is None or n <= at.kernel
            held = fits(n, keep) and (shared or within(kernel))
            if backend == here and ahead and held and kernels.undivided():
                return kernel
        few = at.lazy is not None and n >= at.lazy and keep <= n // 2
        chosen = "lazy" if few and not shared else by_size
        if shared or max_bytes is None:
            return chosen
        return next((way for way in (chosen, "lazy") if within(way)), "feature")
    if name not in KERNELS:
        return name
    backend, fits = KERNELS[name]
    if backend != here and (name in PTX or not kernels.interpreted()):
        raise CallError(f"engine {name!r} runs on a {backend.upper()}, this is a {here.upper()}")
    if name == "mosaic_gpu":
        mosaic_gpu.check_device()
    if fits(n, keep):
        return name
    message = f"engine {name!r} does not hold {n} tokens with {keep} kept: {by_size!r} runs instead"
    say_once(f"{name} {n} {keep}", message)
    return by_size


def memory(engine: str, n: int, d: int, keep: int, *, prepared: bool = False) -> tuple[int, int]:
    """Bytes that a selection takes beside its arguments and its result.

    Args:
        engine: which one, not "auto".
        n: tokens of an image, N.
        d: their dimension.
        keep: tokens to keep, K.
        prepared: whether the Gram matrix is an argument.

    Returns:
        (for every row of a batch that runs together with others, once for all of them).
    """
    # In panels the matrix is written to: a prepared one is copied.
    copied = engine == "mosaic_gpu" and mosaic_gpu.plan_of(n, keep).panel
    gram = 0 if prepared and not copied else n * n
    redo = 2 * n * d + keep * d  # the tokens in float32, by the guard as by `feature`
    if engine in FROM_TOKENS:
        return 4 * (redo + 32 * n), 0
    if engine in AS_GIVEN:
        block = lazy.block_of(n, keep)
        rows = lazy.room_for(n, block) + 2 * keep + 2 * block + 32
        return 4 * (rows * n + redo), 0
    # One image at a time: the tiles of its product, and the tokens.
    # `schur` works in the place of the Gram matrix, or in that of a copy where it is to be kept.
    rows = n * n - gram + schur.BLOCK * n if engine == "schur" else 2 * keep * n
    return 4 * (gram + rows + 32 * n), 4 * (2 * gram + redo)
