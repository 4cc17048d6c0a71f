"""What a pruning method is, and everything that all of them share.

A method holds its own rule and nothing else: scores, or an order of choice, for one image. Batches,
padding, each row's limit, failed rows and the keep list are made of that here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from resprune_jax.choices import TextSource
from resprune_jax.errors import CallError, shown
from resprune_jax.selection import Selection

from .inputs import (
    LAYER_NEEDS,
    NEEDS,
    NEWLINE,
    OPTIONAL,
    PATCH,
    PromptContext,
    VisualTokens,
)

FAILED = -1
"""What an order begins with where the image cannot be judged."""

Stage = Literal["encoder", "tokens", "decoder"]
"""Where tokens leave: in the vision encoder, before the LLM, or inside it."""


@dataclass(frozen=True)
class Method:
    """A pruning method: subclass it as a frozen dataclass registered as a pytree.

    Float hyper-parameters are leaves, so that a sweep can vmap over them without compiling again;
    choices are static. A field that may hold one entry for each row of the batch says so,
    `field(metadata={"per_row": True})`, and is padded with the batch. A method never touches
    batches, positions, caches or text: the model code owns these.

    Write `scores` where the tokens with the highest scores are kept, else `order`. `stage`, `needs`
    and the other declarations are plain class attributes without an annotation (an annotated one
    would be a field of the dataclass).

    A method that weighs tokens by the text may have `relevance(visual, prompt) -> (B, N)`, which
    `LVLM.select` shows.

    Attributes:
        stage: where the tokens leave.
        needs: optional inputs that it reads, from `inputs.NEEDS`; what is named is there.
        text: what it reads of a question where the call leaves that open, a `TextSource`.
        nested: whether a smaller budget keeps the first tokens of a larger one, in order of choice.
        measures_energy: whether its selections hold residual energies, which `tolerance` reads.
        instead: for parts of `needs`, what to do on a model that does not have them.
        source: where the rule is from: the paper, and the repository where its code is followed.
    """

    @property
    def needs(self) -> frozenset[str]:
        """See the class."""
        return frozenset()

    stage: ClassVar[Stage] = "tokens"

    @property
    def budgeted(self) -> bool:
        """Whether its settings say how many tokens stay, so that a call gives no `keep`."""
        return False

    nested = True
    text: ClassVar[TextSource] = "nouns"
    measures_energy = False
    source = ""
    instead: ClassVar[Mapping[str, str]] = MappingProxyType({})

    def scores(self, image: VisualTokens, prompt: PromptContext) -> jax.Array:
        """How much each token of one image is wanted.

        Args:
            image: fields without their axis B; padding is 0.
            prompt: likewise.

        Returns:
            (N,) float; the highest are kept, the lowest index on a tie.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither scores nor an order")

    def order(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> jax.Array:
        """The tokens of one image in the order of choice.

        Args:
            image: fields without their axis B; padding is 0.
            prompt: likewise.
            keep: K, static, the most that any row keeps; at most N.
            limit: () int32, what this image may keep; only a method that is not `nested` reads it.

        Returns:
            (K,) int32, every entry another valid token; those from `limit` on are not read. N from
            where nothing is left to keep.
        """
        return highest(self.scores(image, prompt), image.valid, keep)

    def select(
        self,
        visual: VisualTokens,
        prompt: PromptContext,
        keep: int,
        *,
        limit: jax.Array | None = None,
        tolerance: jax.Array | None = None,
    ) -> Selection:
        """Choose tokens for a batch.

        Args:
            visual: B rows.
            prompt: likewise.
            keep: static, the most tokens a row.
            limit: (B,) int32, each row's own budget; default `keep`.
            tolerance: () or (B,), the share of residual energy to stop at, for methods that measure
                it.

        Returns:
            A `Selection` of B rows; a row whose tokens or scores are not finite keeps none.
        """
        size, most = visual.valid.shape
        keep = min(keep, most)
        limit = jnp.full(size, keep, jnp.int32) if limit is None else limit
        rows = _settings_of_rows(self)
        parts = frozenset(self.needs) & {"features", "saliency"}

        def one(
            settings: dict[str, Any], image: VisualTokens, prompt: PromptContext, limit: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            method = replace(self, **settings) if settings else self
            image, prompt = without_padding(image, prompt)
            limit = jnp.clip(limit, 0, jnp.minimum(keep, jnp.sum(image.valid, dtype=jnp.int32)))
            order = jnp.asarray(method.order(image, prompt, keep, limit), jnp.int32)
            if order.shape != (keep,):
                who = type(self).__name__
                raise CallError(f"the order of {who} has shape {order.shape}, expected ({keep},)")
            there = jnp.sum(jnp.cumprod(order < most, dtype=jnp.int32), dtype=jnp.int32)
            read = [getattr(image, part) for part in ("embeddings", *sorted(parts))]
            fine = [jnp.all(jnp.isfinite(values)) for values in read if values is not None]
            failed = ~jnp.all(jnp.stack(fine)) | (order[0] == FAILED)
            count = jnp.where(failed, 0, jnp.minimum(limit, there))
            return jnp.where(jnp.arange(keep) < count, order, most), count

        order, count = jax.vmap(one)(rows, visual, prompt, limit)
        return Selection(order, None, count)


def highest(scores: jax.Array, valid: jax.Array, keep: int) -> jax.Array:
    """The tokens with the highest scores, best first, the lowest index on a tie.

    Args:
        scores: (N,) float.
        valid: (N,) bool, the tokens that may be named.
        keep: K, at most N.

    Returns:
        (K,) int32: first valid tokens; all `FAILED` where a valid one's score is not finite.
    """
    open_ = jnp.where(valid, scores.astype(jnp.float32), -jnp.inf)
    _, order = lax.top_k(open_, keep)
    fine = jnp.all(jnp.isfinite(scores) | ~valid)
    return jnp.where(fine, order, FAILED).astype(jnp.int32)


def without_padding(
    image: VisualTokens, prompt: PromptContext
) -> tuple[VisualTokens, PromptContext]:
    """One image and its question with 0 in place of padding, which may hold anything."""

    def clear(values: jax.Array, real: jax.Array) -> jax.Array:
        return jnp.where(real.reshape(-1, *(1,) * (values.ndim - 1)), values, 0)

    given = {name: getattr(image, name) for name in ("embeddings", *OPTIONAL)}
    cleared: dict[str, Any] = {
        name: clear(x, image.valid) for name, x in given.items() if x is not None
    }
    text = clear(prompt.text, prompt.text_valid)
    return replace(image, **cleared), replace(prompt, text=text)


def check_method(method: Any) -> None:
    """Refuse what cannot be a method, before anything runs.

    Raises:
        CallError: no instance of such a class, or declarations that mean nothing.
    """
    if not isinstance(method, Method):
        raise CallError(f"a method is an instance such as ResPrune(), got {shown(method)}")
    name = type(method).__name__
    if "__dataclass_fields__" not in vars(type(method)) or jax.tree_util.all_leaves([method]):
        raise CallError(
            f"{name} must be a frozen dataclass and a pytree: put @jax.tree_util.register_dataclass"
            " and @dataclass(frozen=True) in front of it"
        )
    if method.stage not in get_args(Stage):
        raise CallError(
            f"{name}.stage is {shown(method.stage)}: choose of {', '.join(get_args(Stage))}"
        )
    unknown = sorted(map(str, set(method.needs) - NEEDS))
    if unknown:
        raise CallError(
            f"{name}.needs names {', '.join(unknown)}, which no model gives: choose of"
            f" {', '.join(sorted(NEEDS))}"
        )
    inside = sorted(set(method.needs) & LAYER_NEEDS)
    if inside and method.stage != "decoder":
        raise CallError(
            f"{name}.needs names {', '.join(inside)}, which only a method inside the decoder sees:"
            f" write a subclass of DecoderMethod (stage decoder, not {method.stage})"
        )
    own = [getattr(type(method), rule) for rule in ("scores", "order", "select")]
    if own == [Method.scores, Method.order, Method.select]:
        raise CallError(f"{name} decides nothing: write its scores, or its order")


def _settings_of_rows(method: Any) -> dict[str, Any]:
    """The settings that a method has for each row, by name."""
    own = {f.name: getattr(method, f.name) for f in fields(method) if f.metadata.get("per_row")}
    return {name: value for name, value in own.items() if np.ndim(value)}


def rows_of(method: Any) -> int:
    """For how many rows a method has settings; 1 where they are for all rows."""
    return max((np.shape(value)[0] for value in _settings_of_rows(method).values()), default=1)


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
    for name, value in _settings_of_rows(method).items():
        count = np.shape(value)[0]
        if count != rows:
            raise CallError(
                f"{name} has {count} entries for {rows} prompts: give one for all, or one for each"
            )
        which = np.where(np.arange(size) < rows, np.arange(size), 0)
        padded[name] = np.asarray(value)[which]
    return replace(method, **padded) if padded else method


__all__ = [
    "NEEDS",
    "NEWLINE",
    "OPTIONAL",
    "PATCH",
    "Method",
    "PromptContext",
    "Stage",
    "VisualTokens",
    "check_method",
    "for_rows",
    "highest",
    "rows_of",
]
