"""Rotary positions: exact angles, relative distances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.models.decoder.rope import apply_rope, inverse_frequencies, rope_tables


@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_tables_match_the_formula_in_double_precision(theta: float) -> None:
    head_dim, positions = 32, np.array([[0, 1, 255, 256, 257, 4095]])
    cos, sin = rope_tables(jnp.asarray(positions, jnp.int32), head_dim, theta)
    exact = positions[..., None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    assert cos.shape == sin.shape == (1, 6, head_dim // 2)
    # A float32 angle of 4095 radians is 2e-4 wide.
    np.testing.assert_allclose(cos, np.cos(exact), atol=1e-3)
    np.testing.assert_allclose(sin, np.sin(exact), atol=1e-3)
    np.testing.assert_allclose(cos[:, :2], np.cos(exact[:, :2]), atol=1e-6)


def test_frequencies_are_rounded_step_by_step() -> None:
    # Values of 1 / float32(theta ** float32(2i / d)): rounding once, from float64, gives others.
    frequencies = inverse_frequencies(128, 1e4)
    once = (1e4 ** (-np.arange(0, 128, 2) / 128)).astype(np.float32)
    assert frequencies.dtype == np.float32
    different = int((frequencies != once).sum())
    print(f"{different} of 64 frequencies differ from those rounded once")
    assert different > 0
    np.testing.assert_allclose(frequencies, once, rtol=3e-7)


def test_scores_depend_on_the_distance_only() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    def score(at: int, back: int) -> float:
        tables = rope_tables(jnp.array([[at, at - back]], jnp.int32), 16, 1e4)
        pair = apply_rope(jnp.concatenate([q, k], axis=1), *tables)
        return float(jnp.sum(pair[0, 0] * pair[0, 1]))

    assert abs(score(3, 3) - score(700, 3)) < 1e-4
    assert abs(score(3, 3) - score(3, 2)) > 1e-2


def test_half_split_layout_and_dtype() -> None:
    x = jnp.zeros((1, 1, 1, 8)).at[..., 1].set(1.0)
    cos, sin = rope_tables(jnp.array([[5]], jnp.int32), 8, 1e4)
    turned = apply_rope(x, cos, sin)[0, 0, 0]
    expected = np.zeros(8)
    expected[1], expected[5] = cos[0, 0, 1], sin[0, 0, 1]
    np.testing.assert_allclose(turned, expected, atol=1e-7)
    # Whole positions that bfloat16 cannot tell apart stay apart.
    near = rope_tables(jnp.array([[256, 257]], jnp.int32), 8, 1e4)
    two = apply_rope(jnp.ones((1, 2, 1, 8), jnp.bfloat16), *near)
    assert two.dtype == jnp.bfloat16
    assert float(jnp.abs(two[0, 0] - two[0, 1]).max()) > 0.1
