"""`resprune lmms-eval-tasks`: a task file of lmms-eval for a benchmark's data."""

import dataclasses
import json
import math
import shlex
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from resprune_jax.errors import CallError, one_of
from resprune_jax.experiments.benchmark.prompts import PROMPTS
from resprune_jax.experiments.common import console, make_folder, shown
from resprune_jax.experiments.words import OWN, version_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class TasksOptions:
    """Write a task file of lmms-eval for a benchmark, and print how it is run."""

    name: Annotated[str, shown("NAME", None)]
    """The benchmark: vqav2, gqa, vizwiz, sqa-img, textvqa, pope, mme, mmbench-en or mm-vet."""
    data: Annotated[str, shown("FILE|DIR[:SPLIT]", None)]
    """Its rows, with lmms-lab's columns: a .parquet or .jsonl file, or a folder of Parquet
    files."""
    images: Annotated[Path | None, shown("FILE|DIR", "in the rows")] = None
    """Where the pictures lie, of data that only name them."""
    ocr_line: bool = True
    """TextVQA: whether the line of words that OCR read is in the prompt; LLaVA has it there."""
    out: Annotated[Path, shown("DIR", None)]
    """Folder for the task file; what --include_path takes."""
    debug: bool = False
    """Show the traceback when something fails."""


def run(options: TasksOptions) -> int:
    """Carry out `resprune lmms-eval-tasks`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError, RunError: data that cannot be used, or a folder that cannot be written.
    """
    one_of("benchmark", options.name, tuple(PROMPTS))
    if not options.ocr_line and options.name != "textvqa":
        raise CallError(f"--no-ocr-line is for textvqa: {options.name} has no such line")
    make_folder(options.out, "--out")
    task = write(options)
    out = console()
    out.print(
        f"lmms-eval eval --model resprune \\\n"
        f"  --model_args pretrained=MODEL,version={version_of(OWN)},keep=2/9 \\\n"
        f"  --include_path {shlex.quote(str(options.out))} --tasks {task} --batch_size 8 \\\n"
        f"  --log_samples --output_path results",
        markup=False,
    )
    return 0


def write(options: TasksOptions) -> str:
    """Write the task file and the rows that it names.

    Returns:
        The task's name.

    Raises:
        CallError, RunError: see `run`.
    """
    from resprune_jax.experiments.benchmark.run.data import open_benchmark

    opened = open_benchmark(
        options.name, options.data, images=options.images, ocr_line=options.ocr_line
    )
    own = options.name.replace("-", "_")
    task = f"resprune_{own}"
    rows = (options.out / f"{task}.jsonl").resolve()
    lines = [
        json.dumps({
            "key": example.key,
            "prompt": example.question,
            "target": " | ".join(example.answers),
            "row": json.dumps(_plain(opened.rows[example.key])),
        })
        for example in opened.examples
    ]  # fmt: skip
    told = {
        "benchmark": options.name,
        "data": opened.name,
        "images": None if options.images is None else str(options.images.resolve()),
        "ocr_line": options.ocr_line,
        "fingerprint": opened.fingerprint,
    }
    template = files("resprune_jax.experiments.harness.tasks").joinpath(f"{own}.yaml")
    # JSON is YAML: paths with any characters stay what they are.
    text = template.read_text(encoding="utf-8") + (
        f"dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(rows))}\n"
        f"lmms_eval_specific_kwargs:\n  default: {json.dumps(told)}\n"
    )
    try:
        rows.write_text("\n".join(lines) + "\n", encoding="utf-8")
        (options.out / f"{task}.yaml").write_text(text, encoding="utf-8")
    except OSError as error:
        raise CallError(f"--out {options.out} cannot be written: {error.strerror}") from None
    return task


def _plain(value: Any) -> Any:
    """A row's values as JSON has them: no NaN."""
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and math.isnan(value):
        return None
    return value
