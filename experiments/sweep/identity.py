"""What a model is, for results that must not be mixed: fingerprints of files, which have names."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from resprune_jax.errors import CallError

SAMPLES = 64
"""Pieces of a weight file that are read; all of it where it has no more."""

PIECE = 1 << 16
"""Bytes of a piece."""

_WEIGHTS = (".safetensors",)
_TEXTS = (".json", ".jinja", ".model", ".txt")
_LARGEST = 1 << 26


def fingerprint(folder: Path) -> str:
    """A hash of what decides a model's answers: its settings whole, its weights in samples.

    Weights of many GB are not read through: size, first and last bytes and pieces at even
    distances tell two checkpoints apart, as training or merging changes all of them.

    Args:
        folder: of the checkpoint.

    Returns:
        64 hexadecimal digits.
    """
    made = hashlib.sha256()
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.name.startswith(".") or not path.is_file():
            continue
        size = path.stat().st_size
        if path.suffix in _WEIGHTS:
            made.update(f"{path.name} {size}\n".encode("utf-8", "surrogateescape"))
            with path.open("rb") as file:
                last = max(0, size - PIECE)
                count = min(SAMPLES, -(-size // PIECE))
                for piece in range(count):
                    file.seek(last * piece // max(1, count - 1))
                    made.update(file.read(PIECE))
        elif path.suffix in _TEXTS and size <= _LARGEST:
            made.update(f"{path.name} {size}\n".encode("utf-8", "surrogateescape"))
            made.update(path.read_bytes())
    return made.hexdigest()


def own_methods(names: Iterable[str]) -> dict[str, str]:
    """The content of the files that methods are taken from: a name stays when its file changes.

    Args:
        names: of methods; those that are no FILE.py:NAME are passed over.

    Returns:
        Name -> SHA-256 of the file, in hex digits.

    Raises:
        CallError: a file that cannot be read.
    """
    found = {}
    for name in names:
        path, _, _ = name.rpartition(":")
        if path.endswith(".py"):
            try:
                found[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
            except OSError as error:
                raise CallError(f"{path} cannot be read: {error.strerror}") from None
    return found
