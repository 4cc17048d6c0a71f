"""A small CLIP in Hugging Face's format, whose vision tower is as wide as the small LLaVA's.

Needs torch. Everything is deterministic: two calls write the same tensors.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig
from transformers import PreTrainedTokenizerFast as FastTokenizer

from tests.checkpoints.llava import IMAGE_SIZE, PATCH_SIZE, SENTENCES

WIDTH, PROJECTION = 48, 20
VOCABULARY = 300
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


def tiny_clip_tokenizer() -> FastTokenizer:
    """Lower-case words in pieces that end in </w>, between a begin and an end token, as CLIP's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=["<unk>"],
    )
    tokenizer.train_from_iterator([text.lower() for text in SENTENCES], trainer)
    # The two highest ids, which the rule of the published files relies on.
    tokenizer.add_special_tokens([BEGIN, END])
    ends = [(token, tokenizer.token_to_id(token)) for token in (BEGIN, END)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=ends
    )
    return FastTokenizer(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, unk_token="<unk>",
        pad_token=END, model_max_length=77,
    )  # fmt: skip


def tiny_clip_config(*, legacy: bool = False, **text: Any) -> CLIPConfig:
    """Two text blocks, two vision blocks; `legacy` names the EOS as the published files do."""
    tokenizer = tiny_clip_tokenizer()
    return CLIPConfig(
        text_config=CLIPTextConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
            num_attention_heads=2, projection_dim=PROJECTION, bos_token_id=tokenizer.bos_token_id,
            eos_token_id=2 if legacy else tokenizer.eos_token_id, **text,
        ).to_dict(),
        vision_config=CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=PROJECTION,
        ).to_dict(),
        projection_dim=PROJECTION,
    )  # fmt: skip


def tiny_clip(directory: Path, **changes: Any) -> Path:
    """Write a checkpoint folder: weights, configuration, tokenizer.

    Args:
        directory: made if missing.
        **changes: for `tiny_clip_config`.
    """
    model = CLIPModel(tiny_clip_config(**changes)).eval()
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
            generator = torch.Generator().manual_seed(index)
            value = torch.randn(parameter.shape, generator=generator)
            if "layer_norm" in name or "layernorm" in name:
                value = 0.2 * value + (1 if name.endswith("weight") else 0)
            elif "embedding" in name:
                value *= 0.1  # small, so that the norms' epsilon shows
            elif parameter.ndim > 1:
                value /= parameter[0].numel() ** 0.5
            else:
                value *= 0.2
            parameter.copy_(value)
    directory = Path(directory)
    model.save_pretrained(directory)
    tiny_clip_tokenizer().save_pretrained(directory)
    return directory
