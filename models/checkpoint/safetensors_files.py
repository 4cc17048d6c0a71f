"""The safetensors files of a checkpoint folder: what they hold, what is wrong, reading of slices.

Nothing here knows about models. Files are opened again for each tensor, because the pages of a
mapped file count as this process's memory until it is closed.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# Also for its effect: it registers bfloat16 with NumPy, without which safetensors cannot read it.
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from resprune_jax.errors import LONGEST, RunError, printable
from resprune_jax.models.checkpoint.files import (
    LARGE_FILE,
    SMALL_FILE,
    cause,
    is_file,
    one_line,
    read_json,
)
from resprune_jax.models.checkpoint.names import fold_names, listed, name_of

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# safetensors' names of the dtypes that weights may have here.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

_CODES = {dtype: code for code, dtype in DTYPES.items()}
_FOREIGN = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".gguf", ".npz")
_LFS_POINTER = b"version https://git-lfs"


class CheckpointError(RunError):
    """A checkpoint folder that is broken or does not fit the model; names everything found.

    Attributes:
        problems: one entry a problem.
    """

    def __init__(self, directory: Path, problems: Iterable[str]) -> None:
        """Join the problems into one line, as many as it holds.

        Args:
            directory: the checkpoint's folder.
            problems: what was found, at least one entry.
        """
        self.problems = tuple(problems)
        where = f"checkpoint {printable(str(directory), 150)}: "
        room = LONGEST - len(where) - len("; and 100000 more problems")
        share = max(100, room // len(self.problems) - 2)
        if sum(len(problem) + 2 for problem in self.problems) <= room:
            share = room
        said = [printable(problem, share) for problem in self.problems[: room // 100 + 1]]
        while len("; ".join(said)) > room:
            said.pop()
        if len(said) < len(self.problems):
            said.append(f"and {len(self.problems) - len(said)} more problems")
        super().__init__(where + "; ".join(said))


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor is and what its file's header says of it.

    Attributes:
        key: its name in the file.
        file: file name inside the folder.
        dtype: safetensors' name of the dtype, such as "BF16".
        shape: its shape.
    """

    key: str
    file: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes (of its supported dtypes)."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class TensorToWrite:
    """A tensor whose values are made when its turn comes.

    Attributes:
        key: its name in the file.
        dtype: one of `DTYPES`.
        shape: its shape.
        make: gives the values, of that shape and dtype.
    """

    key: str
    dtype: np.dtype
    shape: tuple[int, ...]
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size of the tensor in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write_file(path: Path, tensors: Sequence[TensorToWrite]) -> None:
    """Write a safetensors file tensor by tensor, so that one tensor at a time is in memory.

    Args:
        path: the new file.
        tensors: what it holds, in this order.
    """
    # "format" is what transformers asks of a file before it reads it.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.key] = {
            "dtype": _CODES[np.dtype(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = np.ascontiguousarray(tensor.make())
            if values.shape != tensor.shape or values.dtype != tensor.dtype:
                raise ValueError(
                    f"{tensor.key}: made {values.dtype} {values.shape}, announced {tensor.dtype} "
                    f"{tensor.shape}"
                )
            file.write(values.reshape(-1).view(np.uint8).data)


class WeightFiles:
    """Headers of all weight files of a folder, read once; tensors are read on demand.

    Attributes:
        directory: the folder.
        tensors: every tensor found, in file order; a key that two shards hold is there twice.
        problems: what is wrong with the files or the index, in words.
        lost: keys that the index places in a file that is missing or unreadable.
    """

    def __init__(self, directory: Path) -> None:
        """Read the index, if there is one, and the header of every file.

        Args:
            directory: the checkpoint's folder.

        Raises:
            CheckpointError: the folder holds no safetensors weights that could be read at all.
        """
        self.directory = Path(directory)
        self.tensors: list[TensorInfo] = []
        self.problems: list[str] = []
        self.lost: set[str] = set()
        if is_file(self.directory / INDEX_FILE):
            self._read_shards()
        elif is_file(self.directory / SINGLE_FILE):
            self._read_header(SINGLE_FILE)
        else:
            raise CheckpointError(self.directory, [self._why_no_weights()])

    def read(self, tensor: TensorInfo, index: tuple[slice, ...]) -> np.ndarray:
        """Read part of a tensor.

        Args:
            tensor: an entry of `tensors`.
            index: a slice for each dimension, without steps.

        Returns:
            An array of its own, in the file's dtype.

        Raises:
            CheckpointError: the file can no longer be read.
        """
        try:
            with safe_open(self.directory / tensor.file, framework="numpy") as file:
                return file.get_slice(tensor.key)[index]
        except (SafetensorError, OSError) as error:
            what = f"{name_of(tensor.key)} in {name_of(tensor.file)}"
            raise CheckpointError(
                self.directory, [f"{what} cannot be read ({one_line(error)})"]
            ) from error

    def _read_shards(self) -> None:
        weight_map = read_weight_map(self.directory)
        if is_file(self.directory / SINGLE_FILE) and SINGLE_FILE not in weight_map.values():
            raise CheckpointError(
                self.directory,
                [f"it holds both {SINGLE_FILE} and {INDEX_FILE}: remove the one that is stale"],
            )
        by_file: dict[str, set[str]] = {}
        for key, file in weight_map.items():
            by_file.setdefault(file, set()).add(key)
        absent: list[str] = []
        for file, keys in sorted(by_file.items()):
            if not self._is_here(file):
                absent.append(file)
                self.lost |= keys
                continue
            found = self._read_header(file)
            if found is None:
                self.lost |= keys
                continue
            where = name_of(file)
            if misplaced := sorted(keys - found):
                self.problems.append(
                    f"{fold_names(misplaced)} {_is_or_are(misplaced)} not in {where}, where "
                    f"{INDEX_FILE} places {_it_or_them(misplaced)}"
                )
            # A tensor that the index does not know cannot be missed twice: without an index entry
            # it is either a second copy or a leftover.
            if leftover := sorted(found - keys - weight_map.keys()):
                self.problems.append(
                    f"{fold_names(leftover)} in {where} {_is_or_are(leftover)} not in {INDEX_FILE}"
                )
        if absent:
            count = sum(len(by_file[file]) for file in absent)
            verb = "is" if len(absent) == 1 else "are"
            self.problems.insert(
                0,
                f"{INDEX_FILE} places {count} tensors in {listed(absent)}, which {verb} not in the "
                "folder: download it",
            )
        self.lost |= weight_map.keys() - {tensor.key for tensor in self.tensors}

    def _is_here(self, file: str) -> bool:
        """Whether a name out of the index is that of a file of this folder."""
        if Path(file).name != file or "\0" in file or len(file) > 255:
            return False
        return is_file(self.directory / file)

    def _read_header(self, file: str) -> set[str] | None:
        """Add the tensors of one file; None (and a problem) when it cannot be read."""
        path = self.directory / file
        try:
            size = path.stat().st_size
            with path.open("rb") as opened:
                start = opened.read(len(_LFS_POINTER))
        except OSError as error:
            self.problems.append(f"{name_of(file)} cannot be read: {cause(error)}")
            return None
        if start == _LFS_POINTER:
            self.problems.append(
                f"{name_of(file)} is a Git LFS pointer, not the weights: run `git lfs pull`"
            )
            return None
        try:
            tensors = _header(path, file, size, int.from_bytes(start[:8], "little"))
        except Exception as error:  # also what Python makes of names that are no text
            self.problems.append(
                f"{name_of(file)} ({size} bytes) is truncated or corrupt ({one_line(error)}): "
                "download or copy it again"
            )
            return None
        self.tensors += tensors
        return {tensor.key for tensor in tensors}

    def _why_no_weights(self) -> str:
        try:
            names = sorted(path.name for path in self.directory.iterdir())
        except OSError as error:
            return f"its folder cannot be read: {cause(error)}"
        shards = [name for name in names if name.endswith(".safetensors")]
        foreign = [name for name in names if name.endswith(_FOREIGN)]
        if shards:
            return (
                f"found {listed(shards)}, but neither {SINGLE_FILE} nor {INDEX_FILE}, which "
                "says where each tensor is: download the missing file"
            )
        if foreign:
            return (
                f"found {listed(foreign)}, but no safetensors, the only format that is read "
                f"here; convert it where torch is installed: AutoModelForImageTextToText."
                f"from_pretrained({str(self.directory)!r}).save_pretrained(NEW_FOLDER)"
            )
        return f"no weights: expected {SINGLE_FILE}, or {INDEX_FILE} and the files it names"


def read_weight_map(directory: Path) -> dict[str, str]:
    """The index of a checkpoint: the file of every tensor.

    Raises:
        CheckpointError: an index that cannot be read, or is none.
    """
    weight_map = read_part(directory, INDEX_FILE, LARGE_FILE).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(file, str) for file in weight_map.values())
    ):
        raise CheckpointError(
            directory, [f"{INDEX_FILE} has no weight_map of tensor names to file names"]
        )
    return weight_map


def read_part(directory: Path, name: str, limit: int = SMALL_FILE) -> dict[str, Any]:
    """A JSON file of a checkpoint, which is broken without it.

    Raises:
        CheckpointError: a file that cannot be read, or holds no object.
    """
    try:
        return read_json(directory / name, limit)
    except RunError as error:
        problem = str(error).removeprefix(f"{directory}/")
        raise CheckpointError(directory, [problem]) from error


def _header(path: Path, file: str, size: int, length: int) -> list[TensorInfo]:
    """The tensors that the header of one file names.

    Raises:
        ValueError, SafetensorError, OSError: a header that is none.
    """
    if not 2 <= length <= min(size - 8, LARGE_FILE):
        raise ValueError(f"its header would have {length} bytes")
    tensors = []
    with safe_open(path, framework="numpy") as handle:
        for key in handle.keys():  # noqa: SIM118 (not a mapping)
            part = handle.get_slice(key)
            tensors.append(TensorInfo(key, file, part.get_dtype(), tuple(part.get_shape())))
    return tensors


def _is_or_are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _it_or_them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
