"""From embeddings to tokens: prompt assembly, prefill and decode, each one compiled function.

Every function here is pure and jitted by `programs`; shapes come from `buckets.py`, so a second
call inside the same buckets compiles nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from resprune_jax.methods import Method, PromptContext, VisualTokens
from resprune_jax.models.cache import KVCache
from resprune_jax.models.config import LlavaConfig
from resprune_jax.models.llava import Llava
from resprune_jax.selection import Selection

Positions = Literal["reindex", "original"]
"""Position ids after pruning: consecutive again (LLaVA's way), or those of the unpruned prompt."""

EMPTY = -1
"""What the token buffer holds where nothing was generated."""


def compact(keep: jax.Array, length: int) -> tuple[jax.Array, jax.Array]:
    """Where each kept entry of a row goes when the others leave, order unchanged.

    Args:
        keep: (B, S) bool.
        length: P, the static length of the result, at least the longest row's count.

    Returns:
        (index (B, P) int32 into S, S where a row has ended; count (B,) int32).
    """
    batch, size = keep.shape
    target = jnp.where(keep, jnp.cumsum(keep, axis=1) - 1, length)  # [B, S]
    source = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), (batch, size))
    index = jnp.full((batch, length), size, jnp.int32)
    index = jax.vmap(lambda row, at, what: row.at[at].set(what, mode="drop"))(index, target, source)
    return index, jnp.sum(keep, axis=1, dtype=jnp.int32)


def _take(values: jax.Array, index: jax.Array, fill: int) -> jax.Array:
    """values (B, S) at index (B, P), `fill` where the index lies outside."""
    return jnp.take_along_axis(values, index, axis=1, mode="fill", fill_value=fill)


def assemble(
    model: Llava,
    ids: jax.Array,
    visual_index: jax.Array,
    valid: jax.Array,
    embeddings: jax.Array,
    kept: jax.Array,
    *,
    length: int,
    positions: Positions,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Input embeddings of the pruned prompts: text and kept visual tokens in prompt order.

    Args:
        model: for its embedding table.
        ids: (B, S) int32, the unpruned prompts, right padded, one id for each visual token.
        visual_index: (B, S) int32, which visual token of the row stands here, -1 for text.
        valid: (B, S) bool.
        embeddings: (B, N, d), the row's visual tokens.
        kept: (B, N) bool, which of them stay.
        length: P, static.
        positions: how position ids are counted.

    Returns:
        (x (B, P, d), position ids (B, P) int32, count (B,) int32), rows right padded.
    """
    visual = visual_index >= 0
    stays = jnp.take_along_axis(kept, jnp.maximum(visual_index, 0), axis=1)  # [B, S]
    index, count = compact(valid & (~visual | stays), length)
    at = _take(visual_index, index, -1)  # [B, P]
    text = model.embed(_take(ids, index, 0))  # [B, P, d]
    chosen = jnp.take_along_axis(embeddings, jnp.maximum(at, 0)[..., None], axis=1)
    x = jnp.where((at >= 0)[..., None], chosen.astype(text.dtype), text)
    places = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), index.shape)
    return x, places if positions == "reindex" else index, count


def choose(
    logits: jax.Array,
    rng: jax.Array,
    step: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    *,
    greedy: bool,
) -> jax.Array:
    """The next token of every row: the most likely, or drawn from the nucleus of mass `top_p`.

    Args:
        logits: (B, V) float32.
        rng: a random key; each row and step draws from its own fold of it.
        step: () int32.
        temperature: () float32, above 0.
        top_p: () float32 in (0, 1]; tokens beyond that cumulative probability are left out, the
            most likely one always stays.
        greedy: static; ignores the four above.

    Returns:
        (B,) int32.
    """
    if greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(row: jax.Array, scores: jax.Array) -> jax.Array:
        order = jnp.argsort(-scores)
        ranked = scores[order] / temperature
        probability = jax.nn.softmax(ranked)
        before = jnp.cumsum(probability) - probability
        ranked = jnp.where((before < top_p).at[0].set(True), ranked, -jnp.inf)
        return order[jax.random.categorical(jax.random.fold_in(row, step), ranked)]

    rows = jax.vmap(partial(jax.random.fold_in, rng))(jnp.arange(logits.shape[0]))
    return jax.vmap(draw)(rows, logits).astype(jnp.int32)


@dataclass(frozen=True)
class Programs:
    """The compiled functions of one architecture; `state` is the split parameters of the model.

    Attributes:
        encode: (state, pixels (B, 3, H, W)) -> VisualTokens.
        prune: (state, visual, rows (B,), noun ids (B, M), noun valid (B, M), full (B,), limit (B,),
            tolerance (), method, *, keep) -> (Selection, kept (B, N)).
        prefill: (state, ids, visual_index, valid, rows, visual, kept, *, length, slots, positions)
            -> (logits (B, V) float32 of each row's last token, cache, next position (B,)).
        decode: (state, cache, logits, position, last (), eos (E,), rng_seed (), temperature (),
            top_p (), *, slots, greedy) -> (tokens (B, slots + 1), cache); the cache is donated
            and returned, so that it is updated where it lies.
        score: as `prefill` without slots -> (logits (B, P, V) float32, valid (B, P)).
    """

    encode: Callable[..., VisualTokens]
    prune: Callable[..., tuple[Selection, jax.Array]]
    prefill: Callable[..., tuple[jax.Array, KVCache, jax.Array]]
    decode: Callable[..., tuple[jax.Array, KVCache]]
    score: Callable[..., tuple[jax.Array, jax.Array]]


@lru_cache(maxsize=8)
def programs(config: LlavaConfig, dtype: jnp.dtype) -> Programs:
    """The jitted functions for an architecture and dtype, shared by every model that has them."""
    abstract = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph = nnx.graphdef(abstract)

    def model(state: Any) -> Llava:
        return nnx.merge(graph, state)

    @jax.jit
    def encode(state: Any, pixels: jax.Array) -> VisualTokens:
        return model(state).encode_images(pixels, saliency=True)

    @partial(jax.jit, static_argnames=("keep",))
    def prune(
        state: Any,
        visual: VisualTokens,
        rows: jax.Array,
        noun_ids: jax.Array,
        noun_valid: jax.Array,
        full: jax.Array,
        limit: jax.Array,
        tolerance: jax.Array,
        method: Method,
        *,
        keep: int,
    ) -> tuple[Selection, jax.Array]:
        visual = jax.tree.map(lambda x: x[rows], visual)
        prompt = PromptContext(model(state).embed(noun_ids), noun_valid)
        selection = method.select(visual, prompt, keep, limit=limit, tolerance=tolerance)
        chosen = selection.mask(visual.valid.shape[1])
        return selection, jnp.where(full[:, None], visual.valid, chosen)

    @partial(jax.jit, static_argnames=("length", "slots", "positions"))
    def prefill(
        state: Any,
        ids: jax.Array,
        visual_index: jax.Array,
        valid: jax.Array,
        rows: jax.Array,
        visual: VisualTokens,
        kept: jax.Array,
        *,
        length: int,
        slots: int,
        positions: Positions = "reindex",
    ) -> tuple[jax.Array, KVCache, jax.Array]:
        llava = model(state)
        x, places, count = assemble(
            llava, ids, visual_index, valid, visual.embeddings[rows], kept,
            length=length, positions=positions,
        )  # fmt: skip
        real = jnp.arange(length) < count[:, None]
        hidden, cache = llava.prefill(x, places, real, length + slots)
        last = (count - 1)[:, None]
        final = jnp.take_along_axis(hidden, last[..., None], axis=1)  # [B, 1, d]
        logits = llava.project_logits(final)[:, 0].astype(jnp.float32)
        return logits, cache, jnp.take_along_axis(places, last, axis=1)[:, 0] + 1

    @partial(jax.jit, static_argnames=("slots", "greedy"), donate_argnames=("cache",))
    def decode(
        state: Any,
        cache: KVCache,
        logits: jax.Array,
        position: jax.Array,
        last: jax.Array,
        eos: jax.Array,
        rng_seed: jax.Array,
        temperature: jax.Array,
        top_p: jax.Array,
        *,
        slots: int,
        greedy: bool,
    ) -> tuple[jax.Array, KVCache]:
        llava = model(state)
        rng = jax.random.key(rng_seed)
        start = cache.length - slots  # prompt slots come first
        pick = partial(choose, rng=rng, temperature=temperature, top_p=top_p, greedy=greedy)
        ends = partial(jnp.isin, test_elements=eos)

        first = pick(logits, step=jnp.int32(0))
        buffer = jnp.full((logits.shape[0], slots + 1), EMPTY, jnp.int32).at[:, 0].set(first)

        def unfinished(carry: Any) -> jax.Array:
            step, _, done, *_ = carry
            return (step < last) & ~jnp.all(done)

        def advance(carry: Any) -> Any:
            step, token, done, buffer, cache = carry
            hidden, cache = llava.decode_step(
                llava.embed(token[:, None]),
                (position + step - 1)[:, None],
                start + step - 1,
                cache,
            )
            scores = llava.project_logits(hidden)[:, 0].astype(jnp.float32)
            token = pick(scores, step=step)
            buffer = buffer.at[:, step].set(jnp.where(done, EMPTY, token))
            return step + 1, token, done | ends(token), buffer, cache

        carry = (jnp.int32(1), first, ends(first), buffer, cache)
        *_, buffer, cache = lax.while_loop(unfinished, advance, carry)
        return buffer, cache

    @partial(jax.jit, static_argnames=("length", "positions"))
    def score(
        state: Any,
        ids: jax.Array,
        visual_index: jax.Array,
        valid: jax.Array,
        rows: jax.Array,
        visual: VisualTokens,
        kept: jax.Array,
        *,
        length: int,
        positions: Positions = "reindex",
    ) -> tuple[jax.Array, jax.Array]:
        llava = model(state)
        x, places, count = assemble(
            llava, ids, visual_index, valid, visual.embeddings[rows], kept,
            length=length, positions=positions,
        )  # fmt: skip
        real = jnp.arange(length) < count[:, None]
        return llava.project_logits(llava.forward(x, places, real)).astype(jnp.float32), real

    return Programs(encode, prune, prefill, decode, score)
