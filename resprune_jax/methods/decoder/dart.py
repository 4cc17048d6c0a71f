"""DART: one drop in front of layer K, of what repeats the others."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.arguments import whole
from resprune_jax.methods.base import highest
from resprune_jax.methods.decoder.base import SingleDrop
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import cosines


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Dart(SingleDrop):
    """The image's pivots, and for each pivot the tokens that are least like it.

    Pivots are the tokens of the largest keys (L1 norm, all heads, layer K - 1), of the image and of
    the text behind it. Each takes `keep // pivots` of the tokens that are left, those of the lowest
    cosine between states after the decoder's last norm. So 4 + 8 (keep // 8) tokens stay, as
    released: 196 for 192. The release goes through its pivots in the order of a Python set; here it
    is the image's by falling norm, then the text's.

    Attributes:
        image_pivots: which stay themselves.
        text_pivots: which only attract.
    """

    image_pivots: int = field(default=4, metadata={"static": True})
    text_pivots: int = field(default=4, metadata={"static": True})

    needs = frozenset({"keys", "final_states"})
    source = "xqy1111111/DART @ d6a5af6 (a fork of ZichenWen1/DART), arXiv 2502.11494"
    nested = False

    def __post_init__(self) -> None:
        """Refuse what cannot work when it is written down."""
        super().__post_init__()
        whole("image_pivots", self.image_pivots)
        whole("text_pivots", self.text_pivots, least=0)

    def wanted(self, tokens: int, keep: int, layers: int) -> int:
        """Tokens behind the drop, in the steps that the quotas make."""
        if self.keep_average is not None:
            keep = super().wanted(tokens, keep, layers) - self.image_pivots
        pivots = self.image_pivots + self.text_pivots
        return min(tokens, self.image_pivots + pivots * (max(keep, 0) // pivots))

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        layer = image.layer
        assert layer is not None and layer.keys is not None and layer.text_keys is not None
        assert layer.final_states is not None and layer.text_final_states is not None
        size = image.valid.shape[0]
        own, words = self.image_pivots, min(self.text_pivots, prompt.text_valid.shape[0])

        def pivots(keys: jax.Array, valid: jax.Array, count: int) -> jax.Array:
            norms = jnp.sum(jnp.abs(keys.astype(jnp.float32)), axis=(1, 2))
            return highest(norms, valid, count)

        of_image = pivots(layer.keys, image.valid, min(own, size))
        of_text = pivots(layer.text_keys, prompt.text_valid, words)
        states, text = layer.final_states, layer.text_final_states
        anchors = jnp.concatenate([states[of_image], text[of_text]])  # [P, d]
        there = jnp.arange(words) < jnp.sum(prompt.text_valid)
        there = jnp.concatenate([jnp.ones(len(of_image), bool), there])
        like = cosines(anchors, states)  # [P, N]
        total = self.image_pivots + self.text_pivots
        # The schedule asked for own + total * quota tokens, or for all.
        quota = jnp.maximum(-(-(limit - own) // total), 0)

        def take(
            pivot: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            order, end, pool = state
            ranked = jnp.argsort(jnp.where(pool, like[pivot], jnp.inf), stable=True)
            share = jnp.where(there[pivot], jnp.minimum(quota, jnp.sum(pool)), 0)
            mine = jnp.arange(size) < share
            order = order.at[jnp.where(mine, end + jnp.arange(size), size)].set(
                ranked.astype(jnp.int32), mode="drop"
            )
            taken = jnp.zeros(size, bool).at[jnp.where(mine, ranked, size)].set(True, mode="drop")
            return order, end + share, pool & ~taken

        order = jnp.full(size, size, jnp.int32).at[: len(of_image)].set(of_image)
        start = order, jnp.int32(len(of_image)), image.valid.at[of_image].set(False)
        return lax.fori_loop(0, len(anchors), take, start)[0][:keep]
