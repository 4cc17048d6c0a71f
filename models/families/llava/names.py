"""Names of LLaVA's parameters in checkpoint files; LLaVA-NeXT's differ in `image_newline` only."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.models.checkpoint.names import sources_of, with_prefix
from resprune_jax.models.checkpoint.safetensors_files import TensorToWrite

__all__ = ["DIALECTS", "canonical_key", "fillers", "is_unused", "sources_of"]

# First match wins. The four dialects in the wild: published LLaVA repositories nest the vision
# tower in `vision_model` and the language model in `model`; files saved by transformers 4.52 to
# 4.57 begin with `model.`; version 5 drops `vision_model`, in memory with and in new files without
# `model.`.
_CANONICAL_PREFIXES = {
    "model.vision_tower.vision_model.": "vision_tower.",
    "model.vision_tower.": "vision_tower.",
    "vision_tower.vision_model.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "model.language_model.": "language_model.",
    "language_model.model.": "language_model.",
    "language_model.lm_head.": "lm_head.",
}

DIALECTS: dict[str, dict[str, str]] = {
    "hub": {
        "vision_tower.": "vision_tower.vision_model.",
        "language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
    "v4.52": {
        "vision_tower.": "model.vision_tower.vision_model.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
        "language_model.": "model.language_model.",
    },
    "v5-memory": {
        "vision_tower.": "model.vision_tower.",
        "multi_modal_projector.": "model.multi_modal_projector.",
        "image_newline": "model.image_newline",
        "language_model.": "model.language_model.",
    },
    "v5-saved": {
        "language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
    },
}
"""Key dialects for writing: canonical prefix -> prefix in the file (others stay as they are)."""

# Buffers that old versions of transformers saved and that are computed, not learned.
_BUFFER = re.compile(r"(^|\.)(position_ids|rotary_emb\.inv_freq)$")
_VISION_BLOCK = re.compile(r"^vision_tower\.encoder\.layers\.(\d+)\.(.+)$")
_BLOCKS = "vision_tower.encoder.layers."


def canonical_key(key: str) -> str:
    """Return the canonical name of a checkpoint key in any of the dialects.

    Args:
        key: a tensor's name in a file.

    Returns:
        `image_newline`, or a name that begins with `vision_tower.`, `multi_modal_projector.`,
        `language_model.` or `lm_head.`; a key of no dialect comes back as it is.
    """
    return with_prefix(key, _CANONICAL_PREFIXES)


def is_unused(key: str, known: Iterable[str], num_blocks: int | None) -> bool:
    """Whether a checkpoint rightly holds a tensor that the model has no parameter for.

    These are computed buffers, and the parts of the vision tower behind the block that feeds the
    projector: its later blocks, the norm of the pooled output and SigLIP's pooling head.

    Args:
        key: canonical name.
        known: canonical names of the model's parameters.
        num_blocks: vision blocks that the checkpoint's configuration counts; None if not known.
    """
    if _BUFFER.search(key):
        return True
    known = set(known)
    if not any(name.startswith("vision_tower.") for name in known):
        return False
    if key in ("vision_tower.post_layernorm.weight", "vision_tower.post_layernorm.bias"):
        return True
    if key.startswith("vision_tower.head.") and "vision_tower.pre_layrnorm.weight" not in known:
        return True  # SigLIP's; CLIP has none
    block = _VISION_BLOCK.match(key)
    if block is None:
        return False
    number, rest = int(block[1]), block[2]
    behind = f"vision_tower.encoder.layers.{number}.{rest}" not in known
    as_others = f"vision_tower.encoder.layers.0.{rest}" in known
    return behind and as_others and (num_blocks is None or number < num_blocks)


def fillers(tensors: list[TensorToWrite], config: Any) -> list[TensorToWrite]:
    """The tensors of the vision tower that only Hugging Face's model has; they change nothing.

    Raises:
        CallError: another number of vision blocks than the configuration runs.
    """
    first = {
        t.key.removeprefix(f"{_BLOCKS}0."): t for t in tensors if t.key.startswith(f"{_BLOCKS}0.")
    }
    own = {t.key for t in tensors if t.key.startswith(_BLOCKS)}
    count = sum(key.endswith(".mlp.fc1.weight") for key in own)  # what is there of others is less
    if count != config.num_vision_blocks:
        raise CallError(
            f"the parameters hold {count} vision blocks, but the configuration runs "
            f"{config.num_vision_blocks}: save with the configuration the model was made from"
        )
    norm = first["layer_norm1.weight"]
    like = {
        f"vision_tower.post_layernorm.{part}": (f"layer_norm1.{part}", norm)
        for part in ("weight", "bias")
    }
    for block in range(count, config.vision.num_layers):
        parts = {f"{_BLOCKS}{block}.{rest}": (rest, tensor) for rest, tensor in first.items()}
        like |= {key: part for key, part in parts.items() if key not in own}

    def constant(rest: str, tensor: TensorToWrite) -> Callable[[], np.ndarray]:
        # A zero output projection and a zero second layer add nothing to the residual stream.
        value = 1 if rest in ("layer_norm1.weight", "layer_norm2.weight") else 0
        return lambda: np.full(tensor.shape, value, tensor.dtype)

    head = _pooling_head(norm, config.vision) if getattr(config.vision, "use_head", False) else []
    return head + [
        TensorToWrite(key, tensor.dtype, tensor.shape, constant(rest, tensor))
        for key, (rest, tensor) in like.items()
    ]


def _pooling_head(norm: TensorToWrite, vision: Any) -> list[TensorToWrite]:
    """SigLIP's pooling head, all zero: nothing that feeds the projector passes it."""
    width, inner = vision.hidden_size, vision.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "probe": (1, 1, width),
        "attention.in_proj_weight": (3 * width, width),
        "attention.in_proj_bias": (3 * width,),
        "attention.out_proj.weight": (width, width),
        "attention.out_proj.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }

    def zeros(shape: tuple[int, ...]) -> Callable[[], np.ndarray]:
        return lambda: np.zeros(shape, norm.dtype)

    return [
        TensorToWrite(f"vision_tower.head.{name}", norm.dtype, shape, zeros(shape))
        for name, shape in shapes.items()
    ]
