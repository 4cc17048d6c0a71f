"""What a TPU's attention of a prefill would take by splash, JAX's kernel, beside XLA's.

`python -m resprune_jax.experiments.compile_check.tpu.splash`: one layer of LLaVA-1.5-7B, one row,
bfloat16, by the figures of libtpu; then, in Pallas's interpreter, how far both are from float32.
The models do not use it: docs/how_to/tpu.md says why.
"""

import sys
from pathlib import Path
from typing import Any

from resprune_jax.experiments.compile_check.tpu.kernel import cycles_of, profiled

TOPOLOGY = "v5e:2x2"

HEADS, WIDTH = 32, 128

LENGTHS = ((640, 640), (192, 256))
"""Of a prompt with all visual tokens and with 128, and as splash takes them: in whole blocks."""


def splash(length: int, heads: int, block: int, *, interpret: bool = False) -> Any:
    """The kernel: (H, S, hd) each of scaled queries, keys and values to (H, S, hd), causal."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    causal = masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)])
    sizes = kernels.BlockSizes(block, block, block)
    return kernels.make_splash_mha(
        causal, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret
    )


def of_splash(folder: Path) -> None:
    """Print the cycles of the kernel at each length."""
    import jax

    from resprune_jax.experiments.compile_check.compiler import traced_for

    for _, length in LENGTHS:
        shape = _on_a_chip((HEADS, length, WIDTH))
        kernel = splash(length, HEADS, length)
        with traced_for("tpu"):
            jax.jit(lambda q, k, v, kernel=kernel: kernel(q, k, v)).lower(*[shape] * 3).compile()
        print(cycles_of(folder, "splash_mha"))


def main() -> None:
    """Print the cycles of both, and how far their results are from float32's."""
    import jax
    import jax.numpy as jnp

    from resprune_jax.experiments.compile_check.compiler import traced_for
    from resprune_jax.experiments.compile_check.tpu.cycles import read_cycles
    from resprune_jax.models.decoder.attention import attend

    theirs = map(int, profiled(__spec__.name, "profile").split())
    for (length, padded), cycles in zip(LENGTHS, theirs, strict=True):
        shape = _on_a_chip((1, length, HEADS, WIDTH))
        with traced_for("tpu"):
            made = jax.jit(lambda q, k, v: attend(q, k, v, causal=True)).lower(*[shape] * 3)
            ours = read_cycles(made.compile().as_text() or "").cycles
        print(f"{length} tokens: XLA {ours:,} cycles, splash {cycles:,} (of {padded})")
    for dtype in ("float32", "bfloat16"):
        keys = jax.random.split(jax.random.key(0), 3)
        q, k, v = (jax.random.normal(key, (1, 256, 2, WIDTH)).astype(dtype) for key in keys)
        scaled = q * jnp.asarray(WIDTH**-0.5, dtype)
        heads = [jnp.swapaxes(x[0], 0, 1) for x in (scaled, k, v)]
        by_splash = jnp.swapaxes(splash(256, 2, 128, interpret=True)(*heads), 0, 1)
        exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)), causal=True)
        for name, found in (("splash", by_splash), ("XLA", attend(q, k, v, causal=True)[0])):
            off = float(jnp.max(jnp.abs(found.astype(jnp.float32) - exact[0])))
            print(f"{dtype}: {name} is off by {off:.1e}")


def _on_a_chip(shape: tuple[int, ...]) -> Any:
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from resprune_jax.experiments.compile_check.tpu.target import TpuTarget

    where = SingleDeviceSharding(TpuTarget(TOPOLOGY).devices()[0])
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)


if __name__ == "__main__":
    if sys.argv[1:2] == ["profile"]:
        of_splash(Path(sys.argv[2]))
    else:
        main()
