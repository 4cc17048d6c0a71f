"""Flax (NNX) ports of the vision-language models, from a Hugging Face checkpoint to an answer."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resprune_jax.models.api import LVLM
    from resprune_jax.models.families.base import Video
    from resprune_jax.models.load import load_model
    from resprune_jax.models.prompts.chat import Conversation, Turn
    from resprune_jax.models.prompts.options import CallOptions
    from resprune_jax.models.running.encoded import Encoded
    from resprune_jax.models.running.generation import Generation, Selected

__all__ = [
    "LVLM",
    "CallOptions",
    "Conversation",
    "Encoded",
    "Generation",
    "Selected",
    "Turn",
    "Video",
    "load_model",
]

_HOMES = {
    "CallOptions": "prompts.options",
    "Conversation": "prompts.chat",
    "Encoded": "running.encoded",
    "Generation": "running.generation",
    "LVLM": "api",
    "Selected": "running.generation",
    "Turn": "prompts.chat",
    "Video": "families.base",
    "load_model": "load",
}


def __getattr__(name: str) -> Any:
    """Import JAX with the first name that needs it: the commands' options stand in here too."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
