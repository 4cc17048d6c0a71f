"""Prefill with drops: segments of layers, each with its own tokens and its own cache.

Layers in front of a drop work on all tokens, those behind it on what is left. No layer runs twice:
what a method sees is computed beside the layers, for the rows that it needs.

Shapes: B rows, S slots of a segment, N of its visual tokens, M of the text behind them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from resprune_jax.methods.base import without_padding
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import PromptContext, VisualTokens
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.decoder.views import Segment, compact, layer_view, take
from resprune_jax.selection import Selection


@dataclass(frozen=True)
class Stop:
    """The static shape of a drop.

    Attributes:
        before: the first layer behind it.
        picks: slots of the tokens that stay.
        merged: slots of those that enter.
    """

    before: int
    picks: int
    merged: int = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dropped:
    """What the drops of a prefill decided.

    Attributes:
        selection: of the last drop, numbers of the prompt's own visual tokens in order of choice.
        kept: (B, N) bool, the visual tokens that went through the last layer.
        left: (D, B) int32, visual tokens behind each drop, merged ones included.
        broken: () bool, a keep list was none: see `Method.order`.
        failed: (B,) bool, a drop could not judge the row's tokens. Its selection does not say so:
            it may hold none of the prompt's own tokens where merged ones stayed.
    """

    selection: Selection
    kept: jax.Array
    left: jax.Array
    broken: jax.Array
    failed: jax.Array


def prefill(
    lm: CausalLM,
    segment: Segment,
    optional: VisualTokens,
    full: jax.Array,
    limits: jax.Array,
    method: DecoderMethod,
    *,
    stops: Sequence[Stop],
    room: int,
    slots: int,
) -> tuple[Segment, jax.Array, tuple[KVCache, ...], tuple[jax.Array, ...], Dropped]:
    """Run the language model over whole prompts, dropping tokens on the way.

    Args:
        lm: the model.
        segment: the prompts in front of layer 0.
        optional: the optional parts of the visual tokens that the method reads; embeddings are not
            read.
        full: (B,) bool, rows that keep all.
        limits: (D, B) int32, what each drop leaves of each row, merged tokens not counted.
        method: decides.
        stops: D of them, ascending.
        room: slots for the text.
        slots: for the answer, in every segment's cache.

    Returns:
        (the last segment, its states (B, S, d) after the final norm, the caches, for each of them
        the position of the first generated token (B,), what was decided).
    """
    decoder = lm.language_model
    config = decoder.config
    memory = _begin(method, segment, optional, room)
    caches, following, left = [], [segment.following], []
    broken, failed = jnp.array(False), jnp.zeros_like(full)
    tokens = optional.valid.shape[1]
    selection = Selection(
        jnp.zeros((len(full), 0), jnp.int32), None, jnp.zeros_like(full, jnp.int32)
    )
    start = 0
    with jax.named_scope("language_model"):
        for number, stop in enumerate([*(stop.before for stop in stops), config.num_layers]):
            x, size = segment.x, segment.x.shape[1]
            cache = KVCache.zeros(
                config, len(x), size + slots, dtype=x.dtype, start=start, stop=stop
            )
            given: dict[str, Any] = {"valid": segment.valid, "slot": 0, "padded_behind": True}
            x, filled = decoder.run_layers(
                x, segment.positions, cache=cache, start=start, stop=stop - 1, **given
            )
            entered = x  # the last layer's input: what its queries are made of
            x, filled = decoder.run_layers(
                x, segment.positions, cache=filled, start=stop - 1, stop=stop, **given
            )
            assert filled is not None  # a cache went in
            caches.append(filled)
            segment, start = replace(segment, x=x), stop
            if number == len(stops):
                break
            image, prompt = layer_view(
                decoder, segment, entered, filled, optional, method.needs, memory, room=room
            )
            own = stops[number]
            with jax.named_scope(f"drop_{stop}"):
                selection, chosen, wrong = _choose(
                    method, image, prompt, full, limits[number], own.picks
                )
                failed = failed | (~full & (selection.count == 0))
                new = None
                if method.merges:
                    new = _merge(method, image, prompt, chosen, full, own.merged)
                    room_for = jnp.all(new[1] <= own.merged)
                    wrong = wrong | ~room_for
                selection = _of_prompt(selection, segment)
                segment = leave(segment, chosen, room, own.picks, new, method.positions)
            broken = broken | wrong
            left.append(segment.visual)
            following.append(segment.following)
        kept = _named(segment.original, tokens)
        dropped = Dropped(selection, kept, jnp.stack(left), broken, failed)
        return segment, decoder.norm(x), tuple(caches), tuple(following), dropped


def _of_prompt(selection: Selection, segment: Segment) -> Selection:
    """A selection by the prompt's own visual tokens; those merged of others are not named."""
    own = take(segment.original, selection.indices, segment.tokens)
    order = jnp.argsort(own == segment.tokens, axis=1, stable=True)
    own = jnp.take_along_axis(own, order, axis=1)
    return Selection(own, None, jnp.sum(own < segment.tokens, axis=1, dtype=jnp.int32))


def _begin(method: DecoderMethod, segment: Segment, optional: VisualTokens, room: int) -> Any:
    """What the method remembers of the prompts in front of layer 0."""
    places, text = segment.visual_places(), segment.text_places(room)
    size = segment.x.shape[1]
    image = replace(
        optional, embeddings=take(segment.x, places, 0), valid=places < size, layer=None
    )
    prompt = PromptContext(take(segment.x, text, 0), text < size)
    return jax.vmap(lambda one, own: method.begin(*without_padding(one, own)))(image, prompt)


def _choose(
    method: DecoderMethod,
    image: VisualTokens,
    prompt: PromptContext,
    full: jax.Array,
    limit: jax.Array,
    picks: int,
) -> tuple[Selection, jax.Array, jax.Array]:
    """(the method's selection among the present tokens, who stays (B, N), whether it is none)."""
    made = method.select(image, prompt, picks, limit=limit)
    chosen = made.mask(image.valid.shape[1]) & image.valid
    beyond = (made.count > limit) | (jnp.sum(chosen, axis=1) != made.count)
    return made, jnp.where(full[:, None], image.valid, chosen), jnp.any(beyond)


def _merge(
    method: DecoderMethod,
    image: VisualTokens,
    prompt: PromptContext,
    chosen: jax.Array,
    full: jax.Array,
    room: int,
) -> tuple[jax.Array, jax.Array]:
    """The rows that enter (B, C, d), and how many (B,)."""
    rows, count = jax.vmap(
        lambda one, own, kept: method.merged(*without_padding(one, own), kept, room)
    )(image, prompt, chosen)
    return rows, jnp.where(full, 0, count)


def leave(
    segment: Segment,
    chosen: jax.Array,
    room: int,
    picks: int,
    new: tuple[jax.Array, jax.Array] | None,
    positions: str,
) -> Segment:
    """The sequence behind a drop: text in front, kept tokens, those that enter, text behind.

    Args:
        segment: in front of it.
        chosen: (B, N) bool.
        room: slots for the text.
        picks: slots for the kept tokens.
        new: rows that enter (B, C, d), and how many of them are real (B,).
        positions: "original" or "reindex".
    """
    batch, size = segment.number.shape
    visual = segment.number >= 0
    stays = jnp.take_along_axis(chosen, jnp.maximum(segment.number, 0), axis=1)
    keep = segment.valid & (~visual | stays)  # [B, S]
    x, number, places = segment.x, segment.number, segment.positions
    original = take(segment.original, compact(chosen, picks)[0], segment.tokens)
    length = room + picks
    if new is not None:
        # The rows that enter lie behind the last visual one, as slots of their own.
        rows, count = new
        added = rows.shape[1]
        length += added
        slot = jnp.arange(size + added)
        last = jnp.max(jnp.where(visual, slot[:size], -1), axis=1, keepdims=True)  # [B, 1]
        # The order of slots: up to the last visual one, then the new ones, then the others.
        order = jnp.where(slot < size, slot * 2, last * 2 + 1)
        order = jnp.argsort(order, axis=1, stable=True)
        real = jnp.arange(added) < count[:, None]
        keep = jnp.take_along_axis(jnp.concatenate([keep, real], axis=1), order, axis=1)
        x = jnp.concatenate([x, rows.astype(x.dtype)], axis=1)
        x = jnp.take_along_axis(x, order[..., None], axis=1)
        number = jnp.concatenate([number, jnp.zeros((batch, added), number.dtype)], axis=1)
        number = jnp.take_along_axis(number, order, axis=1)
        places = jnp.pad(places, ((0, 0), (0, added)))  # read by nobody: they count anew
        original = jnp.pad(original, ((0, 0), (0, added)), constant_values=segment.tokens)
    index, count = compact(keep, length)
    here = take(number, index, -1) >= 0
    number = jnp.where(here, jnp.cumsum(here, axis=1, dtype=jnp.int32) - 1, -1)
    following = segment.following
    if positions == "reindex":
        places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), index.shape)
        following = count
    else:
        places = take(places, index, 0)
    return replace(
        segment, x=take(x, index, 0), positions=places, count=count, number=number,
        original=original, following=following,
    )  # fmt: skip


def _named(original: jax.Array, tokens: int) -> jax.Array:
    """Which of `tokens` (B, tokens) bool are named."""
    empty = jnp.zeros((len(original), tokens), bool)
    return jax.vmap(lambda row, at: row.at[at].set(True, mode="drop"))(empty, original)
