"""ApET: the tokens that a small basis explains worst, the others merged into them."""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.methods.base import Merged, Method
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.relevance import unit

Distance = Literal["euclidean", "cosine"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Apet(Method):
    """The tokens of the largest error when a few basis tokens reconstruct them, in one shot.

    Basis tokens are sampled: the one of the largest norm, then always the one farthest from those
    sampled. Every token is fitted by them (ridge least squares). The basis and the tokens of the
    largest error stay, T together (a budget below the basis takes the first of it), in image order;
    each other token is merged into the nearest of them, a row being the mean of its group.

    As described in the README. Ours to decide: the distance, and that means count the kept token.
    The authors cut a second time inside the LLM, behind layer 16 to 32 tokens; that cut is not
    built.

    Attributes:
        basis: how many tokens are sampled.
        ridge: weight of the squared coefficients in the fit.
        distance: of the sampling, and to the nearest kept token.
    """

    basis: int = field(default=10, metadata={"static": True, "range": (1, 1024)})
    ridge: float = field(default=1e-5, metadata={"range": (0, 1e6)})
    distance: Distance = field(default="euclidean", metadata={"static": True})

    nested = False
    merges = "embeddings"
    source = "MaQianKun0/ApET @ 70cc01b, arXiv 2602.19870"

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """See `Method.merge`."""
        tokens, valid = image.embeddings.astype(jnp.float32), image.valid  # [N, d]
        size = len(tokens)
        seen = unit(tokens) if self.distance == "cosine" else tokens
        sampled = _farthest(seen, tokens, valid, min(self.basis, keep))  # [b]
        used = jnp.arange(len(sampled)) < limit
        own = jnp.zeros(size, bool).at[jnp.where(used, sampled, size)].set(True, mode="drop")
        error = _errors(tokens, jnp.where(used[:, None], tokens[sampled], 0), self.ridge)
        ranked = jnp.argsort(jnp.where(valid & ~own, -error, jnp.inf), stable=True)
        rank = jnp.zeros(size, jnp.int32).at[ranked].set(jnp.arange(size, dtype=jnp.int32))
        kept = own | (valid & (rank < limit - jnp.sum(used)))
        order = jnp.nonzero(kept, size=keep, fill_value=size)[0].astype(jnp.int32)  # [K]

        there, place = order < size, jnp.minimum(order, size - 1)
        squares = jnp.sum(jnp.square(seen), axis=1)
        # |x - k|^2 without |x|^2, which is the same for every k
        apart = squares[place] - 2 * jnp.matmul(seen, seen[place].T, precision="highest")  # [N, K]
        nearest = jnp.argmin(jnp.where(there, apart, jnp.inf), axis=1)
        row = jnp.where(kept, jnp.cumsum(kept) - 1, jnp.where(valid, nearest, keep))
        total = jax.ops.segment_sum(tokens, row, keep)
        held = jax.ops.segment_sum(jnp.ones(size, jnp.float32), row, keep)
        rows = total / jnp.maximum(held, 1)[:, None]
        return Merged(order, rows, jnp.sum(kept, dtype=jnp.int32))


def _farthest(seen: jax.Array, tokens: jax.Array, valid: jax.Array, count: int) -> jax.Array:
    """The token of the largest norm, then always the one farthest from its nearest of these, (b,).

    Args:
        seen: (N, d), what distances are measured between; unit vectors for the cosine.
        tokens: (N, d).
        valid: (N,) bool.
        count: b, static.
    """

    def step(
        k: jax.Array, state: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        found, gap, last = state
        gap = jnp.minimum(gap, jnp.sum(jnp.square(seen - seen[last]), axis=1))
        gap = gap.at[last].set(-jnp.inf)
        return found.at[k].set(last), gap, jnp.argmax(gap).astype(jnp.int32)

    norms = jnp.sum(jnp.square(tokens), axis=1)
    first = jnp.argmax(jnp.where(valid, norms, -jnp.inf)).astype(jnp.int32)
    gap = jnp.where(valid, jnp.inf, -jnp.inf)
    return lax.fori_loop(0, count, step, (jnp.zeros(count, jnp.int32), gap, first))[0]


def _errors(tokens: jax.Array, basis: jax.Array, ridge: jax.Array | float) -> jax.Array:
    """Squared norm of what the ridge fit by the basis leaves of every token, (N,).

    The fit is the projection onto the columns of [basis^T; sqrt(ridge) I], taken by an orthonormal
    basis of them: the normal equations would square what float32 cannot hold.
    """
    size = len(basis)
    damped = jnp.concatenate([basis.T, jnp.sqrt(ridge) * jnp.eye(size)])  # [d + b, b]
    q = jnp.linalg.qr(damped)[0][:-size]  # [d, b], the rows that see the token
    left = tokens - jnp.matmul(jnp.matmul(tokens, q, precision="highest"), q.T, precision="highest")
    return jnp.sum(jnp.square(left), axis=1)
