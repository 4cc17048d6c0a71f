"""The key/value cache: slots, segments, donation."""

import jax
import jax.numpy as jnp
import numpy as np

from resprune_jax.models.cache import KVCache
from resprune_jax.models.config import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=8,
    num_layers=5,
    num_heads=4,
    num_kv_heads=2,
    head_dim=4,
)


def test_a_segment_has_its_own_layers_and_length() -> None:
    cache = KVCache.zeros(CONFIG, 3, 6, dtype=jnp.bfloat16, start=2, stop=4)
    assert (cache.start, cache.stop, cache.length, len(cache.keys)) == (2, 4, 6, 2)
    assert cache.keys[0].shape == (3, 6, 2, 4) and cache.keys[0].dtype == jnp.bfloat16
    assert not cache.valid.any()
    whole = KVCache.zeros(CONFIG, 3, 6, dtype=jnp.float32)
    assert (whole.start, whole.stop) == (0, 5)
    # The segment is part of the tree's structure, not a traced value.
    assert len(jax.tree.leaves(cache)) == 5
    assert str(jax.tree.structure(cache)) != str(jax.tree.structure(whole))


def test_writes_land_in_their_slots_only() -> None:
    cache = KVCache.zeros(CONFIG, 2, 5, dtype=jnp.float32, start=1, stop=3)
    prompt = jnp.arange(48, dtype=jnp.float32).reshape(2, 3, 2, 4) + 1

    @jax.jit
    def step(cache: KVCache, slot: jax.Array) -> KVCache:
        return cache.mark(slot, jnp.ones((2, 1), bool)).write(
            2, slot, prompt[:, :1] + 100, prompt[:, :1] - 100
        )

    filled = cache.mark(0, jnp.array([[True, True, True], [True, False, False]]))
    filled = filled.write(2, 0, prompt, -prompt)
    filled = step(filled, jnp.int32(3))
    np.testing.assert_array_equal(
        filled.valid, [[True, True, True, True, False], [True, False, False, True, False]]
    )
    np.testing.assert_array_equal(filled.keys[1][:, :3], prompt)
    np.testing.assert_array_equal(filled.values[1][:, :3], -prompt)
    np.testing.assert_array_equal(filled.keys[1][:, 3], prompt[:, 0] + 100)
    np.testing.assert_array_equal(filled.values[1][:, 3], prompt[:, 0] - 100)
    assert not filled.keys[1][:, 4].any()
    assert not filled.keys[0].any() and not filled.values[0].any()
    assert not cache.keys[1].any()  # the old one is untouched
