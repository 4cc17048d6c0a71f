"""Peak memory of loading a model and of a large image."""
