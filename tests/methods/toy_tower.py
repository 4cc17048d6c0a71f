"""A vision tower of a few small blocks, in JAX and in NumPy."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

HEADS, H = 2, 3


@dataclass(frozen=True, eq=False)
class Block:
    """Attention and an MLP; the oracle runs them in NumPy, with `attention` and `mlp`."""

    qkv: np.ndarray  # [3, v, HEADS * H]
    out: np.ndarray  # [HEADS * H, v]
    inner: np.ndarray  # [v, v]

    def attend(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        q, k, v = (jnp.dot(x, w, precision="highest").reshape(-1, HEADS, H) for w in self.qkv)
        scores = jnp.einsum("shd,thd->hst", q, k, precision="highest") * H**-0.5 + bias
        mixed = jnp.einsum("hst,thd->shd", jax.nn.softmax(scores), v, precision="highest")
        return jnp.dot(mixed.reshape(len(x), -1), self.out, precision="highest"), k

    def feed(self, x: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.dot(x, self.inner, precision="highest"))

    def attention(self, x: np.ndarray, bias: list[float]) -> tuple[np.ndarray, np.ndarray]:
        q, k, v = (np.dot(x, w).reshape(-1, HEADS, H) for w in self.qkv.astype(np.float64))
        mixed = np.zeros_like(q)
        for head in range(HEADS):
            scores = q[:, head] @ k[:, head].T / np.sqrt(H) + np.asarray(bias)
            powers = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, head] = powers / powers.sum(axis=1, keepdims=True) @ v[:, head]
        return mixed.reshape(len(x), -1) @ self.out, k

    def mlp(self, x: np.ndarray) -> np.ndarray:
        return np.tanh(x @ self.inner.astype(np.float64))


def tower(width: int, blocks: int) -> tuple[Block, ...]:
    """Random blocks."""
    rng = np.random.default_rng(0)
    return tuple(
        Block(*(rng.normal(size=shape).astype(np.float32) * 0.4 for shape in shapes))
        for shapes in [((3, width, HEADS * H), (HEADS * H, width), (width, width))] * blocks
    )
