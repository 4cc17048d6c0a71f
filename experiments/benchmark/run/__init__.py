"""A benchmark from its files to its scores and submissions, through the engine of the sweeps."""
