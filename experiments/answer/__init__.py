"""`resprune answer`: questions about images, one or a file of them.

`draw_kept` is its picture of the visual tokens that stay, for use from Python.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resprune_jax.experiments.answer.pictures import draw_kept

__all__ = ["draw_kept"]


def __getattr__(name: str) -> Any:
    """Import what draws with its first use: the command's options stand in here too."""
    if name in __all__:
        return getattr(import_module(f"{__name__}.pictures"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
