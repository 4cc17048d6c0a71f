"""The other side of the selection benchmark: the paper's Algorithm 1 in torch, and a pivoted
Cholesky factorisation beside it.

Written as well as we can: everything preallocated, no value read back inside the loop, matrix-
vector products only where they are needed. A batch is tried image by image and in lockstep, eager
and through torch.compile; the fastest counts.
"""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from resprune_jax.experiments.bench.problems import ALPHA, Problem

if TYPE_CHECKING:
    from torch import Tensor

ALGORITHM_1 = "torch Algorithm 1"
CHOLESKY = "torch Cholesky"

Step = Callable[..., "Tensor"]


@dataclasses.dataclass(frozen=True)
class TorchSide:
    """One way of doing a problem in torch.

    Attributes:
        group: the algorithm.
        way: how it is run: "each", "lockstep" or "shared", and "compiled" behind it.
        call: does it and waits; returns the picks (B, K) as a tensor.
    """

    group: str
    way: str
    call: Callable[[], Any]

    @property
    def name(self) -> str:
        """Both in one."""
        return f"{self.group}, {self.way}"


def algorithm_1_step(
    k: int, pick: "Tensor", tokens: "Tensor", gate: "Tensor", energy: "Tensor", barred: "Tensor",
    basis: "Tensor", projection: "Tensor",
) -> "Tensor":  # fmt: skip
    """One step on one image: Gram-Schmidt, one inner-product pass, the next pick.

    Args:
        k: the step.
        pick: (1,) int64, the token chosen last.
        tokens: (N, d) float32.
        gate: (N,).
        energy: (N,) residual energies, updated in place.
        barred: (N,) 0, or minus infinity for tokens that were chosen; updated in place.
        basis: (K, d), row k is written.
        projection: (N,) to be written over.

    Returns:
        (1,) int64, the token to choose next.
    """
    import torch

    residual = tokens.index_select(0, pick)[0]
    if k:
        known = basis[:k]
        residual = torch.addmv(residual, known.T, torch.mv(known, residual), alpha=-1)
    direction = basis[k]
    torch.div(residual, torch.linalg.vector_norm(residual), out=direction)
    torch.mv(tokens, direction, out=projection)
    energy.addcmul_(projection, projection, value=-1)
    barred.index_fill_(0, pick, -torch.inf)
    return torch.argmax(torch.addcmul(barred, gate, energy), dim=0, keepdim=True)


def cholesky_step(
    k: int, pick: "Tensor", gram: "Tensor", gate: "Tensor", energy: "Tensor", barred: "Tensor",
    factor: "Tensor", row: "Tensor",
) -> "Tensor":  # fmt: skip
    """One step of the pivoted Cholesky factorisation of the Gram matrix (N, N); as above."""
    import torch

    known = gram.index_select(0, pick)[0]
    if k:
        before = factor[:k]
        known = torch.addmv(known, before.T, before.index_select(1, pick)[:, 0], alpha=-1)
    torch.mul(known, torch.rsqrt(energy.index_select(0, pick)), out=row)
    factor[k].copy_(row)
    energy.addcmul_(row, row, value=-1)
    barred.index_fill_(0, pick, -torch.inf)
    return torch.argmax(torch.addcmul(barred, gate, energy), dim=0, keepdim=True)


def algorithm_1_lockstep(
    k: int, pick: "Tensor", tokens: "Tensor", gate: "Tensor", energy: "Tensor", barred: "Tensor",
    basis: "Tensor", projection: "Tensor",
) -> "Tensor":  # fmt: skip
    """`algorithm_1_step` on B images, or on B questions about one, together.

    Args:
        k: the step.
        pick: (B, 1) int64.
        tokens: (B, N, d), or (N, d): one pass over them then serves all questions.
        gate: (B, N); so are `energy` and `barred`.
        basis: (K, B, d).
        projection: (B, N).
    """
    import torch

    if tokens.ndim == 2:
        residual = tokens.index_select(0, pick[:, 0])  # [B, d]
    else:
        at = pick[..., None].expand(-1, 1, tokens.shape[-1])
        residual = torch.gather(tokens, 1, at)[:, 0]
    if k:
        known = basis[:k].transpose(0, 1)  # [B, k, d]
        shares = torch.bmm(residual[:, None], known.transpose(1, 2))  # [B, 1, k]
        residual = residual - torch.bmm(shares, known)[:, 0]
    direction = basis[k]  # [B, d]
    torch.div(residual, torch.linalg.vector_norm(residual, dim=-1, keepdim=True), out=direction)
    if tokens.ndim == 2:
        torch.mm(direction, tokens.T, out=projection)
    else:
        # A row times a matrix: the other way round is several times slower on a CPU.
        torch.bmm(direction[:, None], tokens.transpose(1, 2), out=projection[:, None])
    energy.addcmul_(projection, projection, value=-1)
    barred.scatter_(1, pick, -torch.inf)
    return torch.argmax(torch.addcmul(barred, gate, energy), dim=1, keepdim=True)


def _loop(step: Step, matrix: "Tensor", energy: "Tensor", gate: "Tensor", first: "Tensor",
          keep: int, width: int) -> "Tensor":  # fmt: skip
    """Run `keep` steps, on one image or in lockstep: the buffers are made here, once."""
    import torch

    batch = gate.shape[:-1]
    basis = torch.empty((keep, *batch, width), dtype=torch.float32, device=gate.device)
    picks = torch.empty((*batch, keep), dtype=torch.int64, device=gate.device)
    barred, spare = torch.zeros_like(gate), torch.empty_like(gate)
    pick = first[..., None]
    for k in range(keep):
        picks[..., k : k + 1].copy_(pick)
        pick = step(k, pick, matrix, gate, energy, barred, basis, spare)
    return picks


def on_device(problem: Problem, device: str) -> "tuple[Tensor, Tensor, Tensor]":
    """Tokens, relevance and seed tokens as tensors."""
    import torch

    def tensor(array: Any) -> "Tensor":
        if array.dtype.name == "bfloat16":
            return torch.from_numpy(array.view("int16")).view(torch.bfloat16).to(device)
        return torch.from_numpy(array).to(device)

    first = tensor(problem.first.astype("int64"))
    return tensor(problem.tokens), tensor(problem.relevance), first


def sides(problem: Problem, device: str, *, compiled: bool = True) -> Iterator[TorchSide]:
    """Every way of doing a problem in torch.

    Args:
        problem: a batch of images, or questions about one.
        device: "cpu" or "cuda".
        compiled: also with each step through torch.compile.
    """
    tokens, weight, first = on_device(problem, device)
    shared = len(tokens) < problem.rows
    keep, count, width = problem.size.keep, problem.size.n, problem.size.d
    import torch

    def each(step: Step, cholesky: bool) -> "Tensor":
        gates, picks = weight**ALPHA, []
        for row in range(problem.rows):
            image = tokens[min(row, len(tokens) - 1)].float()
            matrix = image @ image.T if cholesky else image
            energy = matrix.diagonal().clone() if cholesky else image.square().sum(dim=-1)
            picks.append(
                _loop(step, matrix, energy, gates[row], first[row], keep,
                      count if cholesky else width)
            )  # fmt: skip
        return torch.stack(picks)

    def lockstep(step: Step) -> "Tensor":
        images = tokens.float()
        energy = images.square().sum(dim=-1).expand(problem.rows, -1).clone()
        images = images[0] if shared else images
        return _loop(step, images, energy, weight**ALPHA, first, keep, width)

    def ready(run: Callable[[], "Tensor"]) -> Callable[[], "Tensor"]:
        def call() -> "Tensor":
            with torch.inference_mode():
                picks = run()
            if device == "cuda":
                torch.cuda.synchronize()
            return picks

        return call

    if compiled:
        torch.compiler.reset()  # else the sizes of earlier rows count against its recompilations
    lockstep_way = "shared pass" if shared else "lockstep"
    for name, wrap in (("", _same), (" compiled", _compile))[: 1 + compiled]:
        one, factor, many = (
            wrap(step) for step in (algorithm_1_step, cholesky_step, algorithm_1_lockstep)
        )
        yield TorchSide(ALGORITHM_1, f"each{name}", ready(partial(each, one, False)))
        if problem.rows > 1:
            yield TorchSide(ALGORITHM_1, f"{lockstep_way}{name}", ready(partial(lockstep, many)))
        yield TorchSide(CHOLESKY, f"each{name}", ready(partial(each, factor, True)))


def _same(step: Step) -> Step:
    return step


def _compile(step: Step) -> Step:
    import torch

    return torch.compile(step)


def choose(
    tokens: "Tensor", nouns: "Tensor", keep: int, *, compiled: bool = False
) -> "Tensor":  # fmt: skip
    """ResPrune in torch, as `bench generate` needs it: relevance, gate, Algorithm 1, longest token
    first.

    Args:
        tokens: (B, N, d), any float dtype.
        nouns: (B, M, d), embeddings of the questions' nouns.
        keep: K.
        compiled: each step goes through torch.compile.

    Returns:
        (B, K) int64, in order of choice.
    """
    import torch
    from torch.nn.functional import normalize

    images = tokens.float()
    cosines = torch.bmm(normalize(images, dim=-1), normalize(nouns.float(), dim=-1).mT)
    gates = cosines.amax(dim=-1).clamp(min=0) ** ALPHA
    energies = images.square().sum(dim=-1)
    width = tokens.shape[-1]
    wrap = _compile if compiled else _same
    if tokens.device.type == "cuda":
        first = energies.argmax(dim=-1)
        step = wrap(algorithm_1_lockstep)
        return _loop(step, images, energies, gates, first, keep, width)
    step = wrap(algorithm_1_step)
    return torch.stack(
        [
            _loop(step, image, energy, gate, energy.argmax(dim=-1), keep, width)
            for image, energy, gate in zip(images, energies, gates, strict=True)
        ]
    )


def why_not(platform: str) -> str | None:
    """Why torch cannot take part, or None; sets its threads to as many as JAX has.

    Args:
        platform: JAX's backend.
    """
    from resprune_jax.experiments.bench.timing import threads

    try:
        import torch
    except ImportError:
        return "torch is not installed"
    if platform == "cpu":
        torch.set_num_threads(threads())
        return None
    if platform != "gpu":
        return f"torch does not run on this {platform}"
    return None if torch.cuda.is_available() else "the torch that is installed has no GPU"


def peak_memory(call: Callable[[], Any]) -> int:
    """Make a call and tell the GPU memory that it took beyond what was held before, in bytes."""
    import torch

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return int(torch.cuda.max_memory_allocated() - before)


def device_of(platform: str) -> str:
    """torch's name for the device that JAX uses."""
    return "cuda" if platform == "gpu" else "cpu"
