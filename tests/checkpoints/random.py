"""A LLaVA-1.5 checkpoint with random weights and the published picture size, written without torch.

336 pixels a side, 24x24 = 576 visual tokens; a tokenizer trained on a few sentences, chat template
and processor files as a published repository has them.
"""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from resprune_jax.experiments.pocket.model.export import write_image_processor
from resprune_jax.experiments.pocket.model.tokenizer import TEMPLATE
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava
from resprune_jax.models.families.registry import save_checkpoint

CONFIG: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 4,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 128,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 1024,
        # Well above the largest budget: tokens of d numbers span d dimensions at most, and then
        # nothing would be left to choose by.
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
}

SPECIALS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")

# What the tokenizer learns its words from, and so all that the model can say.
SENTENCES = (
    "the woman in the photograph is wearing a dark hat with a bright badge on her head",
    "an officer stands in front of a flag with white stars and red stripes",
    "behind the old man there is a wide window, a small table and two green chairs",
    "a dog sleeps under the bench while children play with a yellow ball",
    "her glasses are round, his coat is blue, and their shoes are black",
    "how many people are near the river, and what colour is the boat",
    "no one is holding the cup of coffee next to an open book",
    "it looks like a quiet street after rain, with light on every wall",
)


def write_tokenizer(folder: Path) -> list[int]:
    """Train a byte-level BPE tokenizer on `SENTENCES` and write it in Hugging Face's files.

    Returns:
        The ids that are whole words.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["text_config"]["vocab_size"],
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f" {sentence}" for sentence in SENTENCES] * 2, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIALS.index("<s>"))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "unk_token": "<unk>",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "model_max_length": CONFIG["text_config"]["max_position_embeddings"],
            "clean_up_tokenization_spaces": False,
        },
    )
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    words = {f"Ġ{word.strip(',')}" for sentence in SENTENCES for word in sentence.split()}
    return sorted(index for text, index in tokenizer.get_vocab().items() if text in words)


def write_checkpoint(folder: Path, rng_seed: int = 0, published: dict[str, Any] = CONFIG) -> Path:
    """Write a small LLaVA-1.5 checkpoint with random weights, as Hugging Face's files.

    Args:
        folder: made if missing.
        rng_seed: of the random weights; the same seed writes the same files.
        published: its `config.json`.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    words = write_tokenizer(folder)
    vision = published["vision_config"]
    write_image_processor(folder, vision["image_size"], vision["patch_size"])
    config = LlavaConfig.from_hf(published)
    abstract = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=jnp.float32))
    rng = np.random.default_rng(rng_seed)
    flat = nnx.to_flat_state(nnx.state(abstract))
    values = [
        (path, leaf.replace(_random(".".join(map(str, path)), leaf.get_value().shape, rng, words)))
        for path, leaf in flat
    ]
    return save_checkpoint(folder, published, nnx.from_flat_state(values))


def _random(name: str, shape: tuple[int, ...], rng: Any, words: list[int]) -> Any:
    """Random values of one parameter, scaled so that activations stay near 1."""
    if name.endswith("scale"):
        return np.ones(shape, np.float32)
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    value = rng.standard_normal(shape, np.float32)
    if name.endswith("kernel"):
        value /= np.sqrt(shape[0])
    elif name.endswith("weight"):  # of joined layers: their inputs are the last axis
        value /= np.sqrt(shape[-1])
    if "position_embedding" in name or "class_embedding" in name:
        value *= 0.1  # what a patch shows counts for more than where it lies
    if name.endswith(("out_proj.kernel", "fc2.kernel")):
        value *= 0.3  # near the residual path: patches that look alike stay alike
    if name == "lm_head.kernel":
        silent = np.ones(shape[1], bool)
        silent[words] = False
        value[:, silent] = 0  # noise, but noise in whole words
    return value


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
