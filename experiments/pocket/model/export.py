"""A pocket model as a Hugging Face folder: weights, tokenizer, processor, chat template."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from resprune_jax.experiments.pocket.model import tokenizer
from resprune_jax.experiments.pocket.model.recipe import recipe
from resprune_jax.experiments.pocket.scenes.parts import PATCH
from resprune_jax.models.families.registry import save_checkpoint

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def export(folder: Path, preset: str, parameters: Any) -> Path:
    """Write a pocket model as an ordinary LLaVA-1.5 checkpoint.

    Weights are stored in float16, which halves the files; `config.json` says float32, so that
    whoever loads them computes in float32.

    Args:
        folder: made if missing.
        preset: "cpu" or "gpu".
        parameters: the model or its state.

    Returns:
        The folder.
    """
    sizes = recipe(preset)
    halves = jax.tree.map(lambda x: x.astype(jnp.float16), parameters)
    save_checkpoint(folder, sizes.hf_config(), halves)
    path = folder / "config.json"
    _write(path, json.loads(path.read_text(encoding="utf-8")) | {"dtype": "float32"})
    write_processor(folder, preset)
    return folder


def write_processor(folder: Path, preset: str) -> None:
    """Write the tokenizer, the chat template and the image processor of a preset."""
    sizes = recipe(preset)
    side = sizes.scenes.side
    tokenizer.make_tokenizer().save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": 2048,
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(tokenizer.TEMPLATE, encoding="utf-8")
    write_image_processor(folder, side, PATCH)


def write_image_processor(folder: Path, side: int, patch: int) -> None:
    """Write LLaVA-1.5's processor as Hugging Face's files.

    Args:
        folder: where to.
        side: of the images, in pixels.
        patch: side of a patch, in pixels.
    """
    _write(
        folder / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": side},
            "resample": 3,
            "do_center_crop": True,
            "crop_size": {"height": side, "width": side},
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": CLIP_MEAN,
            "image_std": CLIP_STD,
        },
    )
    _write(
        folder / "processor_config.json",
        {
            "processor_class": "LlavaProcessor",
            "patch_size": patch,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
            "image_token": "<image>",
        },
    )


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
