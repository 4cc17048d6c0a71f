"""ResPrune in JAX: choose the visual tokens that a vision-language model really needs."""

from .errors import CallError, ResPruneError, RunError
from .selection import Selection, select

__all__ = ["CallError", "ResPruneError", "RunError", "Selection", "select"]
