"""A rule of the tests' own for layers that the port joins: what lies where, row by row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

LAYERS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def joined(tensors: Mapping[str, Any], path: Sequence[Any], shape: Sequence[int]) -> np.ndarray:
    """What a joined parameter holds.

    Args:
        tensors: by canonical name; what is read leaves no trace.
        path: of the parameter; its last entries are the layers' common name and "weight" or "bias".
        shape: of the parameter, (groups, rows of all layers, width, ...).
    """
    *owner, name, leaf = map(str, path)
    layers = [np.asarray(tensors[".".join([*owner, own, leaf])]) for own in LAYERS[name]]
    groups, width = shape[0], shape[2]
    filled = np.full(shape, np.nan, layers[0].dtype)
    for group in range(groups):
        at = 0
        for layer in layers:
            count = len(layer) // (groups * width)  # rows of this layer that belong to the group
            for number in range(count):
                begin = (group * count + number) * width
                filled[group, at] = layer[begin : begin + width]
                at += 1
        assert at == shape[1]
    return filled
