"""Small Qwen2.5-VL and Qwen2-VL checkpoints, made by the installed transformers.

Needs torch. Everything is deterministic: two calls write the same tensors.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

VOCABULARY = 400  # rows of the embedding table; more than the tokenizer has ids
MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 64 * 28 * 28
"""Limits of a picture's area: 4 to 64 visual tokens."""

SPECIAL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
]
EOS_ID, PAD_ID = 2, 0
VISION_START_ID, VISION_END_ID, IMAGE_TOKEN_ID, VIDEO_TOKEN_ID = 3, 4, 5, 6

# A system turn, the question's turn with its pictures and videos, and the answer's opening.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part['type'] == 'video' -%}{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- else -%}{{- part['text'] -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

_SENTENCES = [
    "system You are a helpful assistant. user what is on the table next to the window?",
    "How many people are in the picture, and what colour is the dog near the old bicycle?",
    "Is there a person in the image? Answer the question using a single word or phrase.",
    "The woman holds an umbrella while a bus passes behind the white building.",
]

VARIANTS: dict[str, bool] = {"untied": False, "tied": True, "qwen2": True}
"""Whether the head is the embedding table, by name; as the published 7B and 3B, and Qwen2-VL-2B."""

DIALECTS = ("A", "B")
"""Key dialects: A the hub's and what version 5 saves, B transformers 4.52 and version 5 inside."""


class ImageOnlyProcessor(Qwen2_5_VLProcessor):
    """The processor without its video part, which would need torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = IMAGE_TOKEN_ID, VIDEO_TOKEN_ID
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained in memory, without a BOS, with Qwen's special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        padding_side="left",
        model_max_length=4096,
    )


def tiny_config(variant: str = "untied") -> Any:
    """The configuration of one of `VARIANTS`."""
    tied = VARIANTS[variant]
    plain = variant == "qwen2"
    return (Qwen2VLConfig if plain else Qwen2_5_VLConfig)(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 112,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2, 3, 3],
            },
            "bos_token_id": PAD_ID,
            "eos_token_id": EOS_ID,
            "pad_token_id": PAD_ID,
            "tie_word_embeddings": tied,
        },
        vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2}
        if plain
        else {
            "depth": 4,
            "hidden_size": 32,
            "intermediate_size": 56,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
        },
        image_token_id=IMAGE_TOKEN_ID,
        video_token_id=VIDEO_TOKEN_ID,
        vision_start_token_id=VISION_START_ID,
        vision_end_token_id=VISION_END_ID,
        tie_word_embeddings=tied,
    )


def randomise(model: Any, rng_seed: int = 0) -> None:
    """Give every parameter random values that make the logits' deviation about 1.

    Matrices are scaled by their fan-in; biases and norm scales are random too, so that a forgotten
    one shows. The embeddings of words and patches and the merger's output are small, which makes
    the norms' epsilons count.
    """
    small = re.compile(r"embed_tokens|merger\.mlp\.2")
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(1000 * rng_seed + index)
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embed_tokens" not in name:
                value /= parameter[0].numel() ** 0.5
            elif name.endswith("bias"):
                value *= 0.2
            elif "norm" in name or "ln_q" in name:
                value = 1 + 0.2 * value
            if small.search(name):
                value *= 0.02
            elif "patch_embed" in name:
                value *= 0.005
            parameter.copy_(value)
        if model.config.tie_word_embeddings:
            # The small embedding table makes the logits here: the last norm makes up for it.
            model.model.language_model.norm.weight.mul_(6)


def tiny_qwen(directory: Path, *, variant: str = "untied", rng_seed: int = 0) -> Path:
    """Write a checkpoint folder: weights, configuration, tokenizer, image processor, chat template.

    Args:
        directory: made if missing.
        variant: one of `VARIANTS`.
        rng_seed: of the random weights.

    Returns:
        The directory; its keys are in dialect A.
    """
    torch.manual_seed(rng_seed)
    kind = Qwen2VLForConditionalGeneration if variant == "qwen2" else None
    model = (kind or Qwen2_5_VLForConditionalGeneration)(tiny_config(variant)).eval()
    randomise(model, rng_seed)
    directory = Path(directory)
    model.save_pretrained(directory)
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    Qwen2VLImageProcessorPil(size=size).save_pretrained(directory)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return directory


def reference_processor(directory: Path) -> ImageOnlyProcessor:
    """transformers' processor of a checkpoint folder, for text and pictures."""
    return ImageOnlyProcessor(
        Qwen2VLImageProcessorPil.from_pretrained(directory),
        PreTrainedTokenizerFast.from_pretrained(directory),
        chat_template=CHAT_TEMPLATE,
    )


def reference_model(directory: Path) -> Any:
    """The torch model of a checkpoint folder: float32, eager attention, in evaluation mode."""
    return AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def rename_dialect(src: Path, dst: Path, dialect: str) -> Path:
    """Copy a checkpoint folder, its keys in another dialect of `DIALECTS`.

    Returns:
        `dst`.
    """
    src, dst = Path(src), Path(dst)
    dst.mkdir(parents=True, exist_ok=True)
    for path in src.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, dst / path.name)
    tensors = {}
    for key, tensor in load_file(src / "model.safetensors").items():
        name = re.sub(r"^model\.(?=visual|language_model)", "", key)
        name = re.sub(r"^model\.", "language_model.", name)
        if dialect == "A":
            name = re.sub(r"^language_model\.", "model.", name)
        else:
            name = re.sub(r"^(?=visual|language_model)", "model.", name)
        tensors[name] = tensor
    save_file(tensors, dst / "model.safetensors", metadata={"format": "pt"})
    return dst


def flatten_config(directory: Path) -> dict[str, Any]:
    """The folder's `config.json` with the text model's fields at the top, as published files."""
    config = json.loads((Path(directory) / "config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    return {
        **{key: value for key, value in text.items() if key != "model_type"},
        **config,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
    }
