"""Small checkpoints of every family, written without torch: random weights, files as published."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from resprune_jax.models.families.registry import (
    module_class,
    read_model_config,
    save_checkpoint,
)

SIDE, PATCH = 56, 14
PINPOINTS = [[56, 112], [112, 56], [112, 112]]
LLAVA_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
QWEN_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
SENTENCES = [
    "what is on the table next to the window? a red cup and two books.",
    "how many people are in the picture, and what colour is the dog?",
]
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEXT = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
_CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH,
    "projection_dim": 16,
}  # fmt: skip
_LLAVA = {
    "image_token_index": 4, "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    "vision_config": _CLIP,
    "text_config": {
        "model_type": "llama", **_TEXT, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
    },
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {"model_type": "llava", **_LLAVA},
    "llava_next": {"model_type": "llava_next", "image_grid_pinpoints": PINPOINTS, **_LLAVA},
    "qwen2_5_vl": {
        "model_type": "qwen2_5_vl", **_TEXT,
        "rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "eos_token_id": 2, "pad_token_id": 0, "vision_start_token_id": 3, "vision_end_token_id": 4,
        "image_token_id": 5, "video_token_id": 6,
        "vision_config": {
            "depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2,
            "out_hidden_size": 64, "fullatt_block_indexes": [1], "tokens_per_second": 2,
        },
    },
}  # fmt: skip


def tokenizer(qwen: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained in memory, with the family's special tokens."""
    special = QWEN_TOKENS if qwen else LLAVA_TOKENS
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )  # fmt: skip
    made.train_from_iterator(SENTENCES, trainer)
    if qwen:
        return PreTrainedTokenizerFast(
            tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def image_processor(family: str) -> Any:
    """transformers' image processor of a family, for the small sizes."""
    square: dict[str, Any] = {
        "size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE},
    }  # fmt: skip
    if family == "llava":
        return CLIPImageProcessorPil(**square)
    if family == "llava_next":
        return LlavaNextImageProcessorPil(image_grid_pinpoints=PINPOINTS, **square)
    return Qwen2VLImageProcessorPil(size={"shortest_edge": 4 * 784, "longest_edge": 32 * 784})


def write_checkpoint(folder: Path, family: str) -> Path:
    """Write a checkpoint of one of `CONFIGS`; the same files in every call.

    Returns:
        The folder, made if missing.
    """
    config = read_model_config(CONFIGS[family])
    shapes = nnx.eval_shape(
        lambda: module_class(config)(config, rngs=nnx.Rngs(0), dtype=jnp.float32)
    )
    rng = np.random.default_rng(7)
    values = [
        (path, leaf.replace(_random(str(path[-1]), leaf.get_value().shape, rng)))
        for path, leaf in nnx.to_flat_state(nnx.state(shapes))
    ]
    save_checkpoint(folder, CONFIGS[family], nnx.from_flat_state(values))
    image_processor(family).save_pretrained(folder)
    qwen = family.startswith("qwen")
    words = tokenizer(qwen)
    words.chat_template = QWEN_TEMPLATE if qwen else LLAVA_TEMPLATE
    words.save_pretrained(folder)
    if not qwen:
        (folder / "processor_config.json").write_text(
            json.dumps(
                {
                    "patch_size": PATCH, "num_additional_image_tokens": 1,
                    "vision_feature_select_strategy": "default",
                }
            )
        )  # fmt: skip
    return folder


def _random(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Values that keep activations near 1: norm scales near 1, matrices by their fan-in."""
    value = rng.standard_normal(shape, np.float32)
    if name == "scale":
        return 1 + 0.1 * value
    if name == "bias":
        return 0.1 * value
    return value / np.float32(np.sqrt(shape[0])) if name == "kernel" else value
