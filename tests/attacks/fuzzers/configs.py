"""Hostile `config.json`, processor, answers' and tokenizer files, of every family.

Of two cases one changes a file of a good checkpoint by chance; the other visits one field of one
file and gives it every value of `inputs/fields.py`. With each file is done what loading does before
weights are read: the configuration, the processor and a picture, the tokenizer and a question, the
settings of answers. Some go on: to the weights, and through the whole model's shapes.
"""

import contextlib
import functools
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.models.checkpoint.reading import load_parameters, resolve_dtype
from resprune_jax.models.families.registry import (
    checkpoint_config,
    make_family,
    module_class,
    read_model_config,
)
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.prompts.generation_file import read_generation_settings
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.processors import make_rules
from tests.attacks.harness import Fuzzer, draw, message_fault
from tests.attacks.inputs import fields
from tests.attacks.inputs.checkpoints import FAMILIES, Base, base
from tests.attacks.inputs.fields import Field
from tests.attacks.inputs.mutations import damage, hostile, mutate, text

NAME = "configs"
OF_TOKENIZERS = ("tokenizer_config.json", "generation_config.json", "chat_template.json")
EMPTY = ("processor_config.json", "video_preprocessor_config.json", "special_tokens_map.json",
         "added_tokens.json", "adapter_config.json", "tokenizer.json")  # fmt: skip
VISITED = ("config.json", "preprocessor_config.json", "generation_config.json")
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
DEEP = 0.2
"""Share of the visits that go on to the weights with any of the values that are accepted."""


def prepare() -> None:
    for family in FAMILIES:
        run_folder(base(family).folder, tokenizer=True, weights=True)
    visits()


def run(seed: int) -> None:
    if seed % 2:
        visit(seed // 2)
    else:
        mutated(seed)


# --- by chance ------------------------------------------------------------------------------------


def mutated(seed: int) -> None:
    numbers = draw(NAME, seed)
    found = base(list(FAMILIES)[seed // 2 % len(FAMILIES)])
    names = ["config.json"] * 4 + ["preprocessor_config.json"] * 3
    names += [*OF_TOKENIZERS[1:], "tokenizer_config.json"]
    name = str(numbers.choice(names)) if numbers.random() < 0.9 else str(numbers.choice(EMPTY))
    if name in found.files:
        raw = text(mutate(found.files[name], numbers))
    else:
        raw = text(_new(name, found, numbers))
    if numbers.random() < 0.15:
        raw = damage(raw, numbers)
    with _folder(found, name) as folder:
        (folder / name).write_bytes(raw)
        tokenizer = name in OF_TOKENIZERS + EMPTY or numbers.random() < 0.1
        run_folder(folder, tokenizer=tokenizer, weights=bool(numbers.random() < 0.05))


@contextlib.contextmanager
def _folder(found: Base, name: str) -> Iterator[Path]:
    """The files of a good checkpoint but for one."""
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        for path in found.folder.iterdir():
            if path.name != name:
                (folder / path.name).symlink_to(path)
        yield folder


def _new(name: str, found: Base, numbers: np.random.Generator) -> Any:
    """What a file that the good checkpoint does not have might hold."""
    if name == "tokenizer.json":
        return hostile(numbers)
    part = {
        "processor_config.json": {
            "image_processor": found.files["preprocessor_config.json"],
            "video_processor": {"size": {"shortest_edge": 784, "longest_edge": 9999}},
        },
        "video_preprocessor_config.json": {"min_pixels": 784, "max_pixels": 99999},
        "special_tokens_map.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}},
        "added_tokens.json": {"<new>": 265, "<newer>": 266},
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "base"},
    }
    return mutate(part[name], numbers)


# --- field by field -------------------------------------------------------------------------------


@functools.cache
def visits() -> list[Field]:
    """Every field of every family, in the order of the visits."""
    found = []
    for family, name in itertools.product(FAMILIES, VISITED):
        content = base(family).files[name]
        paths = fields.places(content)
        if name == "config.json":
            paths = fields.asked_for(content, read_model_config)
        found += [Field(family, name, path) for path in paths]
    return fields.order(found)


def visit(turn: int) -> None:
    """Give one field every value; the first visit goes on with the last that is accepted."""
    before, index = divmod(turn, len(visits()))
    numbers = draw("config fields", turn)
    field = visits()[index]
    found = base(field.family)
    content = found.files[field.file]
    if before:  # beside another value than the good one
        others = [
            other.path
            for other in visits()
            if other[:2] == field[:2] and other.path[: len(field.path)] != field.path
        ]
        other = others[int(numbers.integers(len(others)))]
        if other[: len(field.path)] != field.path and field.path[: len(other)] != other:
            near = fields.values(fields.at(content, other))
            content = fields.changed(content, other, near[int(numbers.integers(len(near)))])
    usual = _summary(found.folder)
    accepted = []
    with _folder(found, field.file) as folder:

        def run_with(value: Any, *, weights: bool) -> Any:
            raw = text(fields.changed(content, field.path, value))
            (folder / field.file).write_bytes(raw)
            try:
                return run_folder(folder, tokenizer=False, weights=weights)
            except (CallError, RunError) as error:
                if isinstance(error.__cause__ or error.__context__, MemoryError):
                    raise
                if message_fault(str(error)):
                    raise
                return None

        for value in fields.values(fields.at(content, field.path)):
            made = run_with(value, weights=False)
            if made is not None and made != usual:
                accepted.append(value)
        if accepted and not before:
            run_with(accepted[-1], weights=True)
        if accepted and numbers.random() < DEEP:
            run_with(accepted[int(numbers.integers(len(accepted)))], weights=True)


@functools.cache
def _summary(folder: Path) -> Any:
    return run_folder(folder, tokenizer=False, weights=False)


# --- what is done with a folder -------------------------------------------------------------------


def run_folder(folder: Path, *, tokenizer: bool, weights: bool) -> Any:
    """What loading does with a folder, and what the first call does before anything is computed.

    Returns:
        What the model's programs are made by: the configuration and the shapes of a picture.
    """
    raw, config = checkpoint_config(folder)
    dtype = resolve_dtype(None, folder, raw)
    family = make_family(config, folder)
    for height, width in ((40, 60), (1080, 1920), (9000, 100)):
        family.layout(height, width)
    inputs = family.read([[PICTURE]], "processor").inputs
    settings = read_generation_settings(folder, config.text.vocab_size, raw)
    make_rules(
        settings, settings.resolve(CallOptions()), [np.arange(10)], ends=[2],
        vocabulary=config.text.vocab_size, length=16,
    )  # fmt: skip
    with contextlib.suppress(CallError):  # greedy answers do without
        settings.resolve(CallOptions(sample=True))
    if tokenizer:
        PromptEncoder.from_checkpoint(folder, config).encode("What is it?")
    if weights:
        made = module_class(config)
        module = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=dtype))
        trace(module, load_parameters(folder, module, dtype=dtype), inputs)
    return config, str(dtype), str(jax.tree.map(lambda x: (np.shape(x), x.dtype), inputs))


def trace(module: Any, state: Any, inputs: Any) -> None:
    """From a picture to scores on shapes alone: what is loaded must fit together."""
    graph = nnx.graphdef(module)

    def scores(state: Any, inputs: Any) -> Any:
        model = nnx.merge(graph, state)
        x = model.visual_tokens(inputs).embeddings  # [B, N, d]
        axes = (3,) if getattr(module.config, "mrope_section", None) else ()
        places = jnp.zeros((*x.shape[:2], *axes), jnp.int32)
        return model.project_logits(model.forward(x, places, jnp.ones(x.shape[:2], bool)))

    jax.eval_shape(scores, state, inputs)


FUZZERS = [Fuzzer(NAME, run, cases=10_000, quick=70, prepare=prepare)]
