"""What a pruning method may read: visual tokens and the question, in static shapes."""

from dataclasses import dataclass

import jax

PATCH, NEWLINE = 0, 1
"""Values of `VisualTokens.kind`."""

OPTIONAL = ("features", "saliency", "coords", "kind")
"""The fields of `VisualTokens` that can be absent."""

ON_REQUEST = frozenset({"features"})
"""Those of them that are only made for a method that reads them; the rest costs next to nothing."""

NEEDS = frozenset({*OPTIONAL, "text"})
"""What a method's `needs` may name: fields of `VisualTokens`, and the question's text."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of a batch of images, ready to enter the LLM.

    Absent parts are `None`, so that XLA drops the work that would make them. A method's own rule
    sees one image: the same fields without their axis B.

    Attributes:
        embeddings: (B, N, d), projected tokens in the LLM's input embedding space.
        valid: (B, N) bool, False for padding.
        features: (B, N, v), the vision tower's output before the projector.
        saliency: (B, N) float32, CLS-to-patch attention, mean over heads.
        coords: (B, N, 2) float32, (row, column) of each token in its image plane.
        kind: (B, N) int8, `PATCH` or `NEWLINE`; `None` means that all are patches.
    """

    embeddings: jax.Array
    valid: jax.Array
    features: jax.Array | None = None
    saliency: jax.Array | None = None
    coords: jax.Array | None = None
    kind: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptContext:
    """The question as a method sees it.

    Attributes:
        text: (B, M, d), rows of the LLM's input embedding table, one for each noun token.
        text_valid: (B, M) bool, False for padding; a row without any valid entry has no noun.
    """

    text: jax.Array
    text_valid: jax.Array
