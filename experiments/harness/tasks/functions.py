"""What the task files name: images of a row, the verdict on an answer, figures of all verdicts.

Rows, prompts, pictures and scorers are those of `resprune benchmark`. lmms-eval writes functions
into the key of its response cache as text: these say of which version they are.
"""

import functools
import json
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from resprune_jax.errors import RunError
from resprune_jax.experiments.benchmark.scoring import NAMES, Verdict, aggregate, judge
from resprune_jax.experiments.words import OWN, version_of

_LOCK = threading.Lock()

FIGURES = {
    **dict.fromkeys(("vqav2", "gqa", "vizwiz", "sqa-img", "textvqa"), ("accuracy",)),
    "pope": (
        "f1/mean", "f1", "accuracy/mean", "accuracy", "precision", "recall", "yes ratio",
    ),
    "mme": ("sum", "perception", "cognition"),
    "mmbench-en": ("accuracy", "plain", "undecided"),
    "mm-vet": ("answered",),
}  # fmt: skip
"""What each task reports, as `scoring.aggregate` calls it; MM-Vet's is how many rows say anything,
in per cent."""


def plain(name: str) -> str:
    """A benchmark's or figure's name with underscores, as task files have it."""
    return name.replace("/", "_").replace(" ", "_").replace("-", "_")


class Part:
    """A function of a task file that says what it is where lmms-eval writes it down."""

    def __init__(self, name: str, call: Callable[..., Any]) -> None:
        self._name, self._call = name, call
        functools.update_wrapper(self, call)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Call the function."""
        return self._call(*args, **named)

    def __repr__(self) -> str:
        return f"{OWN} {version_of(OWN)} {self._name}"


def _images(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, from where its benchmark's data lie."""
    told = lmms_eval_specific_kwargs
    with _LOCK:  # tables keep one window of rows
        pictures = _pictures(
            told["benchmark"], told["data"], told["images"], told["ocr_line"], told["fingerprint"]
        )
        return [picture.load() for picture in pictures[doc["key"]]]


@functools.lru_cache(maxsize=1)
def _pictures(
    name: str, data: str, images: str | None, ocr_line: bool, fingerprint: str
) -> dict[str, Any]:
    """The pictures of a benchmark by row, not loaded.

    Raises:
        RunError: the data are not those that the task file was written for.
    """
    from resprune_jax.experiments.benchmark.run.data import open_benchmark

    opened = open_benchmark(
        name, data, images=None if images is None else Path(images), ocr_line=ocr_line
    )
    if opened.fingerprint != fingerprint:
        raise RunError(
            f"{data} is not what the task file of {name} was written for (rows, pictures or the"
            " prompts of another version): write it again with resprune lmms-eval-tasks"
        )
    return {example.key: example.images for example in opened.examples}


def _judged(name: str, doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """The verdict on an answer, under the name of every figure."""
    verdict = asdict(judge(name, json.loads(doc["row"]), results[0]))
    return {plain(figure): verdict for figure in FIGURES[name]}


def _figure(name: str, figure: str, verdicts: Sequence[Mapping[str, Any]]) -> float:
    """A figure of all verdicts; NaN where nothing is scored."""
    if figure == "answered":
        return 100 * sum(bool(one["said"]) for one in verdicts) / max(1, len(verdicts))
    found = aggregate(name, [Verdict(**one) for one in verdicts])
    return found.get(figure, math.nan)


PARTS: dict[str, Part] = {"images": Part("images", _images)}
"""By the name that task files give."""
for _name in NAMES:
    PARTS[f"{plain(_name)}_judged"] = Part(f"{_name} verdict", functools.partial(_judged, _name))
    for _one in FIGURES[_name]:
        PARTS[f"{plain(_name)}_{plain(_one)}"] = Part(
            f"{_name} {_one}", functools.partial(_figure, _name, _one)
        )


def __getattr__(name: str) -> Part:
    try:
        return PARTS[name]
    except KeyError:
        raise AttributeError(name) from None
