"""The key/value cache: slots, segments, donation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.models.decoder.attention import attend
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.config import DecoderConfig

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
    assert cache.keys[0].shape == (3, 2, 6, 4) and cache.keys[0].dtype == jnp.bfloat16
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
    keys, values, valid = filled.read(2, 5)
    np.testing.assert_array_equal(keys[:, :3], prompt)
    np.testing.assert_array_equal(values[:, :3], -prompt)
    np.testing.assert_array_equal(keys[:, 3], prompt[:, 0] + 100)
    np.testing.assert_array_equal(values[:, 3], prompt[:, 0] - 100)
    assert not keys[:, 4].any() and valid.shape == (2, 5)
    assert not filled.keys[0].any() and not filled.values[0].any()
    assert not cache.keys[1].any()  # the old one is untouched
    # Only the first slots, and only of that layer.
    keys, values, valid = filled.read(2, 3)
    np.testing.assert_array_equal(keys, prompt)
    np.testing.assert_array_equal(values, -prompt)
    np.testing.assert_array_equal(valid, filled.valid[:, :3])
    assert not filled.read(1, 5)[0].any()


def test_a_heads_slots_lie_one_behind_the_other() -> None:
    cache = KVCache.zeros(CONFIG, 1, 3, dtype=jnp.float32)
    prompt = jnp.arange(16, dtype=jnp.float32).reshape(1, 2, 2, 4)  # [B, n, KV, hd]
    filled = cache.write(0, 1, prompt, prompt)
    assert filled.keys[0].shape == (1, 2, 3, 4)
    for head in range(2):
        np.testing.assert_array_equal(filled.values[0][0, head, 1:], prompt[0, :, head])


@pytest.mark.parametrize(
    ("dtype", "heads", "queries"),
    [("float32", 4, 5), ("bfloat16", 4, 5), ("bfloat16", 4, 1), ("bfloat16", 2, 5)],
)
def test_attention_reads_the_cache_as_it_reads_new_tokens(
    dtype: str, heads: int, queries: int
) -> None:
    """Every dtype compiles: XLA's CPU compiler has no product for some orders of axes."""
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((2, queries, own, 4)), dtype) for own in (heads, 2, 2)
    )
    cache = KVCache.zeros(CONFIG, 2, 7, dtype=dtype).mark(0, jnp.ones((2, queries), bool))

    @jax.jit
    def through(cache: KVCache) -> jax.Array:
        keys, values, valid = cache.write(0, 0, k, v).read(0, 7)
        return attend(q, keys, values, valid=valid, causal=True)

    off = jnp.abs(through(cache).astype(jnp.float32) - attend(q, k, v, causal=True)).max()
    print(f"{dtype}, {heads} heads, {queries} queries: off by {off:.1e}")
    assert off <= {"float32": 1e-6, "bfloat16": 2e-2}[dtype]


@pytest.mark.parametrize("slot", [0, 2, jnp.int32(1), np.int64(1)])
def test_slots_are_numbers_of_one_kind_with_64_bits_too(slot: object) -> None:
    """`jax_enable_x64` makes a Python number an int64, which no int32 slot goes with."""
    new = jnp.ones((2, 1, 2, 4), jnp.float32)
    with jax.enable_x64(True):
        cache = KVCache.zeros(CONFIG, 2, 5, dtype=jnp.float32, stop=1)
        step = jax.jit(
            lambda cache, at: cache.mark(at, jnp.ones((2, 1), bool)).write(0, at, new, new)
        )
        for filled in (step(cache, slot), step(cache, jnp.int32(slot))):
            assert np.flatnonzero(filled.valid[0]).tolist() == [int(slot)]  # type: ignore[call-overload]
            assert filled.keys[0].dtype == jnp.float32 and filled.keys[0][0, 0, int(slot)].all()  # type: ignore[call-overload]
