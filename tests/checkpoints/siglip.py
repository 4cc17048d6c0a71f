"""Small checkpoints with a SigLIP tower and a Qwen2 decoder, made by the installed transformers.

llava-interleave (LLaVA's classes) and what LLaVA-OneVision shares with it. Needs torch. Everything
is deterministic: two calls write the same tensors.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.checkpoints.llava import SENTENCES, VOCABULARY, randomise

# As 384 and 14: patches leave a rest of the picture unread. 3 x 3 of them.
IMAGE_SIZE, PATCH_SIZE, GRID = 44, 14, 3

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"]
PAD_ID, EOS_ID, IMAGE_TOKEN_ID, VIDEO_TOKEN_ID = 0, 2, 3, 4

# ChatML as these checkpoints have it: no system turn, images and videos in front of the words.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + ' ' -}}"
    "{%- for kind in ('image', 'video') -%}"
    "{%- for part in message['content'] if part['type'] == kind -%}{{- '<' + kind + '>' -}}"
    "{%- endfor -%}"
    "{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{- '\\n' + part['text'] -}}"
    "{%- endfor -%}"
    "{{- '<|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained in memory, without a BOS, as Qwen2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=SPECIAL,
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        padding_side="left",
        model_max_length=4096,
    )


def vision_config(**changes: Any) -> SiglipVisionConfig:
    """A tower of two blocks."""
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }
    return SiglipVisionConfig(**{**sizes, **changes})


def text_config(*, layers: int, tied: bool) -> Qwen2Config:
    """A decoder with grouped heads and biases; its window is written down but off."""
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=112,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_window_layers=1,
        bos_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        tie_word_embeddings=tied,
    )


def tiny_interleave(directory: Path, *, use_head: bool = False) -> Path:
    """Write a checkpoint as llava-interleave-qwen-0.5b: SigLIP, layer -1, "full", a tied head.

    Args:
        directory: made if missing.
        use_head: the tower ends in a pooling head, as its class has by default.
    """
    config = LlavaConfig(
        vision_config=vision_config(vision_use_head=use_head),
        text_config=text_config(layers=1, tied=True),
        image_token_index=IMAGE_TOKEN_ID,
        image_seq_length=GRID**2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config).eval()
    randomise(model)
    model.save_pretrained(directory)
    LlavaProcessor(
        image_processor=SiglipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return directory
