"""AdaptPrune: one drop in front of layer K by several cues, attention thinned out."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.decoder.base import SingleDrop
from resprune_jax.methods.inputs import PATCH, PromptContext, VisualTokens
from resprune_jax.relevance import unit


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class AdaptPrune(SingleDrop):
    """Peaks of attention times a prior; each pick lowers its neighbours that look like it.

    Attention is that of the last prompt token in layer K - 1, mean over heads; the prior a Gaussian
    around the middle of each image. A pick at distance r leaves a token within `radius`
    1 - exp(-r^2 / (2 space_sigma^2)) exp(-(1 - cos)^2 / (2 key_sigma^2)) of its score, cos between
    layer K's key projections of the states, without norm and rotation.

    The release knows one grid of 24 x 24. Here distances are those of `VisualTokens.coords`, an
    image's own tokens alone are neighbours, and the prior spans -half to half over every image, a
    single row or column of which lies in the middle.

    Attributes:
        prior_sigma: of the prior.
        half: what the prior's axes reach at an image's borders.
        radius: the farthest neighbours, in cells.
        space_sigma: of the distance.
        key_sigma: of 1 - cos.
    """

    prior_sigma: float = field(default=12.0, metadata={"range": (1e-3, 1e6)})
    half: float = field(default=12.0, metadata={"range": (1e-3, 1e6)})
    radius: float = field(default=5.0, metadata={"range": (0, 1e6)})
    space_sigma: float = field(default=1.5, metadata={"range": (1e-3, 1e6)})
    key_sigma: float = field(default=0.05, metadata={"range": (1e-3, 1e6)})

    needs = frozenset({"attention", "bare_keys", "coords"})
    source = "bzluan/AdaptPrune @ d0842f3, arXiv 2503.08019"

    def prior(self, image: VisualTokens) -> jax.Array:
        """The Gaussian around the middle of each token's image, (N,)."""
        assert image.coords is not None and image.layer is not None
        patch = image.valid if image.kind is None else image.valid & (image.kind == PATCH)
        size, owner = len(patch), jnp.maximum(image.layer.image, 0)

        def of_image(values: jax.Array, largest: bool) -> jax.Array:
            reduce = jax.ops.segment_max if largest else jax.ops.segment_min
            edge = jnp.where(patch[:, None], values, -jnp.inf if largest else jnp.inf)
            return reduce(edge, owner, num_segments=size)[owner]  # [N, 2]

        low, high = of_image(image.coords, False), of_image(image.coords, True)
        span = jnp.where(high > low, high - low, 1)
        # An image's only row is its middle: strips beside whole pictures are not at a border.
        place = jnp.where(high > low, 2 * (image.coords - low) / span - 1, 0) * self.half
        return jnp.exp(-jnp.sum(place**2, axis=1) / (2 * self.prior_sigma**2))

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """See `Method.order`."""
        layer, coords = image.layer, image.coords
        assert layer is not None and coords is not None
        assert layer.attention is not None and layer.bare_keys is not None
        keys = unit(layer.bare_keys)
        scores = jnp.where(image.valid, jnp.mean(layer.attention, axis=0) * self.prior(image), 0)

        def step(
            k: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            order, scores, open_ = state
            chosen = jnp.argmax(jnp.where(open_, scores, -jnp.inf)).astype(jnp.int32)
            squared = jnp.sum((coords - coords[chosen]) ** 2, axis=1)
            unlike = 1 - jnp.dot(keys, keys[chosen], precision=lax.Precision.HIGHEST)
            near = jnp.exp(-squared / (2 * self.space_sigma**2))
            like = jnp.exp(-(unlike**2) / (2 * self.key_sigma**2))
            beside = (squared <= self.radius**2) & (layer.image == layer.image[chosen])
            scores = jnp.where(beside, scores * (1 - near * like), scores)
            return order.at[k].set(chosen), scores, open_.at[chosen].set(False)

        start = jnp.zeros(keep, jnp.int32), scores, image.valid
        return lax.fori_loop(0, keep, step, start)[0]
