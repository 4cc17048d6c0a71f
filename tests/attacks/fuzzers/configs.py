"""Hostile `config.json`, processor and tokenizer files, of every family.

A case changes one file of a good checkpoint and does with it what loading does before weights are
read: the configuration, the processor and a picture, the tokenizer and a question. Some go on to
the whole model's shapes and the weights.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from resprune_jax.models.checkpoint.reading import load_parameters, resolve_dtype
from resprune_jax.models.families.registry import checkpoint_config, make_family, module_class
from resprune_jax.models.prompts.chat import PromptEncoder
from tests.attacks.harness import Fuzzer, draw
from tests.attacks.inputs.checkpoints import FAMILIES, base
from tests.attacks.inputs.mutations import damage, hostile, mutate, text

NAME = "configs"
OF_TOKENIZERS = ("tokenizer_config.json", "generation_config.json", "chat_template.json")
EMPTY = ("processor_config.json", "video_preprocessor_config.json", "special_tokens_map.json",
         "added_tokens.json", "adapter_config.json", "tokenizer.json")  # fmt: skip
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))


def prepare() -> None:
    for family in FAMILIES:
        run_folder(base(family).folder, tokenizer=True, weights=True)


def run(seed: int) -> None:
    numbers = draw(NAME, seed)
    found = base(list(FAMILIES)[seed % 3])
    names = ["config.json"] * 4 + ["preprocessor_config.json"] * 3
    names += [*OF_TOKENIZERS[1:], "tokenizer_config.json"]
    name = str(numbers.choice(names)) if numbers.random() < 0.9 else str(numbers.choice(EMPTY))
    if name in found.files:
        raw = text(mutate(found.files[name], numbers))
    else:
        raw = text(_new(name, found, numbers))
    if numbers.random() < 0.15:
        raw = damage(raw, numbers)
    with tempfile.TemporaryDirectory() as own:
        folder = Path(own)
        for path in found.folder.iterdir():
            if path.name != name:
                (folder / path.name).symlink_to(path)
        (folder / name).write_bytes(raw)
        tokenizer = name in OF_TOKENIZERS + EMPTY or numbers.random() < 0.1
        run_folder(folder, tokenizer=tokenizer, weights=bool(numbers.random() < 0.05))


def _new(name: str, found: Any, numbers: np.random.Generator) -> Any:
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


def run_folder(folder: Path, *, tokenizer: bool, weights: bool) -> None:
    """What loading does with a folder."""
    raw, config = checkpoint_config(folder)
    dtype = resolve_dtype(None, folder, raw)
    family = make_family(config, folder)
    for height, width in ((40, 60), (1080, 1920), (9000, 100)):
        family.layout(height, width)
    family.read([[PICTURE]], "processor")
    if tokenizer:
        PromptEncoder.from_checkpoint(folder, config).encode("What is it?")
    if weights:
        from flax import nnx

        made = module_class(config)
        module = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=dtype))
        load_parameters(folder, module, dtype=dtype)


FUZZERS = [Fuzzer(NAME, run, cases=10_000, quick=100, prepare=prepare)]
