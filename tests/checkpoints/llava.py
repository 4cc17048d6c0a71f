"""Small LLaVA-1.5 checkpoints in Hugging Face's format, made by the installed transformers.

Needs torch. Everything is deterministic: two calls write the same tensors.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
)

IMAGE_SIZE, PATCH_SIZE = 56, 14
NUM_VISUAL_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
VOCABULARY = (
    400  # rows of the embedding table; more than the tokenizer has ids, as in the originals
)

# The question's turn and the answer's opening, in the manner of Vicuna.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] | upper -}}{{- ': ' -}}"
    "{%- if message['content'] is string -%}{{- message['content'] -}}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{- '<image>\\n' -}}"
    "{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{- ' ' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}"
)

_SPECIAL_IDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
IMAGE_TOKEN_ID = 4

SENTENCES = [
    "USER: what is on the table next to the window? ASSISTANT: a red cup and two books.",
    "How many people are in the picture, and what colour is the dog near the old bicycle?",
    "Is there a person in the image? Answer the question using a single word or phrase.",
    "The woman holds an umbrella while a bus passes behind the white building.",
]

VARIANTS: dict[str, dict[str, Any]] = {
    # As the published LLaVA-1.5: as many key/value heads as query heads, epsilon 1e-5.
    "llama": {"text": LlamaConfig, "num_key_value_heads": 4},
    # Grouped heads, another rotary base, and a window shorter than the prompts.
    "mistral": {
        "text": MistralConfig,
        "num_key_value_heads": 2,
        "rope_theta": 1e6,
        "sliding_window": 24,
    },
    # Logits from the embedding table, and a head width that is not hidden / heads.
    "tied": {"text": LlamaConfig, "num_key_value_heads": 2, "head_dim": 8, "tie": True},
}

DIALECTS = ("A", "B", "C", "D")
"""Key dialects: A the hub's, B transformers 4.52, C version 5 in memory, D version 5 saved."""

# (vision tower, projector, language model, head) as each dialect begins its keys.
_PREFIXES = {
    "A": (
        "vision_tower.vision_model.",
        "multi_modal_projector.",
        "language_model.model.",
        "language_model.lm_head.",
    ),
    "B": (
        "model.vision_tower.vision_model.",
        "model.multi_modal_projector.",
        "model.language_model.",
        "lm_head.",
    ),
    "C": (
        "model.vision_tower.",
        "model.multi_modal_projector.",
        "model.language_model.",
        "lm_head.",
    ),
    "D": (
        "vision_tower.",
        "multi_modal_projector.",
        "language_model.model.",
        "language_model.lm_head.",
    ),
}
_CANONICAL = ("vision_tower.", "multi_modal_projector.", "language_model.", "lm_head.")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained in memory, with a BOS in front as Llama's has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", "<image>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<s> $A",
                pair="<s> $A $B",
                special_tokens=[("<s>", tokenizer.token_to_id("<s>"))],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=2048,
    )


def tiny_config(variant: str = "llama") -> LlavaConfig:
    """The configuration of one of `VARIANTS`."""
    options = dict(VARIANTS[variant])
    text_class, tie = options.pop("text"), options.pop("tie", False)
    theta = options.pop("rope_theta", 1e4)
    text = text_class(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        **_SPECIAL_IDS,
        tie_word_embeddings=tie,
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
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=NUM_VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=tie,
        **_SPECIAL_IDS,
    )


def randomise(model: LlavaForConditionalGeneration, rng_seed: int = 0) -> None:
    """Give every parameter random values that make the logits' deviation about 1.

    Matrices are scaled by their fan-in; biases, norm scales and the class token are random too, so
    that a forgotten one shows. Embeddings and the projector's output are small (times 0.02), which
    makes the norms' epsilons count.
    """
    small = re.compile(r"embed_tokens|patch_embedding|position_embedding|class_embed|linear_2")
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(1000 * rng_seed + index)
            value = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1 and "embed_tokens" not in name and "position" not in name:
                value /= parameter[0].numel() ** 0.5
            elif name.endswith("bias"):
                value *= 0.2
            elif "norm" in name or "layrnorm" in name:
                value = 1 + 0.2 * value
            if small.search(name):
                value *= 0.02
            parameter.copy_(value)
        if model.config.tie_word_embeddings:
            # The small embedding table makes the logits here: the last norm makes up for it.
            model.model.language_model.norm.weight.mul_(6)


def tiny_llava(directory: Path, *, variant: str = "llama", rng_seed: int = 0) -> Path:
    """Write a checkpoint folder: weights, configuration, tokenizer, processor, chat template.

    Args:
        directory: made if missing.
        variant: one of `VARIANTS`.
        rng_seed: of the random weights.

    Returns:
        The directory; its keys are in dialect D, as the installed transformers saves them.
    """
    config = tiny_config(variant)
    torch.manual_seed(rng_seed)
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model, rng_seed)
    directory = Path(directory)
    model.save_pretrained(directory)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": IMAGE_SIZE},
            crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        ),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory


def reference_model(directory: Path) -> LlavaForConditionalGeneration:
    """The torch model of a checkpoint folder: float32, eager attention, in evaluation mode."""
    return LlavaForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def canonical_key(key: str) -> str:
    """The canonical name of a key in any dialect."""
    key = re.sub(r"^model\.(?=language_model|vision_tower|multi_modal_projector)", "", key)
    key = re.sub(r"^language_model\.(?=lm_head)", "", key)
    key = re.sub(r"^language_model\.model\.", "language_model.", key)
    return re.sub(r"^vision_tower\.vision_model\.", "vision_tower.", key)


def rename_dialect(src: Path, dst: Path, dialect: str, *, shards: int = 1) -> Path:
    """Copy a checkpoint folder, its keys in another dialect and its tensors in several files.

    Args:
        src: a folder with one `model.safetensors`.
        dst: the new folder.
        dialect: one of `DIALECTS`.
        shards: files; more than 1 writes `model.safetensors.index.json` and no `model.safetensors`.

    Returns:
        `dst`.
    """
    src, dst = Path(src), Path(dst)
    dst.mkdir(parents=True, exist_ok=True)
    for path in src.iterdir():
        if path.suffix != ".safetensors":
            shutil.copy(path, dst / path.name)
    prefixes = dict(zip(_CANONICAL, _PREFIXES[dialect], strict=True))
    tensors = {}
    for key, tensor in load_file(src / "model.safetensors").items():
        name = canonical_key(key)
        part = next(prefix for prefix in _CANONICAL if name.startswith(prefix))
        tensors[prefixes[part] + name[len(part) :]] = tensor
    metadata = {"format": "pt"}
    if shards == 1:
        save_file(tensors, dst / "model.safetensors", metadata=metadata)
        return dst
    weight_map = {}
    for number, keys in enumerate(np.array_split(sorted(tensors), shards), start=1):
        name = f"model-{number:05d}-of-{shards:05d}.safetensors"
        save_file({str(key): tensors[key] for key in keys}, dst / name, metadata=metadata)
        weight_map.update({str(key): name for key in keys})
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (dst / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return dst
