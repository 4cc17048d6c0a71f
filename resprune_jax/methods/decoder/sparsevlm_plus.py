"""SparseVLM+ (v2.0): the raters' attention set right for distance, the best heads only."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.arguments import whole
from resprune_jax.methods.decoder.raters import Raters, mean_of_raters
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SparseVlmPlus(Raters):
    """SparseVLM without merging, position ids kept; see `Raters`.

    The raters' attention is divided by that which rotary positions alone would make (queries and
    keys of ones, causal softmax); of the heads those with the most of it on visual tokens count.

    Attributes:
        heads: how many of them; a decoder with fewer uses all.
    """

    heads: int = field(default=14, metadata={"static": True})

    needs = frozenset({"text_attention", "gravity"})
    source = "Gumpest/SparseVLMs @ 26a5f48, arXiv 2410.04417"
    lists: ClassVar[Mapping[int, tuple[int, ...]]] = {
        192: (300, 200, 118),
        128: (238, 108, 60),
        96: (246, 54, 28),
        64: (66, 34, 20),
    }

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        super().__post_init__()
        whole("heads", self.heads)

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """Corrected attention of the raters, mean over the chosen heads."""
        layer = image.layer
        assert layer is not None and layer.text_attention is not None and layer.gravity is not None
        alone = jnp.where(layer.gravity > 0, layer.gravity, 1)  # 0 for padding alone
        rows = mean_of_raters(layer.text_attention / alone, layer.memory)  # [H, N]
        rows = jnp.where(image.valid, rows, 0)
        _, chosen = lax.top_k(jnp.sum(rows, axis=1), min(self.heads, len(rows)))
        return jnp.mean(rows[chosen], axis=0)
