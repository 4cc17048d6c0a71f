"""Flax (NNX) ports of the vision-language models, from a Hugging Face checkpoint to an answer."""

from resprune_jax.models.api import LVLM, Generation, load_model

__all__ = ["LVLM", "Generation", "load_model"]
