"""FasterVLM: the tokens that CLS attends to most."""

import numpy as np

from tests.methods.oracles.encoder.ranking import top
from tests.methods.oracles.result import Kept


def fastervlm(*, saliency: np.ndarray, keep: int) -> Kept:
    """Top T by CLS attention of vision layer 22 (mean over heads), in image order.

    Theia-4869/FasterVLM @ f5d5f12. Ties: the lowest index. LLaVA-NeXT: the same T for every tile,
    the base tile too, no newline tokens: call it once a tile.
    """
    return Kept(sorted(top(saliency, keep)))
