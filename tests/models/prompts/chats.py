"""Tokenizers trained in memory, chat templates, and transformers' processor around them."""

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import LlamaTokenizer, LlavaProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.towers.config import ClipConfig

SENTENCES = [
    "USER: what is on the table next to the window? ASSISTANT: a red cup and two books.",
    "How many people are in the picture, and what colour is the dog near the old bicycle?",
] * 3

# Parts, trimmed; as the published LLaVA-1.5 has it; with a BOS of its own; as a string.
TEMPLATES = {
    "trim": (
        "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] | trim }}{% endif %}"
        "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "parts": (
        "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
        "{% for c in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}"
        "{% endfor %}{% for c in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ c['text'] + ' ' }}{% endfor %}{% endfor %}ASSISTANT:"
    ),
    "bos": (
        "{{ bos_token }}{% for m in messages %}[INST] {% for c in m['content'] %}"
        "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
        " [/INST]{% endfor %}"
    ),
    "string": (
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'].rstrip() + ' ' }}{% endfor %}GO"
    ),
}


def byte_tokenizer(bos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as Qwen's and GPT's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<s>", "</s>"]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=special,
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


def _sentencepiece() -> Tokenizer:
    """BPE over pieces that mark spaces, with a fallback to bytes, as Llama's."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(
        SENTENCES,
        trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False),
    )
    return tokenizer


def llama_tokenizer() -> LlamaTokenizer:
    """The class of the installed transformers."""
    model = json.loads(_sentencepiece().to_str())["model"]
    return LlamaTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        add_bos_token=True,
        additional_special_tokens=["<image>"],
    )


def legacy_tokenizer() -> PreTrainedTokenizerFast:
    """As in published Llama files: a normalizer marks the spaces, in front of each piece too."""
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = None
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


TOKENIZERS = {
    "byte": byte_tokenizer(),
    "plain": byte_tokenizer(bos=False),
    "llama": llama_tokenizer(),
    "legacy": legacy_tokenizer(),
}
SIDE, PATCH = 28, 14
VISUAL = (SIDE // PATCH) ** 2


def config(tokenizer: Any) -> LlavaConfig:
    """A configuration that names the tokenizer's placeholder."""
    return LlavaConfig(
        vision=ClipConfig(8, 8, 2, 2, SIDE, PATCH),
        text=DecoderConfig(512, 8, 8, 1, 1, 1, 8),
        num_vision_blocks=1,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )


def processor(tokenizer: Any, template: str | None) -> LlavaProcessor:
    """transformers' own processor around a tokenizer."""
    images = CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def save(folder: Path, tokenizer: Any, template: str | None, **text: Any) -> Path:
    """A checkpoint folder as the processor saves it, with the least of a configuration."""
    processor(tokenizer, template).save_pretrained(folder)
    llava = {"model_type": "llava", "text_config": {"model_type": "llama", **text}}
    (folder / "config.json").write_text(json.dumps(llava))
    return folder


def encoder(tokenizer: Any, template: str | None = None, **options: Any) -> PromptEncoder:
    return PromptEncoder(
        tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        template=template,
        eos_ids=[2],
        **options,
    )


def conversation(question: str, image: Any, n_images: int, parts: bool) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": image}] * n_images
    content = [*images, {"type": "text", "text": question}]
    whole = "<image>\n" * n_images + question
    return [{"role": "user", "content": content if parts else whole}]
