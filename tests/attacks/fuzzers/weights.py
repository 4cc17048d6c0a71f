"""Hostile weight files: headers, offsets, lengths and indexes.

A case changes the header of one file, its bytes, or the index of several, and loads the parameters.
"""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from resprune_jax.models.checkpoint.reading import load_parameters, resolve_dtype
from resprune_jax.models.checkpoint.safetensors_files import INDEX_FILE, SINGLE_FILE
from resprune_jax.models.families.registry import checkpoint_config
from tests.attacks.harness import Fuzzer, draw
from tests.attacks.inputs.checkpoints import FAMILIES, base
from tests.attacks.inputs.mutations import damage, hostile, mutate, nested, text

NAME = "safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
DTYPES = ("F32", "F64", "F16", "BF16", "F8_E4M3", "I64", "BOOL", "U8", "f32", "", "F4", "C64")


@cache
def parts(family: str) -> tuple[dict[str, Any], bytes]:
    """The header and the values of the good file."""
    raw = (base(family).folder / SINGLE_FILE).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def prepare() -> None:
    for family in FAMILIES:
        _load(base(family).folder, family)


def run(seed: int) -> None:
    numbers = draw(NAME, seed)
    family = list(FAMILIES)[seed % len(FAMILIES)]
    header, values = parts(family)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        (folder / "config.json").symlink_to(base(family).folder / "config.json")
        kind = int(numbers.integers(10))
        if kind < 5:
            _write(folder / SINGLE_FILE, _header(header, numbers), values, numbers)
        elif kind < 7:
            raw = (base(family).folder / SINGLE_FILE).read_bytes()
            at = len(raw) - len(values)
            cut = int(numbers.integers(at + 8)) if numbers.random() < 0.7 else at + 8
            (folder / SINGLE_FILE).write_bytes(damage(raw[:cut], numbers) + raw[cut:])
        else:
            _shards(folder, header, values, numbers)
        _load(folder, family)


def _header(header: dict[str, Any], numbers: np.random.Generator) -> Any:
    """A header with changes that a header has, or that any JSON has."""
    if numbers.random() < 0.3:
        return mutate(header, numbers)
    made = {key: dict(entry) for key, entry in header.items()}
    names = [key for key in made if key != "__metadata__"]
    for _ in range(int(numbers.integers(1, 4))):
        name = names[int(numbers.integers(len(names)))]
        entry = made.get(name)
        if entry is None:
            continue
        kind = int(numbers.integers(9))
        if kind == 0:
            entry["dtype"] = DTYPES[int(numbers.integers(len(DTYPES)))]
        elif kind == 1:
            entry["shape"] = entry["shape"][::-1] + [1] * int(numbers.integers(2))
        elif kind == 2:
            entry["shape"] = [int(numbers.choice([0, 1, 2**31, 2**40, 2**62])) for _ in range(3)]
        elif kind == 3:
            shift = int(numbers.choice([-8, -4, 1, 4, 10**6, 2**40]))
            entry["data_offsets"] = [at + shift for at in entry["data_offsets"]]
        elif kind == 4:
            entry["data_offsets"] = entry["data_offsets"][::-1]
        elif kind == 5:
            del made[name]
        elif kind == 6:
            made[_name(name, numbers)] = made.pop(name)
        elif kind == 7:
            made[_name(name, numbers)] = dict(entry)
        else:
            entry[str(numbers.choice(["dtype", "shape", "data_offsets"]))] = hostile(numbers)
    return made


def _name(name: str, numbers: np.random.Generator) -> str:
    """A tensor's name as another place or a stranger writes it."""
    others = (
        "base_model.model." + name,
        name + ".lora_A.weight",
        "model." + name,
        name.upper(),
        "",
        "\x1b[31m" + name,
        name + "\n",
        "x" * 100_000,
        name.replace("layers.0", "layers.999999"),
        name.replace("layers.1", "layers." + "9" * 30),
        "../" + name,
        "\u202e",
        "lm_head.weight",
    )
    return others[int(numbers.integers(len(others)))]


def _write(path: Path, header: Any, values: bytes, numbers: np.random.Generator) -> None:
    raw = text(header) if numbers.random() < 0.95 else text(nested(1, 3000, numbers))
    length = len(raw)
    if numbers.random() < 0.1:
        length = int(numbers.choice([0, 1, length - 1, length + 1, 2**31, 2**62]))
    path.write_bytes(length.to_bytes(8, "little") + raw + values)


def _shards(
    folder: Path, header: dict[str, Any], values: bytes, numbers: np.random.Generator
) -> None:
    """The checkpoint in two files, and an index with a fault."""
    names = [key for key in header if key != "__metadata__"]
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    for file, own in zip(SHARDS, halves, strict=True):
        start = min(header[name]["data_offsets"][0] for name in own)
        end = max(header[name]["data_offsets"][1] for name in own)
        made = {
            name: {
                **header[name],
                "data_offsets": [a - start for a in header[name]["data_offsets"]],
            }
            for name in own
        }
        raw = text(made)
        (folder / file).write_bytes(len(raw).to_bytes(8, "little") + raw + values[start:end])
    places: dict[str, Any] = {
        name: file for file, own in zip(SHARDS, halves, strict=True) for name in own
    }
    files = (
        *SHARDS,
        "",
        ".",
        "..",
        "/etc/passwd",
        "../" + SHARDS[0],
        "x" * 300,
        "a\0b",
        "\ud800",
        "a/b",
        "config.json",
        "no.safetensors",
        "x\n\x1b",
        SINGLE_FILE,
    )
    kind = int(numbers.integers(6))
    for _ in range(int(numbers.integers(1, 60))):
        name = names[int(numbers.integers(len(names)))]
        if kind == 0:
            places[name] = files[int(numbers.integers(len(files)))]
        elif kind == 1:
            places.pop(name, None)
        elif kind == 2:
            places[_name(name, numbers)] = files[int(numbers.integers(2))]
    content: Any = {"metadata": {"total_size": len(values)}, "weight_map": places}
    if kind == 3:
        content = mutate(content, numbers)
    if kind == 4:
        (folder / SHARDS[0]).unlink()
        (folder / SHARDS[0]).symlink_to(folder / SHARDS[1])
    raw = text(content)
    (folder / INDEX_FILE).write_bytes(damage(raw, numbers) if kind == 5 else raw)


def _load(folder: Path, family: str) -> None:
    """The whole way from the folder to parameters."""
    raw, _ = checkpoint_config(folder)
    dtype = resolve_dtype(None, folder, raw)
    load_parameters(folder, base(family).module, dtype=dtype)


FUZZERS = [Fuzzer(NAME, run, cases=10_000, quick=500, prepare=prepare)]
