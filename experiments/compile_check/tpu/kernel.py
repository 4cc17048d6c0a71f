"""The cycles of the `pallas_tpu` kernel: libtpu's static profile of its instructions.

Of a kernel the compiled program says nothing. libtpu can be told to run through the instructions
that it scheduled, stalls and all, and to write down their cycles. It then does so for every
operation of a process, and ends the process at one that it cannot profile (a gather is one): so
the kernel is compiled by itself, in a process of its own.

The profile takes the loop over the earlier rows for empty, since how many there are depends on the
pick. What the loop and each chunk of rows take is found by kernels of a few picks, with no chunk at
every pick, with two and with three. (With one XLA does without the loop.)
"""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from resprune_jax.errors import RunError

FEW = 16
"""Picks of the kernels that tell what a chunk takes: the profile of a long loop takes minutes."""

_FOUND = re.compile(r"estimated_cycles: (\d+)")


@functools.cache
def kernel_cycles(topology: str, n: int, keep: int) -> int:
    """Cycles of the kernel for one image on a chip.

    Args:
        topology: as of `TpuTarget`.
        n: tokens, N.
        keep: picks, K.

    Raises:
        RunError: libtpu could not profile it.
    """
    from resprune_jax.engines.pallas_tpu import CHUNK

    said = profiled(__name__, topology, str(n), str(keep))
    whole, none, two, three = map(int, said.split())
    chunks = sum(-(-k // CHUNK) for k in range(keep))
    entry = two - none - 2 * (three - two)
    return whole + (entry * keep + (three - two) * chunks) // FEW


def profiled(module: str, *words: str) -> str:
    """What a module prints that is run with libtpu's profiles on.

    Args:
        module: its name.
        *words: its arguments; the folder that the profiles come into is added.

    Raises:
        RunError: libtpu could not profile one of its operations, or the module failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        flag = f"--xla_jf_dump_static_llo_profile_to={folder}"
        before = os.environ.get("LIBTPU_INIT_ARGS", "")
        run = subprocess.run(
            [sys.executable, "-m", module, *words, folder],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "LIBTPU_INIT_ARGS": f"{before} {flag}"},
            capture_output=True,
            text=True,
            check=False,
        )
    if run.returncode:
        lines = [line for line in run.stderr.splitlines() if "failed" in line or "Error" in line]
        raise RunError(f"libtpu does not profile the kernel: {lines[-1] if lines else run.stderr}")
    return run.stdout


def cycles_of(folder: Path, kernel: str) -> int:
    """The cycles in a kernel's profile; all profiles are removed."""
    (profile,) = folder.glob(f"*{kernel}*")
    found = int(_FOUND.findall(profile.read_text())[0])
    for old in folder.iterdir():
        old.unlink()
    return found


def main(topology: str, n: int, keep: int, folder: Path) -> None:
    """Print the cycles without earlier rows, and of a few picks with none, two and three chunks."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from resprune_jax.engines import pallas_tpu
    from resprune_jax.experiments.compile_check.compiler import traced_for
    from resprune_jax.experiments.compile_check.tpu.target import TpuTarget

    where = SingleDeviceSharding(TpuTarget(topology).devices()[0])
    gram = jax.ShapeDtypeStruct((n, n), jnp.float32, sharding=where)
    given = jax.ShapeDtypeStruct(pallas_tpu.given_shape(n), jnp.float32, sharding=where)
    for picks, chunks in ((keep, 0), (FEW, 0), (FEW, 2), (FEW, 3)):
        alone = functools.partial(pallas_tpu.launch, keep=picks)
        fixed = functools.partial(jnp.full_like, fill_value=chunks)
        with traced_for("tpu"), mock.patch.object(pallas_tpu, "chunks_before", fixed):
            jax.jit(alone).lower(gram, given).compile()
        print(cycles_of(folder, "resprune_picks"))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
