"""HTTP: endpoints, keys, limits, the process that listens."""
