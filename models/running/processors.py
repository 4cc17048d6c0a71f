"""What a checkpoint's settings do to the scores of the next token, inside the decode loop.

Pure functions of static shapes. Values are traced: another penalty or another size of n-grams
compiles nothing. A part that no setting asks for is None and so not in the program.

They act on prompt and answer as `transformers`' `generate` sees them: the unpruned prompt, one
placeholder for each visual token. Which of these the language model gets to see is another matter:
so a pruned prompt is under the same rules as the full one, and no rule depends on the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import register_dataclass

from resprune_jax.models.prompts.generation_file import GenerationSettings
from resprune_jax.models.prompts.options import CallOptions

_NOWHERE = -1
"""Stands where a history or a run has no id; no id equals it."""


@register_dataclass
@dataclass(frozen=True)
class Past:
    """What rows hold so far, prompts and answers; carried through the decode loop.

    Attributes:
        seen: (B, V) bool, ids that occur; for the repetition penalty.
        history: (B, H) int32, the last ids in order, then free places; for runs of ids.
        length: (B,) int32, how many of those there are.
    """

    seen: jax.Array | None = None
    history: jax.Array | None = None
    length: jax.Array | None = None

    def with_room(self, count: int) -> "Past":
        """The same with `count` free places behind the history."""
        if self.history is None:
            return self
        room = jnp.pad(self.history, ((0, 0), (0, count)), constant_values=_NOWHERE)
        return Past(self.seen, room, self.length)

    def with_token(self, token: jax.Array) -> "Past":
        """The same after one more id (B,) a row."""
        rows = jnp.arange(token.shape[0])
        seen, history, length = self.seen, self.history, self.length
        if seen is not None:
            seen = seen.at[rows, token].set(True, mode="drop")
        if history is not None:
            assert length is not None
            history = history.at[rows, length].set(token, mode="drop")
            length = length + 1
        return Past(seen, history, length)


@register_dataclass
@dataclass(frozen=True)
class Rules:
    """The settings of a call as traced arrays.

    Attributes:
        penalty: () float32, of repetition.
        ngram: () int32, at least 1: the size of runs that occur once at most.
        words: (W, T) int32, runs of ids that must not be completed, ended at the right, -1 before
            those that are shorter.
        never: (V,) bool, ids that are never taken.
        first: (V,) bool, ids that are not taken at step 0.
        least: (B,) int32, steps before the answer may end.
        past: prompts.
    """

    penalty: jax.Array | None = None
    ngram: jax.Array | None = None
    words: jax.Array | None = None
    never: jax.Array | None = None
    first: jax.Array | None = None
    least: jax.Array | None = None
    past: Past | None = None


def make_rules(
    settings: GenerationSettings,
    options: CallOptions,
    prompts: Sequence[np.ndarray],
    *,
    ends: Sequence[int],
    vocabulary: int,
    length: int,
) -> Rules | None:
    """The rules of a call, on the host.

    Args:
        settings: the checkpoint's.
        options: the call's, resolved.
        prompts: B rows of ids, unpruned.
        ends: ids that end an answer.
        vocabulary: V.
        length: S, at least the longest prompt, of static shapes.

    Returns:
        Their arrays, of shapes that only settings, B, V and S decide; None if there is no rule.
    """
    # A word that is one id alone is an id never taken; ends of answers are not words.
    single = {run[0] for run in settings.bad_words_ids if len(run) == 1} - set(ends)
    longer = [run for run in settings.bad_words_ids if len(run) > 1]
    penalty, ngram = options.repetition_penalty, options.no_repeat_ngram_size
    assert penalty is not None and ngram is not None and options.max_new_tokens is not None
    # A run longer than all that can be there never occurs twice.
    by_runs = 0 < ngram <= length + options.max_new_tokens
    depth = length if by_runs else max(map(len, longer), default=1) - 1
    given: dict[str, object] = {}
    past: dict[str, object] = {}
    if penalty != 1:
        given["penalty"] = np.float32(penalty)
        past["seen"] = np.stack([_mask(ids, vocabulary) for ids in prompts])
    if by_runs:
        given["ngram"] = np.int32(ngram)
    if longer:
        given["words"] = np.full((len(longer), max(map(len, longer))), _NOWHERE, np.int32)
        for row, run in zip(given["words"], longer, strict=True):  # type: ignore[call-overload]
            row[-len(run) :] = run
    if by_runs or longer:
        history = np.full((len(prompts), depth), _NOWHERE, np.int32)
        for row, ids in zip(history, prompts, strict=True):
            row[: len(ids[-depth:])] = ids[-depth:]
        past["history"] = history
        past["length"] = np.asarray([min(len(ids), depth) for ids in prompts], np.int32)
    if never := single | set(settings.suppress_tokens):
        given["never"] = _mask(list(never), vocabulary)
    if settings.begin_suppress_tokens:
        given["first"] = _mask(settings.begin_suppress_tokens, vocabulary)
    if (settings.min_new_tokens or settings.min_length) and len(ends):
        least = [settings.min_length - len(ids) for ids in prompts]
        if settings.min_new_tokens is not None:
            least = [settings.min_new_tokens] * len(prompts)
        given["least"] = np.asarray(least, np.int32)
    if not given:
        return None
    return Rules(**given, past=Past(**past))  # type: ignore[arg-type]


def _mask(ids: Sequence[int] | np.ndarray, vocabulary: int) -> np.ndarray:
    """(V,) bool, whether an id is among `ids`; those outside of the vocabulary mean nothing."""
    mask = np.zeros(vocabulary, bool)
    # A file's ids may be larger than any dtype holds.
    mask[[i for i in map(int, ids) if 0 <= i < vocabulary]] = True
    return mask


def process(
    rules: Rules, past: Past, logits: jax.Array, ends: jax.Array, step: jax.Array
) -> jax.Array:
    """The scores that the next token is taken by.

    The repetition penalty comes first, as in `transformers`; what follows only rules ids out, so
    that its order is of no matter.

    Args:
        rules: of the call.
        past: what the rows hold.
        logits: (B, V) float32.
        ends: (E,) int32, ids that end an answer.
        step: () int32, tokens of the answer so far.

    Returns:
        (B, V) float32, -inf for ids that are ruled out.
    """
    out = jnp.zeros(logits.shape[-1], bool)  # [V] or [B, V]
    if rules.penalty is not None:
        assert past.seen is not None
        logits = jnp.where(past.seen, penalised(logits, rules.penalty), logits)
    if rules.ngram is not None:
        out = out | completes_ngram(past, rules.ngram, logits.shape[-1])
    if rules.words is not None:
        out = out | completes_word(past, rules.words, logits.shape[-1])
    if rules.never is not None:
        out = out | rules.never
    if rules.first is not None:
        out = out | (rules.first & (step == 0))
    if rules.least is not None:
        end = jnp.zeros(logits.shape[-1], bool).at[ends].set(True, mode="drop")
        out = out | (end & (step < rules.least)[:, None])
    return jnp.where(out, -jnp.inf, logits)


def penalised(logits: jax.Array, penalty: jax.Array) -> jax.Array:
    """Scores made smaller by a penalty above 1, whatever their sign."""
    return jnp.where(logits < 0, logits * penalty, logits / penalty)


def completes_ngram(past: Past, size: jax.Array, vocabulary: int) -> jax.Array:
    """(B, V) bool, ids that would complete a run of `size` ids a second time.

    Args:
        past: with its history.
        size: () int32, at least 1.
        vocabulary: V.
    """
    history, length = past.history, past.length
    assert history is not None and length is not None
    at = jnp.arange(history.shape[1])
    # An id of the history ends an earlier run if the ids before it are the last ones again.
    same = (at < length[:, None]) & (at >= size - 1)  # [B, H]

    def compare(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        back, same = carry
        last = jnp.take_along_axis(history, (length - back)[:, None], axis=1, mode="clip")
        return back + 1, same & (jnp.roll(history, back, axis=1) == last)

    def undecided(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        back, same = carry
        return (back < size) & same.any()

    _, same = lax.while_loop(undecided, compare, (jnp.int32(1), same))
    return _at(same, history, vocabulary)


def completes_word(past: Past, words: jax.Array, vocabulary: int) -> jax.Array:
    """(B, V) bool, ids that would complete one of `words`.

    Args:
        past: with a history of at least T - 1 ids where there are so many.
        words: (W, T) int32, see `Rules`.
        vocabulary: V.
    """
    history, length = past.history, past.length
    assert history is not None and length is not None
    before = words.shape[1] - 1
    at = length[:, None] - before + jnp.arange(before)  # [B, T - 1]
    tail = jnp.take_along_axis(history, jnp.maximum(at, 0), axis=1)
    tail = jnp.where(at >= 0, tail, _NOWHERE - 1)  # [B, T - 1]
    begun, last = words[:, :-1], words[:, -1]
    same = ((begun == tail[:, None]) | (begun == _NOWHERE)).all(axis=-1)  # [B, W]
    return _at(same, jnp.broadcast_to(last, same.shape), vocabulary)


def _at(here: jax.Array, ids: jax.Array, vocabulary: int) -> jax.Array:
    """(B, V) bool, the ids (B, N) that are marked in `here` (B, N)."""
    target = jnp.where(here, ids, vocabulary)

    def mark(target: jax.Array) -> jax.Array:
        return jnp.zeros(vocabulary, bool).at[target].set(True, mode="drop")

    return jax.vmap(mark)(target)


def choose(
    logits: jax.Array,
    rng: jax.Array,
    step: jax.Array,
    temperature: jax.Array,
    top_p: jax.Array,
    top_k: jax.Array | None = None,
    min_p: jax.Array | None = None,
    *,
    greedy: bool,
) -> jax.Array:
    """The next token of every row: the most likely, or drawn from the nucleus of mass `top_p`.

    Args:
        logits: (B, V) float32.
        rng: a random key, of which each row folds its own, or (B,) keys, one for each row; each
            step draws from its own fold of that.
        step: () int32.
        temperature: () float32, above 0.
        top_p: () float32 in (0, 1]; tokens beyond that cumulative probability are left out, the
            most likely one always stays.
        top_k: () int32, at least 1: before that, only so many likeliest tokens are in.
        min_p: () float32 in (0, 1]: after that, tokens below this share of the likeliest one's
            probability are left out.
        greedy: static; ignores all but the logits.

    Returns:
        (B,) int32.
    """
    if greedy:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def draw(row: jax.Array, scores: jax.Array) -> jax.Array:
        order = jnp.argsort(-scores)
        ranked = scores[order] / temperature
        if top_k is not None:
            ranked = jnp.where(jnp.arange(ranked.size) < top_k, ranked, -jnp.inf)
        probability = jax.nn.softmax(ranked)
        before = jnp.cumsum(probability) - probability
        ranked = jnp.where((before < top_p).at[0].set(True), ranked, -jnp.inf)
        if min_p is not None:
            ranked = jnp.where(ranked >= ranked[0] + jnp.log(min_p), ranked, -jnp.inf)
        return order[jax.random.categorical(jax.random.fold_in(row, step), ranked)]

    numbers = jnp.arange(logits.shape[0])
    rows = rng if rng.ndim else jax.vmap(partial(jax.random.fold_in, rng))(numbers)
    return jax.vmap(draw)(rows, logits).astype(jnp.int32)
