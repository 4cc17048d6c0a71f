"""SCOPE: tokens that cover what is not covered yet, weighed by CLS attention."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.errors import one_of
from resprune_jax.methods.encoder.base import ByAttention
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import cosines


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scope(ByAttention):
    """Facility location: the gain of j is sum_i max(0, cos_ij - covered_i), times a_j^alpha.

    Attributes:
        alpha: exponent of the CLS attention a.
        combine: "multiply" the gain with a^alpha, or "add" that.
        heads: of the vision tower: the released code sums attention over them, which matters where
            it is added.
    """

    alpha: float = field(default=1.0, metadata={"range": (0, 100)})
    combine: Literal["multiply", "add"] = field(default="multiply", metadata={"static": True})
    heads: int = field(default=16, metadata={"static": True, "range": (1, 1024)})

    reads = frozenset({"features"})
    source = "kinredon/SCOPE @ 6bf7306"

    def __post_init__(self) -> None:
        """Refuse an unknown way to combine."""
        super().__post_init__()
        one_of("combine", self.combine, ("multiply", "add"))

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        assert image.features is not None
        similar = cosines(image.features, image.features)  # [N, N]; 0 for padding, which gains 0
        weight = (self.attention_of(image) * self.heads) ** self.alpha

        def step(
            k: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            order, covered, open_ = state
            gain = jnp.sum(jnp.maximum(similar - covered[:, None], 0), axis=0)  # [N]
            gain = gain * weight if self.combine == "multiply" else gain + weight
            chosen = jnp.argmax(jnp.where(open_, gain, -jnp.inf)).astype(jnp.int32)
            covered = jnp.maximum(covered, similar[chosen])
            return order.at[k].set(chosen), covered, open_.at[chosen].set(False)

        start = jnp.zeros(keep, jnp.int32), jnp.zeros_like(weight), image.valid
        return lax.fori_loop(0, keep, step, start)[0]
