"""An engine that answers at once, for what stands around the real one."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from resprune_jax.errors import ResPruneError
from resprune_jax.experiments.common import reason
from resprune_jax.experiments.sweep.engine import _EMPTY, Row

ANSWERS = ("A", "B", "C", "Yes", "No.", "two", "a cook")
TOKENS = 12


def load(folder: Path) -> Any:
    """Stands in for `load_model`."""

    def model(*_: Any, **told: Any) -> Any:
        load.told = told  # type: ignore[attr-defined]
        return SimpleNamespace(
            path=folder,
            config=SimpleNamespace(text=SimpleNamespace(num_layers=2)),
            family=SimpleNamespace(trained_aspect="pad"),
            extractor=lambda: SimpleNamespace(backend="lexicon"),
        )

    return model


class FakeEngine:
    """Stands in for `Engine`: an answer is drawn from question and configuration.

    Attributes:
        told: what the last one was told of every call.
    """

    told: Any = None

    def __init__(
        self, lvlm: Any, data: Any, configurations: Sequence[Any], options: Any, *, size: int,
        batch: int,
    ) -> None:  # fmt: skip
        self.lvlm, self.data, self.configurations, self.size = lvlm, data, configurations, size
        self.left_out: dict[str, str] = {}
        self.tokens = TOKENS
        FakeEngine.told = options
        self.answerer = SimpleNamespace(options=options)

    @property
    def blocks(self) -> int:
        return -(-len(self.data.examples) // self.size)

    def run(self, block: int) -> list[Row]:
        return [
            self._row(one.name, example)
            for one in self.configurations
            for example in self.data.examples[block * self.size : (block + 1) * self.size]
        ]

    def _row(self, name: str, example: Any) -> Row:
        row = {**_EMPTY, "configuration": name, "example": example.key, "visual_tokens": TOKENS}
        try:
            self.data.pictures(example)
        except ResPruneError as error:
            return {**row, "error": reason(error)}
        draw = zlib.crc32(f"{name} {example.question}".encode())
        text = ANSWERS[draw % len(ANSWERS)]
        kept = TOKENS if name == "none" else 4
        return {**row, "answer": text, "score": self.data.score(example, text), "kept": kept}
