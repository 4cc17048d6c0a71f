"""Which visual tokens each configuration keeps of each example: selections that share their work.

Configurations of ResPrune on one model are one compiled function: the Gram matrix of an image is
made once, each reading of the text gives its relevance once, every (relevance, alpha, seed token)
is one selection at the largest budget, and smaller budgets and tolerances are read off its prefix.
Other methods choose once for each of their settings, and where their choices are nested, once for
all budgets.
"""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from resprune_jax.experiments.sweep.devices import over_devices
from resprune_jax.experiments.sweep.grid import Configuration
from resprune_jax.methods import Method, VisualTokens
from resprune_jax.methods.base import PATCH
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.tokens.resprune import ResPrune
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts import buckets, budgets
from resprune_jax.models.running.encoded import Encoded
from resprune_jax.models.running.plan import noun_tokens, read_prompts
from resprune_jax.prepared import Prepared, prepare
from resprune_jax.relevance import relevance
from resprune_jax.seeds import seed_token
from resprune_jax.selection import select


@dataclass(frozen=True)
class Block:
    """The examples that are worked on together.

    Attributes:
        encoded: the visual tokens of their images, a row for each different set of images.
        rows: (E,) which row each example is about.
        keys: (E,) what the examples are called.
        questions: (E,) texts.
        totals: (E,) visual tokens of each.
    """

    encoded: Encoded
    rows: tuple[int, ...]
    keys: tuple[str, ...]
    questions: tuple[str, ...]
    totals: np.ndarray

    @property
    def media(self) -> list[tuple[str, ...]]:
        """What each example shows, as prompts are encoded with."""
        layouts = self.encoded.layouts
        return [tuple(image.media for image in layouts[row]) for row in self.rows]

    @property
    def places(self) -> list[int]:
        """The row of the visual tokens that each example is about: rows without images have none,
        and a question without one borrows the row in front."""
        at = np.maximum(np.cumsum([bool(row) for row in self.encoded.layouts]) - 1, 0)
        return [int(at[row]) for row in self.rows]

    @property
    def nested(self) -> list[list[str]]:
        """The questions of each row of images, as `LVLM.generate` takes them."""
        found: list[list[str]] = [[] for _ in self.encoded.layouts]
        for row, question in zip(self.rows, self.questions, strict=True):
            found[row].append(question)
        return found


@dataclass(frozen=True)
class Kept:
    """What a configuration keeps in front of the LLM.

    Attributes:
        mask: (E, N) bool.
        failed: (E,) bool, examples whose visual tokens could not be judged.
        nouns: what conditioned the choice, for each example.
        noun_backend: which tagger found them.
        seconds: that the choice of one example took: of ResPrune's configurations, which are one
            function, in equal shares; of others for all budgets at once.
    """

    mask: np.ndarray
    failed: np.ndarray
    nouns: list[list[str]]
    noun_backend: str
    seconds: float = 0.0


@dataclass(frozen=True)
class _Reading:
    """What of the questions conditions a choice."""

    text: str
    ocr_line: str
    tagger: str


@dataclass(frozen=True)
class _Weight:
    """One relevance: of a reading, aggregated and turned into weights."""

    reading: int
    aggregate: str
    nonnegative: str
    sign: int


def lists_tokens(method: Method | None) -> bool:
    """Whether a method says which tokens enter the LLM, as they are."""
    if method is None:
        return True
    inside = isinstance(method, DecoderMethod) or method.stage == "pixels"
    return not inside and not method.makes_rows


def in_image_order(block: Block) -> list[int]:
    """For each example, its place among the questions in the order of their images."""
    order = sorted(range(len(block.rows)), key=lambda e: (block.rows[e], e))
    places = [0] * len(order)
    for place, example in enumerate(order):
        places[example] = place
    return places


class Chooser:
    """Chooses for the blocks of one sweep.

    Args:
        lvlm: the model.
        chosen: the configurations that list tokens, see `lists_tokens`, but for "none".
        methods: the method of each.
    """

    def __init__(
        self, lvlm: LVLM, chosen: Sequence[Configuration], methods: Sequence[Method]
    ) -> None:
        self.lvlm = lvlm
        self.fast: list[tuple[Configuration, ResPrune]] = []
        groups: dict[Any, list[Configuration]] = {}
        for one, method in zip(chosen, methods, strict=True):
            if type(method) is ResPrune:
                self.fast.append((one, method))
                continue
            told = tuple(sorted((k, repr(v)) for k, v in {**one.settings, **one.axes}.items()
                                if k not in ("tolerance", "positions")))  # fmt: skip
            keep = None if method.nested else one.keep
            groups.setdefault((one.method, one.draw, told, keep), []).append(one)
        self.groups = list(groups.values())
        self.methods = dict(zip([one.name for one in chosen], methods, strict=True))

    def choose(self, block: Block) -> dict[str, Kept]:
        """What each configuration keeps, by name."""
        size = len(block.rows)
        begin = time.perf_counter()
        found: dict[str, Kept] = {}
        if self.fast:
            found = _timed(self._resprune(block), begin, size * len(self.fast))
        for group in self.groups:
            begin = time.perf_counter()
            found |= _timed(self._others(block, group), begin, size)
        return found

    def _others(self, block: Block, group: list[Configuration]) -> dict[str, Kept]:
        """Configurations that differ in budget, tolerance and positions alone."""
        counts = {one.name: counts_of(one, block) for one in group}
        most = np.max(list(counts.values()), axis=0)
        if group[0].draws_rows or self.methods[group[0].name].needs & {"text", "clip_text"}:
            places, asked = in_image_order(block), block.nested
        else:  # what does not read the question is chosen once a picture
            places, asked = list(block.rows), [own[:1] for own in block.nested]
        # One choice serves all budgets: at the largest of each example.
        keep: list[Any] = [0] * sum(map(len, asked))
        keys = [""] * len(keep)
        for example, place in enumerate(places):
            keep[place], keys[place] = int(most[example]), block.keys[example]
        options = dataclasses.replace(
            group[0].options_for(keys), keep=keep, tolerance=None, positions=None
        )
        call = self.lvlm.prepare(block.encoded, asked, options, new_tokens=0)
        made = self.lvlm.choose(call)
        assert made.selection is not None
        own = np.asarray(places)
        order = np.asarray(made.selection.indices)[own]
        energy = made.selection.energy
        energies = None if energy is None else np.asarray(energy)[own]
        ends = np.asarray(made.selection.count)[own]
        failed = made.failed[own]
        nouns = [[noun.text for noun in call.prompts.nouns[place]] for place in places]
        return {
            one.name: _kept(
                one, order, ends, energies, failed, counts[one.name], block, nouns,
                call.prompts.backend,
            )
            for one in group
        }  # fmt: skip

    def _resprune(self, block: Block) -> dict[str, Kept]:
        readings: dict[_Reading, int] = {}
        weights: dict[_Weight, int] = {}
        seeds: dict[tuple[str, int], int] = {}
        points: dict[tuple[int, int, float], int] = {}
        at = []
        for one, method in self.fast:
            own = one.options()
            reading = _Reading(own.text or method.text, own.ocr_line, own.tagger)
            number = readings.setdefault(reading, len(readings))
            weight = _Weight(number, method.aggregate, method.nonnegative, method.relevance_sign)
            which = weights.setdefault(weight, len(weights))
            # Only the rule "text" looks at the relevance.
            looks = which if method.seed_rule == "text" else -1
            seed = seeds.setdefault((method.seed_rule, looks), len(seeds))
            alpha = float(np.asarray(method.alpha))
            at.append(points.setdefault((which, seed, alpha), len(points)))
        texts, nouns, backends = [], [], []
        for reading in readings:
            ids, valid, words, backend = self._read(block, reading)
            texts.append((ids, valid))
            nouns.append(words)
            backends.append(backend)
        counts = [counts_of(one, block) for one, _ in self.fast]
        slots = block.encoded.visual.valid.shape[1]
        keep = min(slots, buckets.step(int(np.max(counts))))
        table = np.array(list(points), np.float64)  # [P, 3]
        parts = {"saliency", "coords", "kind"}
        visual = _only(block.encoded.visual, parts)
        made = _choose_all(
            visual, np.asarray(block.rows, np.int32), self._embedded(texts),
            table[:, 0].astype(np.int32), table[:, 1].astype(np.int32),
            table[:, 2].astype(np.float32),
            keep=keep, weights=tuple(weights), seeds=tuple(seeds), mesh=self.lvlm.mesh,
        )  # fmt: skip
        order, energy, ends = (np.asarray(x) for x in made)  # [E, P, ...]
        found = {}
        for (one, _), point, most in zip(self.fast, at, counts, strict=True):
            which = list(weights)[int(table[point, 0])].reading
            found[one.name] = _kept(
                one, order[:, point], ends[:, point], energy[:, point],
                ends[:, point] == 0, most, block, nouns[which], backends[which],
            )  # fmt: skip
        return found

    def _read(
        self, block: Block, reading: _Reading
    ) -> tuple[np.ndarray, np.ndarray, list[list[str]], str]:
        extractor = self.lvlm.extractor(reading.tagger) if reading.text == "nouns" else None
        read = read_prompts(
            self.lvlm.encoder, list(block.questions), block.media, text=reading.text,  # type: ignore[arg-type]
            extractor=extractor, ocr_line=reading.ocr_line, chat_template=True,  # type: ignore[arg-type]
        )  # fmt: skip
        ids, valid = noun_tokens(read.encoded, read.nouns)
        words = [[noun.text for noun in own] for own in read.nouns]
        return ids, valid, words, read.backend

    def _embedded(
        self, texts: list[tuple[np.ndarray, np.ndarray]]
    ) -> list[tuple[jax.Array, np.ndarray]]:
        """Rows of the embedding table for the tokens of each reading, padded to one width."""
        embed = self.lvlm.programs.embed
        return [(embed(self.lvlm.words, ids), valid) for ids, valid in texts]


def _timed(kept: dict[str, Kept], begin: float, shares: int) -> dict[str, Kept]:
    each = (time.perf_counter() - begin) / shares
    return {name: dataclasses.replace(own, seconds=each) for name, own in kept.items()}


def counts_of(one: Configuration, block: Block) -> np.ndarray:
    """How many tokens a configuration may keep of each example, (E,)."""
    keep = one.budget
    return np.asarray(
        [int(total) if keep is None else budgets.count(keep, int(total)) for total in block.totals]
    )


def _only(visual: VisualTokens, parts: set[str]) -> VisualTokens:
    """Visual tokens with these optional parts alone."""
    unread: dict[str, Any] = {
        own.name: None
        for own in dataclasses.fields(visual)
        if own.name not in ("embeddings", "valid", *parts)
    }
    return dataclasses.replace(visual, **unread)


def _kept(
    one: Configuration,
    order: np.ndarray,
    ends: np.ndarray,
    energies: np.ndarray | None,
    failed: np.ndarray,
    counts: np.ndarray,
    block: Block,
    nouns: list[list[str]],
    backend: str,
) -> Kept:
    """The prefix of a choice that a budget and a tolerance leave."""
    slots = block.encoded.visual.valid.shape[1]
    size = np.minimum(counts, ends)
    if one.tolerance is not None:
        assert energies is not None
        # As `select` decides: the first pick that leaves so little, in float32.
        reached = energies[:, 1:] <= np.float32(one.tolerance) * energies[:, :1]
        first = np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, reached.shape[1])
        size = np.minimum(size, first)
    inside = np.arange(order.shape[1]) < size[:, None]
    mask = np.zeros((len(order), slots + 1), bool)
    np.put_along_axis(mask, np.where(inside, order, slots), True, axis=1)
    mask = mask[:, :slots]
    mask[failed] = False
    return Kept(mask, failed, nouns, backend)


@partial(jax.jit, static_argnames=("keep", "weights", "seeds", "mesh"))
def _choose_all(
    visual: VisualTokens,
    rows: jax.Array,
    texts: Sequence[tuple[jax.Array, jax.Array]],
    weight: jax.Array,
    seed: jax.Array,
    alpha: jax.Array,
    *,
    keep: int,
    weights: tuple[_Weight, ...],
    seeds: tuple[tuple[str, int], ...],
    mesh: Mesh | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Every point of the grid on every example, one example after the other.

    On a mesh each device has its share of the examples, and sees the images of all.

    Args:
        visual: of the images.
        rows: (E,) which of them each example is about.
        texts: for each reading of the questions, ((E, M, d), valid (E, M)).
        weight: (P,) which of `weights` a point gates with.
        seed: (P,) which of `seeds` it begins with.
        alpha: (P,).
        keep: K, static.
        weights: the relevances.
        seeds: the seed rules, and for "text" whose relevance they look at.
        mesh: of the model.

    Returns:
        (indices (E, P, K), energies (E, P, K + 1), counts (E, P)).
    """

    def one(images: Any, example: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        (visual, prepared, weight, seed, alpha), (row, texts) = images, example
        image: VisualTokens = jax.tree.map(lambda x: x[row], visual)
        own: Prepared = jax.tree.map(lambda x: x[row], prepared)
        relevances = jnp.stack([
            relevance(
                image.embeddings, texts[each.reading][0], text_valid=texts[each.reading][1],
                valid=image.valid, aggregate=each.aggregate,  # type: ignore[arg-type]
                nonnegative=each.nonnegative, sign=each.sign,  # type: ignore[arg-type]
            )
            for each in weights
        ])  # fmt: skip
        firsts = jnp.stack([
            seed_token(
                rule, image.embeddings, image.valid,  # type: ignore[arg-type]
                relevance=relevances[looks] if looks >= 0 else None, saliency=image.saliency,
                coords=image.coords,
                candidates=None if image.kind is None else image.kind == PATCH,
            )
            for rule, looks in seeds
        ])  # fmt: skip
        made = select(own, keep, relevance=relevances[weight], alpha=alpha, first=firsts[seed])
        assert made.energy is not None
        return made.indices, made.energy, made.count

    def all_of(images: Any, examples: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
        return lax.map(partial(one, images), examples)

    images = visual, prepare(visual.embeddings, visual.valid), weight, seed, alpha
    examples = rows, list(texts)
    return over_devices(all_of, mesh, images, examples)
