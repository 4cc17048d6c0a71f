"""From embeddings to tokens: prompt assembly, prefill and decode, each one compiled function.

Every function here is pure and jitted by `programs`; shapes come from `buckets.py`, so a second
call inside the same buckets compiles nothing. The decoder's programs see the length of the pruned
prompts alone: the sizes of images reach no further than `assemble`, which compiles in no time.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from resprune_jax.choices import Precision
from resprune_jax.engines.guard import telling
from resprune_jax.methods import Method, PromptContext, VisualTokens
from resprune_jax.methods.base import NEWLINE
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.models.checkpoint.formats import ModelConfig
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.decoder.drops import Dropped, Stop
from resprune_jax.models.decoder.drops import prefill as prefill_with_drops
from resprune_jax.models.decoder.views import Segment, compact, take, words_behind
from resprune_jax.models.families.registry import module_class
from resprune_jax.models.prompts.options import Newline, Positions
from resprune_jax.models.running.precision import computed_in
from resprune_jax.models.running.processors import Past, Rules, choose, process
from resprune_jax.selection import Selection

Caches = tuple[KVCache, ...]

EMPTY = -1
"""What the token buffer holds where nothing was generated."""

BROKEN = -2
"""What it holds at the step whose scores are not finite; the row ends there."""

BEYOND, DOUBTFUL = 2**20, 2**24
"""What the verdict of `Programs.prune` holds beside a difference of counts."""


def judged(verdict: np.ndarray) -> tuple[bool, bool]:
    """What the verdict of `Programs.prune` says.

    Returns:
        (whether a keep list is none: beyond the limit, with a token twice or one that was not
        offered; whether rounding may have decided a pick, so that all is to be made again with the
        guard).
    """
    doubtful = (verdict + DOUBTFUL // 2) // DOUBTFUL  # the rest is far smaller, of either sign
    return bool((verdict != doubtful * DOUBTFUL).any()), bool(doubtful.any())


def of_rows(visual: VisualTokens, rows: jax.Array) -> VisualTokens:
    """The visual tokens of each prompt, (B, ...), of those of V rows of images; rows: (B,)."""
    if len(visual.valid) == 1:  # there is but one: nothing is to be found by its number
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*rows.shape, *x.shape[1:])), visual)
    return jax.tree.map(lambda x: x[rows], visual)


def assemble(
    model: CausalLM,
    ids: jax.Array,
    visual_index: jax.Array,
    valid: jax.Array,
    embeddings: jax.Array,
    kept: jax.Array,
    rope: Any,
    *,
    length: int,
    positions: Positions,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Input embeddings of the pruned prompts: text and kept visual tokens in prompt order.

    Args:
        model: for its embedding table and its rule of positions.
        ids: (B, S) int32, the unpruned prompts, right padded, one id for each visual token.
        visual_index: (B, S) int32, which visual token of the row stands here, -1 for text.
        valid: (B, S) bool.
        embeddings: (B, N, d), the row's visual tokens.
        kept: (B, N) bool, which of them stay.
        rope: the family's knowledge of the unpruned prompts' positions.
        length: P, static.
        positions: how position ids are counted.

    Returns:
        (x (B, P, d), position ids (B, P) or (B, P, 3) int32, count (B,) int32, the position of the
        first generated token (B,) int32), rows right padded.
    """
    visual = visual_index >= 0
    stays = jnp.take_along_axis(kept, jnp.maximum(visual_index, 0), axis=1)  # [B, S]
    keep = valid & (~visual | stays)
    index, count = compact(keep, length)
    at = take(visual_index, index, -1)  # [B, P]
    text = model.embed(take(ids, index, 0))  # [B, P, d]
    chosen = jnp.take_along_axis(embeddings, jnp.maximum(at, 0)[..., None], axis=1)
    x = jnp.where((at >= 0)[..., None], chosen.astype(text.dtype), text)
    places, following = model.place(rope, keep, index, count, reindex=positions == "reindex")
    return x, places, count, following


@dataclass(frozen=True)
class Programs:
    """The compiled functions of one architecture; `state` is `Runner.parameters` of the model.

    Those that only look words up take `Runner.words` in its place, the table by its place among the
    parameters: a call passes hundreds of arrays no quicker for not reading them.

    Attributes:
        encode: (state, inputs of the family, *, needs) -> VisualTokens, with those of `ON_REQUEST`
            that are named.
        prune: (state, visual, rows (B,), noun ids (B, M), noun valid (B, M), full (B,), limit (B,),
            tolerance (), method, owner, clip, *, keep, newline, guarded) -> (Selection, kept
            (B, N), verdict (B,) int32, embeddings (B, N, d) of the rows where tokens were merged,
            else None). With `owner` (B, N) int32, the image of each token, limits are (B, R), one
            for each image, and so are verdicts, and the selections (B, R, ...). `clip` is what
            `Clip.texts` gave, or None. What the verdict says reads `judged`. `guarded` puts doubts
            of rounding right inside, which is the default anywhere but on a GPU.
        weigh: (state, visual, rows (B,), noun ids (B, M), noun valid (B, M), method, clip) -> the
            text relevance (B, N) float32 that the method gates with.
        embed: (state, ids) -> their rows of the embedding table.
        assemble: (state, ids, visual_index, valid, rows, embeddings, kept, rope, *, length,
            positions) -> what `assemble` gives, for `prefill` and `score`.
        prefill: (state, x, position ids, count, *, slots) -> (logits (B, V) float32 of each row's
            last token, cache).
        drop: (state, x, position ids, count, following (B,), number (B, P), visual, rows (B,),
            owner (B, N), full (B,), limits (D, B), method, *, stops, room, slots, every) ->
            (logits (B, V), or (B, P', V) of `every` token, valid (B, P'), caches, following, what
            was decided): `prefill` or `score` with drops on the way, see `drops.prefill`.
        decode: (state, cache, logits, position, last (), eos (E,), rng_seed () or (B,),
            temperature (), top_p (), top_k () or None, min_p () or None, rules or None, begun or
            None, *, slots, greedy) -> (tokens (B, slots + 1), cache); the cache is donated and
            returned, so that it is updated where it lies. What is None is not in the program. Where
            layers hold different tokens, cache and position are tuples with an entry a segment.
            `begun` is what an earlier call gave and its `last`, with its cache: the tokens go on
            from there, as if that call had not stopped, and logits are None.
        score: (state, x, position ids, count) -> (logits (B, P, V) float32, valid (B, P)).
        words: which of the parameters `embed` reads.
    """

    encode: Callable[..., VisualTokens]
    prune: Callable[..., tuple[Selection, jax.Array, jax.Array, jax.Array | None]]
    weigh: Callable[..., jax.Array]
    embed: Callable[..., jax.Array]
    assemble: Callable[..., tuple[jax.Array, jax.Array, jax.Array, jax.Array]]
    prefill: Callable[..., tuple[jax.Array, KVCache]]
    drop: Callable[..., tuple[jax.Array, jax.Array, Caches, tuple[jax.Array, ...], Dropped]]
    decode: Callable[..., tuple[jax.Array, Any]]
    score: Callable[..., tuple[jax.Array, jax.Array]]
    words: tuple[int, ...]


@lru_cache(maxsize=8)
def programs(config: ModelConfig, dtype: jnp.dtype, precision: Precision | None = None) -> Programs:
    """The jitted functions of an architecture, shared by every model that has them.

    Args:
        config: the architecture.
        dtype: of its parameters.
        precision: of float32 products, from `resolve_precision`; `None`: the backend's default.
    """
    made = module_class(config)

    def jit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
        return lambda function: jax.jit(computed_in(precision, function), **options)

    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=dtype))
    graph, shapes = nnx.split(abstract)
    structure = jax.tree.structure(shapes)
    paths = jax.tree_util.tree_flatten_with_path(shapes)[0]
    words = tuple(
        place
        for place, (path, _) in enumerate(paths)
        if "embed_tokens" in jax.tree_util.keystr(path)
    )

    def model(state: Any) -> Any:
        # Arrays alone, or in the structure of `nnx.split`, which Python reads node by node in every
        # call; or some of them by their places, the others as shapes, which nothing can compute on.
        leaves = jax.tree.leaves(state)
        if isinstance(state, dict):
            leaves = [state.get(place, shape) for place, (_, shape) in enumerate(paths)]
        return nnx.merge(graph, jax.tree.unflatten(structure, leaves))

    @jit(static_argnames=("needs",))
    def encode(state: Any, inputs: Any, *, needs: frozenset[str] = frozenset()) -> VisualTokens:
        return model(state).visual_tokens(inputs, needs)

    @jit(static_argnames=("keep", "newline", "guarded"))
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
        owner: jax.Array | None = None,
        clip: tuple[jax.Array, jax.Array] | None = None,
        *,
        keep: int,
        newline: Newline = "candidate",
        guarded: bool | None = None,
    ) -> tuple[Selection, jax.Array, jax.Array, jax.Array | None]:
        guarded = jax.default_backend() != "gpu" if guarded is None else guarded
        visual = of_rows(visual, rows)
        lvlm = model(state)
        if "entering" in method.needs:
            visual = dataclasses.replace(visual, blocks=lvlm.vision_blocks)
        prompt = PromptContext(lvlm.embed(noun_ids), noun_valid, *(clip or ()))
        real = visual.valid
        always = jnp.zeros_like(real)
        if newline == "always" and visual.kind is not None:
            always = real & (visual.kind == NEWLINE)
        count = real.shape[1]

        def choose_among(
            candidates: jax.Array, limit: jax.Array
        ) -> tuple[Selection, jax.Array, jax.Array, jax.Array]:
            offered = dataclasses.replace(visual, valid=candidates)
            with contextlib.nullcontext() if guarded else telling():
                made = method.select(offered, prompt, keep, limit=limit, tolerance=tolerance)
            seats = method.seats(made, candidates)  # [B, K]
            chosen = dataclasses.replace(made, indices=seats).mask(count) & candidates
            marks = (made.count > limit + method.beside) * jnp.int32(BEYOND) - made.count
            if made.doubtful is not None:
                marks += made.doubtful * jnp.int32(DOUBTFUL)
            # The rest of the verdict is in the sum: behind it there is no kernel.
            verdict = jnp.sum(chosen + marks[:, None] * (jnp.arange(count) == 0), axis=1)
            return dataclasses.replace(made, doubtful=None), seats, chosen, verdict

        def seated(rows: Any, seats: jax.Array, embeddings: jax.Array) -> jax.Array:
            own = rows.astype(embeddings.dtype)  # [B, K, w]
            if method.merges == "features":
                own = lvlm.projector(own)
            return jax.vmap(lambda x, at, own: x.at[at].set(own, mode="drop"))(
                embeddings, seats, own
            )

        merged = visual.embeddings if method.makes_rows else None
        if owner is None:
            selection, seats, chosen, verdict = choose_among(real & ~always, limit)
            if merged is not None:
                merged = seated(selection.rows, seats, merged)
        else:
            each = []
            chosen, verdict = jnp.zeros_like(real), jnp.zeros_like(limit)
            for image in range(limit.shape[1]):
                there = limit[:, image] > 0
                own = real & ~always & (owner == image)
                # An image that a row does not have: any tokens will do, none of them stays.
                own = jnp.where(there[:, None], own, real)
                one, seats, its, wrong = choose_among(own, jnp.maximum(limit[:, image], 1))
                chosen |= its & there[:, None]
                if merged is not None:
                    placed = seated(one.rows, seats, merged)
                    merged = jnp.where(there[:, None, None], placed, merged)
                verdict = verdict.at[:, image].set(wrong)
                each.append(one)
            selection = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *each)
        if merged is not None:
            merged = jnp.where(full[:, None, None], visual.embeddings, merged)
        return selection, jnp.where(full[:, None], real, chosen | always), verdict, merged

    @jit()
    def weigh(
        state: Any,
        visual: VisualTokens,
        rows: jax.Array,
        noun_ids: jax.Array,
        noun_valid: jax.Array,
        method: Any,
        clip: tuple[jax.Array, jax.Array] | None = None,
    ) -> jax.Array:
        visual = of_rows(visual, rows)
        words = model(state).embed(noun_ids)
        return method.relevance(visual, PromptContext(words, noun_valid, *(clip or ())))

    @jit()
    def embed(state: Any, ids: jax.Array) -> jax.Array:
        return model(state).embed(ids)

    @jit(static_argnames=("length", "positions"))
    def lay_out(
        state: Any,
        ids: jax.Array,
        visual_index: jax.Array,
        valid: jax.Array,
        rows: jax.Array,
        embeddings: jax.Array,
        kept: jax.Array,
        rope: Any = None,
        *,
        length: int,
        positions: Positions = "reindex",
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        return assemble(
            model(state), ids, visual_index, valid, embeddings[rows], kept, rope,
            length=length, positions=positions,
        )  # fmt: skip

    @jit(static_argnames=("slots",))
    def prefill(
        state: Any, x: jax.Array, places: jax.Array, count: jax.Array, *, slots: int
    ) -> tuple[jax.Array, KVCache]:
        lvlm = model(state)
        real = jnp.arange(x.shape[1]) < count[:, None]
        hidden, cache = lvlm.prefill(x, places, real, x.shape[1] + slots)
        last = (count - 1)[:, None, None]
        final = jnp.take_along_axis(hidden, last, axis=1)  # [B, 1, d]
        return lvlm.project_logits(final)[:, 0].astype(jnp.float32), cache

    @jit(static_argnames=("stops", "room", "slots", "every"))
    def drop(
        state: Any,
        x: jax.Array,
        places: jax.Array,
        count: jax.Array,
        following: jax.Array,
        number: jax.Array,
        visual: VisualTokens,
        rows: jax.Array,
        owner: jax.Array,
        full: jax.Array,
        limits: jax.Array,
        method: DecoderMethod,
        *,
        stops: tuple[Stop, ...],
        room: int,
        slots: int,
        every: bool = False,
    ) -> tuple[jax.Array, jax.Array, Caches, tuple[jax.Array, ...], Dropped]:
        lvlm = model(state)
        visual = of_rows(visual, rows)
        tokens = visual.valid.shape[1]
        own = jnp.arange(tokens, dtype=jnp.int32)
        there = own < jnp.sum(number >= 0, axis=1, keepdims=True)
        segment = Segment(
            x, places, count, number, jnp.where(there, own, tokens), following, owner,
            words_behind(number, count), tokens,
        )  # fmt: skip
        segment, hidden, caches, next_, dropped = prefill_with_drops(
            lvlm, segment, visual, full, limits, method, stops=stops, room=room, slots=slots
        )
        if not every:
            hidden = take(hidden, (segment.count - 1)[:, None], 0)[:, 0]  # [B, d]
        logits = lvlm.project_logits(hidden).astype(jnp.float32)
        return logits, segment.valid, caches, next_, dropped

    @jit(static_argnames=("slots", "greedy"), donate_argnames=("cache",))
    def decode(
        state: Any,
        cache: KVCache | Caches,
        logits: jax.Array | None,
        position: jax.Array | tuple[jax.Array, ...],
        last: jax.Array,
        eos: jax.Array,
        rng_seed: jax.Array,
        temperature: jax.Array,
        top_p: jax.Array,
        top_k: jax.Array | None = None,
        min_p: jax.Array | None = None,
        rules: Rules | None = None,
        begun: tuple[jax.Array, jax.Array] | None = None,
        *,
        slots: int,
        greedy: bool,
    ) -> tuple[jax.Array, KVCache | Caches]:
        lvlm = model(state)
        whole = isinstance(cache, KVCache)
        caches = (cache,) if isinstance(cache, KVCache) else cache
        positions = position if isinstance(position, tuple) else (position,)
        rng = jax.vmap(jax.random.key)(rng_seed) if rng_seed.ndim else jax.random.key(rng_seed)
        starts = [each.length - slots for each in caches]  # prompt slots come first
        ends = partial(jnp.isin, test_elements=eos)
        past = None if rules is None or rules.past is None else rules.past.with_room(slots + 1)
        draw = partial(
            choose, rng=rng, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p,
            greedy=greedy,
        )  # fmt: skip

        def pick(
            scores: jax.Array, past: Past | None, step: jax.Array
        ) -> tuple[jax.Array, Past | None]:
            if rules is None or past is None:
                return draw(scores, step=step), None
            token = draw(process(rules, past, scores, eos, step), step=step)
            return token, past.with_token(token)

        if begun is None:
            assert logits is not None
            step = jnp.int32(1)
            token, past = pick(logits, past, jnp.int32(0))
            good = jnp.isfinite(logits).all(axis=-1)
            buffer = jnp.full((logits.shape[0], slots + 1), EMPTY, jnp.int32)
            buffer = buffer.at[:, 0].set(jnp.where(good, token, BROKEN))
            done = ends(token) | ~good
        else:
            buffer, step = begun
            token = jnp.take(buffer, step - 1, axis=1)
            # A row that has ended holds its end, a mark of what broke it, or nothing since.
            done = ends(token) | (token < 0)
            token = jnp.maximum(token, 0)
            if past is not None:
                past = lax.fori_loop(0, step, lambda at, own: own.with_token(buffer[:, at]), past)

        def unfinished(carry: Any) -> jax.Array:
            step, _, done, *_ = carry
            return (step < last) & ~jnp.all(done)

        def advance(carry: Any) -> Any:
            step, token, done, buffer, caches, past = carry
            hidden, caches = lvlm.decode_segments(
                lvlm.embed(token[:, None]),
                [(position + step - 1)[:, None] for position in positions],
                [start + step - 1 for start in starts],
                caches,
            )
            scores = lvlm.project_logits(hidden)[:, 0].astype(jnp.float32)
            token, past = pick(scores, past, step)
            good = jnp.isfinite(scores).all(axis=-1)  # the model's, before settings rule ids out
            said = jnp.where(good, token, BROKEN)
            buffer = buffer.at[:, step].set(jnp.where(done, EMPTY, said))
            return step + 1, token, done | ends(token) | ~good, buffer, caches, past

        carry = (step, token, done, buffer, caches, past)
        *_, buffer, caches, _ = lax.while_loop(unfinished, advance, carry)
        return buffer, caches[0] if whole else caches

    @jit()
    def score(
        state: Any, x: jax.Array, places: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        lvlm = model(state)
        real = jnp.arange(x.shape[1]) < count[:, None]
        return lvlm.project_logits(lvlm.forward(x, places, real)).astype(jnp.float32), real

    return Programs(encode, prune, weigh, embed, lay_out, prefill, drop, decode, score, words)
