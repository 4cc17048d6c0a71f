"""Measure the peak memory of loading: a generated LLaVA-shaped checkpoint, in fresh processes.

`python -m resprune_jax.experiments.memory.loading` writes about 2 GB of bfloat16 weights in shards
to a temporary folder, loads them once without a mesh and once on a mesh of 8 forced CPU devices,
and fails when the peak resident memory, less what the process held before loading, is more than 1.2
times the bytes of the weights.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LIMIT = 1.2
MESH_DEVICES = 8
_RANDOM_BYTES = 1 << 24


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one load took; sizes in bytes.

    Attributes:
        weights: bytes of the parameters loaded.
        placed: bytes of the parameters on all devices together, copies included.
        baseline: resident memory before loading, after all imports.
        peak: highest resident memory of the process; mapped pages of the files count.
        seconds: time that loading took.
    """

    weights: int
    placed: int
    baseline: int
    peak: int
    seconds: float

    @property
    def ratio(self) -> float:
        """Peak memory beyond the baseline, over the bytes of the weights."""
        return (self.peak - self.baseline) / self.weights


def checkpoint_config(layers: int) -> dict[str, Any]:
    """A LLaVA-1.5 configuration: the published vision tower, a language model of width 2048.

    Args:
        layers: decoder layers, of 101 MB each in bfloat16; beside them there are about 860 MB.
    """
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "bfloat16",
        "image_token_index": 32000,
        "vision_feature_layer": -2,
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 5504,
            "num_hidden_layers": layers,
            "num_attention_heads": 16,
            "vocab_size": 32064,
        },
    }


def write_checkpoint(directory: Path, layers: int, max_shard_bytes: int) -> int:
    """Write a checkpoint of random finite weights, one tensor in memory at a time.

    Args:
        directory: an existing folder.
        layers: decoder layers.
        max_shard_bytes: size of the weight files.

    Returns:
        Bytes of all tensors.
    """
    import ml_dtypes
    import numpy as np
    from flax import nnx

    from resprune_jax.models.checkpoint.names import Source, sources_of, with_prefix
    from resprune_jax.models.checkpoint.safetensors_files import TensorToWrite
    from resprune_jax.models.checkpoint.writing import write_weights
    from resprune_jax.models.families.llava.config import LlavaConfig
    from resprune_jax.models.families.llava.module import Llava
    from resprune_jax.models.families.llava.names import DIALECTS

    content = checkpoint_config(layers)
    config = LlavaConfig.from_hf(content)
    dtype = np.dtype(ml_dtypes.bfloat16)
    abstract = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=dtype))
    noise = np.random.default_rng(0).integers(0, 1 << 16, _RANDOM_BYTES // 2, np.uint16)
    # Clearing the exponent's top bit leaves magnitudes below 2: every value is finite.
    noise = (noise & np.uint16(0xBFFF)).view(dtype)

    def tensor(source: Source) -> TensorToWrite:
        stored = source.stored_shape(config.vision.num_channels)
        return TensorToWrite(
            with_prefix(source.key, DIALECTS["hub"]),
            dtype,
            stored,
            lambda: np.resize(noise, stored),
        )

    flat = nnx.to_flat_state(nnx.split(abstract)[1])
    tensors = [
        tensor(own) for path, leaf in flat for own in sources_of(tuple(map(str, path)), leaf.shape)
    ]
    write_weights(directory, tensors, max_shard_bytes)
    (directory / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    return sum(t.nbytes for t in tensors)


def resident_memory() -> tuple[int, int]:
    """Resident memory of this process in bytes: now, and at its highest.

    Without Linux's `/proc` both are the highest so far.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        now, peak = (int(fields[key].split()[0]) * 1024 for key in ("VmRSS", "VmHWM"))
        return now, peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak *= 1 if sys.platform == "darwin" else 1024
    return peak, peak


def measure(directory: Path) -> Measured:
    """Load a checkpoint in this process, on a mesh when it has several devices.

    Args:
        directory: the checkpoint's folder.

    Returns:
        The figures; those of memory hold for a process that did nothing before.
    """
    import jax
    from flax import nnx

    from resprune_jax.models.checkpoint.reading import load_parameters, resolve_dtype
    from resprune_jax.models.checkpoint.sharding import divide_mlps
    from resprune_jax.models.families.llava.config import LlavaConfig
    from resprune_jax.models.families.llava.module import Llava
    from resprune_jax.models.families.registry import read_config

    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("model",)) if count > 1 else None
    raw = read_config(directory)
    config, dtype = LlavaConfig.from_hf(raw), resolve_dtype(None, directory, raw)
    config = divide_mlps(config, mesh)  # as `load_model` does
    abstract = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=dtype))
    jax.block_until_ready(jax.device_put(0.0))
    baseline, _ = resident_memory()
    start = time.perf_counter()
    state = load_parameters(directory, abstract, dtype=dtype, mesh=mesh)
    seconds = time.perf_counter() - start
    _, peak = resident_memory()
    leaves = jax.tree.leaves(state)
    placed = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    weights = sum(leaf.nbytes for leaf in leaves)
    return Measured(weights, placed, baseline, peak, seconds)


def measure_apart(directory: Path, devices: int) -> Measured:
    """`measure` in a fresh process with this many forced CPU devices."""
    flags = os.environ.get("XLA_FLAGS", "")
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}".strip(),
    }
    command = [sys.executable, "-m", __spec__.name if __spec__ else __name__]
    done = subprocess.run(
        [*command, "--measure", str(directory)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: list[str] | None = None) -> int:
    """Run the check; returns the exit status, 1 when a load takes too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--layers", type=int, default=12, help="decoder layers (default: 12)")
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure is not None:
        print(json.dumps(dataclasses.asdict(measure(options.measure))))
        return 0
    failed = False
    with tempfile.TemporaryDirectory(prefix="resprune-memory-", dir=options.folder) as name:
        written = write_checkpoint(Path(name), options.layers, max_shard_bytes=500_000_000)
        shards = len(list(Path(name).glob("*.safetensors")))
        print(f"checkpoint of {written / 1e9:.3f} GB in {shards} shards", flush=True)
        for devices in (1, MESH_DEVICES):
            got = measure_apart(Path(name), devices)
            failed |= got.ratio > LIMIT
            print(
                f"{devices} device{'s' if devices > 1 else ' '}: peak {got.peak / 1e9:.3f} GB = "
                f"{got.peak / got.weights:.3f} x weights, less {got.baseline / 1e9:.3f} GB before "
                f"loading = {got.ratio:.3f} x (limit {LIMIT}); {got.placed / got.weights:.3f} x on "
                f"the devices; {got.seconds:.1f} s",
                flush=True,
            )
    print("FAILED: loading takes more than the limit" if failed else "passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
