"""Our side of the selection benchmark: every registered engine, compiled before it is timed."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from resprune_jax.errors import CallError
from resprune_jax.experiments.bench.problems import ALPHA, Problem, Size

PRODUCT = "Gram product"
AUTO = "auto"
PREPARE = "auto: prepare"
LOOP = "auto: the picks"


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program with its arguments on the device; it can be called, and nothing else.

    Attributes:
        name: of the side.
        program: from `jit(...).lower(...).compile()`: it refuses other shapes, it never compiles.
        arguments: on the device.
    """

    name: str
    program: Any
    arguments: tuple[Any, ...]

    def __call__(self) -> Any:
        """Run it and wait."""
        import jax

        return jax.block_until_ready(self.program(*self.arguments))

    @property
    def planned(self) -> dict[str, int] | None:
        """Bytes the compiler planned: "arguments", "temporaries", "outputs", "total"."""
        plan = self.program.memory_analysis()
        if plan is None:
            return None
        parts = {
            "arguments": int(plan.argument_size_in_bytes),
            "temporaries": int(plan.temp_size_in_bytes),
            "outputs": int(plan.output_size_in_bytes),
        }
        return parts | {"total": sum(parts.values())}


@dataclasses.dataclass(frozen=True)
class Refused:
    """A side that does not run here, and why."""

    name: str
    why: str


def compiled(name: str, function: Callable[..., Any], *arguments: Any) -> Compiled | Refused:
    """Compile a function for these arguments ahead of time.

    What an engine raises because it does not run on this backend is no failure of the benchmark:
    it becomes the reason that is printed in place of its time.
    """
    import jax

    try:
        return Compiled(name, jax.jit(function).lower(*arguments).compile(), arguments)
    except Exception as error:  # engines of other backends raise whatever their compiler raises
        return Refused(name, one_line(error))


def one_line(error: BaseException, length: int = 160) -> str:
    """An error in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= length else text[: length - 1] + "…"


def engine_names() -> tuple[str, ...]:
    """Every registered engine, and the choice by size in front."""
    from resprune_jax.engines import ENGINES

    return (AUTO, *ENGINES)


def gram_product(tokens: Any) -> Any:
    """The whole of V V^T as one product, float32 sums: what the loop's cost is measured against."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    if tokens.dtype != jnp.bfloat16 or jax.default_backend() == "cpu":
        tokens = tokens.astype(jnp.float32)
    rows = tuple(range(tokens.ndim - 2))
    contract = (tokens.ndim - 1,)
    return lax.dot_general(
        tokens, tokens, ((contract, contract), (rows, rows)),
        precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip


def sides(
    problem: Problem, names: tuple[str, ...], skip: Callable[[str], bool]
) -> Iterator[Compiled | Refused]:
    """Compile the product, every engine, and the two halves of the choice by size for a problem.

    Args:
        problem: a batch of images, or questions about one, for which the image's own work is done
            once and inside the time; one image goes in without a batch axis.
        names: engines.
        skip: whether a side, by name, is not to be compiled at all.

    Yields:
        A side, or why there is none, as soon as it is compiled.
    """
    import jax
    import numpy as np

    from resprune_jax import Prepared, prepare, select

    def put(array: Any) -> Any:
        return jax.device_put(array if len(array) > 1 else array[0])

    tokens, relevance, first = map(put, (problem.tokens, problem.relevance, problem.first))
    alpha = jax.device_put(np.float32(ALPHA))
    questions = tokens.ndim == relevance.ndim

    def chosen(tokens: Any, relevance: Any, first: Any, alpha: Any, *, engine: str = AUTO) -> Any:
        if questions:
            tokens = prepare(tokens)
        return select(
            tokens, problem.size.keep, relevance=relevance, alpha=alpha, first=first, engine=engine
        ).indices

    def image_work(tokens: Any) -> Any:
        # Without the tokens, which lie in it as they were given: a program would copy them out.
        made = prepare(tokens)
        return made.gram, made.exponent, made.finite

    if not skip(PRODUCT):
        yield compiled(PRODUCT, gram_product, tokens)
    for name in names:
        if why := _replaced(name, problem.size):
            yield Refused(name, why)
        elif not skip(name):
            yield compiled(name, partial(chosen, engine=name), tokens, relevance, first, alpha)
    if AUTO not in names or questions or skip(PREPARE) or skip(LOOP):
        return
    once = compiled(PREPARE, image_work, tokens)
    yield once
    if isinstance(once, Compiled):
        valid = jax.device_put(np.ones(tokens.shape[:-1], bool))
        prepared = Prepared(tokens, valid, *once())
        yield compiled(LOOP, chosen, prepared, relevance, first, alpha)


def _replaced(name: str, size: Size) -> str:
    """Why an engine would not run itself at a size, or "": no time goes under another's name."""
    from resprune_jax.engines import resolve

    try:
        taken = resolve(name, size.n, size.keep)
    except CallError as error:
        return str(error)
    return "" if name in (AUTO, taken) else f"{taken} would run in its place at this size"


def bytes_moved(name: str, size: Size, itemsize: int) -> float | None:
    """Bytes that a side reads and writes for one image, if caches held nothing between passes.

    An engine says it of itself with a function `bytes_moved(n, d, keep, itemsize)` in its module.

    Args:
        name: of the side.
        size: N, d and K.
        itemsize: bytes of a token's number.

    Returns:
        Bytes, or None where nobody knows.
    """
    from resprune_jax.engines import ENGINES, resolve

    n, d, keep = size.n, size.d, size.keep
    product = float(n * d * itemsize + 4 * n * n)
    vectors = 24.0 * n * keep  # energies, gates and masks of a step
    if name in (AUTO, LOOP):
        # The picks alone are timed on a Gram matrix that is there already.
        whole = bytes_moved(resolve(AUTO, n, keep, shared=name == LOOP), size, itemsize)
        return whole if whole is None or name == AUTO else whole - product
    if name in ENGINES:
        own = getattr(sys.modules[ENGINES[name].__module__], "bytes_moved", None)
        if own is not None:
            return float(own(n, d, keep, itemsize))
    known = {
        PRODUCT: product,
        # A pass over the tokens a step; the basis twice, to project and to subtract.
        "torch Algorithm 1": 4.0 * n * d * keep + 4.0 * d * keep * keep + vectors,
        # The earlier rows once a step.
        "torch Cholesky": product + 2.0 * n * keep * keep + vectors,
        PREPARE: product,
    }
    return known.get(name)


def flops(name: str, size: Size) -> float:
    """Float operations of a side for one image, 2 a multiply-add; for guessing its time."""
    n, d, keep = size.n, size.d, size.keep
    if name in ("torch Algorithm 1", "feature"):
        return 2.0 * n * d * keep + 4.0 * d * keep * keep
    loop = 0.0 if name in (PRODUCT, PREPARE) else float(n * keep * keep)
    return loop + (0.0 if name == LOOP else 2.0 * n * n * d)
