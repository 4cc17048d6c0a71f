"""What JAX computes on, what is there and it does not use, and what float32 means on it."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resprune_jax.experiments.doctor.findings import Finding, told

TPUS = {
    "0x0027": "TPU v2 or v3", "0x005e": "TPU v4", "0x0062": "TPU v5p", "0x0063": "TPU v5e",
    "0x006f": "TPU v6e", "0x0076": "TPU7x",
}  # fmt: skip
"""PCI devices of Google's, as JAX knows them; its network cards have the same vendor."""

_GOOGLE = "0x1ae0"

PLUGINS = {"gpu": ("jax_cuda13_plugin", "jax_cuda12_plugin"), "tpu": ("libtpu",)}
EXTRAS = {"gpu": "cuda", "tpu": "tpu"}
PLATFORMS = {"gpu": ("gpu", "cuda"), "tpu": ("tpu",)}
"""What JAX_PLATFORMS calls a backend."""


def devices() -> Iterator[Finding]:
    """The backend and its devices."""
    import jax

    asked = _setting("jax_platforms")
    why = f" (JAX_PLATFORMS={asked})" if asked else ""
    try:
        found = jax.devices()
    except Exception as error:  # RuntimeError; AssertionError for a platform without its plug-in
        facts = {"platforms": asked, "usable": False}
        remedy = "unset JAX_PLATFORMS" if asked else "resprune doctor --debug shows more"
        yield Finding("backend", "FAULT", f"JAX does not start{why}: {told(error)}", remedy, facts)
        return
    kinds = Counter(each.device_kind for each in found)
    said = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    memory = [_memory(each) for each in found]
    known = [each for each in memory if each]
    if known:
        total, free = known[0]["bytes"], min(each["free"] for each in known)
        said += f", {_gib(total)} each, at least {_gib(free)} free"
    facts = {
        "backend": jax.default_backend(), "platforms": asked,
        "devices": [
            {"id": each.id, "kind": each.device_kind, **(room or {})}
            for each, room in zip(found, memory, strict=True)
        ],
    }  # fmt: skip
    yield Finding("backend", "ok", f"{jax.default_backend()}{why}: {said}", "", facts)


def _setting(name: str) -> Any:
    """One of JAX's settings: its type does not declare them."""
    import jax

    return getattr(jax.config, name)


def _memory(device: Any) -> dict[str, int] | None:
    """Bytes of a device, and those that are free, where it says."""
    try:
        stats = device.memory_stats() or {}
    except Exception:  # a plug-in that does not say
        return None
    if "bytes_limit" not in stats:
        return None
    limit = int(stats["bytes_limit"])
    return {"bytes": limit, "free": limit - int(stats.get("bytes_in_use", 0))}


def accelerators(root: Path = Path("/")) -> Iterator[Finding]:
    """The GPUs and TPUs of this machine that JAX does not use, and what would bring them.

    Args:
        root: of the file system that is looked at.
    """
    import jax

    from resprune_jax.experiments.doctor import requirements

    try:
        here = jax.default_backend()
    except Exception:  # `devices` says so
        here = "none"
    present = {"gpu": nvidia(root), "tpu": tpus(root)}
    unused = {kind: name for kind, name in present.items() if name and kind != here}
    asked = _setting("jax_platforms")
    for kind, name in unused.items():
        extra, facts = EXTRAS[kind], {"present": name, "extra": EXTRAS[kind], "platforms": asked}
        absent = [
            one for wanted in requirements.declared(extra) for one in requirements.lacking(wanted)
        ]
        there = f"{name} is there, and JAX does not use it"
        if absent:
            remedy = requirements.install(extra)
            yield Finding("accelerator", "missing", f"{there}: no {absent[0]}", remedy, facts)
        elif asked and not set(PLATFORMS[kind]) & set(asked.split(",")):
            said = f"{there}: JAX_PLATFORMS is {asked}"
            yield Finding("accelerator", "missing", said, "unset JAX_PLATFORMS", facts)
        else:
            said = f"{there}, though {', '.join(_installed(kind))} is installed"
            remedy = f"JAX_PLATFORMS={PLATFORMS[kind][-1]} python -c 'import jax; jax.devices()'"
            yield Finding("accelerator", "FAULT", said, f"{remedy} says why", facts)
    if (root / "dev/kfd").exists() and here != "gpu":
        said = "an AMD GPU is there, for which this package has no extra and was not tested"
        yield Finding("accelerator", "missing", said, "JAX's own installation page (ROCm)")
    elif not unused:
        used = present.get(here)
        said = f"{used}, in use" if used else "no GPU or TPU is there that JAX could use"
        yield Finding("accelerator", "ok", said, "", {"present": used})


def _installed(kind: str) -> list[str]:
    from resprune_jax.experiments.doctor import requirements

    known = [name.replace("_", "-") for name in PLUGINS[kind]]
    return [name for name in known if requirements.version_of(name) is not None]


def nvidia(root: Path) -> str | None:
    """The NVIDIA GPUs that the driver shows, or that Windows lends."""
    cards = [*_inside(root / "dev", "nvidia[0-9]*"), *_inside(root / "dev", "dxg")]
    if not cards:
        return None
    names = set()
    for card in _inside(root / "proc/driver/nvidia/gpus", "*/information"):
        lines = _text(card).splitlines()
        names |= {line.split(":", 1)[1].strip() for line in lines if line.startswith("Model:")}
    return f"{len(cards)} x {', '.join(sorted(names)) or 'NVIDIA GPU'}"


def tpus(root: Path) -> str | None:
    """The TPU chips on the PCI bus."""
    found: Counter[str] = Counter()
    for place in _inside(root / "sys/bus/pci/devices", "*"):
        if _text(place / "vendor").strip() == _GOOGLE:
            device = _text(place / "device").strip()
            found.update([TPUS[device]] if device in TPUS else [])
    return ", ".join(f"{count} x {name}" for name, count in found.items()) or None


def _inside(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern)) if folder.is_dir() else []


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def precision() -> Iterator[Finding]:
    """What float32 means on this backend."""
    import jax

    here = jax.default_backend()
    rounded = {"gpu": "TF32", "tpu": "bfloat16"}.get(here)
    default = _setting("jax_default_matmul_precision")
    wide = bool(_setting("jax_enable_x64"))
    said = f"products of float32 are float32 on a {here.upper()}"
    if rounded:
        said = (
            f"XLA rounds float32 to {rounded} on a {here.upper()}; models and selection here do not"
            " (--precision)"
        )
    said += f"; default matmul precision {default or 'not set'}, x64 {'on' if wide else 'off'}"
    if here != "gpu":
        said += "; float16 checkpoints run as bfloat16"
    facts = {"default_matmul_precision": default, "x64": wide, "xla_rounds_to": rounded}
    yield Finding("float32", "ok", said, "", facts)


def memory(root: Path = Path("/")) -> Iterator[Finding]:
    """Cores and memory of this machine, as far as this process may take them."""
    rows = dict(
        row.split(":", 1) for row in _text(root / "proc/meminfo").splitlines() if ":" in row
    )
    facts: dict[str, Any] = {"cores": _cores()}
    said = f"{facts['cores']} cores"
    sizes = {name: rows.get(name, "").split() for name in ("MemTotal", "MemAvailable")}
    if all(sizes.values()):
        total, free = (int(size[0]) * 1024 for size in sizes.values())
        # A container's own limit: the machine's figures say nothing of it.
        limit = _text(root / "sys/fs/cgroup/memory.max").strip()
        used = _text(root / "sys/fs/cgroup/memory.current").strip()
        if limit.isdigit() and used.isdigit() and int(limit) < total:
            total, free = int(limit), max(0, min(free, int(limit) - int(used)))
        facts |= {"bytes": total, "free": free}
        said += f", {_gib(free)} of {_gib(total)} of memory free"
    yield Finding("machine", "ok", said, "", facts)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
