"""Run by `test_sharding.py` in a process with 8 devices: loads a checkpoint onto several meshes."""

import collections
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.reading import load_parameters
from resprune_jax.models.checkpoint.safetensors_files import TensorInfo, WeightFiles
from resprune_jax.models.checkpoint.sharding import auto_mesh, batch_sharding, divide_mlps
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.families.registry import read_config

NAMES = (
    "qkv_proj", "o_proj", "gate_up_proj", "down_proj", "embed_tokens", "lm_head", "patch_embedding"
)  # fmt: skip
PARTS = (*NAMES, "q_proj", "gate_proj")
MESHES = {
    "tensor": ((8,), ("model",)),
    "mixed": ((2, 4), ("data", "model")),
    "fsdp": ((2, 4), ("fsdp", "model")),
    "batch": ((8,), ("data",)),
}

read_bytes: collections.Counter[str] = collections.Counter()
largest_part: dict[str, int] = {}
read_whole = WeightFiles.read


def recorded_read(self: WeightFiles, tensor: TensorInfo, index: tuple[slice, ...]) -> np.ndarray:
    part = read_whole(self, tensor, index)
    read_bytes[tensor.key] += part.nbytes
    largest_part[tensor.key] = max(largest_part.get(tensor.key, 0), part.nbytes)
    return part


def shapes(config: LlavaConfig) -> Llava:
    return nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0)))


def in_groups(value: np.ndarray, groups: int) -> np.ndarray:
    """The layers of one group (1, 2, inner, d) as several hold them; else what is given."""
    if value.ndim != 4 or len(value) != 1:
        return value
    return np.stack(np.split(value[0], groups, axis=1))


def main(directory: Path) -> dict[str, Any]:
    jax.config.update("jax_default_matmul_precision", "highest")
    WeightFiles.read = recorded_read  # type: ignore[method-assign]
    config = LlavaConfig.from_hf(read_config(directory))
    abstract = shapes(config)
    graphdef, _ = nnx.split(abstract)
    positions = np.tile(np.arange(12, dtype=np.int32), (8, 1))

    @jax.jit
    def logits(state: nnx.State, ids: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, state)
        x = model.embed(ids)
        return model.project_logits(model.forward(x, positions, jnp.ones(ids.shape, bool)))

    ids = np.random.default_rng(0).integers(5, 380, (8, 12), np.int32)
    plain = load_parameters(directory, abstract, dtype="float32")
    wanted = {tuple(path): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(plain)}
    reference = logits(plain, ids)
    report: dict[str, Any] = {}
    for name, (shape, axes) in MESHES.items():
        # The default of jax.make_mesh, which the loader has to change.
        mesh = jax.make_mesh(shape, axes)
        assert mesh.axis_types == (AxisType.Explicit,) * len(axes)
        read_bytes.clear()
        largest_part.clear()
        config = divide_mlps(LlavaConfig.from_hf(read_config(directory)), mesh)
        abstract = shapes(config)
        graphdef, _ = nnx.split(abstract)
        state = load_parameters(directory, abstract, dtype="float32", mesh=mesh)
        leaves = {tuple(path): leaf[...] for path, leaf in nnx.to_flat_state(state)}
        put = jax.device_put(ids, batch_sharding(auto_mesh(mesh), ids.shape))
        report[name] = {
            "unequal": [
                str(path)
                for path, x in leaves.items()
                if not np.array_equal(x, in_groups(wanted[path], len(x)))
            ],
            "auto": all(
                set(x.sharding.mesh.axis_types) == {AxisType.Auto} for x in leaves.values()
            ),
            "logits": float(jnp.abs(np.asarray(logits(state, put)) - np.asarray(reference)).max()),
            "read": sum(read_bytes.values()),
            "stored": sum(x.nbytes for x in wanted.values()),
            "specs": {
                str(path[-2]): list(x.sharding.spec)
                for path, x in leaves.items()
                if path[-2] in NAMES and path[-1] != "bias"
                and (path[0] != "vision_tower" or path[-2] == "patch_embedding")
            },
            "largest_part": {
                part: size for key, size in largest_part.items()
                if (part := key.split(".")[-2]) in PARTS and key.endswith("weight")
                and ("language_model" in key or part == "patch_embedding")
            },
        }  # fmt: skip
    try:
        load_parameters(directory, abstract, dtype=None, mesh=jax.make_mesh((8,), ("x",)))
    except CallError as error:
        report["refused"] = str(error)
    return report


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
