"""Flax (NNX) ports of the vision-language models, from a Hugging Face checkpoint to an answer."""

from resprune_jax.models.api import LVLM
from resprune_jax.models.encoded import Encoded
from resprune_jax.models.families import Video
from resprune_jax.models.generation import Generation
from resprune_jax.models.load import load_model

__all__ = ["LVLM", "Encoded", "Generation", "Video", "load_model"]
