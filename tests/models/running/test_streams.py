"""Streams of images of random sizes: few buckets, few compiles, little padding, no effect of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from resprune_jax.certificate import certify
from resprune_jax.errors import CallError
from resprune_jax.models import LVLM, Video, load_model
from resprune_jax.models.decoder.cache import KVCache
from resprune_jax.models.families.base import ImageLayout, Pictures
from resprune_jax.models.families.llava_next.anyres import (
    num_tiles,
    num_tokens,
    tile_bucket,
    token_bucket,
)
from resprune_jax.models.families.qwen_vl.images import smart_resize
from resprune_jax.models.prompts.expansion import expand
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.plan import Plan, Prompts, make_plan
from resprune_jax.models.running.programs import programs
from resprune_jax.models.running.runner import Runner
from resprune_jax.models.running.warm_up import plain_prompt
from resprune_jax.models.towers.qwen_vision.tables import make_tables
from tests.checkpoints.llava import IMAGE_TOKEN_ID as NEXT_TOKEN_ID
from tests.checkpoints.qwen_vl import IMAGE_TOKEN_ID as QWEN_TOKEN_ID
from tests.compiles import backend_compiles
from tests.models.families.test_anyres import PUBLISHED
from tests.models.families.test_qwen_tables import CONFIG as QWEN_VISION
from tests.parity.llava import next_pairs
from tests.parity.qwen import pairs as qwen_pairs
from tests.parity.whole_path import Reference, share
from tests.prompt_data import lexicon

ENCODER: Any = SimpleNamespace(placeholders={"image": (4, "<image>")})
FAMILY: Any = SimpleNamespace(
    rope=lambda *_: None,
    config=SimpleNamespace(text=SimpleNamespace(max_position_embeddings=32768)),
)


def plan_of(tokens: int, slots: int, words: int, keep: Any) -> Plan:
    """The static shapes of one prompt."""
    prompts = Prompts([plain_prompt(ENCODER, ("image",), words)], [[]], "none")
    return make_plan(
        FAMILY, ENCODER, prompts, ((ImageLayout(tokens),),), [keep],
        CallOptions(), slots=slots, new_tokens=128,
    )  # fmt: skip


def next_size(height: int, width: int) -> tuple[Any, int, int]:
    """(vision bucket, its slots, real tokens) of a picture, published sizes."""
    tokens = num_tokens(height, width, PUBLISHED)
    tiles = tile_bucket(num_tiles(height, width, PUBLISHED), PUBLISHED)
    slots = token_bucket(tokens, tiles, PUBLISHED)
    return (tiles, slots), slots, tokens


def qwen_size(height: int, width: int) -> tuple[Any, int, int]:
    tall, wide = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=12845056)
    tables = make_tables([(1, tall // 14, wide // 14)], QWEN_VISION)
    slots = tables.tokens.shape[1]
    return (len(tables.segments), slots), slots, tall * wide // 28**2


@pytest.mark.parametrize("keep", [None, 0.222, 128])
@pytest.mark.parametrize(
    ("family", "sides", "size_of"),
    [
        ("LLaVA-NeXT", (200, 1600), next_size),
        ("Qwen2.5-VL", (448, 1280), qwen_size),
    ],
)
def test_few_buckets_at_published_sizes(
    family: str, sides: tuple[int, int], size_of: Callable[..., Any], keep: Any
) -> None:
    """Eight streams of 50 pictures, a question of 30 to 64 tokens each."""
    rng = np.random.default_rng(5)
    vision, decoder, over_vision, over_decoder = [], [], [], []
    for _ in range(8):
        sizes = rng.integers(sides[0], sides[1] + 1, (50, 2)).tolist()
        met = [(*size_of(*size), int(rng.integers(30, 65))) for size in sizes]
        plans = [plan_of(tokens, slots, words, keep) for _, slots, tokens, words in met]
        vision.append(len({bucket for bucket, *_ in met}))
        decoder.append(len({plan.length for plan in plans}))
        # A selection and an assembly see nothing beyond the vision bucket.
        pairs = zip(met, plans, strict=True)
        shapes = {(bucket, plan.picks, plan.ids.shape) for (bucket, *_), plan in pairs}
        assert len(shapes) == vision[-1]
        over_vision += [slots / tokens for _, slots, tokens, _ in met]
        over_decoder += [
            plan.length / (words + plan.limits[0])
            for plan, (*_, words) in zip(plans, met, strict=True)
        ]
    print(
        f"{family}, keep {keep}: vision buckets {vision}, padded {np.mean(over_vision):.3f}; "
        f"decoder buckets {decoder}, padded {np.mean(over_decoder):.3f}"
    )
    assert max(vision) <= 6 and max(decoder) <= 4
    assert np.mean(over_vision) <= 1.35
    # Of a prompt pruned by a ratio the question is a large part, padded to 64 tokens itself.
    assert np.mean(over_decoder) <= (1.4 if keep == 0.222 else 1.35)


# On small models: every picture through the whole library, against torch without padding.

WORDS = 124
"""Tokens of the question with its chat template, at least: the small pictures have few."""


def question(model: LVLM) -> str:
    """A question of about so many tokens."""
    text = "How many people are in the picture"
    while len(model.encoder.encode(f"{text}?").ids) <= WORDS:
        text += " and"
    assert len(model.encoder.encode(f"{text}?").ids) - 1 <= 128
    return f"{text}?"


# One decoder layer; three.
PAIRS: dict[str, Callable[[], Any]] = {
    "LLaVA-NeXT": lambda: next_pairs.pair("mistral-missing"),
    "Qwen2.5-VL": lambda: qwen_pairs.pair("untied"),
}


def small(family: str) -> LVLM:
    """A model of its own, so that a test can spoil it."""
    model = load_model(PAIRS[family]().directory, dtype="float32")
    model._extractor = lexicon()
    if family == "Qwen2.5-VL":
        model.family.processor.image_limits = (16 * 784, 256 * 784)  # type: ignore[attr-defined]
    return model


def stream(family: str, count: int) -> list[Image.Image]:
    rng = np.random.default_rng(11)
    low, high = (20, 250) if family == "LLaVA-NeXT" else (140, 320)
    return [next_pairs.picture(*size) for size in rng.integers(low, high, (count, 2)).tolist()]


@torch.no_grad()
def reference(family: str, model: LVLM, image: Image.Image) -> Reference:
    """The picture's prompt in torch, nothing padded; pixels are this library's."""
    prompt = model.encoder.encode(question(model))
    processor = model.family.processor  # type: ignore[attr-defined]
    read = processor.image(image)
    theirs = PAIRS[family]().torch_model
    if family == "LLaVA-NeXT":
        own = {"pixel_values": torch.from_numpy(read.tiles)[None],
               "image_sizes": torch.tensor([read.size])}  # fmt: skip
        features = theirs.model.get_image_features(**own).pooler_output[0]
        holder = NEXT_TOKEN_ID
    else:
        own = {"pixel_values": torch.from_numpy(read.patches),
               "image_grid_thw": torch.tensor([read.grid])}  # fmt: skip
        features = theirs.model.get_image_features(**own).pooler_output[0]
        holder = QWEN_TOKEN_ID
    ids, _ = expand(prompt.ids, holder, [len(features)])
    inputs = {"input_ids": torch.from_numpy(ids).long()[None], **own}
    x = theirs.get_input_embeddings()(inputs["input_ids"][0])
    x[torch.from_numpy(ids == holder)] = features
    places = np.arange(len(ids))
    if family == "Qwen2.5-VL":
        inputs["mm_token_type_ids"] = torch.from_numpy(qwen_pairs.kinds(ids)).int()[None]
        found, _ = theirs.model.get_rope_index(
            input_ids=inputs["input_ids"], image_grid_thw=own["image_grid_thw"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
        )  # fmt: skip
        places = found[:, 0].numpy().T
    return Reference(theirs, inputs, x, places, np.where(ids == holder, 0, -1))


@contextmanager
def watched(model: LVLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[np.ndarray]]:
    """The first logits of every answer that the model gives meanwhile."""
    seen: list[np.ndarray] = []
    own = model.programs

    def prefill(*args: Any, **options: Any) -> Any:
        logits, cache = own.prefill(*args, **options)
        seen.append(np.asarray(logits)[0])
        return logits, cache

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "programs", replace(own, prefill=prefill))
        yield seen


NEW = 3


def answers(model: LVLM, images: list[Image.Image]) -> list[Any]:
    """Each picture full and pruned, one call after the other."""
    asked = question(model)
    return [
        [
            model.generate(image, asked, max_new_tokens=NEW, keep=keep, **options)
            for keep, options in ((None, {}), (0.3, {"alpha": 0.0, "seed_rule": "max_norm"}))
        ]
        for image in images
    ]


def compare(
    family: str, model: LVLM, images: list[Image.Image], made: list[Any], first: list[np.ndarray]
) -> tuple[float, int]:
    """(the worst logits over the bound, answers and choices that are wrong) against torch."""
    worst, wrong = 0.0, 0
    eos, rule = int(model.encoder.eos_ids[0]), model.family.positions
    for number, (image, (full, pruned)) in enumerate(zip(images, made, strict=True)):
        row = reference(family, model, image)
        count = int((row.image >= 0).sum())
        everything = np.arange(count)
        indices = np.asarray(pruned.selections.indices[0])[: pruned.kept[0]]
        tokens = np.asarray(model.encode(image).embeddings[0])[:count]
        answered = [(full, everything, first[2 * number])]
        if indices.max() < count and certify(tokens, indices, count=len(indices)).ok:
            answered.append((pruned, np.sort(indices), first[2 * number + 1]))
        else:
            wrong += 1
        for made_here, kept, logits in answered:
            wanted, theirs = row.pruned_answer(kept, rule, eos, NEW)
            worst = max(worst, share(logits, theirs))
            wrong += made_here.tokens[0].tolist() != wanted
    return worst, wrong


@pytest.mark.parametrize(
    ("family", "pictures"),
    [
        ("LLaVA-NeXT", 15),
        pytest.param("LLaVA-NeXT", 50, marks=pytest.mark.deep),
        pytest.param("Qwen2.5-VL", 50, marks=pytest.mark.deep),
    ],
)
def test_a_stream_compiles_once_a_bucket_and_padding_changes_nothing(
    family: str, pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = small(family), stream(family, pictures)
    names = ("encode", "prune", "assemble", "prefill", "decode")
    before = {name: getattr(model.programs, name)._cache_size() for name in names}
    shapes: dict[str, set[Any]] = {name: set() for name in names}
    over: dict[str, list[float]] = {"vision": [], "decoder": []}
    lay_out = LVLM.lay_out

    def noting(self: LVLM, prompts: Any, visual: Any, layouts: Any, *args: Any, **options: Any):
        call = lay_out(self, prompts, visual, layouts, *args, **options)
        plan, slots = call.plan, visual.valid.shape[1]
        grid = visual.coords.shape if visual.kind is None else visual.kind.shape
        shapes["encode"].add((read[-1], grid))
        if plan.picks:
            shapes["prune"].add((slots, plan.picks))
        shapes["assemble"].add((slots, plan.ids.shape, plan.length))
        shapes["prefill"].add(plan.length)
        shapes["decode"].add(plan.length)
        tokens = layouts[0][0].tokens
        over["vision"].append(slots / tokens)
        real = int(plan.valid[0].sum()) - tokens + int(plan.limits[0])
        over["decoder"].append(plan.length / real)
        return call

    read: list[Any] = []
    run_tower = Runner.run_tower

    def tower(self: Runner, pictures: Pictures, *needs: Any) -> Any:
        arrays = pictures.inputs
        read.append((arrays.get("pixels", arrays.get("patches"))).shape)
        return run_tower(self, pictures, *needs)

    with monkeypatch.context() as patch, backend_compiles() as compiles:
        patch.setattr(LVLM, "lay_out", noting)
        patch.setattr(Runner, "run_tower", tower)
        with watched(model, monkeypatch) as first:
            made = answers(model, images)
    after = {name: getattr(model.programs, name)._cache_size() for name in names}
    grown = {name: after[name] - before[name] for name in names}
    used = {name: len(found) for name, found in shapes.items()}
    padded = {name: round(float(np.mean(found)), 3) for name, found in over.items()}
    print(f"{family}: buckets {used}, compiled {grown}, {len(compiles)} in all; padded {padded}")
    assert used["encode"] <= 6 and used["decode"] <= 4
    assert all(grown[name] <= used[name] for name in names)
    assert len(compiles) == sum(grown.values())
    assert max(padded.values()) <= 1.35

    worst, wrong = compare(family, model, images, made, first)
    print(f"{len(first)} answers against torch without padding: worst {worst:.2f} of the bound")
    assert worst <= 1 and wrong == 0


def unmask_tables(inputs: Any) -> Any:
    """The vision tower's padding declared real."""
    tables = inputs["tables"]
    if "pixels" in inputs:
        # Padding shows the patches that unpadding cuts away.
        others = 16 * tables.tile_valid.shape[1] - 1 - np.arange(tables.index.shape[1])
        index = np.where(tables.valid, tables.index, np.maximum(others, 0))
        return inputs | {"tables": replace(tables, valid=np.ones_like(tables.valid), index=index)}
    real = np.asarray(tables.window_slot) < tables.windows.size
    segments = np.where(real, tables.segments, tables.segments[0])
    return inputs | {"tables": replace(tables, segments=segments)}


@pytest.mark.deep
@pytest.mark.parametrize("family", ["LLaVA-NeXT", "Qwen2.5-VL"])
@pytest.mark.parametrize("where", ["vision", "cache"])
def test_unmasking_the_padding_fails(
    family: str, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, images = small(family), stream(family, 3)
    if family == "LLaVA-NeXT":  # much is cut away of these
        images = [next_pairs.picture(*size) for size in ((30, 240), (250, 60), (25, 130))]
    run_tower = Runner.run_tower

    def tower(self: Runner, pictures: Pictures, *needs: Any) -> Any:
        inputs = unmask_tables(pictures.inputs)
        return run_tower(self, replace(pictures, inputs=inputs), *needs)

    def mark(self: KVCache, slot: Any, valid: Any) -> KVCache:
        return replace(self, valid=jnp.ones_like(self.valid))

    with monkeypatch.context() as patch:
        if where == "vision":
            patch.setattr(Runner, "run_tower", tower)
        else:
            patch.setattr(KVCache, "mark", mark)
            fresh = programs.__wrapped__(model.config, model.dtype)
            patch.setattr(Runner, "programs", fresh)
        with watched(model, monkeypatch) as first:
            made = answers(model, images)
    worst, wrong = compare(family, model, images, made, first)
    print(f"{family}, {where} unmasked: worst {worst:.0f} times the bound, {wrong} wrong")
    assert worst > 10 or wrong > 0


@pytest.mark.parametrize(
    "family", ["LLaVA-NeXT", pytest.param("Qwen2.5-VL", marks=pytest.mark.deep)]
)
def test_nothing_compiles_behind_a_warm_up(family: str) -> None:
    model = small(family)
    several = family == "LLaVA-NeXT"
    # Sizes of pictures to come, and others of their buckets.
    one, later = ((56, 56), (60, 50)) if several else ((150, 190), (140, 200))
    shapes = model.warm_up(
        [one], keep=[None, 0.3], prompt_lengths=(100, 124), batch_sizes=(1, 2), max_new_tokens=NEW
    )
    two = [(90, 120), (40, 90)] if several else [(150, 190), (5, 60, 90)]
    shapes += model.warm_up([two], keep=0.3, prompt_lengths=(124,), max_new_tokens=NEW)
    first, second = (next_pairs.picture(*size) for size in (later, (50, 100)))
    film = Video(np.stack([np.asarray(next_pairs.picture(64, 88))] * 6), fps=3.0)
    asked = question(model)
    with backend_compiles() as compiles:
        model.generate(first, asked, max_new_tokens=NEW)
        model.generate([first, first], [asked, "Is it red?"], keep=0.3, max_new_tokens=1)
        pair = [next_pairs.picture(80, 110), second] if several else [first, film]
        model.generate([pair], [asked], keep=0.3, max_new_tokens=2)
    print(f"{family}: {shapes} shapes warmed up, {len(compiles)} compiles behind")
    assert compiles == [] and shapes == 5


def test_a_warm_up_refuses_what_generate_would() -> None:
    model = small("LLaVA-NeXT")
    for options, said in (
        ({"sizes": []}, "sizes is a list of"),
        ({"sizes": [(0, 5)]}, "sizes is a list of"),
        ({"sizes": [(5,)]}, "sizes is a list of"),
        ({"sizes": [(3, 40, 40)]}, "LLaVA-NeXT takes images, not videos"),
        ({"keep": 0}, "give a count of at least 1"),
        ({"batch_sizes": ()}, "batch_sizes holds"),
        ({"prompt_lengths": (0,)}, "prompt_lengths holds"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"budget": "half"}, "budget"),
        ({"method": "none", "keep": 4}, "method 'none'"),
    ):
        with pytest.raises(CallError, match=said), backend_compiles() as compiles:
            model.warm_up(**options)  # type: ignore[arg-type]
        assert compiles == []
