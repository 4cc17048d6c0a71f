"""What a pruning method is given and what it must be: the contract between models and methods."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Protocol

import jax
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.selection import Selection

PATCH, NEWLINE = 0, 1
"""Values of `VisualTokens.kind`."""

Stage = Literal["encoder", "tokens", "decoder"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of a batch of images, ready to enter the LLM.

    Absent parts are `None`, so that XLA drops the work that would make them.

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


class Method(Protocol):
    """A pruning method: a frozen dataclass registered as a pytree.

    Float hyper-parameters are leaves, so that a sweep can vmap over them without compiling
    again; choices (rules, engines) are static. A field that may hold one entry for each row of the
    batch says so, `field(metadata={"per_row": True})`, and is padded with the batch. A method never
    touches batches, positions, caches or text: the model code owns these.

    A method that weighs tokens by the text has `relevance(visual, prompt) -> (B, N)`, which
    `LVLM.select` shows.
    """

    @property
    def stage(self) -> Stage:
        """Where the tokens leave: in the vision encoder, before the LLM, or inside it."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """Optional inputs it reads: names of `VisualTokens` fields, and "text"."""
        ...

    def select(
        self,
        visual: VisualTokens,
        prompt: PromptContext,
        keep: int,
        *,
        limit: jax.Array | None = None,
        tolerance: jax.Array | None = None,
    ) -> Selection:
        """Choose at most `keep` (static) tokens a row; `limit` (B,) is each row's own budget."""
        ...


def rows_of(method: Any) -> int:
    """For how many rows a method has settings; 1 where they are for all rows."""
    own = [getattr(method, f.name) for f in fields(method) if f.metadata.get("per_row")]
    return max((np.shape(value)[0] for value in own if np.ndim(value)), default=1)


def for_rows(method: Any, rows: int, size: int) -> Any:
    """A method whose settings a row are padded with the batch, as every other array is.

    Args:
        method: with settings for all rows, or for each.
        rows: B, real rows.
        size: rows of the batch; those beyond B repeat row 0.

    Raises:
        CallError: a setting with entries for another number of rows.
    """
    padded = {}
    for field in fields(method):
        value = getattr(method, field.name)
        if not field.metadata.get("per_row") or np.ndim(value) == 0:
            continue
        count = np.shape(value)[0]
        if count != rows:
            raise CallError(
                f"{field.name} has {count} entries for {rows} prompts: give one for all, or one"
                " for each"
            )
        which = np.where(np.arange(size) < rows, np.arange(size), 0)
        padded[field.name] = np.asarray(value)[which]
    return replace(method, **padded) if padded else method
