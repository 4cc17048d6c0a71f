"""The selection engines through the TPU's compiler: `resprune tpu-check --selection`."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from resprune_jax.experiments.compile_check.compiler import (
    HBM,
    Row,
    bytes_per_chip,
    chip_of,
    compile_abstract,
    described_devices,
    traced_for,
)

SIZES = ((576, 4096, 128), (2340, 4096, 780), (2928, 4096, 976), (10549, 3584, 3516))
"""Visual tokens N, their width d and how many are kept: LLaVA-1.5's, two of LLaVA-NeXT's and a 4K
picture of Qwen2.5-VL."""

BATCHES = (1, 8)
"""Images in a batch."""

ENGINES = ("gram", "blocked", "pallas_tpu")
"""The engines that work on the Gram matrix on a TPU."""

_SCOPED = re.compile(r'"used_scoped_memory_configs":\[\{"memory_space":"1",[^}]*"size":"(\d+)"')


def cases() -> Iterator[tuple[str, tuple[int, int, int], int]]:
    """(engine, (N, d, K), batch) of every program; what VMEM does not hold is left to XLA's."""
    from resprune_jax.engines import pallas_tpu

    for count, width, keep in SIZES:
        for engine in ENGINES:
            if engine != "pallas_tpu" or pallas_tpu.fits(count, keep):
                for batch in BATCHES:
                    yield engine, (count, width, keep), batch


def rows(topology: str) -> Iterator[Row]:
    """Compile the selection engines for one chip, for bfloat16 tokens.

    Args:
        topology: a chip and a grid, as "v5e:2x2".

    Yields:
        A row a program, as soon as it is compiled.
    """
    device = described_devices(topology)[0]
    for engine, size, batch in cases():
        yield compiled_row(engine, size, batch, device, limit=HBM[chip_of(topology)])


def compiled_row(
    engine: str, size: tuple[int, int, int], batch: int, device: Any, *, limit: int
) -> Row:
    """Compile one engine.

    Args:
        engine: its name.
        size: (N, d, K).
        batch: images.
        device: to compile for.
        limit: bytes of it that programs may use.

    Returns:
        The row; its setting says the most VMEM, in KiB, that any one operation of the program asks
        for, a kernel's blocks and scratch among them, beside what XLA itself leaves there between
        operations (the Gram matrix of a single image).
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from resprune_jax.selection import select

    count, width, keep = size
    where = SingleDeviceSharding(device)
    tokens = jax.ShapeDtypeStruct((batch, count, width), jnp.bfloat16, sharding=where)
    relevance = jax.ShapeDtypeStruct((batch, count), jnp.float32, sharding=where)

    @jax.jit
    def chosen(tokens: jax.Array, relevance: jax.Array) -> Any:
        return select(tokens, keep, relevance=relevance, alpha=0.75, engine=engine)

    with traced_for(device.platform):
        made = compile_abstract(chosen.lower, tokens, relevance, keep_text=True)
    setting = {
        "tokens": count,
        "width": width,
        "keep": keep,
        "batch": batch,
        "VMEM_KiB": vmem(made.text) // 1024,
    }
    held = bytes_per_chip((tokens, relevance))
    return Row("selection", engine, setting, dataclasses.replace(made, text=""), limit, held)


def vmem(text: str) -> int:
    """The most bytes of VMEM that one operation of a compiled program asks for."""
    return max((int(size) for size in _SCOPED.findall(text)), default=0)
