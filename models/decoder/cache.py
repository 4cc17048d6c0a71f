"""The key/value cache of a segment of decoder layers: a plain pytree."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from resprune_jax.models.decoder.config import DecoderConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of layers [start, start + len(keys)), which share one length.

    Never an NNX variable: it travels through jitted functions as an argument that is donated and
    returned. Layers that see another number of tokens (a pruning schedule) have a cache of their
    own.

    A head's slots lie one behind the other, as attention reads them. The other way round, a TPU
    that holds one head would pad that axis of one, and turn the whole cache around at every step.

    Attributes:
        keys: one (B, KV, S, hd) array a layer, rotated already.
        values: the same for values.
        valid: (B, S) bool, True where a slot holds a real token.
        start: the first layer covered.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    valid: jax.Array
    start: int = field(default=0, metadata={"static": True})

    @classmethod
    def zeros(
        cls,
        config: DecoderConfig,
        batch: int,
        length: int,
        *,
        dtype: DTypeLike,
        start: int = 0,
        stop: int | None = None,
    ) -> "KVCache":
        """An empty cache.

        Args:
            config: the decoder.
            batch: rows B.
            length: slots S a row.
            dtype: dtype of keys and values.
            start: the first layer covered.
            stop: one past the last layer covered; default: all layers.

        Returns:
            The cache, every slot invalid.
        """
        shape = (batch, config.num_kv_heads, length, config.head_dim)
        layers = range(start, config.num_layers if stop is None else stop)
        return cls(
            keys=tuple(jnp.zeros(shape, dtype) for _ in layers),
            values=tuple(jnp.zeros(shape, dtype) for _ in layers),
            valid=jnp.zeros((batch, length), bool),
            start=start,
        )

    @property
    def length(self) -> int:
        """Slots a row, S."""
        return self.valid.shape[1]

    @property
    def stop(self) -> int:
        """One past the last layer covered."""
        return self.start + len(self.keys)

    def mark(self, slot: int | jax.Array, valid: jax.Array) -> "KVCache":
        """Say which of the tokens written from `slot` on are real.

        Args:
            slot: scalar, the first slot; the same for all rows.
            valid: (B, n) bool.

        Returns:
            The cache with `valid` written at slots [slot, slot + n).
        """
        marked = jax.lax.dynamic_update_slice(self.valid, valid, _starts(0, slot))
        return replace(self, valid=marked)

    def write(
        self, layer: int, slot: int | jax.Array, key: jax.Array, value: jax.Array
    ) -> "KVCache":
        """Write one layer's keys and values at slots [slot, slot + n).

        Args:
            layer: index of the layer in the decoder.
            slot: scalar, the first slot; the same for all rows.
            key: (B, n, KV, hd), rotated.
            value: (B, n, KV, hd).

        Returns:
            The cache with the new slots.
        """
        at = layer - self.start
        new_key = _placed(self.keys[at], slot, key)
        new_value = _placed(self.values[at], slot, value)
        return replace(
            self,
            keys=(*self.keys[:at], new_key, *self.keys[at + 1 :]),
            values=(*self.values[:at], new_value, *self.values[at + 1 :]),
        )

    def read(self, layer: int, seen: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """One layer's first slots.

        Args:
            layer: index of the layer in the decoder.
            seen: T, how many slots.

        Returns:
            (keys (B, T, KV, hd), values the same, valid (B, T)), as attention takes them.
        """
        at = layer - self.start
        key = jnp.swapaxes(self.keys[at][:, :, :seen], 1, 2)
        value = jnp.swapaxes(self.values[at][:, :, :seen], 1, 2)
        return key, value, self.valid[:, :seen]


def _placed(cache: jax.Array, slot: int | jax.Array, new: jax.Array) -> jax.Array:
    """The cache (B, KV, S, hd) with `new` (B, n, KV, hd) from `slot` on."""
    return jax.lax.dynamic_update_slice(cache, jnp.swapaxes(new, 1, 2), _starts(0, 0, slot, 0))


def _starts(*indices: int | jax.Array) -> tuple[jax.Array, ...]:
    """Indices of one dtype: a Python number alone would be an int64 where `jax_enable_x64` is."""
    return tuple(jnp.asarray(index, jnp.int32) for index in indices)
