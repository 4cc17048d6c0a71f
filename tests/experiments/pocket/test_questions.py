"""Questions, labels, captions, the frozen test set: experiments/pocket/scenes/."""

import functools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments.pocket.scenes.frozen import (
    SPLITS,
    blind_accuracy,
    check_disjoint,
    digest,
    frozen_set,
    split_seed,
)
from resprune_jax.experiments.pocket.scenes.labels import (
    SLOTS,
    VOCABULARY,
    anchors,
    caption,
    dense_labels,
    named_patches,
    question_patches,
    ranked_patches,
)
from resprune_jax.experiments.pocket.scenes.parts import PATCH, PRESETS, TOP, Scene
from resprune_jax.experiments.pocket.scenes.questions import (
    FAMILIES,
    KINDS,
    Question,
    ask,
    ask_many,
)
from resprune_jax.experiments.pocket.scenes.scene import coverage, make_scene, render
from resprune_jax.experiments.pocket.scenes.sheet import contact_sheet
from resprune_jax.experiments.pocket.scenes.words import COLOURS, POPULAR, SHAPES, Draw
from resprune_jax.prompts import clean_prompt
from tests.experiments.pocket.pocket_reader import changed, described, right_answers
from tests.prompt_data import lexicon, words

CPU = PRESETS["cpu"]

Items = list[tuple[Scene, list[Question]]]


@functools.cache
def frozen() -> Items:
    return frozen_set("cpu")


@functools.cache
def training(count: int = 800) -> Items:
    """Training scenes with ten questions each."""
    made = [make_scene(CPU, split_seed("train", i)) for i in range(count)]
    return [(scene, ask_many(scene, Draw(scene.rng_seed, 1), 10)) for scene in made]


def of(items: Items, *families: str) -> list[Question]:
    return [q for _, questions in items for q in questions if q.family in (families or FAMILIES)]


# --- right answers --------------------------------------------------------------------------------


@pytest.mark.parametrize("preset,level", [("cpu", level) for level in range(TOP)] + [("gpu", TOP)])
def test_a_second_reader_finds_the_same_answers_at_every_level(preset: str, level: int) -> None:
    checked: Counter[str] = Counter()
    for i in range(40 if preset == "cpu" else 25):
        scene = make_scene(PRESETS[preset].at_level(level), 4_000_000 + i)
        for question in ask_many(scene, Draw(scene.rng_seed, 1), 10):
            assert right_answers(scene, question.question) == {question.answer}, question
            checked[question.family] += 1
    print(f"{preset}, level {level}: {dict(checked)}")
    # One object without a text offers nothing to read; everything else can be asked about it.
    assert set(checked) == set(FAMILIES) - ({"reading"} if level == 0 else set())


@pytest.mark.deep
def test_a_second_reader_finds_the_same_answers_in_the_hardest_scenes() -> None:
    checked: Counter[tuple[str, str]] = Counter()
    for scene, questions in frozen()[:90] + training()[:50]:
        for question in questions:
            assert right_answers(scene, question.question) == {question.answer}, question
            checked[question.family, question.kind] += 1
    print(f"{sum(checked.values())} questions of {len(checked)} kinds")
    assert set(checked) == {(family, kind) for family in KINDS for kind in KINDS[family]}
    assert min(checked.values()) >= 5


def test_negatives_are_of_their_kind_and_name_what_could_be_mistaken_for_it() -> None:
    seen: Counter[str] = Counter()
    for scene, questions in training():
        pairs = {(thing.shape, thing.colour) for thing in scene.things}
        for question in (q for q in questions if q.family == "existence"):
            said = question.question.rstrip("?").split()
            shape = next(word for word in said if word in SHAPES)
            colour = next((word for word in said if word in COLOURS), None)
            seen[question.kind] += 1
            if question.kind == "present":
                assert question.things == tuple(
                    described(scene, " ".join(w for w in (colour, shape) if w))
                )
                continue
            alike = [
                i for i, thing in enumerate(scene.things) if thing.shape == shape
                or thing.colour == colour
            ]  # fmt: skip
            assert question.things == tuple(alike) and (shape, colour) not in pairs
            assert colour is None or colour in scene.palette
            if question.kind == "popular":
                assert (shape, colour) in POPULAR
            if question.kind == "adversarial":
                assert alike
    print(dict(seen))
    assert set(seen) == set(KINDS["existence"]) and min(seen.values()) > 150


# --- balance --------------------------------------------------------------------------------------


def test_the_frozen_set_is_balanced() -> None:
    questions = of(frozen())
    assert Counter(q.family for q in questions) == dict.fromkeys(FAMILIES, 500)
    existence = Counter(q.kind for q in of(frozen(), "existence"))
    assert existence["present"] == 250
    assert all(82 <= existence[kind] <= 84 for kind in ("random", "popular", "adversarial"))
    counts = Counter(q.answer for q in of(frozen(), "counting"))
    print(dict(existence), dict(counts))
    assert set(counts) == set("01234") and all(75 <= n <= 130 for n in counts.values())
    sizes = Counter(q.answer for q in questions if q.kind == "size")
    assert 0.35 < sizes["small"] / sizes.total() < 0.65
    # Of training questions there are enough to look at every wording.
    relations: dict[str, Counter[str]] = {}
    for question in of(training(), "relations"):
        if question.kind != "what":
            words_of_place = ("left", "right", "above", "below", "top")
            form = " ".join(w for w in words_of_place if w in question.question.split(",")[-1])
            relations.setdefault(f"{question.kind} {form}", Counter())[question.answer] += 1
    print({form: dict(answers) for form, answers in relations.items()})
    assert len(relations) == 8
    for form, answers in relations.items():
        assert len(answers) == 2 and max(answers.values()) < 0.65 * answers.total(), form


def test_who_does_not_see_the_image_guesses_badly() -> None:
    table = blind_accuracy(of(training()), of(frozen()))
    print({family: f"{a:.1%}, {b:.1%}" for family, (a, b) in table.items()})
    assert table["existence"][0] == 0.5 and table["existence"][1] < 0.55
    assert max(table["overall"]) < 0.30 and max(table["counting"]) < 0.30
    assert max(table["attributes"]) < 0.35 and max(table["relations"]) < 0.35
    assert max(table["reading"]) < 0.05


def test_blind_accuracy_by_hand() -> None:
    def row(text: str, answer: str, family: str = "counting") -> Question:
        return Question(family, "shape", text, "", answer, ())

    known = [row("a?", "1"), row("a?", "1"), row("a?", "2"), row("b?", "3")]
    asked = [row("a?", "1"), row("a?", "2"), row("b?", "3"), row("new?", "1"), row("c?", "x", "z")]
    table = blind_accuracy(known, asked)
    assert table == {"counting": (0.5, 0.75), "overall": (0.4, 0.6), "z": (1.0, 0.0)}


# --- prompts --------------------------------------------------------------------------------------


def test_prompts_clean_to_the_question_and_nouns_hold_the_shapes_asked_about() -> None:
    named = instructions = 0
    for question in of(frozen())[:800]:
        assert clean_prompt(question.prompt).text == question.question, question.prompt
        nouns = words(lexicon().extract(question.prompt))
        said = [w.strip(",?") for w in question.question.split()]
        for word in said:
            if word in SHAPES or word.removesuffix("s") in SHAPES or word.startswith("object"):
                assert word in nouns, (question.question, nouns)
                named += 1
            if word in ("word", "number", "text") and question.family == "reading":
                assert word in nouns, (question.question, nouns)
        assert not {"phrase", "answer"} & set(nouns)
        instructions += "Answer the question using a single word or phrase." in question.prompt
    print(f"{named} shape words, all nouns; {instructions} prompts with LLaVA's instruction")
    assert named > 500 and instructions > 300


def test_many_questions_differ_and_wrong_names_are_refused() -> None:
    scene = frozen()[0][0]
    many = ask_many(scene, Draw(3), 24)
    assert len(many) == 24 == len({question.question for question in many})
    assert set(Counter(question.family for question in many)) == set(FAMILIES)
    assert ask_many(scene, Draw(3), 24) == many
    only = ask_many(scene, Draw(3), 3, ["attributes"])
    assert [question.family for question in only] == ["attributes"] * 3
    assert ask(make_scene(CPU.at_level(0), 5), Draw(1), "reading") is None
    with pytest.raises(CallError, match="family='colours' is unknown"):
        ask(scene, Draw(1), "colours")
    with pytest.raises(CallError, match="kind='popular' is unknown to reading"):
        ask(scene, Draw(1), "reading", "popular")


# --- patches, labels, captions --------------------------------------------------------------------


def test_the_oracles_patches_hold_what_is_asked_about() -> None:
    sizes = []
    empty = 0
    for scene, questions in frozen()[:60]:
        cover = coverage(scene)
        for question in questions:
            found = question_patches(scene, question)
            rows = [*question.things, *(len(scene.things) + i for i in question.texts)]
            assert len(set(found.tolist())) == len(found)
            if not rows:
                assert not len(found)
                assert question.answer in ("no", "0")
                empty += 1
                continue
            assert set(np.flatnonzero((cover[rows] >= 0.05).any(0))) <= set(found.tolist())
            # First come the anchors, then the best of every part that is not its anchor.
            middle = anchors(scene)[rows]
            assert set(found[: len(middle)].tolist()) == set(middle.tolist())
            best = {int(cover[row].argmax()) for row in rows}
            assert best <= set(found[: 2 * len(middle)].tolist())
            # Nearly all of their pixels lie in these patches.
            assert cover[rows][:, found].sum() > 0.9 * cover[rows].sum()
            sizes.append(len(found))
    print(f"{np.mean(sizes):.1f} patches a question, {empty} questions about nothing there")
    assert empty > 10
    assert ranked_patches(frozen()[0][0]).shape == (0,)


def test_named_patches_are_those_of_every_object_of_the_name() -> None:
    for scene, _ in frozen()[:40]:
        changes = np.zeros((CPU.side, CPU.side), bool)
        shape = scene.things[0].shape
        for i in described(scene, shape):
            changes |= changed(scene, thing=i)
        pixels = changes.reshape(CPU.grid, PATCH, CPU.grid, PATCH).sum((1, 3)).reshape(-1)
        mask = named_patches(scene, shape)
        assert mask.dtype == bool and mask.shape == (144,)
        assert not mask[pixels == 0].any() and mask[pixels >= 40].all()
        assert (named_patches(scene, "object") >= mask).all()
        kinds = named_patches(scene, "word").sum(), named_patches(scene, "number").sum()
        assert [bool(k) for k in kinds] == [
            any(text.kind == kind for text in scene.texts) for kind in ("word", "number")
        ]
        assert not named_patches(scene, "nothing").any()


def test_labels_say_what_patches_show() -> None:
    label = {word: i for i, word in enumerate(VOCABULARY)}
    assert len(label) == len(VOCABULARY) == 4 + 9 + 9 + 2 + 36
    names = list(COLOURS)
    palette = np.array(list(COLOURS.values()), float)
    coloured = right = 0
    for scene, _ in frozen()[:80]:
        labels = dense_labels(scene)
        cover = coverage(scene)
        assert labels.shape == (144, len(SLOTS)) and labels.dtype == np.int32
        assert labels.min() >= -1 and labels.max() < len(VOCABULARY)
        kind = labels[:, 0]
        assert (cover[:, kind == label["background"]].sum(0) < 0.01).all()
        assert (cover.max(0)[kind == -1] < 0.2).all()
        # Words stand only where their kind of thing is.
        assert ((labels[:, 1:4] >= 0).all(1) == (kind == label["object"])).all()
        assert (labels[:, 4] >= 0).sum() > 0 or not scene.texts
        for thing in scene.things:
            column, row = int(thing.x) // PATCH, int(thing.y) // PATCH
            said = [label[word] for word in ("object", thing.shape, thing.colour, thing.size)]
            around = labels.reshape(CPU.grid, CPU.grid, -1)[
                max(0, row - 1) : row + 2, max(0, column - 1) : column + 2
            ].reshape(-1, len(SLOTS))
            assert (around[:, :4] == said).all(1).any()
        means = render(scene).reshape(CPU.grid, PATCH, CPU.grid, PATCH, 3).mean((1, 3))
        for patch in np.flatnonzero((cover[: len(scene.things)] > 0.98).any(0)):
            nearest = np.linalg.norm(palette - means.reshape(-1, 3)[patch], axis=1).argmin()
            right += VOCABULARY[labels[patch, 2]] == names[nearest]
            coloured += 1
        for text in scene.texts:
            # Its characters, read patch by patch from left to right, in one row or the other.
            for character in text.answer:
                assert (labels[:, 4:] == label[character]).any(), text
    print(f"{right} of {coloured} filled patches have the colour of their label")
    assert right == coloured > 100


def test_captions_name_everything_with_its_place() -> None:
    scene = frozen()[3][0]
    seen = {caption(scene, Draw(i)) for i in range(6)}
    assert len(seen) == 6 and caption(scene, Draw(0)) in seen
    for text in seen:
        parts = text.removesuffix(".").split("; ")
        assert text.endswith(".") and len(parts) == len(scene.things) + len(scene.texts)
        for thing in scene.things:
            row = ("top", "", "bottom")[int(3 * thing.y / CPU.side)]
            column = ("left", "", "right")[int(3 * thing.x / CPU.side)]
            where = f"{row} {column}".strip() or "center"
            assert f"a {thing.size} {thing.colour} {thing.shape} at the {where}" in parts
        for printed in scene.texts:
            assert any(part.startswith(f"the {printed.kind} {printed.answer} at") for part in parts)


# --- splits and the frozen set --------------------------------------------------------------------


def test_splits_share_no_seed() -> None:
    for a, one in SPLITS.items():
        for b, other in SPLITS.items():
            assert a == b or max(one.start, other.start) >= min(one.stop, other.stop)
    assert split_seed("validation", 7) in SPLITS["validation"]
    for index in (-1, len(SPLITS["test"])):
        with pytest.raises(CallError, match="split test has scenes 0 to 999999"):
            split_seed("test", index)
    with pytest.raises(CallError, match="split='dev' is unknown"):
        split_seed("dev", 0)
    with pytest.raises(CallError, match="share seeds"):
        check_disjoint({"train": range(5, 20), "test": range(0, 6)})
    with pytest.raises(CallError, match="share seeds"):
        check_disjoint({"all": range(0, 100), "test": range(3, 6), "train": range(50, 60)})
    with pytest.raises(CallError, match="non-empty"):
        check_disjoint({"train": range(5, 5)})
    with pytest.raises(CallError, match="preset='tpu' is unknown"):
        frozen_set("tpu")
    assert {scene.rng_seed for scene, _ in frozen()} <= set(SPLITS["test"][:1000])


# What `python -m resprune_jax.experiments.pocket.scenes.frozen --preset ...` prints. A change here
# means another test set: accuracies measured on the old one no longer compare.
CONTENTS = {
    "cpu": "c881a0ebd046a1f26a32b0c2eaf58af3364dee2d89f1a280e7842173172c308c",
    "gpu": "a9fe5537cb0120b75c92f8f71fe6ccc06b039291009df46f6d6733c9db23f891",
}
PIXELS = {
    "cpu": "228d67a88f71610e9a2d2d439fd31958a8cd55bd7ad4bb09790d33e4cc5b7b90",
    "gpu": "62da9da81902659fbb6f128b04a98f1eb44aea9c364a888492b896f43d2b95e0",
}


@pytest.mark.deep
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_test_set_is_frozen(preset: str) -> None:
    items = frozen() if preset == "cpu" else frozen_set(preset)
    assert len(items) == 500 and len(of(items)) == 2500
    sums = digest(items)
    print(f"{preset}: contents {sums.contents}, pixels {sums.pixels}")
    assert sums.contents == CONTENTS[preset], "the scenes or questions have changed"
    assert sums.pixels == PIXELS[preset], (
        "the same scenes are painted otherwise: by our code, or by another version of Pillow"
    )
    first = digest(items[:100])
    assert first != sums and first == digest(frozen_set(preset, 100))


def test_the_contact_sheet_shows_every_scene(tmp_path: Path) -> None:
    path = contact_sheet(frozen()[:3], tmp_path / "sheet.png", columns=2, outlined=True)
    sheet = np.asarray(Image.open(path))
    assert sheet.shape[1] == 2 * (336 + 16) + 16 and sheet.shape[0] > 2 * 400
    scene = render(frozen()[1][0])
    tile = Image.fromarray(sheet[16 : 16 + 336, 368 : 368 + 336]).resize((168, 168))
    plain = contact_sheet(frozen()[1:2], tmp_path / "one.png")
    tile = Image.open(plain).crop((16, 16, 352, 352)).resize((168, 168), Image.Resampling.BOX)
    assert np.abs(np.asarray(tile).astype(int) - scene).mean() < 4
    with pytest.raises(CallError, match="at least one"):
        contact_sheet([], tmp_path / "none.png")
