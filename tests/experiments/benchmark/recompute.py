"""Compare every `expected` value of rows/ with a fresh one by oracle.py; exit 1 where one differs.

python recompute.py [--write]    --write puts the fresh values into the files

A new row needs `id`, `benchmark`, `prediction`, `row` and `why`; this fills `expected` and
`variants`, lmms_scores.py fills `lmms_eval`. Check the value by hand before it is committed: the
oracle can be wrong as well.
"""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle

ROWS = Path(__file__).parent / "rows"
SCORERS: dict[str, Callable[..., float | None]] = {
    "vqa": oracle.vqa,
    "gqa": lambda _, *pair: oracle.gqa(*pair),
    "sqa": lambda _, *pair: oracle.sqa(*pair),
    "pope": lambda _, *pair: oracle.pope(*pair),
    "mme": lambda _, *pair: oracle.mme(*pair),
    "mmbench": lambda _, *pair: oracle.mmbench(*pair),
}
SETS = {"pope": oracle.pope_scores, "mme": oracle.mme_scores, "mmbench": oracle.mmbench_scores}


def same(one: Any, other: Any) -> bool:
    """Equal up to the last digits of a float."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (int, float)) and isinstance(other, (int, float)):
        return math.isclose(one, other, abs_tol=1e-9)
    return one == other


def update(record: dict[str, Any], key: str, value: Any, name: str) -> int:
    """Put the fresh value in; 1 where it differs from the old one."""
    differs = not same(record.get(key), value)
    if differs:
        print(name, key, record.get(key), "->", value)
        record[key] = value
    return int(differs)


def scorer(name: str) -> tuple[int, str, str]:
    """The number of differing values and the two files with fresh ones."""
    text = (ROWS / f"{name}.jsonl").read_text("utf-8")
    lines = {line["id"]: line for line in map(json.loads, text.splitlines())}
    wrong = 0
    for key, line in lines.items():
        case = (line["benchmark"], line["prediction"], line["row"])
        value = SCORERS[name](*case)
        wrong += update(line, "expected", value, key)
        if name == "vqa":
            found = oracle.vqa_variants(*case)
            others = {kind: other for kind, other in found.items() if not same(other, value)}
            if others or "variants" in line:
                wrong += update(line, "variants", others, key)
    document = json.loads((ROWS / f"{name}.expected.json").read_text("utf-8"))
    for item in document["sets"]:
        chosen = [lines[key] for key in item["ids"]]
        if name in SETS:
            value = SETS[name]([(line["prediction"], line["row"]) for line in chosen])
        else:
            value = {"accuracy": sum(line["expected"] for line in chosen) / len(chosen)}
        wrong += update(item, "expected", value, f"{name}: {item['name']}")
    print(f"{name}: {len(lines)} rows, {len(document['sets'])} sets")
    out = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines.values())
    return wrong, out, json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def main() -> int:
    """Compare or write; see the module's text."""
    total = 0
    for name in SCORERS:
        wrong, rows, sets = scorer(name)
        total += wrong
        if "--write" in sys.argv[1:]:
            (ROWS / f"{name}.jsonl").write_text(rows, "utf-8")
            (ROWS / f"{name}.expected.json").write_text(sets, "utf-8")
    return int(total > 0 and "--write" not in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
