"""The decoder that all families share: attention, rotary positions, cache, head."""
