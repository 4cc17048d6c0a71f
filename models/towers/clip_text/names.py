"""Names of a CLIP's parameters in checkpoint files; its vision tower's blocks are not read."""

import re
from collections.abc import Iterable
from typing import Any

from resprune_jax.models.checkpoint.names import sources_of
from resprune_jax.models.checkpoint.safetensors_files import TensorToWrite

__all__ = ["DIALECTS", "canonical_key", "fillers", "is_unused", "sources_of"]

DIALECTS: dict[str, dict[str, str]] = {"hub": {}}
"""There is one."""

# Buffers that old versions of transformers saved, and what scales the logits of contrastive scores.
_COMPUTED = re.compile(r"(^(text|vision)_model\.embeddings\.position_ids|^logit_scale)$")
_VISION = re.compile(
    r"^vision_model\.(embeddings\.(class_embedding|(patch|position)_embedding\.weight)"
    r"|pre_layrnorm\.(weight|bias))$"
)
_BLOCK = re.compile(
    r"^vision_model\.encoder\.layers\.(\d{1,9})\."
    r"(self_attn\.(q|k|v|out)_proj|layer_norm[12]|mlp\.fc[12])\.(weight|bias)$"
)


def canonical_key(key: str) -> str:
    """The key itself: `CLIPModel` has had one way of naming."""
    return key


def is_unused(key: str, known: Iterable[str], num_blocks: int | None) -> bool:
    """Whether a checkpoint rightly holds a tensor that the model has no parameter for.

    These are computed buffers, the scale of the logits, and the vision tower up to its last block.

    Args:
        key: a tensor's name.
        known: names of the model's parameters.
        num_blocks: vision blocks that the checkpoint's configuration counts; None if not known.
    """
    if _COMPUTED.search(key) or _VISION.search(key):
        return True
    block = _BLOCK.match(key)
    return block is not None and (num_blocks is None or int(block[1]) < num_blocks)


def fillers(tensors: list[TensorToWrite], config: Any) -> list[TensorToWrite]:
    """None: no CLIP is written here."""
    return []
