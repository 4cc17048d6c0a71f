"""Small checkpoints of every family, and of towers and decoders that it may have, without torch."""

import json
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from resprune_jax.models.checkpoint.safetensors_files import TensorToWrite, write_file
from resprune_jax.models.checkpoint.shipped import shipped
from resprune_jax.models.families.registry import module_class, read_model_config

SIDE = 28
PINS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
TEXT = {
    "vocab_size": 400, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24,
    "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": 14,
}  # fmt: skip
LLAVA: dict[str, Any] = {
    "model_type": "llava", "image_token_index": 4, "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu",
    "dtype": "float32", "tie_word_embeddings": False, "vision_config": VISION,
    "text_config": {"model_type": "llama", "rope_parameters": {"rope_theta": 1e4}, **TEXT},
}  # fmt: skip
NEXT = {
    **LLAVA, "model_type": "llava_next", "image_grid_pinpoints": PINS,
    "text_config": {"model_type": "mistral", "sliding_window": None, "rope_theta": 1e6, **TEXT},
}  # fmt: skip
QWEN: dict[str, Any] = {
    "model_type": "qwen2_5_vl", "image_token_id": 5, "video_token_id": 6, "dtype": "float32",
    "vision_start_token_id": 7, "vision_end_token_id": 8, **TEXT, "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}, "use_sliding_window": False,
    "max_window_layers": 2,
    "vision_config": {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2,
        "out_hidden_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
    },
}  # fmt: skip
QWEN2: dict[str, Any] = {
    **{key: value for key, value in QWEN.items() if key != "rope_theta"}, "model_type": "qwen2_vl",
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1], "rope_theta": 1e6},
    "vision_config": {
        "depth": 2, "embed_dim": 16, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 16,
        "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
    },
}  # fmt: skip
SIGLIP = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
SCALED = {
    "model_type": "qwen2", **TEXT, "use_sliding_window": False, "max_window_layers": 2,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 128,
    },
}  # fmt: skip
INTERLEAVED = {
    **LLAVA, "vision_feature_layer": -1, "vision_feature_select_strategy": "full",
    "vision_config": SIGLIP, "text_config": SCALED,
}  # fmt: skip
ONEVISION: dict[str, Any] = {
    **INTERLEAVED, "model_type": "llava_onevision", "image_grid_pinpoints": PINS,
    "vision_aspect_ratio": "anyres_max_9", "video_token_index": 6,
    "text_config": {
        "model_type": "qwen2", **TEXT,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
    },
}  # fmt: skip
PROCESSOR: dict[str, Any] = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28], "resample": 3,
    "rescale_factor": 1 / 255,
}  # fmt: skip
CROPPED = {
    **PROCESSOR, "do_center_crop": True, "size": {"shortest_edge": SIDE},
    "crop_size": {"height": SIDE, "width": SIDE}, "image_processor_type": "CLIPImageProcessor",
}  # fmt: skip
TILED = {
    **CROPPED, "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINS,
    "do_pad": True,
}  # fmt: skip
PATCHED = {
    **PROCESSOR, "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14,
    "temporal_patch_size": 2, "merge_size": 2, "min_pixels": 3136, "max_pixels": 12544,
}  # fmt: skip
SQUEEZED = {
    **PROCESSOR, "image_processor_type": "SiglipImageProcessor",
    "size": {"height": SIDE, "width": SIDE},
}  # fmt: skip
SQUEEZED_TILES = {
    **SQUEEZED, "image_processor_type": "LlavaOnevisionImageProcessor", "do_pad": True,
    "image_grid_pinpoints": PINS,
}  # fmt: skip
FAMILIES = {
    "llava": (LLAVA, CROPPED), "llava_next": (NEXT, TILED), "qwen2_5_vl": (QWEN, PATCHED),
    "llava_onevision": (ONEVISION, SQUEEZED_TILES), "qwen2_vl": (QWEN2, PATCHED),
    "interleave": (INTERLEAVED, SQUEEZED),
}  # fmt: skip
"""Name: (config.json, preprocessor_config.json); "interleave" is LLaVA's with other parts."""

ANSWERS: dict[str, Any] = {
    "eos_token_id": [2, 0], "pad_token_id": 3, "do_sample": False, "temperature": 0.7, "top_p": 0.9,
    "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05, "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5, 6], [7]], "suppress_tokens": [9, 11], "begin_suppress_tokens": [12],
    "min_length": 1, "min_new_tokens": 1, "max_new_tokens": 20, "max_length": 300, "num_beams": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Base:
    """A good checkpoint: its folder, and its small files as they were parsed."""

    folder: Path
    files: dict[str, Any]
    module: Any


@cache
def base(family: str) -> Base:
    """The checkpoint of a family; made once in a process, and gone with it."""
    config, processor = FAMILIES[family]
    folder = Path(_home().name) / family
    folder.mkdir()
    module = write_weights(folder, config)
    made = _tokenizer(folder)
    files = {
        "config.json": config,
        "preprocessor_config.json": processor,
        "generation_config.json": ANSWERS,
        "tokenizer_config.json": made,
        "chat_template.json": {"chat_template": (shipped() / "chat_template.jinja").read_text()},
    }
    if family.startswith("qwen"):
        token, own = "<image>", "<|image_pad|>"
        files["chat_template.json"] = {
            "chat_template": files["chat_template.json"]["chat_template"].replace(token, own)
        }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return Base(folder, files, module)


def write_weights(folder: Path, config: dict[str, Any]) -> Any:
    """Weights of zeros for a configuration; gives the abstract module that they fit."""
    read = read_model_config(config)
    made = module_class(read)
    module = nnx.eval_shape(lambda: made(read, rngs=nnx.Rngs(0), dtype=np.float32))
    tensors = []
    for path, leaf in nnx.to_flat_state(nnx.state(module)):
        for source in read.form.keys.sources_of(path, leaf.shape):
            shape = source.stored_shape(3)
            make = lambda shape=shape: np.zeros(shape, np.float32)  # noqa: E731
            tensors.append(TensorToWrite(source.key, np.dtype(np.float32), shape, make))
    write_file(folder / "model.safetensors", tensors)
    return module


def _tokenizer(folder: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    special += ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate(special + letters)}
    tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="<pad>", additional_special_tokens=special[4:],
    ).save_pretrained(folder)  # fmt: skip
    found: dict[str, Any] = json.loads((folder / "tokenizer_config.json").read_text())
    return found


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="attacks-")
