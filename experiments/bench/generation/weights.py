"""Random weights for both sides, made on the device: billions of numbers in seconds."""

import math
from functools import partial
from typing import Any

BLOCK = 2**20 - 3
"""Numbers that are drawn; a prime, so that no two rows of a kernel begin at the same one."""


def random_state(config: Any, dtype: Any, rng_seed: int = 0) -> Any:
    """Random parameters of an architecture, made on the device.

    Kernels are scaled by their fan-in and what is added to the residual path by 0.3, so that
    activations stay near 1 and patches that look alike stay alike. One block of numbers is drawn
    and every kernel is filled with it over and over, from a place of its own: a generator in the
    program of every shape would be compiled for longer than it draws.

    Args:
        config: the architecture.
        dtype: of the parameters.
        rng_seed: of the random generator.

    Returns:
        The state, as `load_model` would give it.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from resprune_jax.models.families.registry import module_class

    made = module_class(config)
    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=dtype))

    draw = jax.jit(lambda seed: jax.random.normal(jax.random.key(seed), (BLOCK,), jnp.float32))
    block = draw(rng_seed)

    @partial(jax.jit, static_argnames="shape")
    def normal(block: Any, begin: Any, scale: Any, shape: tuple[int, ...]) -> Any:
        place = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
        return (scale * block[(place + begin) % BLOCK]).astype(dtype)

    leaves = []
    for number, (path, leaf) in enumerate(nnx.to_flat_state(nnx.split(abstract)[1])):
        name, shape = ".".join(map(str, path)), leaf.shape
        if name.endswith(("scale", "bias")):
            value = jax.device_put(np.full(shape, name.endswith("scale"), dtype))
        else:
            scale = shape[0] ** -0.5 if name.endswith("kernel") else 1.0
            if name.endswith("weight"):  # of joined layers: their inputs are the last axis
                scale = shape[-1] ** -0.5
            if name.endswith(("out_proj.kernel", "fc2.kernel", "o_proj.kernel")):
                scale *= 0.3
            if "position_embedding" in name or "class_embedding" in name:
                scale *= 0.1
            begin = np.uint32(number * 7919 % BLOCK)
            value = normal(block, begin, np.float32(scale), shape)
        leaves.append((path, leaf.replace(value)))
    return nnx.from_flat_state(leaves)


def load_transformers(hf: dict[str, Any], state: Any, device: str) -> Any:
    """The model in transformers, with sdpa attention.

    Args:
        hf: its `config.json`.
        state: our parameters, which are written to a temporary checkpoint and loaded in float32;
            None: transformers draws random weights of its own on the device, of the same shapes and
            in bfloat16.
        device: torch's name of it.
    """
    import tempfile
    from pathlib import Path

    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.utils import logging

    from resprune_jax.models.families.registry import save_checkpoint

    logging.disable_progress_bar()
    made: Any = LlavaForConditionalGeneration
    if state is not None:
        with tempfile.TemporaryDirectory(prefix="resprune-bench-") as name:
            save_checkpoint(Path(name), hf, state)
            made = made.from_pretrained(name, dtype=torch.float32, attn_implementation="sdpa")
            return made.to(device).eval()
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)  # never float32 first: that would take twice the memory
    try:
        with torch.device(device):
            made = made(LlavaConfig.from_dict(hf | {"attn_implementation": "sdpa"}))
    finally:
        torch.set_default_dtype(before)
    return made.to(torch.bfloat16).eval()
