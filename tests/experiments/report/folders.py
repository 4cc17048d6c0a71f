"""Results folders of sweeps that were never run, in the format that a sweep writes."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

FULL = {"name": "none", "method": "none", "keep": None, "draw": 0, "settings": {}}
VISUAL_TOKENS = 144

ROWS = pa.schema([
    ("configuration", pa.dictionary(pa.int32(), pa.string())), ("example", pa.string()),
    ("answer", pa.string()), ("score", pa.float64()), ("error", pa.string()),
    ("visual_tokens", pa.int32()), ("kept", pa.int32()), ("average", pa.float32()),
    ("residual", pa.float32()), ("effective_rank", pa.float32()),
    ("nouns", pa.list_(pa.string())), ("noun_backend", pa.string()), ("distinct", pa.int32()),
    ("select_ms", pa.float32()), ("answer_ms", pa.float32()),
])  # fmt: skip


def configuration(method: str, keep: str | None, *, draw: int = 0, settings: Any = None,
                  **axes: Any) -> dict[str, Any]:  # fmt: skip
    """One of `sweep.json`'s configurations, named as a sweep names it."""
    words = [method, *([] if keep is None else [f"keep={keep}"])]
    words += [f"{name}={value}" for name, value in axes.items()]
    name = " ".join([*words, *([f"draw={draw}"] if draw else [])])
    own = {"name": name, "method": method, "keep": keep, "draw": draw}
    return {**own, "settings": settings or {}, **axes}


def examples(clusters: int, categories: Sequence[str]) -> list[dict[str, Any]]:
    """One example of every category about each image."""
    return [
        {"key": f"test/{image:05}/{n}", "cluster": f"test/{image:05}", "category": category,
         "question": "Is there a star?", "answers": ["yes"], "metric": "exact"}
        for image in range(clusters) for n, category in enumerate(categories)
    ]  # fmt: skip


def write(
    folder: Path,
    configurations: Sequence[Mapping[str, Any]],
    asked: Sequence[Mapping[str, Any]],
    scores: np.ndarray,
    *,
    block: int = 100,
    blocks: Iterable[int] | None = None,
    run: Mapping[str, Any] | None = None,
    **columns: np.ndarray,
) -> Path:
    """Write a results folder.

    Args:
        folder: to be made.
        configurations: of `configuration`, C of them.
        asked: of `examples`, E of them.
        scores: (C, E); NaN for a row that failed.
        block: examples of a block.
        blocks: which blocks this host computed; all by default.
        run: entries of `sweep.json` that are other than here.
        **columns: (C, E) values of other columns.
    """
    (folder / "rows").mkdir(parents=True)
    said = {
        "format": 1, "code": "resprune-jax 0.1.0", "model": "pocket",
        "model_fingerprint": "ab" * 32,
        "data": "pocket test", "data_fingerprint": "cd" * 32, "clip": None,
        "precision": "float32", "tagger": "lexicon", "layers": 8, "visual_tokens": VISUAL_TOKENS,
        "block": block, "batch": 64, "max_new_tokens": 6, "left_out": {}, "examples": len(asked),
        "configurations": list(configurations),
    }  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps({**said, **(run or {})}), "utf-8")
    parquet.write_table(pa.Table.from_pylist(list(asked)), folder / "examples.parquet")
    count = -(-len(asked) // block)
    for number in range(count) if blocks is None else blocks:
        part = range(number * block, min((number + 1) * block, len(asked)))
        rows = [
            _row(one, asked[e], float(scores[c, e]), {n: v[c, e] for n, v in columns.items()})
            for c, one in sorted(enumerate(configurations), key=lambda pair: pair[1]["name"])
            for e in part
        ]
        parquet.write_table(
            pa.Table.from_pylist(rows, schema=ROWS), folder / "rows" / f"{number:05}.parquet"
        )
    return folder


def budget(keep: str | None) -> int:
    """The tokens that a budget keeps."""
    if keep is None:
        return VISUAL_TOKENS
    if "/" not in keep:
        return int(keep)
    above, below = map(int, keep.split("/"))
    return round(VISUAL_TOKENS * above / below)


def _row(
    one: Mapping[str, Any], example: Mapping[str, Any], score: float, more: Mapping[str, Any]
) -> dict[str, Any]:
    failed, kept = np.isnan(score), budget(one["keep"])
    return {
        "configuration": one["name"], "example": example["key"],
        "answer": None if failed else "yes", "score": None if failed else score,
        "error": "no image" if failed else None, "visual_tokens": VISUAL_TOKENS, "kept": kept,
        "average": kept, "residual": None, "effective_rank": None, "nouns": ["star"],
        "noun_backend": "lexicon", "distinct": 0, "select_ms": 0.5, "answer_ms": 4.0,
        **{name: _plain(value) for name, value in more.items()},
    }  # fmt: skip


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and np.isnan(value) else value
