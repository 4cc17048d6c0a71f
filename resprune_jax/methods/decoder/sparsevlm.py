"""SparseVLM v1.5: drops by the question's raters, and clusters in place of what goes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.base import highest
from resprune_jax.methods.decoder.raters import Raters, mean_of_raters
from resprune_jax.methods.inputs import PromptContext, VisualTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class SparseVlm(Raters):
    """Tokens by the raters' attention, mean over heads; the best of the rest are merged.

    See `Raters`. Of D tokens that go, the floor(0.3 D) + 1 best, n, are clustered into
    floor(n / 10) + 1 groups (density peaks, `clusters`), whose means follow the kept tokens and are
    visual tokens like any other from then on. Position ids count up anew behind every drop. The
    release adds random numbers up to 1e-6 to the densities, which are left out here.
    """

    needs = frozenset({"text_attention"})
    positions = "reindex"
    merges = "states"
    source = "Gumpest/SparseVLMs @ 734d900 (v1.5), arXiv 2410.04417"
    lists: ClassVar[Mapping[int, tuple[int, ...]]] = {
        192: (300, 200, 110),
        128: (303, 110, 36),
        96: (238, 48, 26),
        64: (66, 30, 17),
    }

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """Attention of the raters, mean over heads."""
        assert image.layer is not None and image.layer.text_attention is not None
        return jnp.mean(mean_of_raters(image.layer.text_attention, image.layer.memory), axis=0)

    def entering(self, dropped: int) -> int:
        """See `Raters.entering`."""
        return (int(0.3 * dropped) + 1) // 10 + 1

    def merged(
        self, image: VisualTokens, prompt: PromptContext, kept: jax.Array, room: int
    ) -> tuple[jax.Array, jax.Array]:
        """See `DecoderMethod.merged`."""
        gone = image.valid & ~kept
        # Whole numbers: 0.3 as a float32 would cut 30 of 100 to another count than a double does.
        points = 3 * jnp.sum(gone, dtype=jnp.int32) // 10 + 1
        groups = points // 10 + 1
        most = 3 * len(gone) // 10 + 1
        order = highest(self.scores(image, prompt), gone, min(most, len(gone)))
        states = image.embeddings[jnp.maximum(order, 0)].astype(jnp.float32)  # best first
        real = jnp.arange(len(order)) < points
        member = clusters(states, real, groups, room)  # [N], the group of each point
        share = jax.nn.one_hot(jnp.where(real, member, room), room)  # [N, C]
        total = jnp.einsum("nc,nd->cd", share, states, precision=lax.Precision.HIGHEST)
        size = jnp.maximum(jnp.sum(share, axis=0), 1)[:, None]
        return total / size, jnp.where(jnp.any(gone), groups, 0)


def clusters(points: jax.Array, real: jax.Array, groups: jax.Array, room: int) -> jax.Array:
    """Density peaks among nearest neighbours: the group of each point.

    Density is exp(-mean squared distance to the `groups` nearest points, itself among them), delta
    the distance to the nearest denser point, or the largest of all where none is. Centres are the
    points of the largest delta times density, in that order.

    Args:
        points: (n, d) float32, real ones first.
        real: (n,) bool.
        groups: () int32, how many.
        room: static, at least `groups`.

    Returns:
        (n,) int32, counted as the centres rank.
    """
    size = len(points)
    pair = real[:, None] & real[None]
    # Differences, not inner products: states lie close together, and density is exponential.
    squared = lax.map(lambda one: jnp.mean((points - one) ** 2, axis=1), points)  # [n, n]
    nearest = jnp.sort(jnp.where(pair, squared, jnp.inf), axis=1)
    among = jnp.arange(size) < jnp.minimum(groups, jnp.sum(real))
    mean = jnp.sum(jnp.where(among & jnp.isfinite(nearest), nearest, 0), axis=1) / groups
    density = jnp.where(real, jnp.exp(-mean), 0)
    distance = jnp.where(pair, jnp.sqrt(squared), 0)
    denser = pair & (density[None] > density[:, None])
    delta = jnp.min(jnp.where(denser, distance, jnp.inf), axis=1)
    delta = jnp.where(jnp.any(denser, axis=1), delta, jnp.max(distance))
    centres = highest(delta * density, real, min(room, size))  # [C]
    ranks = jnp.arange(len(centres))
    away = jnp.where(ranks < groups, distance[:, centres], jnp.inf)  # [n, C]
    member = jnp.argmin(away, axis=1).astype(jnp.int32)
    own = jnp.where(ranks < groups, centres, size)
    return member.at[own].set(ranks.astype(jnp.int32), mode="drop")
