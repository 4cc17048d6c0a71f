"""Every pruning method behind one protocol.

A method of ours is one file in `baselines/`, `encoder/`, `tokens/` or `decoder/`, and one row in
`choices.METHODS`.
"""

from resprune_jax.choices import METHODS

from .base import (
    NEWLINE,
    PATCH,
    Merged,
    Method,
    PromptContext,
    VisualTokens,
    check_method,
    for_rows,
    highest,
    rows_of,
)
from .decoder.base import DecoderMethod, Drop, SingleDrop
from .finding import get_method, method_class
from .inputs import LayerView
from .tokens.resprune import ResPrune

__all__ = [
    "METHODS",
    "NEWLINE",
    "PATCH",
    "DecoderMethod",
    "Drop",
    "LayerView",
    "Merged",
    "Method",
    "PromptContext",
    "ResPrune",
    "SingleDrop",
    "VisualTokens",
    "check_method",
    "for_rows",
    "get_method",
    "highest",
    "method_class",
    "rows_of",
]
