"""Finished answers on disk, so that a run that was killed goes on where it was.

lmms-eval's response cache stores answers when all of a run are there: of a run that is killed it
holds nothing. Here a batch is stored when it is finished.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from resprune_jax.errors import RunError
from resprune_jax.experiments.common import make_folder

logger = logging.getLogger("resprune_jax")


@dataclass(frozen=True)
class Answer:
    """What a question was answered.

    Attributes:
        text: the answer, cut where its task says.
        input_tokens: ids of the prompt, with the visual tokens that were kept.
        output_tokens: ids that were generated, the end of the sequence counted.
        kept: visual tokens that entered the LLM.
        visual_tokens: visual tokens that the images gave.
    """

    text: str
    input_tokens: int
    output_tokens: int
    kept: int
    visual_tokens: int


class Journal:
    """The answers of runs with the same settings: a file of JSON lines in a folder.

    The file is named by the settings, so that answers of others are never taken for these. A line
    that a kill cut short is dropped.

    Attributes:
        path: the file.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the file of these settings, or start it.

        Args:
            folder: made if missing.
            settings: everything that decides an answer beside the question.

        Raises:
            CallError: a folder that cannot be made.
            RunError: a file that cannot be read or written.
        """
        make_folder(folder, "resume")
        told = json.dumps(settings, sort_keys=True, default=str)
        self.path = folder / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.jsonl"
        self._known: dict[str, Answer] = {}
        try:
            whole = self._read()
            if self.path.exists():
                os.truncate(self.path, whole)
            if not whole:
                self._write([{"settings": json.loads(told)}])
        except OSError as error:
            raise RunError(f"{self.path} cannot be used: {error.strerror}") from error

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Answer | None:
        """The answer to a question that was finished, or None."""
        return self._known.get(key)

    def add(self, answers: Iterable[tuple[str, Answer]]) -> None:
        """Store a finished batch; it is on the disk when this returns.

        Raises:
            RunError: the file cannot be written.
        """
        new = {key: answer for key, answer in answers if key not in self._known}
        try:
            self._write([{"key": key, **asdict(answer)} for key, answer in new.items()])
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from error
        self._known.update(new)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        with self.path.open("ab") as file:
            file.write(lines.encode("utf-8", "surrogatepass"))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> int:
        """Read what is there; returns the bytes of its whole lines."""
        if not self.path.exists():
            return 0
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            try:
                row = json.loads(line)
                found = {row.pop("key"): Answer(**row)} if "key" in row else {}
            except (ValueError, TypeError, AttributeError, RecursionError):
                row = None
            if not line.endswith(b"\n") or not isinstance(row, dict):
                logger.warning("%s: what stands behind byte %d is dropped", self.path, whole)
                break
            whole += len(line)
            self._known.update(found)
        return whole
