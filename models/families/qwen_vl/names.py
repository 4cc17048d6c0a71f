"""Names of Qwen2.5-VL's parameters in checkpoint files, and how a parameter is stored.

The counterpart of `checkpoint/names.py` for this family: the same functions, the same rule from
module paths to canonical names. The language model of a published file has the bare prefix
`model.`, which means something else there, so the two families have their own tables.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from resprune_jax.models.checkpoint.names import Source, with_prefix
from resprune_jax.models.checkpoint.names import sources_of as _plain_sources
from resprune_jax.models.checkpoint.safetensors_files import TensorToWrite

# First match wins. The two dialects in the wild: published repositories and what version 5 of
# transformers saves keep the original names; files of 4.52 to 4.57 and version 5 in memory nest
# both parts in `model.`.
_CANONICAL_PREFIXES = {
    "model.visual.": "visual.",
    "model.language_model.": "language_model.",
    "model.": "language_model.",
}

DIALECTS: dict[str, dict[str, str]] = {
    "hub": {"language_model.": "model."},
    "v5-memory": {"visual.": "model.visual.", "language_model.": "model.language_model."},
}
"""Key dialects for writing: canonical prefix -> prefix in the file (others stay as they are)."""

# Buffers that old versions of transformers saved and that are computed, not learned.
_BUFFER = re.compile(r"(^|\.)(rotary_emb|rotary_pos_emb)\.inv_freq$")


def canonical_key(key: str) -> str:
    """Return the canonical name of a checkpoint key in any of the dialects.

    Args:
        key: a tensor's name in a file.

    Returns:
        A name that begins with `visual.`, `language_model.` or `lm_head.`; a key of no dialect
        comes back as it is.
    """
    return with_prefix(key, _CANONICAL_PREFIXES)


@dataclasses.dataclass(frozen=True)
class VideoPatches(Source):
    """A convolution over frames, rows and columns whose stride is its kernel, as one matrix.

    Attributes:
        frames: T, frames that the kernel spans; the published models have 2.
    """

    frames: int = 2

    def fits(self, stored: Sequence[int]) -> bool:
        """Whether a stored tensor of this shape holds the parameter."""
        stored = tuple(stored)
        return (
            len(stored) == 5
            and stored[0] == self.shape[1]
            and stored[3] == stored[4]
            and math.prod(stored[1:]) == self.shape[0]
        )

    def stored_shape(self, channels: int) -> tuple[int, ...]:
        """The shape in a file; `channels` are those of the image that patches are cut from."""
        side = math.isqrt(self.shape[0] // (channels * self.frames))
        return (self.shape[1], channels, self.frames, side, side)

    @property
    def expected(self) -> str:
        """The stored shape that fits, in words."""
        return f"({self.shape[1]}, C, T, p, p) with C*T*p*p = {self.shape[0]}"


def sources_of(
    path: Sequence[str | int], shape: Sequence[int], *, frames: int = 2
) -> tuple[Source, ...]:
    """Return where a parameter comes from.

    Args:
        path: attribute names and list indices, as in `nnx.to_flat_state`.
        shape: the parameter's shape.
        frames: of one patch; only the shape of what is written depends on it.
    """
    sources = _plain_sources(path, shape)
    if sources[0].key == "visual.patch_embed.proj.weight":
        return (VideoPatches(sources[0].key, sources[0].shape, "patches", frames=frames),)
    return sources


def is_unused(key: str, known: Iterable[str] = (), num_blocks: int | None = None) -> bool:
    """Whether a checkpoint rightly holds a tensor that the model has no parameter for.

    Only computed buffers: every block of this vision tower runs.

    Args:
        key: canonical name.
        known: not needed here; the other family's function reads it.
        num_blocks: the same.
    """
    return _BUFFER.search(key) is not None


def fillers(tensors: list[TensorToWrite], config: Any) -> list[TensorToWrite]:
    """None: Hugging Face's model has the same parameters."""
    return []
