"""Run by `test_hosts.py`: one process of a sweep, whose blocks are files of a small computation."""

import argparse
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.errors import CallError, ResPruneError
from resprune_jax.experiments.sweep.hosts import Hosts, join, local_mesh

ROWS = 8


@jax.jit
def energies(x: jax.Array) -> jax.Array:
    """A residual energy a row: a product, a sum over the batch's own rows, nothing across them."""
    return jnp.square(x @ x.swapaxes(1, 2)).sum(axis=(1, 2))


def block(number: int) -> bytes:
    """What a block gives, whichever process computes it."""
    rows = np.random.default_rng(number).standard_normal((ROWS, 6, 32)).astype(np.float32)
    mesh = local_mesh()
    if mesh is not None:
        split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*mesh.axis_names))
        rows = jax.device_put(rows, split)
    return np.asarray(energies(rows)).tobytes()


def main(asked: argparse.Namespace) -> Hosts:
    hosts = join(
        digest=asked.plan.encode(), processes=asked.num_processes, process=asked.process_id,
        coordinator=asked.coordinator, wait=asked.wait,
    )  # fmt: skip
    visible = jax.config.read("jax_cuda_visible_devices")
    print(f"{hosts.number} of {hosts.count} met={hosts.met} visible={visible}", flush=True)
    # A process that has left is a process of its own again.
    assert jax.process_count() == 1 and jax.device_count() == jax.local_device_count()
    for number in filter(hosts.owns, range(asked.blocks)):
        path = asked.folder / f"{number:05d}"
        if not path.exists():
            beside = asked.folder / f".{number:05d}.{hosts.number}"
            beside.write_bytes(block(number))
            time.sleep(asked.pause)
            beside.rename(path)
    return hosts


if __name__ == "__main__":
    words = argparse.ArgumentParser()
    words.add_argument("folder", type=Path)
    words.add_argument("--blocks", type=int, default=0)
    words.add_argument("--pause", type=float, default=0.0)
    words.add_argument("--plan", default="a")
    words.add_argument("--wait", type=float, default=120.0)
    words.add_argument("--num-processes", type=int)
    words.add_argument("--process-id", type=int)
    words.add_argument("--coordinator")
    try:
        main(words.parse_args())
    except ResPruneError as error:
        print(f"resprune: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, CallError) else 1)
