"""The safetensors files of a checkpoint folder: what they hold, what is wrong, reading of slices.

Nothing here knows about models. Files are opened again for each tensor, because the pages of a
mapped file count as this process's memory until it is closed.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

# Also for its effect: it registers bfloat16 with NumPy, without which safetensors cannot read it.
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from resprune_jax.errors import RunError

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
        """Join the problems into one line.

        Args:
            directory: the checkpoint's folder.
            problems: what was found, at least one entry.
        """
        self.problems = tuple(problems)
        super().__init__(f"checkpoint {directory}: " + "; ".join(self.problems))


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
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize


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
        single, index = self.directory / SINGLE_FILE, self.directory / INDEX_FILE
        if index.is_file():
            self._read_shards(index)
        elif single.is_file():
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
            raise CheckpointError(
                self.directory, [f"{tensor.key} in {tensor.file} cannot be read ({error})"]
            ) from error

    def _read_shards(self, index: Path) -> None:
        weight_map = self._weight_map(index)
        if (self.directory / SINGLE_FILE).is_file() and SINGLE_FILE not in weight_map.values():
            raise CheckpointError(
                self.directory,
                [f"it holds both {SINGLE_FILE} and {INDEX_FILE}: remove the one that is stale"],
            )
        by_file: dict[str, set[str]] = {}
        for key, file in weight_map.items():
            by_file.setdefault(file, set()).add(key)
        for file, keys in sorted(by_file.items()):
            if Path(file).name != file or not (self.directory / file).is_file():
                self.problems.append(
                    f"{INDEX_FILE} places {len(keys)} tensors in {file}, which is not in the "
                    "folder: download it"
                )
                self.lost |= keys
                continue
            found = self._read_header(file)
            if found is None:
                self.lost |= keys
                continue
            for key in sorted(keys - found):
                self.problems.append(f"{key} is not in {file}, where {INDEX_FILE} places it")
            # A tensor that the index does not know cannot be missed twice: without an index entry
            # it is either a second copy or a leftover.
            for key in sorted(found - keys - weight_map.keys()):
                self.problems.append(f"{key} in {file} is not in {INDEX_FILE}")
        self.lost |= weight_map.keys() - {tensor.key for tensor in self.tensors}

    def _weight_map(self, index: Path) -> dict[str, str]:
        try:
            content: Any = json.loads(index.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                self.directory, [f"{INDEX_FILE} is not readable JSON ({error}): download it again"]
            ) from error
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        if (
            not isinstance(weight_map, dict)
            or not weight_map
            or not all(isinstance(file, str) for file in weight_map.values())
        ):
            raise CheckpointError(
                self.directory, [f"{INDEX_FILE} has no weight_map of tensor names to file names"]
            )
        return weight_map

    def _read_header(self, file: str) -> set[str] | None:
        """Add the tensors of one file; None (and a problem) when it cannot be read."""
        path = self.directory / file
        try:
            with safe_open(path, framework="numpy") as handle:
                tensors = []
                for key in handle.keys():  # noqa: SIM118 (not a mapping)
                    part = handle.get_slice(key)
                    tensors.append(TensorInfo(key, file, part.get_dtype(), tuple(part.get_shape())))
        except (SafetensorError, OSError) as error:
            self.problems.append(self._why_unreadable(path, error))
            return None
        self.tensors += tensors
        return {tensor.key for tensor in tensors}

    @staticmethod
    def _why_unreadable(path: Path, error: Exception) -> str:
        try:
            with path.open("rb") as file:
                start = file.read(len(_LFS_POINTER))
        except OSError:
            start = b""
        if start == _LFS_POINTER:
            return f"{path.name} is a Git LFS pointer, not the weights: run `git lfs pull`"
        size = path.stat().st_size
        return (
            f"{path.name} ({size} bytes) is truncated or corrupt ({error}): download or copy it "
            "again"
        )

    def _why_no_weights(self) -> str:
        names = sorted(path.name for path in self.directory.iterdir())
        shards = [name for name in names if name.endswith(".safetensors")]
        foreign = [name for name in names if name.endswith(_FOREIGN)]
        if shards:
            return (
                f"found {', '.join(shards)}, but neither {SINGLE_FILE} nor {INDEX_FILE}, which "
                "says where each tensor is: download the missing file"
            )
        if foreign:
            return (
                f"found {', '.join(foreign)}, but no safetensors, the only format that is read "
                f"here; convert it where torch is installed: AutoModelForImageTextToText."
                f"from_pretrained({str(self.directory)!r}).save_pretrained(NEW_FOLDER)"
            )
        return f"no weights: expected {SINGLE_FILE}, or {INDEX_FILE} and the files it names"
