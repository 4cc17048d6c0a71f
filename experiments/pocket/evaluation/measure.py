"""Ask a model every question of a test set under every setting.

Settings: all visual tokens; a blank image (what the words alone give away); and at each ratio the
tokens that `resprune` keeps, that it keeps without the text (alpha 0), random ones, the patches of
what the question is about, which the generator knows (`orders.oracle_order` has the rule), and
those of any other method by name.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from resprune_jax import choices as pruning
from resprune_jax.arguments import settings_by_name
from resprune_jax.errors import CallError, RunError, shown
from resprune_jax.experiments.pocket.judge import is_right
from resprune_jax.experiments.pocket.scenes.labels import named_patches
from resprune_jax.experiments.pocket.scenes.orders import given_order, oracle_order, random_order
from resprune_jax.experiments.pocket.scenes.parts import PRESETS, Scene
from resprune_jax.experiments.pocket.scenes.questions import Question
from resprune_jax.experiments.pocket.scenes.scene import render
from resprune_jax.experiments.pocket.scenes.words import SHAPES
from resprune_jax.experiments.statistics import auc
from resprune_jax.methods import Method, get_method
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import ON_REQUEST
from resprune_jax.models.api import LVLM
from resprune_jax.models.prompts.budgets import count
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.encoded import Encoded
from resprune_jax.models.running.generation import Generation
from resprune_jax.models.running.plan import noun_tokens, read_prompts
from resprune_jax.prompts import Noun, NounExtractor, OcrLine
from resprune_jax.relevance import relevance

Item = tuple[Scene, list[Question]]

RATIOS = (Fraction(1, 3), Fraction(2, 9), Fraction(1, 9))
"""The paper's budgets, as shares of the visual tokens."""
WHOLE = ("full", "blank")
PRUNED = ("resprune", "alpha0", "random", "oracle")
METHODS = (*WHOLE, *PRUNED)

NEW_TOKENS = 6
_TOGETHER = 8  # scenes that run together
_GREY = 127

_NAMES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in (*SHAPES, "object", "word", "number")},
    "text": ("word", "number"),
}
"""What a noun names in a scene, in the words of `named_patches`."""


@dataclass(frozen=True)
class Setting:
    """One way to answer; `ratio` is None where every token stays.

    Where random tokens are drawn several times, `draw` counts from 0.
    """

    method: str
    ratio: Fraction | None = None
    draw: int = 0

    @property
    def name(self) -> str:
        """For tables and files: "full", "resprune 2/9", "random 2/9 draw 1"."""
        own = self.method if self.ratio is None else f"{self.method} {self.ratio}"
        return f"{own} draw {self.draw}" if self.draw else own


def settings(
    methods: Sequence[str] = METHODS, ratios: Sequence[Fraction] = RATIOS, draws: int = 1
) -> list[Setting]:
    """The settings of some methods; "full" is always among them, as what others are held against.

    Args:
        methods: their names.
        ratios: of the tokens that they keep.
        draws: how often random tokens are drawn.

    Raises:
        CallError: an unknown method, or a ratio outside (0, 1).
    """
    methods = [name.strip() for name in methods]
    others = [name for name in methods if name not in METHODS]
    for name in others:
        pruning_method(name)
    if bad := [ratio for ratio in ratios if not 0 < ratio < 1]:
        raise CallError(f"ratio {bad[0]} is not between 0 and 1")
    whole = [Setting(name) for name in WHOLE if name in methods or name == "full"]
    pruned = [name for name in PRUNED if name in methods] + list(dict.fromkeys(others))
    return whole + [
        Setting(name, ratio, draw)
        for ratio in ratios
        for name in pruned
        for draw in range(draws if name == "random" else 1)
    ]


def of_the_model(
    lvlm: LVLM, ratios: Sequence[Fraction] = RATIOS
) -> tuple[list[str], dict[str, str]]:
    """Every method that can be asked with, and why the others cannot.

    Args:
        lvlm: the model.
        ratios: of the tokens that are to be kept.

    Returns:
        (names, reasons by name): a method needs what a model does not have, a setting that has no
        default, or a decoder of more layers for one of the budgets.
    """
    total, layers = lvlm.config.num_visual_tokens, lvlm.config.text.num_layers
    names, reasons = list(METHODS), {}
    for name in pruning.METHODS:
        if name in METHODS:
            continue
        try:
            method = lvlm.method_of(CallOptions(method=name, keep=1 / 3))
            if isinstance(method, DecoderMethod):
                for ratio in ratios:
                    method.drops(total, count(float(ratio), total), layers)
        except CallError as error:
            reasons[name] = str(error)
        else:
            names.append(name)
    return names, reasons


def pruning_method(written: str) -> Method:
    """A method as it is written here: NAME, or NAME:SETTING=VALUE,... where it has settings.

    Raises:
        CallError: an unknown name, or settings that it does not have.
    """
    name, _, told = written.partition(":")
    if name not in pruning.METHODS:
        raise CallError(
            f"method {shown(name)} is unknown: choose of {', '.join(METHODS)}, or of what"
            " `resprune methods` lists"
        )
    return get_method(name, settings_by_name(told.split(",") if told else ()))


@dataclass(frozen=True)
class Measured:
    """What a model said.

    Attributes:
        items: scenes and questions.
        texts: by setting's name, the answer to every question, scene by scene.
        kept: by setting's name, (Q,) visual tokens that entered the LLM, or that were left behind
            its last drop.
        averages: by setting's name, (Q,) visual tokens on average over the LLM's layers.
        times: by setting's name, milliseconds a question for "select" and "prefill", the median
            over batches in which nothing was compiled.
        aucs: (Q,) how well text relevance finds the patches of what the question's nouns name; NaN
            where they name nothing in the scene.
        settings: the settings asked, "full" first.
        noun_backend: which tagger found the nouns.
        seconds: all in all, compiling included.
    """

    items: list[Item]
    texts: dict[str, list[str]]
    kept: dict[str, np.ndarray]
    averages: dict[str, np.ndarray]
    times: dict[str, dict[str, float]]
    aucs: np.ndarray
    settings: list[Setting]
    noun_backend: str
    seconds: float

    def right(self, name: str) -> np.ndarray:
        """(Q,) bool, which answers of a setting are right."""
        asked = [question for _, questions in self.items for question in questions]
        pairs = zip(self.texts[name], asked, strict=True)
        return np.array([is_right(text, question.answer) for text, question in pairs])


def preset_of(lvlm: LVLM) -> str:
    """The preset whose scenes have the size of a model's images.

    Raises:
        CallError: there is none.
    """
    side = lvlm.config.vision.image_size
    for name, config in PRESETS.items():
        if config.side == side:
            return name
    sides = ", ".join(f"{config.side} ({name})" for name, config in PRESETS.items())
    raise CallError(
        f"the model takes images of {side} pixels a side, pocket scenes have {sides}: choose a"
        " model of one of these sizes"
    )


class RememberingExtractor(NounExtractor):
    """A noun extractor that reads each prompt once, however many settings ask it again."""

    def __init__(self, extractor: NounExtractor) -> None:
        self.backend = extractor.backend
        self._extractor = extractor
        self._known: dict[tuple[str, OcrLine], list[Noun]] = {}

    def extract(self, prompt: str, *, ocr_line: OcrLine = "strip") -> list[Noun]:
        """See `NounExtractor.extract`."""
        key = prompt, ocr_line
        if key not in self._known:
            self._known[key] = self._extractor.extract(prompt, ocr_line=ocr_line)
        return self._known[key]


def remembering(lvlm: LVLM) -> LVLM:
    """The same model with a `RememberingExtractor`."""
    return LVLM(
        lvlm.family, lvlm.state, path=lvlm.path, encoder=lvlm.encoder, dtype=lvlm.dtype,
        mesh=lvlm.mesh, extractor=RememberingExtractor(lvlm.extractor()), clip=lvlm.clip,
    )  # fmt: skip


def spread(encoded: Encoded, rows: Sequence[int]) -> Encoded:
    """One row of visual tokens for each question, from rows of images encoded once.

    Args:
        encoded: the images.
        rows: (Q,) which of them each question is about.
    """
    which = np.asarray(rows, np.int32)
    visual = jax.tree.map(lambda x: x[which], encoded.visual)
    return Encoded(visual, tuple(encoded.layouts[row] for row in rows))


def answer(
    lvlm: LVLM, images: Encoded | list[np.ndarray], asked: Sequence[tuple[Scene, int, Question]],
    setting: Setting, rng_seed: int = 0,
) -> Generation:  # fmt: skip
    """Answer a batch of questions under one setting.

    Args:
        lvlm: the model.
        images: a row for each question; for "blank" they must be of blank images, for a method
            that makes pictures smaller the pictures.
        asked: for each question its scene, its number among the scene's, and the question.
        setting: which tokens to keep.
        rng_seed: of random tokens.

    Raises:
        RunError: a row failed.
    """
    prompts = [question.prompt for _, _, question in asked]
    options: dict[str, Any] = {"method": "none"}
    if setting.ratio is not None:
        options = {"method": "resprune", "keep": float(setting.ratio)}
    if setting.method == "alpha0":
        options["alpha"] = 0.0
    elif setting.method not in METHODS:
        options["method"] = pruning_method(setting.method)
    elif setting.method in ("random", "oracle"):
        orders = [
            random_order(scene, number, rng_seed + setting.draw)
            if setting.method == "random"
            else oracle_order(scene, question, number, rng_seed)
            for scene, number, question in asked
        ]
        assert isinstance(images, Encoded)
        options["method"] = given_order(orders, images.visual.valid.shape[1])
    made = lvlm.generate(images, prompts, max_new_tokens=NEW_TOKENS, **options)
    if failed := [why for why in made.errors if why]:
        raise RunError(f"{setting.name}: {failed[0]}")
    return made


@jax.jit
def _relevance(table: jax.Array, ids: jax.Array, valid: jax.Array, images: Any) -> jax.Array:
    return relevance(images.embeddings, table[ids], text_valid=valid, valid=images.valid)


def named(scene: Scene, nouns: Sequence[str]) -> np.ndarray:
    """(N,) bool, the patches of everything in a scene that one of these nouns names."""
    patches = np.zeros(scene.config.grid**2, bool)
    for noun in nouns:
        word = noun.lower()
        for name in _NAMES.get(word) or _NAMES.get(word.removesuffix("s"), ()):
            patches |= named_patches(scene, name)
    return patches


def relevance_aucs(
    lvlm: LVLM, images: Encoded, asked: Sequence[tuple[Scene, int, Question]]
) -> np.ndarray:
    """How well the relevance that guides ResPrune tells the patches of what a question names.

    Args:
        lvlm: the model.
        images: a row for each question.
        asked: as for `answer`.

    Returns:
        (B,) areas under the ROC curve; NaN where the question's nouns name nothing in its scene.
    """
    read = read_prompts(
        lvlm.encoder, [question.prompt for _, _, question in asked], [("image",)] * len(asked),
        text="nouns", extractor=lvlm.extractor(), ocr_line="strip", chat_template=True,
    )  # fmt: skip
    ids, valid = noun_tokens(read.encoded, read.nouns)
    table = lvlm.state["language_model"]["embed_tokens"]["embedding"].get_value()
    scores = np.asarray(_relevance(table, ids, valid, images.visual))
    out = np.full(len(asked), np.nan)
    for row, ((scene, _, _), nouns) in enumerate(zip(asked, read.nouns, strict=True)):
        members = named(scene, [noun.text for noun in nouns])
        if members.any() and not members.all():
            out[row] = auc(scores[row], members)
    return out


def measure(
    lvlm: LVLM,
    items: Sequence[Item],
    chosen: Sequence[Setting],
    *,
    rng_seed: int = 0,
    step: Callable[[int], None] | None = None,
) -> Measured:
    """Ask a model everything; each image is encoded once, each question's nouns are found once.

    Args:
        lvlm: the model.
        items: scenes and their questions, the same number for each scene.
        chosen: the settings, see `settings`.
        rng_seed: of random tokens.
        step: told how many questions were answered, setting by setting.

    Raises:
        CallError: no scene.
        RunError: an answer that failed.
    """
    if not items:
        raise CallError("no scene was given: measure at least one")
    begin = time.perf_counter()
    lvlm = remembering(lvlm)
    side = lvlm.config.vision.image_size
    own = [setting.method for setting in chosen if setting.method not in METHODS]
    needs = frozenset().union(*(pruning_method(name).needs for name in own)) & ON_REQUEST
    blank = lvlm.encode(np.full((side, side, 3), _GREY, np.uint8), needs=needs)
    texts: dict[str, list[str]] = {setting.name: [] for setting in chosen}
    kept: dict[str, list[int]] = {setting.name: [] for setting in chosen}
    averages: dict[str, list[float]] = {setting.name: [] for setting in chosen}
    laps: dict[str, list[dict[str, float]]] = {setting.name: [] for setting in chosen}
    aucs: list[float] = []
    size = min(_TOGETHER, len(items))
    for start in range(0, len(items), size):
        batch = list(items[start : start + size])
        # The last batch is filled up, so that it runs in the others' shapes.
        batch += items[: size - len(batch)]
        real = sum(len(questions) for _, questions in items[start : start + size])
        rows = [row for row, (_, questions) in enumerate(batch) for _ in questions]
        asked = [(scene, i, q) for scene, questions in batch for i, q in enumerate(questions)]
        drawn = [render(scene) for scene, _ in batch]
        pictures = lvlm.encode(drawn, needs=needs)
        images, empty = spread(pictures, rows), spread(blank, [0] * len(rows))
        aucs += relevance_aucs(lvlm, images, asked)[:real].tolist()
        for setting in chosen:
            seen: Encoded | list[np.ndarray] = empty if setting.method == "blank" else images
            if setting.method not in METHODS and pruning_method(setting.method).stage == "pixels":
                seen = [drawn[row] for row in rows]
            made = answer(lvlm, seen, asked, setting, rng_seed)
            texts[setting.name] += made.texts[:real]
            kept[setting.name] += made.kept[:real]
            averages[setting.name] += [cost.average for cost in made.costs[:real] if cost]
            if not made.timings["compile"]:
                laps[setting.name].append(made.timings)
            if step is not None:
                step(real)
    times = {
        name: {
            part: 1000 * float(np.median([lap[part] for lap in own])) / (size * len(items[0][1]))
            for part in ("select", "prefill")
        }
        for name, own in laps.items()
        if own
    }
    return Measured(
        list(items), texts, {name: np.array(row) for name, row in kept.items()},
        {name: np.array(row) for name, row in averages.items()}, times, np.array(aucs),
        list(chosen), lvlm.extractor().backend, time.perf_counter() - begin,
    )  # fmt: skip
