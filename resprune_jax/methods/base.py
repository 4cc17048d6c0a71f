"""What a pruning method is, and everything that all of them share.

A method holds its own rule and nothing else: scores, or an order of choice, for one image. Batches,
padding, each row's limit, failed rows and the keep list are made of that here.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from resprune_jax.choices import ClipText, TextSource
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
from .settings import for_rows, rows_of, settings_of_rows

FAILED = -1
"""What an order begins with where the image cannot be judged."""

Stage = Literal["pixels", "encoder", "tokens", "decoder"]
"""Where tokens leave: before the vision encoder (a smaller picture, see `Family.read_smaller`), in
it, before the LLM, or inside it."""

Merges = Literal["", "features", "embeddings", "states"]
"""What a method's merged rows are: none, in front of the projector, behind it, or, where tokens
leave inside the decoder, hidden states (see `DecoderMethod.merged`)."""

Sequence = Literal["image", "listed"]
"""Where merged rows stand: each at its own token's place, or one after the other as listed."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Merged:
    """What one image becomes where tokens are merged.

    Attributes:
        order: (K,) int32, the token that each row stands for; N for none (a mean of what was
            dropped). Entries from `count` on are not read.
        rows: (K, w), what enters the LLM, or the projector in front of it: see `Method.merges`.
        count: () int32, how many rows there are, at most the limit and `Method.beside` together.
    """

    order: jax.Array
    rows: jax.Array
    count: jax.Array


@dataclass(frozen=True)
class Method:
    """A pruning method: subclass it as a frozen dataclass registered as a pytree.

    Float hyper-parameters are leaves, so that a sweep can vmap over them without compiling again;
    choices are static. A field that may hold one entry for each row of the batch says so,
    `field(metadata={"per_row": True})`, and is padded with the batch. A method never touches
    batches, positions, caches or text: the model code owns these.

    Write `scores` where the tokens with the highest scores are kept, else `order`, and `merge`
    where rows are made of several tokens. `stage`, `needs` and the other declarations are plain
    class attributes without an annotation (an annotated one would be a field of the dataclass).

    A method that weighs tokens by the text may have `relevance(visual, prompt) -> (B, N)`, which
    `LVLM.select` shows.

    Attributes:
        stage: where the tokens leave.
        needs: optional inputs that it reads, from `inputs.NEEDS`; what is named is there.
        text: what it reads of a question where the call leaves that open, a `TextSource`.
        clip_text: what CLIP reads where `needs` names "clip_text", see `ClipText`.
        nested: whether a smaller budget keeps the first tokens of a larger one, in order of choice.
        measures_energy: whether its selections hold residual energies, which `tolerance` reads.
        merges: what the rows of its `merge` are; "" for a method that leaves tokens as they are.
            A property where that depends on settings.
        sequence: where these rows stand. "listed" is for models that count positions through.
        by_image: whether it works on one image at a time, so that images of a prompt cannot share a
            budget; by default those that merge do.
        beside: rows that it adds to every budget (TRIM's mean of what was dropped).
        instead: for parts of `needs`, what to do on a model that does not have them; of several
            that are missing the first here is told.
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

    @property
    def beside(self) -> int:
        """See the class."""
        return 0

    @property
    def makes_rows(self) -> bool:
        """Whether its `merge` makes what enters the LLM."""
        return self.merges in ("features", "embeddings")

    @property
    def by_image(self) -> bool:
        """See the class."""
        return self.makes_rows

    nested = True
    text: ClassVar[TextSource] = "nouns"
    clip_text: ClassVar[ClipText] = ""
    measures_energy = False

    @property
    def merges(self) -> Merges:
        """See the class."""
        return ""

    sequence: ClassVar[Sequence] = "image"
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

    def merge(
        self, image: VisualTokens, prompt: PromptContext, keep: int, limit: jax.Array
    ) -> Merged:
        """The rows that stand for one image, of a method that `merges`.

        Args:
            image: fields without their axis B; padding is 0.
            prompt: likewise.
            keep: K, static, the most rows of any image; at most N.
            limit: () int32, the budget of this image.

        Returns:
            K rows. Tokens of `order` are valid ones, each named once; where `sequence` is "image",
            none of the rows that count is without one.
        """
        raise NotImplementedError(f"{type(self).__name__} merges, and has no merge")

    def least(self, tokens: int, blocks: int) -> int:
        """The fewest rows that it can make of an image.

        Args:
            tokens: of the image.
            blocks: of the vision tower, those that run.
        """
        return 0

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
            limit: (B,) int32, each row's own budget; default `keep` without what is `beside` it.
            tolerance: () or (B,), the share of residual energy to stop at, for methods that measure
                it.

        Returns:
            A `Selection` of B rows; a row whose tokens or scores are not finite keeps none.
        """
        size, most = visual.valid.shape
        keep = min(keep, most)
        if limit is None:
            limit = jnp.full(size, max(keep - self.beside, 0), jnp.int32)
        rows = settings_of_rows(self)
        parts = frozenset(self.needs) & _NUMBERS

        def one(
            settings: dict[str, Any], image: VisualTokens, prompt: PromptContext, limit: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array | None]:
            method = replace(self, **settings) if settings else self
            image, prompt = without_padding(image, prompt)
            offered = jnp.sum(image.valid, dtype=jnp.int32)
            limit = jnp.clip(limit, 0, jnp.minimum(keep, offered))
            merged = None
            if method.makes_rows:
                made = method.merge(image, prompt, keep, limit)
                order, merged = jnp.asarray(made.order, jnp.int32), made.rows
                there = jnp.minimum(made.count, keep)
                limit = jnp.minimum(limit + method.beside, offered)
            else:
                order = jnp.asarray(method.order(image, prompt, keep, limit), jnp.int32)
                there = jnp.sum(jnp.cumprod(order < most, dtype=jnp.int32), dtype=jnp.int32)
            if order.shape != (keep,) or (merged is not None and len(merged) != keep):
                who = type(self).__name__
                raise CallError(f"the order of {who} has shape {order.shape}, expected ({keep},)")
            read = [getattr(image, part) for part in ("embeddings", *sorted(parts))]
            read.append(prompt.clip_text)
            fine = [jnp.all(jnp.isfinite(values)) for values in read if values is not None]
            failed = ~jnp.all(jnp.stack(fine)) | (order[0] == FAILED)
            count = jnp.where(failed, 0, jnp.minimum(limit, there))
            inside = jnp.arange(keep) < count
            if merged is not None:
                merged = jnp.where(inside[:, None], merged, 0)
            return jnp.where(inside, order, most), count, merged

        order, count, merged = jax.vmap(one)(rows, visual, prompt, limit)
        return Selection(order, None, count, merged)

    def missing(self) -> str:
        """What a method of these declarations must have and this one does not; "" for nothing."""
        if self.merges == "states":
            return "states are merged inside the decoder, by a subclass of DecoderMethod"
        if self.merges:
            own = self.writes("merge", "select")
            return "" if own else f"it merges {self.merges} and has no merge: write it"
        if self.writes("scores", "order", "select"):
            return ""
        return "it decides nothing: write its scores, its order, or a merge and what it merges"

    def writes(self, *names: str) -> bool:
        """Whether it has one of these functions of its own."""
        return any(getattr(type(self), name) is not getattr(Method, name) for name in names)

    def seats(self, selection: Selection, valid: jax.Array) -> jax.Array:
        """Where what was selected stands among an image's places: tokens that are no rows of their
        own making, each at its own.

        Args:
            selection: of B rows.
            valid: (B, N) bool, the places that the image has.

        Returns:
            (B, K) int32, N for rows that do not count.
        """
        most = valid.shape[1]
        if not self.makes_rows or self.sequence == "image":
            return selection.indices
        # A budget is at most what was offered: there are as many places as rows.
        places = jnp.argsort(~valid, axis=1, stable=True)[:, : selection.indices.shape[1]]
        inside = jnp.arange(places.shape[1]) < selection.count[:, None]
        return jnp.where(inside, places, most).astype(jnp.int32)


_NUMBERS = frozenset(OPTIONAL) - {"coords", "kind", "tile"}
"""Parts of which one that is not finite fails its row, where a method reads it."""


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
    prompt = replace(prompt, text=clear(prompt.text, prompt.text_valid))
    if prompt.clip_text is not None and prompt.clip_text_valid is not None:
        prompt = replace(prompt, clip_text=clear(prompt.clip_text, prompt.clip_text_valid))
    return replace(image, **cleared), prompt


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
    for own in fields(method):
        value = getattr(method, own.name)
        if isinstance(value, str) and not own.metadata.get("static"):
            raise CallError(
                f"{name}.{own.name} is text, which JAX cannot trace: declare it as"
                f' field(default={shown(value)}, metadata={{"static": True}})'
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
    if bool(method.clip_text) != ("clip_text" in method.needs) or (
        method.clip_text not in get_args(ClipText)
    ):
        raise CallError(
            f"{name}.clip_text is {shown(method.clip_text)}: where needs names clip_text it is"
            f" {' or '.join(get_args(ClipText)[1:])}, else empty"
        )
    if method.merges not in get_args(Merges) or method.sequence not in get_args(Sequence):
        raise CallError(
            f"{name}.merges is {shown(method.merges)} and its sequence {shown(method.sequence)}:"
            f" choose of {', '.join(map(repr, get_args(Merges)))}, and of"
            f" {', '.join(get_args(Sequence))}"
        )
    if missing := method.missing():
        raise CallError(f"{name} cannot run: {missing}")
    own = inspect.getattr_static(type(method), "merges")
    depends = isinstance(own, property) and own is not inspect.getattr_static(Method, "merges")
    if method.writes("merge") and not (depends or method.merges):
        raise CallError(f"{name} has a merge and merges nothing: say what its rows are, merges=...")


__all__ = [
    "NEEDS",
    "NEWLINE",
    "OPTIONAL",
    "PATCH",
    "Merged",
    "Method",
    "PromptContext",
    "Stage",
    "VisualTokens",
    "check_method",
    "for_rows",
    "highest",
    "rows_of",
]
