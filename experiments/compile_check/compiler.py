"""Compiling for devices that are not there: abstract arguments, and the compiler's plan.

Nothing runs and no weight exists: arguments are shapes with shardings, and the compiler says how
much memory each device would need. Which devices there are and how they are described is a
`target.Target`'s affair.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest import mock


@dataclasses.dataclass(frozen=True)
class Memory:
    """What the compiler planned for one device, in bytes.

    Attributes:
        arguments: of the program, those of them it does not read left out.
        outputs: the results, donated ones included.
        temporaries: of the program's own, at their peak.
        aliased: outputs that lie where donated arguments lay.
        code: the program itself.
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    code: int

    def total(self, held: int = 0) -> int:
        """Bytes in use while the program runs.

        Args:
            held: of parameters and arguments that are in memory whether this program reads them or
                not; the compiler pads what it counts, so the larger of the two holds.
        """
        inputs = max(self.arguments, held)
        return inputs + self.outputs - self.aliased + self.temporaries + self.code


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program that was compiled, or the reason why it was not.

    Attributes:
        memory: what it needs, or None where the compiler refused it.
        result: its outputs as shapes with shardings, to be arguments of the next program.
        seconds: the compiler's time.
        problem: why the compiler refused it; "" if it did not.
        text: the compiled program, where it was asked for.
    """

    memory: Memory | None
    result: Any
    seconds: float
    problem: str = ""
    text: str = ""


@contextlib.contextmanager
def traced_for(
    platform: str, devices: int = 1, capability: tuple[int, int] | None = None
) -> Iterator[None]:
    """Tell code that asks JAX for its backend and devices while it is traced that it is these.

    Otherwise the program of the machine that compiles would be compiled, not that of the devices.

    Args:
        platform: of the described devices, as `jax.default_backend` names it.
        devices: how many of them the program runs on.
        capability: of described GPUs, their compute capability.
    """
    import jax

    from resprune_jax.engines import kernels

    # JAX keeps traces by shapes alone: none of another backend may serve here, nor one of these
    # where the machine's own backend runs.
    foreign = platform != jax.default_backend()
    if foreign:
        jax.clear_caches()
    try:
        with (
            mock.patch.object(jax, "default_backend", lambda: platform),
            mock.patch.object(jax, "device_count", lambda: devices),
            mock.patch.object(kernels, "compute_capability", lambda: capability),
        ):
            yield
    finally:
        if foreign:
            jax.clear_caches()


def compile_abstract(
    lower: Callable[..., Any],
    *args: Any,
    keep_text: bool = False,
    options: Mapping[str, Any] | None = None,
    instead: Callable[[str], Mapping[str, Any] | None] = lambda problem: None,
) -> Compiled:
    """Compile a jitted function for the devices that its arguments are said to lie on.

    Args:
        lower: a jitted function's `lower`, with its static arguments.
        *args: pytrees of `jax.ShapeDtypeStruct` with shardings, and of small host values.
        keep_text: keep the compiled program's text.
        options: of the compiler.
        instead: other ones, for a problem of the compiler's own that these solve.

    Returns:
        The plan; a program that does not fit the devices' memory has a `problem` instead.
    """
    import jax
    from jax.errors import JaxRuntimeError

    lowered = lower(*args)
    start = time.perf_counter()
    try:
        try:
            compiled = lowered.compile(dict(options or {}))
        except JaxRuntimeError as error:
            if (other := instead(str(error))) is None:
                raise
            compiled = lowered.compile(dict(other))
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        problem = str(error).partition("RESOURCE_EXHAUSTED: ")[2].splitlines()[0]
        return Compiled(None, None, time.perf_counter() - start, problem)
    seconds = time.perf_counter() - start
    plan = compiled.memory_analysis()
    memory = Memory(
        arguments=plan.argument_size_in_bytes,
        outputs=plan.output_size_in_bytes,
        temporaries=plan.temp_size_in_bytes,
        aliased=plan.alias_size_in_bytes,
        code=plan.generated_code_size_in_bytes,
    )
    result = jax.tree.map(
        lambda out, where: jax.ShapeDtypeStruct(out.shape, out.dtype, sharding=where),
        lowered.out_info,
        compiled.output_shardings,
    )
    return Compiled(memory, result, seconds, text=compiled.as_text() if keep_text else "")


def bytes_per_device(tree: Any) -> int:
    """Bytes that a pytree of shapes takes on one device; a shape without sharding lies on each."""
    import jax

    total = 0
    for leaf in jax.tree.leaves(tree):
        if not hasattr(leaf, "shape"):  # a Python number
            continue
        where = getattr(leaf, "sharding", None)
        shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
        size = leaf.dtype.itemsize
        for length in shape:
            size *= length
        total += size
    return total
