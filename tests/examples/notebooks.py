"""Notebooks as files: what of them is committed, and what they said when they ran."""

import base64
import io
import json
import re
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

TIMES = "times"
"""The tag of a cell whose output tells times: all that may differ from run to run."""

COLOURS = 256
"""Of a committed picture, which then differs from the one shown by 7 of 255 at most or so."""

Notebook = dict[str, Any]
Said = tuple[str, str]
"""What kind of output, and its text."""

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b\][^\x07]*\x07")
_TIME = re.compile(r"\d+(\.\d+)?( ?(m?s|seconds|minutes)\b)")


def read(path: Path) -> Notebook:
    """A notebook of a file; texts, which files hold line by line, are strings."""
    made: Notebook = json.loads(path.read_text("utf-8"))
    for cell in made["cells"]:
        cell["source"] = "".join(cell["source"])
        for output in cell.get("outputs", ()):
            if "text" in output:
                output["text"] = "".join(output["text"])
            for kind, value in output.get("data", {}).items():
                output["data"][kind] = "".join(value) if isinstance(value, list) else value
    return made


def text_of(notebook: Notebook) -> str:
    """A notebook as it is written into its file, texts line by line."""

    def lines(name: str, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: lines(key, own) for key, own in value.items()}
        if isinstance(value, list):
            return [lines(name, own) for own in value]
        in_lines = name in ("source", "text") or name.startswith("text/")
        return value.splitlines(keepends=True) if in_lines else value

    return json.dumps(lines("", notebook), indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def clean(notebook: Notebook) -> Notebook:
    """What is committed of a notebook that ran: no count, no date, no version, small pictures."""
    cells = []
    for number, cell in enumerate(notebook["cells"], start=1):
        kept = {name: cell[name] for name in ("cell_type", "source")}
        tags = cell["metadata"].get("tags")
        kept |= {"id": f"cell-{number:02}", "metadata": {"tags": tags} if tags else {}}
        if cell["cell_type"] == "code":
            kept |= {"execution_count": None, "outputs": list(_outputs(cell["outputs"]))}
        cells.append(kept)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": about, "nbformat": 4, "nbformat_minor": 5}


def _outputs(outputs: list[Any]) -> Iterator[Any]:
    """Outputs as they are committed: what one stream said in a row is one."""
    before: Any = None
    for output in outputs:
        kind = output["output_type"]
        if kind == "stream":
            if before is not None and before["name"] == output["name"]:
                before["text"] += _plain(output["text"])
                continue
            before = {"name": output["name"], "output_type": kind, "text": _plain(output["text"])}
            yield before
            continue
        before = None
        if kind == "error":
            yield dict(output)
            continue
        data = dict(output["data"])
        if "image/png" in data:
            data.pop("image/jpeg", None)  # Pillow gives both
            data["image/png"] = smaller(data["image/png"])
        made = {"data": data, "metadata": {}, "output_type": kind}
        yield made | ({"execution_count": None} if kind == "execute_result" else {})


def _plain(text: str) -> str:
    """What a terminal would show at the end: without colours, and lines as they were last drawn."""
    whole = _ESCAPE.sub("", text).replace("\r\n", "\n")
    return "\n".join(line.rsplit("\r", 1)[-1] for line in whole.split("\n"))


def smaller(png: str) -> str:
    """A picture in base64 with few colours, where that is smaller."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        few = picture.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True)
    made = base64.b64encode(file.getvalue()).decode()
    return made if len(made) < len(png) else png


def said(cell: dict[str, Any]) -> list[Said]:
    """All that a cell of a cleaned notebook said, times aside where it is tagged for them.

    Pictures are told by their sizes: what is on them is looked at by people.
    """
    found: list[Said] = []
    for output in cell.get("outputs", ()):
        if output["output_type"] == "stream":
            found.append((output["name"], output["text"]))
        elif output["output_type"] == "error":
            found.append(("error", f"{output['ename']}: {output['evalue']}"))
        else:
            for kind, value in sorted(output["data"].items()):
                if kind.startswith("image/"):
                    found.append((kind, _size(value)))
                else:
                    found.append((kind, value))
    if TIMES in cell["metadata"].get("tags", ()):
        found = [(kind, _TIME.sub(r"…\2", text)) for kind, text in found]
    return found


def _size(picture: str) -> str:
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        return f"{image.width} x {image.height}"


def differences(committed: Notebook, ran: Notebook) -> list[str]:
    """Where a notebook that ran said something else than the committed one, a line each."""
    found = []
    for number, (one, other) in enumerate(
        zip(committed["cells"], ran["cells"], strict=True), start=1
    ):
        before, now = said(one), said(other)
        if before == now:
            continue
        pairs = [f"committed {a!r}, now {b!r}" for a, b in zip_longest(before, now) if a != b]
        found.append(f"cell {number} ({one['source'].splitlines()[0]}): {pairs[0]}")
    return found
