"""One fresh process up to its second answer, timed part by part.

`main` is what the command starts: it says what it found as JSON on standard output.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resprune_jax.models.running.compiling import Compiling

QUESTION = "How many people are in the picture, and what is next to the table?"

Answer = Callable[[], dict[str, float]]
"""Answers once; gives the seconds of its parts."""


class Parts:
    """Seconds by part, in order."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The block is a part of this name."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin


def main(asked: dict[str, Any]) -> None:
    """Run to the second answer and print what it took.

    Args:
        asked: "model", a checkpoint, or "shapes", a model of `bench generate` with random weights;
            "dtype", "keep", "new_tokens", "folder" of the cache, and when the process was
            "started", in seconds since the epoch.
    """
    from resprune_jax.experiments.common import import_models
    from resprune_jax.experiments.progress import compiles

    import_models()
    import jax

    parts = Parts()
    parts.seconds["python, imports"] = time.time() - asked["started"]
    with parts.part("devices"):
        jax.devices()
    _keep_in(asked["folder"])
    from resprune_jax.models.running.compiling import compiling

    with compiles():
        with parts.part("weights"), compiling() as of_weights:
            model = _shapes(asked) if asked["shapes"] else _checkpoint(asked)
        with parts.part("tagger"):
            answer = model()
        with parts.part("first answer"), compiling() as of_answer:
            timings = answer()
        with parts.part("second answer"), compiling() as of_second:
            answer()
    from resprune_jax.experiments.bench.timing import machine

    found = {
        "machine": machine(),
        "parts": parts.seconds,
        "first": {name: seconds for name, seconds in timings.items() if name != "compile"},
        "compiled": {
            "weights": _facts(of_weights), "first answer": _facts(of_answer),
            "second answer": _facts(of_second),
        },
        "cache_bytes": sum(
            file.stat().st_size for file in Path(asked["folder"]).rglob("*") if file.is_file()
        ),
    }  # fmt: skip
    print(json.dumps(found))


def _keep_in(folder: str) -> None:
    """Turn the persistent cache on, every program in it, as the commands do."""
    from resprune_jax.experiments.common import use_compilation_cache

    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    use_compilation_cache()


def _facts(watch: "Compiling") -> dict[str, Any]:
    """What was compiled: how long in all, and each program."""
    return {
        "seconds": watch.seconds,
        "found": sum(each.found for each in watch.programs),
        "compiled": sum(not each.found for each in watch.programs),
        "programs": [
            {"name": each.name, "seconds": each.seconds, "backend": each.backend,
             "found": each.found}
            for each in watch.programs
        ],
    }  # fmt: skip


def _checkpoint(asked: dict[str, Any]) -> Callable[[], Answer]:
    """A checkpoint and what readies it for its first answer: the tagger of nouns."""
    import jax
    import numpy as np

    from resprune_jax.models.load import load_model

    lvlm = load_model(asked["model"], dtype=asked["dtype"])
    jax.block_until_ready(lvlm.parameters)
    height, width = lvlm.family.usual_sizes(lvlm.config)[0]
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def ready() -> Answer:
        lvlm.extractor()

        def answer() -> dict[str, float]:
            made = lvlm.generate(
                picture, QUESTION, keep=asked["keep"], max_new_tokens=asked["new_tokens"]
            )
            return made.timings

        return answer

    return ready


def _shapes(asked: dict[str, Any]) -> Callable[[], Answer]:
    """A model by its shapes, random weights made on the device; it has no text to read."""
    import jax
    import numpy as np

    from resprune_jax.experiments.bench.generation.model import model_config
    from resprune_jax.experiments.bench.generation.weights import random_state
    from resprune_jax.experiments.compile_check.models import TEXT_TOKENS, make_workload
    from resprune_jax.methods import get_method
    from resprune_jax.models.families.registry import read_model_config
    from resprune_jax.models.prompts.options import CallOptions
    from resprune_jax.models.running.generation import Call
    from resprune_jax.models.running.plan import Prompts
    from resprune_jax.models.running.runner import Runner

    hf, dtype = model_config(asked["shapes"])
    config = read_model_config(hf)
    size = (config.vision.image_size,) * 2
    state = jax.block_until_ready(random_state(config, jax.numpy.dtype(dtype)))
    keep, new_tokens = asked["keep"], asked["new_tokens"]
    work = make_workload(config, size, 1, TEXT_TOKENS, keep=keep, new_tokens=new_tokens)
    family = work.family
    runner = Runner(family, state, eos_ids=np.full(1, -1, np.int32), dtype=dtype)
    options = runner.settings.resolve(CallOptions(keep=keep, max_new_tokens=new_tokens))

    def answer() -> dict[str, float]:
        begin = time.perf_counter()
        visual = jax.block_until_ready(runner.run_tower(family.blank(size, 1)).visual)
        encoded = time.perf_counter() - begin
        call = Call(
            Prompts([], [], "none"), work.plan, visual, options, family.positions,
            get_method("resprune", **family.defaults),
        )  # fmt: skip
        return {"encode": encoded, **runner.run(call, last=new_tokens).timings}

    return lambda: answer
