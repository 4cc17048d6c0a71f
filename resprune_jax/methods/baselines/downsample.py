"""Downsampling: fewer pixels in, so that fewer tokens come out of the vision tower."""

from dataclasses import dataclass
from typing import Any

import jax

from resprune_jax.errors import CallError
from resprune_jax.methods.base import Method
from resprune_jax.selection import Selection


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Downsample(Method):
    """No choice of tokens at all: the picture is made smaller, and every token is kept.

    LLaVA-1.5 sees the picture at s x s cells, s = round(sqrt(T)), at most the tower's own grid,
    with the tower's position embeddings resized bicubically; so s^2 tokens enter, 121 for a budget
    of 128 and 196 for one of 192, and results say so: `visual_tokens` too are those of the smaller
    picture. LLaVA-NeXT sees the base tile alone, in the same way, at most its 576 tokens. Rows of a
    call that need grids of their own are refused there. Qwen's processor resizes the picture under
    an area of T cells, each picture by its own budget. It acts on pictures, not on what
    `LVLM.encode` gave.
    """

    stage = "pixels"
    by_image = True
    nested = False
    source = "VTC-Bench, arXiv 2510.07143"

    def select(self, *_: Any, **__: Any) -> Selection:
        """Refuse: the model's processor is the rule, and behind the tower there is no choice."""
        raise CallError(
            "Downsample makes pictures smaller before they are encoded, and chooses no tokens: give"
            " pictures to generate, select or logits of a model"
        )
