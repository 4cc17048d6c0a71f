"""What lmms-eval 0.7.3 itself gives for the rows: its own functions, really called.

    python lmms_scores.py DIR      DIR: the unpacked wheel (the folder that holds lmms_eval/)

compares every `lmms_eval` value of rows/ with a fresh call and exits 1 where one differs;
`--write` puts the fresh values into the files. Needs numpy, pandas, loguru, requests and PyYAML,
no torch: lmms-eval's heavy modules, which its scorers name but do not use, are replaced by empty
ones. Not a test: the project does not depend on lmms-eval.
"""

import argparse
import contextlib
import copy
import importlib
import io
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from loguru import logger
from recompute import same

ROWS = Path(__file__).parent / "rows"
SCORERS = ("vqa", "gqa", "sqa", "pope", "mme", "mmbench")
TASKS = ("vqav2", "textvqa", "vizwiz_vqa", "scienceqa", "pope", "mme")
Pair = tuple[str, dict[str, Any]]


def load(folder: Path) -> dict[str, types.ModuleType]:
    """lmms-eval's scoring modules, without running its packages' own start code."""
    for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils", "lmms_eval.api"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    for name in (*TASKS, "mmbench"):
        package = types.ModuleType(f"lmms_eval.tasks.{name}")
        package.__path__ = [str(folder / "lmms_eval" / "tasks" / name)]
        sys.modules[package.__name__] = package
    registry = types.ModuleType("lmms_eval.api.registry")
    registry.register_metric = registry.register_aggregation = (  # type: ignore[attr-defined]
        lambda *_, **__: lambda function: function
    )
    sys.modules["lmms_eval.api.registry"] = registry
    sys.modules.setdefault("sacrebleu", types.ModuleType("sacrebleu"))
    modules = {name: importlib.import_module(f"lmms_eval.tasks.{name}.utils") for name in TASKS}
    logger.remove()  # the scorers tell each result
    modules["mmbench"] = importlib.import_module("lmms_eval.tasks.mmbench.en_utils")
    modules["metrics"] = importlib.import_module("lmms_eval.api.metrics")
    return modules


class Upstream:
    """lmms-eval's value for a row and its aggregates for a set of rows."""

    def __init__(self, folder: Path) -> None:
        self.modules = load(folder)

    def vqa(self, prediction: str, row: dict[str, Any], benchmark: str) -> float:
        name = {"vizwiz": "vizwiz_vqa"}.get(benchmark, benchmark)
        score = getattr(self.modules[name], f"{name}_process_results")
        return score(copy.deepcopy(row), [prediction])["exact_match"]

    def gqa(self, prediction: str, row: dict[str, Any], _: str) -> float:
        # The task has no function of its own: these are the arguments of gqa.yaml.
        score = self.modules["metrics"].exact_match_fn(
            predictions=[prediction.strip()],
            references=[row["answer"]],
            ignore_case=True,
            ignore_punctuation=True,
        )
        return float(score["exact_match"])

    def sqa(self, prediction: str, row: dict[str, Any], _: str) -> float:
        return self.modules["scienceqa"].sqa_process_results(row, [prediction])["exact_match"]

    def pope(self, prediction: str, row: dict[str, Any], _: str) -> float:
        found = self.modules["pope"].pope_process_results(row, [prediction])
        return found["pope_accuracy"]["score"]

    def mme(self, prediction: str, row: dict[str, Any], _: str) -> float:
        (found,) = self.modules["mme"].mme_process_results(row, [prediction]).values()
        return found["score"]

    def mmbench(self, prediction: str, row: dict[str, Any], _: str) -> float:
        evaluator = self.modules["mmbench"].mmbench_evaluator
        return float(
            evaluator.eval_sub_data(
                self._table([(prediction, row)]), {row["index"]: row["answer"]}, static_only=True
            )
        )

    def _table(self, pairs: Sequence[Pair]) -> pd.DataFrame:
        process = self.modules["mmbench"].mmbench_process_results
        return pd.DataFrame([process(row, [text])["gpt_eval_score"] for text, row in pairs])

    def pope_sets(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        module = self.modules["pope"]
        names = ("accuracy", "precision", "recall", "f1_score", "yes_ratio")

        def counts(chosen: Sequence[Pair]) -> dict[str, float]:
            found = [module.pope_process_results(row, [text]) for text, row in chosen]
            return {
                {"f1_score": "f1"}.get(name, name): getattr(module, f"pope_aggregate_{name}")(
                    [item[f"pope_{name}"] for item in found]
                )
                for name in names
            }

        splits = sorted({row["category"] for _, row in pairs})
        by = {name: counts([p for p in pairs if p[1]["category"] == name]) for name in splits}
        return {"splits": by, "all": counts(pairs)}

    def mme_sets(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        module, halves = self.modules["mme"], {"perception": [], "cognition": []}
        for text, row in pairs:
            ((key, value),) = module.mme_process_results(row, [text]).items()
            halves[key.removeprefix("mme_").removesuffix("_score")].append(value)
        found = {name: module.mme_aggregate_results(rows) for name, rows in halves.items()}
        return found | {"total": sum(found.values())}

    def mmbench_sets(self, pairs: Sequence[Pair]) -> dict[str, Any]:
        module = self.modules["mmbench"]
        rows = [
            module.mmbench_process_results(row, [text])["gpt_eval_score"] for text, row in pairs
        ]
        overall, category, l2_category = module.mmbench_evaluator.eval_result(rows, "static")
        return {"circular": overall, "category": category, "L2-category": l2_category}


def call(function: Callable[..., Any], *args: Any) -> Any:
    """The value, or the name of the exception that lmms-eval raises."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return function(*args)
    except Exception as problem:
        return {"error": type(problem).__name__}


def plain(value: Any) -> Any:
    """NumPy's scalars as Python's, so that they can be written."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def fresh(upstream: Upstream, name: str, lines: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Each row's id with lmms-eval's value."""
    score = getattr(upstream, name)
    for line in lines:
        args = (line["prediction"], line["row"], line["benchmark"])
        yield line["id"], plain(call(score, *args))


def main() -> int:
    """Compare or write; see the module's text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    upstream, wrong = Upstream(given.folder), 0
    for name in SCORERS:
        path, sets_path = ROWS / f"{name}.jsonl", ROWS / f"{name}.expected.json"
        lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        values = dict(fresh(upstream, name, lines))
        by_id = {line["id"]: line for line in lines}
        for line in lines:
            differs = not same(line.get("lmms_eval"), values[line["id"]])
            wrong += differs
            if differs and not given.write:
                print(line["id"], line.get("lmms_eval"), "->", values[line["id"]])
            line["lmms_eval"] = values[line["id"]]
        document = json.loads(sets_path.read_text("utf-8"))
        for item in document["sets"]:
            chosen = [by_id[key] for key in item["ids"]]
            pairs = [(line["prediction"], line["row"]) for line in chosen]
            if name in ("vqa", "gqa", "sqa"):
                value = {"accuracy": sum(values[key] for key in item["ids"]) / len(pairs)}
            else:
                value = call(getattr(upstream, f"{name}_sets"), pairs)
            value = plain(value)
            if not same(item.get("lmms_eval"), value):
                wrong += 1
                if not given.write:
                    print(name, item["name"], item.get("lmms_eval"), "->", value)
            item["lmms_eval"] = value
        if given.write:
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            path.write_text(text, "utf-8")
            out = json.dumps(document, ensure_ascii=False, indent=1) + "\n"
            sets_path.write_text(out, "utf-8")
        print(f"{name}: {len(lines)} rows, {len(document['sets'])} sets")
    return 1 if wrong and not given.write else 0


if __name__ == "__main__":
    sys.exit(main())
