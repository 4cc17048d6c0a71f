"""Flax (NNX) ports of the vision-language models, from a Hugging Face checkpoint to an answer."""

from resprune_jax.models.api import LVLM
from resprune_jax.models.families.base import Video
from resprune_jax.models.load import load_model
from resprune_jax.models.running.encoded import Encoded
from resprune_jax.models.running.generation import Generation

__all__ = ["LVLM", "Encoded", "Generation", "Video", "load_model"]
