"""Results folders: parts of hosts join to one run, and what is not one whole run is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.report.reading import read_results
from tests.experiments.report.folders import FULL, configuration, examples, write

CONFIGURATIONS = [FULL, configuration("resprune", "1/9"), configuration("random", "1/9", draw=1)]
ASKED = examples(7, ["count", "text"])
SCORES = np.random.default_rng(0).uniform(0, 1, (3, 14))


def folder(path: Path, **more: Any) -> Path:
    return write(path, CONFIGURATIONS, ASKED, SCORES, **{"block": 4, **more})


def test_a_run_is_read_as_it_was_written(tmp_path):
    residual = SCORES / 3
    found = read_results([folder(tmp_path / "run", residual=residual)])
    assert np.array_equal(found.scores, SCORES)
    assert [one["name"] for one in found.configurations] == [c["name"] for c in CONFIGURATIONS]
    assert found.keys.tolist() == [one["key"] for one in ASKED]
    assert found.categories.tolist() == ["count", "text"] * 7
    assert found.category_names == ("count", "text")
    assert found.clusters.tolist() == np.repeat(range(7), 2).tolist()
    assert np.allclose(found.measures["residual"], residual) and not found.failed
    assert found.measures["kept"][:, 3].tolist() == [144, 16, 16]
    assert np.isnan(found.measures["effective_rank"]).all()


def test_parts_of_hosts_are_one_run(tmp_path):
    whole = read_results([folder(tmp_path / "whole")])
    # Paths may differ between hosts.
    parts = [
        folder(tmp_path / "a", blocks=(0, 2), run={"model": "/data/pocket"}),
        folder(tmp_path / "b", blocks=(1, 3), run={"clip": "/data/clip"}),
    ]
    (parts[0] / "rows" / ".00004.parquet-0.part").write_bytes(b"still being written")
    (parts[1] / "examples.parquet").unlink()  # the first host alone writes them
    for order in (parts, parts[::-1]):
        found = read_results(order)
        assert np.array_equal(found.scores, whole.scores)
        assert np.array_equal(found.measures["kept"], whole.measures["kept"])


def test_failed_rows_are_counted_and_are_wrong(tmp_path):
    scores = SCORES.copy()
    scores[1, 3] = scores[0, 9] = np.nan
    found = read_results([write(tmp_path / "run", CONFIGURATIONS, ASKED, scores)])
    assert [(one.configuration, one.example) for one in found.failed] == [
        ("none", ASKED[9]["key"]), ("resprune keep=1/9", ASKED[3]["key"])
    ]  # fmt: skip
    assert found.failed[0].error == "no image"
    assert np.array_equal(found.scores, np.nan_to_num(scores))


def test_rows_that_are_missing_or_twice(tmp_path):
    half = folder(tmp_path / "half", blocks=(0, 1, 3))
    first = ASKED[8]["key"]
    with pytest.raises(RunError, match=rf"12 of 42 .* missing, the first \('none', '{first}'\)"):
        read_results([half])
    again = folder(tmp_path / "again", blocks=(1, 2))
    with pytest.raises(
        RunError, match=rf"12 of 42 .* twice, the first \('none', '{ASKED[4]['key']}'\)"
    ):
        read_results([half, again])
    for copy in (half, tmp_path / "half" / ".." / "half"):
        with pytest.raises(CallError, match="given twice"):
            read_results([half, copy])
    (half / "rows").rename(half / "elsewhere")
    with pytest.raises(RunError, match=r"42 of 42 .* missing"):
        read_results([half])


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"model_fingerprint": "ef" * 32}, "model_fingerprint 'ef"),
        ({"data_fingerprint": "01" * 32}, "data_fingerprint '01"),
        ({"max_new_tokens": 9}, "max_new_tokens 9 and 6"),
        ({"precision": "bfloat16"}, "precision 'bfloat16' and 'float32'"),
        ({"code": "0.2.0", "tagger": "spacy"},
         "code '0.2.0' and 'resprune-jax 0.1.0'; tagger 'spacy'"),
        ({"configurations": [*CONFIGURATIONS[:2], configuration("random", "1/9", draw=2)]},
         "2 configurations, the first 'random keep=1/9 draw=1'"),
    ],
)  # fmt: skip
def test_two_runs_are_not_mixed(tmp_path: Path, other: dict[str, Any], says: str) -> None:
    one = folder(tmp_path / "one", blocks=(0, 1))
    two = folder(tmp_path / "two", blocks=(2, 3), run=other)
    with pytest.raises(CallError, match="is of another run") as error:
        read_results([one, two])
    assert says in str(error.value)


def test_two_runs_with_other_examples(tmp_path):
    one = folder(tmp_path / "one", blocks=(0, 1))
    two = folder(tmp_path / "two", blocks=(2, 3))
    odd = [{**ASKED[0], "cluster": "test/99999"}, *ASKED[1:]]
    parquet.write_table(pa.Table.from_pylist(odd), two / "examples.parquet")
    with pytest.raises(CallError, match="different examples"):
        read_results([one, two])


def _rows(run: Path, **columns: Any) -> None:
    """Replace columns of a run's first block."""
    path = run / "rows" / "00000.parquet"
    table = parquet.read_table(path)
    for name, values in columns.items():
        n = table.column_names.index(name)
        table = table.remove_column(n) if values is None else table.set_column(n, name, [values])
    parquet.write_table(table, path)


def _json(run: Path, **entries: Any) -> None:
    said = json.loads((run / "sweep.json").read_text("utf-8"))
    said = {name: value for name, value in {**said, **entries}.items() if value is not None}
    (run / "sweep.json").write_text(json.dumps(said), "utf-8")


SPOILT = {
    "no folder": (shutil.rmtree, CallError, "does not exist"),
    "no sweep.json": (lambda run: (run / "sweep.json").unlink(), CallError, "no sweep.json"),
    "no JSON": (lambda run: (run / "sweep.json").write_text("{"), RunError, "cannot be read"),
    "an array": (lambda run: (run / "sweep.json").write_text("[]"), RunError, "format"),
    "format 2": (lambda run: _json(run, format=2), RunError, "has format 2"),
    "no data": (lambda run: _json(run, data_fingerprint=None), RunError, "lacks data_fingerprint"),
    "no name": (lambda run: _json(run, configurations=[{"method": "none"}]), RunError, "no name"),
    "one name": (lambda run: _json(run, configurations=[FULL, FULL]), RunError, "two config"),
    "fewer examples": (lambda run: _json(run, examples=13), RunError, "sweep.json says 13"),
    "no examples": (lambda run: (run / "examples.parquet").unlink(), RunError, "cannot be read"),
    "no Parquet": (lambda run: (run / "rows" / "00001.parquet").write_bytes(b"PAR1"), RunError,
                   "00001.parquet cannot be read"),
    "no score": (lambda run: _rows(run, score=None), RunError, "no column score"),
    "half a score": (lambda run: _rows(run, score=pa.array([None] * 12, "float64")), RunError,
                     "neither a score nor an error"),
    "odd score": (lambda run: _rows(run, score=pa.array([1.5] * 12)), RunError, "score of 1.5"),
    "odd example": (lambda run: _rows(run, example=pa.array(["x"] * 12)), RunError,
                    "'x', which is no example"),
    "odd name": (lambda run: _rows(run, configuration=pa.array(["y"] * 12)), RunError,
                 "'y', which is no configuration"),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_broken_folders_are_one_line(what: str, tmp_path: Path) -> None:
    run = folder(tmp_path / "run")
    spoil, kind, says = SPOILT[what]
    spoil(run)
    with pytest.raises(kind, match=says):
        read_results([run])


def test_no_folder_and_no_example(tmp_path):
    with pytest.raises(CallError, match="no results folder"):
        read_results([])
    empty = write(tmp_path / "empty", CONFIGURATIONS, ASKED[:1], SCORES[:, :1])
    parquet.write_table(
        parquet.read_table(empty / "examples.parquet").slice(1), empty / "examples.parquet"
    )
    _json(empty, examples=0)
    with pytest.raises(RunError, match="no example"):
        read_results([empty])
