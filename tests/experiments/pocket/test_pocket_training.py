"""Training of the pocket model: shared prefixes, batches, resuming bit by bit."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from resprune_jax.experiments.pocket.model import recipe, tokenizer
from resprune_jax.experiments.pocket.scenes.frozen import split_seed
from resprune_jax.experiments.pocket.scenes.labels import SLOTS, VOCABULARY, dense_labels, owners
from resprune_jax.experiments.pocket.scenes.parts import PRESETS, Description
from resprune_jax.experiments.pocket.scenes.questions import FAMILIES
from resprune_jax.experiments.pocket.scenes.scene import coverage, make_scene
from resprune_jax.experiments.pocket.scenes.words import SHAPES, WORDS, Draw
from resprune_jax.experiments.pocket.training import answers, stages, trainer
from resprune_jax.experiments.pocket.training.answers import MOST, NAMES, Answer, Phase, pack
from resprune_jax.experiments.pocket.training.drills import DRILLS, drill
from resprune_jax.experiments.pocket.training.segments import run_segments
from resprune_jax.experiments.pocket.training.targets import NO_DIGIT, targets
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava

TINY = recipe.Recipe(
    PRESETS["cpu"], vision_width=16, vision_layers=1, vision_heads=2, width=32, layers=2, heads=2,
    inner=32,
)  # fmt: skip
PHASES = (
    Phase(0.5, ((0, 1.0),), 2, 6, 0.0, 1.0),
    Phase(1.0, ((3, 0.5), (4, 0.5)), 0, 3, 1.0, 0.0),
)


DRILLING = Phase(1.0, ((3, 1.0),), 4, 0, 0.0, 0.0)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(recipe.RECIPES, "cpu", TINY)


@pytest.fixture(scope="module")
def batch():
    return Answer("cpu", images=3, steps=10, phases=PHASES)(9)


@pytest.mark.deep
def test_segments_are_what_the_decoder_computes_for_each_question_alone(batch):
    model = Llava(LlavaConfig.from_hf(TINY.hf_config()), rngs=nnx.Rngs(3))
    decoder = model.language_model
    prefix = jax.random.normal(jax.random.key(0), (3, 9, TINY.width))
    x = model.embed(jnp.array(batch["ids"]))
    whole = jax.jit(run_segments)  # the module is a pytree
    together = whole(decoder, prefix, x, batch["segment"], batch["place"])

    @jax.jit
    def alone(decoder, tokens):
        positions = jnp.arange(tokens.shape[1])[None]
        return decoder.norm(decoder.run_layers(tokens, positions)[0])

    checked, length = 0, 9 + 48
    for row in range(3):
        for number in range(0, int((batch["family"][row] >= 0).sum()), 3):
            chunk, at = np.nonzero(batch["segment"][row] == number)
            tokens = jnp.concatenate([prefix[row], x[row, chunk, at]])
            padded = jnp.pad(tokens, ((0, length - len(tokens)), (0, 0)))[None]
            expected = alone(decoder, padded)[0, 9 : len(tokens)]
            chex.assert_trees_all_close(together[row, chunk, at], expected, atol=2e-5)
            checked += len(at)
    print(f"{checked} tokens of single questions equal")
    assert checked > 150
    # Had one segment seen another, this would not hold:
    shared = np.where(batch["segment"] >= 0, 0, -1)
    leaking = whole(decoder, prefix, x, shared, batch["place"])
    real = batch["segment"] >= 0
    assert float(jnp.abs(leaking - together)[real].max()) > 1e-2


def test_pack_keeps_questions_whole_and_drops_what_has_no_room():
    asked = [
        ([(f"what number is {'under ' * i}it? assistant:", str(100 + i))], i % 5) for i in range(12)
    ]
    out = pack(asked, chunks=2, size=40)
    tok = tokenizer.make_tokenizer()
    packed = int((out["family"] >= 0).sum())
    assert 2 <= packed < 12 and out["family"].shape == (MOST,)
    seen = []
    for number in range(packed):
        chunk, at = np.nonzero(out["segment"] == number)
        assert len(set(chunk)) == 1 and (np.diff(at) == 1).all()
        assert (out["place"][chunk, at] == np.arange(len(at))).all()
        ids, learn = out["ids"][chunk, at], out["learn"][chunk, at]
        answer = tok.decode(list(ids[learn]))
        assert ids[-1] == tokenizer.END and learn[-1]
        text = next(i for i, (facts, _) in enumerate(asked) if facts[0][1] == answer)
        assert tok.decode(list(ids[~learn])).endswith("assistant :")
        assert out["family"][number] == asked[text][1]
        seen.append(text)
    assert len(set(seen)) == packed
    assert (out["ids"][out["segment"] < 0] == tokenizer.PAD).all()
    assert not out["learn"][out["segment"] < 0].any()
    print(f"{packed} of 12 questions packed")


def test_a_drill_lies_in_one_chunk_and_learns_only_what_follows():
    tok = tokenizer.make_tokenizer()
    drawn = 0
    for index in range(12):
        scene = make_scene(PRESETS["cpu"].at_level(1 + index % 4), split_seed("validation", index))
        drills = answers._drilled(scene, Draw(index), DRILLING)
        out = pack(drills, chunks=4, size=64)
        assert len(drills) <= 4 and len({kind for _, kind in drills}) == len(drills)
        for number, (facts, kind) in enumerate(drills):
            chunk, at = np.nonzero(out["segment"] == number)
            assert len(set(chunk)) == 1 and (np.diff(at) == 1).all()
            assert out["family"][number] == kind
            learn = out["learn"][chunk, at]
            learnt = out["ids"][chunk, at][learn]
            answers_ids = [tok.encode(a, add_special_tokens=False).ids for _, a in facts]
            # As many facts as there is room for, in their order, some left out; then the end.
            left = list(learnt[:-1])
            for ids in answers_ids:
                if left[: len(ids)] == ids:
                    left = left[len(ids) :]
            assert not left and learnt[-1] == tokenizer.END
            drawn += int(learn.sum())
    print(f"{drawn} tokens of drills learnt")
    assert drawn > 500


def test_drills_tell_the_truth():
    told = dict.fromkeys(DRILLS, 0)
    yes = no = 0
    for index in range(60):
        scene = make_scene(PRESETS["cpu"].at_level(1 + index % 4), split_seed("validation", index))
        for kind in DRILLS:
            for said, learnt in drill(scene, Draw(index), kind):
                told[kind] += 1
                words = said.replace(":", "").split()
                if kind in ("check", "count"):
                    among = [
                        thing for thing in scene.things
                        if set(words) - {"object"} <= {thing.shape, thing.colour}
                    ]  # fmt: skip
                    expected = str(len(among)) if kind == "count" else "yes" if among else "no"
                    assert learnt == expected, (said, learnt)
                    yes, no = yes + (learnt == "yes"), no + (learnt == "no")
                elif kind == "name":
                    parts = set(words + learnt.split()) - {"object"}
                    fitting = [
                        thing for thing in scene.things
                        if parts == {thing.size, thing.shape, thing.colour}
                    ]  # fmt: skip
                    assert fitting, (said, learnt)
                elif kind == "read":
                    assert learnt in [text.answer for text in scene.texts]
    print(told, f"{yes} yes, {no} no")
    assert min(told.values()) > 40 and 0.7 < yes / no < 1.5


def test_batches_follow_the_curriculum_and_are_functions_of_the_step(batch):
    make = Answer("cpu", images=3, steps=10, phases=PHASES)
    chex.assert_trees_all_equal(batch, make(9))
    early = make(0)
    assert "keep" in early and "keep" not in batch
    assert early["keep"].shape == (3, 72) and (np.diff(early["keep"]) > 0).all()
    families = [NAMES[i] for i in early["family"].reshape(-1) if i >= 0]
    assert "reading" not in families  # level 0 has no text
    some = Answer("cpu", 2, 10, (dataclasses.replace(PHASES[1], partial=1.0),))(0)
    assert some["keep"].shape == (2, 16)
    assert families.count("lesson") > families.count("counting") / 4
    later = [NAMES[i] for i in batch["family"].reshape(-1) if i >= 0]
    assert set(later) == {*FAMILIES, "lesson"}
    assert len([name for name in families if name in DRILLS]) == 6  # two an image


def test_sparse_images_keep_every_patch_that_shows_something():
    kept_all = 0
    for index in range(20):
        scene = make_scene(PRESETS["cpu"], split_seed("validation", index))
        keep = answers._foreground(scene, 72, scene.rng_seed)
        assert len(set(keep)) == 72
        kept_all += set(np.flatnonzero(owners(scene) >= 0)) <= set(keep)
    assert kept_all == 20


def test_a_part_of_an_image_shows_what_is_asked_and_nothing_else():
    sizes, dropped, several = [], 0, 0
    for index in range(100):
        scene = make_scene(PRESETS["cpu"], split_seed("validation", index))
        left, keep = answers._part(scene, 16, scene.rng_seed)
        assert keep.shape == (16,) and (np.diff(keep) > 0).all()
        parts = (*scene.things, *scene.texts)
        taken = {parts.index(part) for part in (*left.things, *left.texts)}
        # Tokens of what is left and of the background; every one of the parts shows.
        assert taken == set(owners(scene)[keep]) - {-1}
        assert left.things
        sizes.append(len(left.things))
        dropped += len(parts) - len(taken)
        counts = [len(Description(shape).among(left)) for shape in SHAPES]
        several += max(counts) > 1
    print(f"{np.bincount(sizes)} objects left, {dropped} dropped, {several} with one shape twice")
    assert min(sizes) == 1 and max(sizes) >= 5 and dropped > 300 and several > 20


def test_targets_agree_with_the_scene():
    anchors = words = digits = 0
    for index in range(25):
        scene = make_scene(PRESETS["cpu"], split_seed("validation", index))
        told = targets(scene)
        owner, labels = owners(scene), dense_labels(scene)
        assert (told.labels == labels).all()
        cover = coverage(scene)
        parts = (*scene.things, *scene.texts)
        for number, part in enumerate(parts):
            own = np.flatnonzero(owner == number)
            if not len(own):
                continue
            anchors += 1
            assert (told.anchor[own] == 1).sum() == 1
            assert (cover[number, own] > 0).all()
            row, column = np.divmod(own, scene.config.grid)
            box = np.array(part.box) / 14
            middle = np.stack([column, row], 1) + 0.5 + told.middle[own]
            np.testing.assert_allclose(middle, [(box[:2] + box[2:]) / 2] * len(own), atol=1e-4)
            np.testing.assert_allclose(told.centre[own], middle / 6 - 1, atol=1e-4)
            if number >= len(scene.things) and part.kind == "word":
                words += 1
                assert {WORDS[i] for i in told.text[own, 0]} == {part.answer}
            elif number >= len(scene.things):
                digits += 1
                said = "".join(str(d) for d in told.text[own[0], 1:] if d != NO_DIGIT)
                assert said == part.answer and (told.text[own] == told.text[own[0]]).all()
        none = owner < 0
        assert np.isnan(told.middle[none]).all() and (told.anchor[none] == -1).all()
        assert (told.text[none] == -1).all()
    print(f"{anchors} parts, {words} words, {digits} numbers")
    assert anchors > 150 and words > 10 and digits > 10


@pytest.mark.deep
def test_the_first_stage_learns_and_its_heads_are_not_part_of_the_model(tiny):
    graph, params = stages.initial("cpu", 0)
    loss = jax.jit(jax.value_and_grad(stages.see_loss(graph), has_aux=True))
    batch = stages.See("cpu", images=3, steps=10)(5)  # hard scenes, with words and numbers
    (first, metrics), grads = loss(params, batch)
    stepped = jax.tree.map(lambda p, g: p - 0.002 * g, params, grads)
    (second, _), _ = loss(stepped, batch)
    assert float(second) < float(first)
    assert {"shape", "colour", "character", "word", "digit", "anchor"} <= metrics.keys()
    for path, grad in jax.tree.leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        # The decoder's layers and norm take no part in the first stage, everything else does.
        silent = "language_model" in name and "embed_tokens" not in name
        assert (float(jnp.abs(grad).max()) == 0) == silent, name
    assert len(VOCABULARY) == 60 and len(SLOTS) == 7


@pytest.mark.deep
def test_training_goes_on_bit_by_bit_after_it_was_stopped(tiny, tmp_path):
    graph, params = stages.initial("cpu", 0)
    loss = stages.answer_loss(graph, dense=0.1)
    make = Answer("cpu", images=2, steps=6, phases=PHASES[1:])
    schedule = trainer.Schedule(6, 1e-3, warm_up=2, tower=0.5)
    said: list[str] = []

    def run(name, stop_at=None):
        copy = jax.tree.map(jnp.array, params)
        return trainer.train(
            tmp_path / name, copy, loss, make, schedule, workers=0, save_every=2, log_every=2,
            say=said.append, stop_at=stop_at,
        )  # fmt: skip

    whole = run("whole")
    run("parts", stop_at=3)  # stops between two checkpoints' steps
    resumed = run("parts")
    assert "parts: goes on from step 3 of 6" in said
    chex.assert_trees_all_equal(whole, resumed)
    moved = [
        float(jnp.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(whole), strict=True)
    ]
    assert min(moved) > 0
    lines = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 3
    # A run of another length is another run.
    other = dataclasses.replace(make, steps=60)
    assert any((a != b).any() for a, b in zip(make(4).values(), other(4).values(), strict=True)
               if a.shape == b.shape)  # fmt: skip
