"""The pocket LLaVA: scenes drawn on the spot, and questions about them, to train and test on.

The test set, its pictures and its judge, for use from Python (`docs/explanation/pocket.md` shows
how): `frozen_set` and `balanced_set` give scenes with their questions, `render` draws a scene, and
`is_right` judges an answer.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resprune_jax.experiments.pocket.judge import is_right
    from resprune_jax.experiments.pocket.scenes.frozen import balanced_set, frozen_set
    from resprune_jax.experiments.pocket.scenes.parts import Scene
    from resprune_jax.experiments.pocket.scenes.questions import Question
    from resprune_jax.experiments.pocket.scenes.scene import render

__all__ = ["Question", "Scene", "balanced_set", "frozen_set", "is_right", "render"]

_HOMES = {
    "Question": "scenes.questions",
    "Scene": "scenes.parts",
    "balanced_set": "scenes.frozen",
    "frozen_set": "scenes.frozen",
    "is_right": "judge",
    "render": "scenes.scene",
}


def __getattr__(name: str) -> Any:
    """Import what a name needs with its first use: the commands' options stand in here too."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
