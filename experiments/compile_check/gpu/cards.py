"""The GPUs that programs are compiled for, described as XLA's compiler reads them.

Figures of NVIDIA's data sheets and programming guide: the SXM cards.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Card:
    """A GPU as its data sheet describes it.

    Attributes:
        title: what the driver calls it.
        capability: its compute capability, (major, minor).
        multiprocessors: how many it has.
        fpus: float32 units of one.
        clock: GHz, at most.
        shared: bytes of shared memory of a multiprocessor; a block may take 1 KiB less.
        l2: bytes of the second-level cache.
        memory: bytes of its memory that the driver shows.
        bandwidth: bytes a second of it.
    """

    title: str
    capability: tuple[int, int]
    multiprocessors: int
    fpus: int
    clock: float
    shared: int
    l2: int
    memory: int
    bandwidth: int

    def description(self) -> str:
        """The card as a text proto, `target_config` of `jax.experimental.topologies`."""
        major, minor = self.capability
        device = {
            "threads_per_block_limit": 1024,
            "threads_per_warp": 32,
            "shared_memory_per_block": 48 * 1024,
            "shared_memory_per_core": self.shared,
            "shared_memory_per_block_optin": self.shared - 1024,
            "threads_per_core_limit": 2048,
            "core_count": self.multiprocessors,
            "fpus_per_core": self.fpus,
            "block_dim_limit_x": 2**31 - 1,
            "block_dim_limit_y": 2**16 - 1,
            "block_dim_limit_z": 2**16 - 1,
            "memory_bandwidth": self.bandwidth,
            "l2_cache_size": self.l2,
            "clock_rate_ghz": self.clock,
            "device_memory_size": self.memory,
            "registers_per_core_limit": 65536,
            "registers_per_block_limit": 65536,
        }
        fields = " ".join(f"{name}: {value}" for name, value in device.items())
        compute = f"cuda_compute_capability {{ major: {major} minor: {minor} }}"
        return (
            f"gpu_device_info {{ {fields} {compute} }} "
            'platform_name: "CUDA" '
            "dnn_version_info { major: 9 minor: 10 patch: 0 } "
            f'device_description_str: "{self.title}"'
        )


CARDS: dict[str, Card] = {
    "h100": Card(
        "NVIDIA H100 80GB HBM3", (9, 0), 132, 128, 1.98, 228 * 1024, 50 * 2**20,
        memory=84_942_979_072, bandwidth=3_352_320_000_000,
    ),
    "h200": Card(
        "NVIDIA H200", (9, 0), 132, 128, 1.98, 228 * 1024, 50 * 2**20,
        memory=150_110_011_392, bandwidth=4_800_000_000_000,
    ),
    "a100": Card(
        "NVIDIA A100-SXM4-80GB", (8, 0), 108, 64, 1.41, 164 * 1024, 40 * 2**20,
        memory=84_987_740_160, bandwidth=2_039_000_000_000,
    ),
}  # fmt: skip
"""By the names that `--card` takes."""
