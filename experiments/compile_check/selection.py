"""The selection engines through a described device's compiler: `--selection`."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from resprune_jax.experiments.compile_check.compiler import (
    bytes_per_device,
    compile_abstract,
    traced_for,
)
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.target import Figures, Target

SIZES = ((576, 4096, 128), (2340, 4096, 780), (2928, 4096, 976), (10549, 3584, 3516))
"""Visual tokens N, their width d and how many are kept: LLaVA-1.5's, two of LLaVA-NeXT's and a 4K
picture of Qwen2.5-VL."""


def cases(target: Target) -> Iterator[tuple[str, tuple[int, int, int], int, str]]:
    """(engine, (N, d, K), batch, dtype) of every program, without kernels that do not hold it."""
    from resprune_jax.engines import KERNELS

    for dtype in target.dtypes:
        for count, width, keep in SIZES:
            for engine in target.engines:
                if engine not in KERNELS or KERNELS[engine][1](count, keep):
                    for batch in target.batches:
                        yield engine, (count, width, keep), batch, dtype


def selection_rows(target: Target) -> Iterator[Row]:
    """Compile the selection engines for one device.

    Args:
        target: the device is its first.

    Yields:
        A row a program, as soon as it is compiled.
    """
    device = target.devices()[0]
    for engine, size, batch, dtype in cases(target):
        yield selection_row(engine, size, batch, target, device, dtype)


def selection_row(
    engine: str,
    size: tuple[int, int, int],
    batch: int,
    target: Target,
    device: Any,
    dtype: str = "bfloat16",
) -> Row:
    """Compile one engine.

    Args:
        engine: its name.
        size: (N, d, K).
        batch: images.
        target: what `device` is one of.
        device: to compile for.
        dtype: of the tokens.
    """
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from resprune_jax.selection import select

    count, width, keep = size
    where = SingleDeviceSharding(device)
    tokens = jax.ShapeDtypeStruct((batch, count, width), jnp.dtype(dtype), sharding=where)
    relevance = jax.ShapeDtypeStruct((batch, count), jnp.float32, sharding=where)

    @jax.jit
    def chosen(tokens: jax.Array, relevance: jax.Array) -> Any:
        return select(tokens, keep, relevance=relevance, alpha=0.75, engine=engine)

    with traced_for(target.platform, capability=target.capability):
        made = compile_abstract(
            chosen.lower,
            tokens,
            relevance,
            keep_text=True,
            options=target.options,
            instead=target.instead,
        )
    setting: dict[str, int | str] = {
        "tokens": count, "width": width, "keep": keep, "batch": batch, "dtype": dtype,
    }  # fmt: skip
    figures = target.selection_figures(made.text, engine, size, batch) if made.text else Figures()
    return Row(
        "selection", engine, setting, dataclasses.replace(made, text=""), target.limit,
        bytes_per_device((tokens, relevance)), figures=figures,
    )  # fmt: skip
