"""Small LLaVA-NeXT checkpoints in Hugging Face's format, made by the installed transformers.

Needs torch. Everything is deterministic: two calls write the same tensors.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)

from tests.checkpoints.llava import (
    CHAT_TEMPLATE,
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    NUM_VISUAL_TOKENS,
    PATCH_SIZE,
    VOCABULARY,
    randomise,
    tiny_tokenizer,
)

PINPOINTS = [
    [rows * IMAGE_SIZE, columns * IMAGE_SIZE]
    for rows, columns in [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
]
"""The published pinpoints for the small tiles, in their order."""

_SPECIAL_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}

VARIANTS: dict[str, dict[str, Any]] = {
    # As the published v1.6 with Vicuna and with Mistral: grouped heads, another rotary base, and
    # the window switched off by a null.
    "vicuna": {"text": LlamaConfig, "num_key_value_heads": 4},
    "mistral": {
        "text": MistralConfig,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "sliding_window": None,
    },
    # A window shorter than the prompts, and one that the file leaves out (4096 by default), in a
    # single layer because it takes long prompts to see it.
    "mistral-window": {
        "text": MistralConfig,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "sliding_window": 40,
    },
    "mistral-missing": {
        "text": MistralConfig,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "sliding_window": "missing",
        "num_hidden_layers": 1,
    },
    # As v1.6-34b, whose decoder is Yi's; llama3-llava-next-8b differs in the base alone.
    "yi": {
        "text": LlamaConfig,
        "num_key_value_heads": 2,
        "rope_theta": 5e6,
        "num_hidden_layers": 1,
    },
    # As llava-next-72b: biases of queries, keys and values.
    "qwen2": {
        "text": Qwen2Config,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "num_hidden_layers": 1,
    },
}

DIALECTS = ("A", "B", "C", "D")
"""Key dialects: A the hub's, B transformers 4.52, C version 5 in memory, D version 5 saved."""

# What each dialect puts in front of the canonical name's first part.
_PREFIXES = {
    "A": {
        "vision_tower": "vision_tower.vision_model",
        "language_model": "language_model.model",
        "lm_head": "language_model.lm_head",
    },
    "B": {
        "vision_tower": "model.vision_tower.vision_model",
        "multi_modal_projector": "model.multi_modal_projector",
        "image_newline": "model.image_newline",
        "language_model": "model.language_model",
    },
    "C": {
        "vision_tower": "model.vision_tower",
        "multi_modal_projector": "model.multi_modal_projector",
        "image_newline": "model.image_newline",
        "language_model": "model.language_model",
    },
    "D": {"language_model": "language_model.model", "lm_head": "language_model.lm_head"},
}


def tiny_config(variant: str = "vicuna") -> LlavaNextConfig:
    """The configuration of one of `VARIANTS`."""
    options = dict(VARIANTS[variant])
    text_class = options.pop("text")
    theta, layers = options.pop("rope_theta", 1e4), options.pop("num_hidden_layers", 3)
    if options.get("sliding_window") == "missing":
        del options["sliding_window"]
    text = text_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **_SPECIAL_IDS,
        **options,
    )
    vision = CLIPVisionConfig(
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=32,
    )
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_grid_pinpoints=PINPOINTS,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=NUM_VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        **_SPECIAL_IDS,
    )


def tiny_processor() -> LlavaNextProcessor:
    """transformers' processor for the small models."""
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_next(directory: Path, *, variant: str = "vicuna", rng_seed: int = 0) -> Path:
    """Write a checkpoint folder: weights, configuration, tokenizer, processor, chat template.

    Args:
        directory: made if missing.
        variant: one of `VARIANTS`.
        rng_seed: of the random weights.

    Returns:
        The directory; its keys are in dialect D, as the installed transformers saves them.
    """
    torch.manual_seed(rng_seed)
    model = LlavaNextForConditionalGeneration(tiny_config(variant)).eval()
    randomise(model, rng_seed)
    with torch.no_grad():
        model.model.image_newline.mul_(0.02)  # as large as the other tokens
    directory = Path(directory)
    model.save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    if VARIANTS[variant].get("sliding_window") == "missing":
        path = directory / "config.json"
        config = json.loads(path.read_text())
        config["text_config"].pop("sliding_window")
        path.write_text(json.dumps(config))
    return directory


def reference_model(directory: Path) -> LlavaNextForConditionalGeneration:
    """The torch model of a checkpoint folder: float32, eager attention, in evaluation mode."""
    return LlavaNextForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def rename_dialect(src: Path, dst: Path, dialect: str) -> Path:
    """Copy a checkpoint folder of dialect D, its keys in another of `DIALECTS`.

    Returns:
        `dst`.
    """
    src, dst = Path(src), Path(dst)
    dst.mkdir(parents=True, exist_ok=True)
    for path in src.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, dst / path.name)
    back = {old: new for new, old in _PREFIXES["D"].items()}
    tensors = {}
    for key, tensor in load_file(src / "model.safetensors").items():
        name = key
        for old, new in back.items():
            if key.startswith(old + "."):
                name = new + key[len(old) :]
        first, _, rest = name.partition(".")
        front = _PREFIXES[dialect].get(first, first)
        tensors[f"{front}.{rest}" if rest else front] = tensor
    save_file(tensors, dst / "model.safetensors", metadata={"format": "pt"})
    return dst
