"""ResPrune in JAX: choose the visual tokens that a vision-language model really needs."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import CallError, ResPruneError, RunError

if TYPE_CHECKING:
    from .prepared import Prepared, prepare
    from .selection import Selection, select

__version__ = "0.1.0"

__all__ = [
    "CallError",
    "Prepared",
    "ResPruneError",
    "RunError",
    "Selection",
    "prepare",
    "select",
]

_HOMES = {
    "Prepared": ".prepared",
    "Selection": ".selection",
    "prepare": ".prepared",
    "select": ".selection",
}


def __getattr__(name: str) -> Any:
    """Import JAX with the first name that needs it, so that `resprune --help` does not wait."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
