"""Evaluation of a pocket model: orders, relevance, a measurement against single questions."""

import dataclasses
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import cli
from resprune_jax.experiments.pocket.evaluation import command as evaluate
from resprune_jax.experiments.pocket.evaluation import measure
from resprune_jax.experiments.pocket.evaluation.card import card
from resprune_jax.experiments.pocket.evaluation.measure import Setting, answer, settings, spread
from resprune_jax.experiments.pocket.evaluation.summary import SLICE, summary
from resprune_jax.experiments.pocket.evaluation.tables import goal_table, markdown
from resprune_jax.experiments.pocket.judge import is_right
from resprune_jax.experiments.pocket.scenes.frozen import frozen_set
from resprune_jax.experiments.pocket.scenes.labels import question_patches
from resprune_jax.experiments.pocket.scenes.orders import given_order, oracle_order, random_order
from resprune_jax.experiments.pocket.scenes.scene import coverage, render
from resprune_jax.experiments.pocket.training.plans import stages_of
from resprune_jax.models import load_model
from resprune_jax.relevance import cosines
from tests.experiments.pocket.pocket_export import small_export

N = 144
RATIOS = (Fraction(2, 9), Fraction(1, 9))


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return small_export(tmp_path_factory.mktemp("pocket") / "small")


@pytest.fixture(scope="module")
def lvlm(folder):
    return load_model(folder, dtype="float32")


@pytest.fixture(scope="module")
def items():
    return frozen_set("cpu", 5)


@pytest.fixture(scope="module")
def asked(items):
    return [(scene, i, q) for scene, questions in items[:3] for i, q in enumerate(questions)]


@pytest.fixture(scope="module")
def images(lvlm, items):
    encoded = lvlm.encode([render(scene) for scene, _ in items[:3]])
    return spread(encoded, [row for row in range(3) for _ in range(5)])


@pytest.fixture(scope="module")
def measured(lvlm, items):
    """Five scenes in batches of three: the last batch is filled up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "_TOGETHER", 3)
        calls = []
        extract = type(lvlm.extractor()).extract
        patch.setattr(
            type(lvlm.extractor()), "extract",
            lambda self, prompt, **more: calls.append(prompt) or extract(self, prompt, **more),
        )  # fmt: skip
        done = []
        made = measure.measure(lvlm, items, settings(ratios=RATIOS), step=done.append)
    asked = [question.prompt for _, questions in items for question in questions]
    assert Counter(calls) == Counter(set(asked)), "nouns are found once a question"
    assert sum(done) == len(made.settings) * len(asked) == 10 * 25
    return made


# --- orders ---------------------------------------------------------------------------------------


def test_random_orders_are_fair_and_depend_on_nothing_but_the_question(items):
    scene = items[0][0]
    first = np.zeros(N, int)
    for number in range(2000):
        order = random_order(scene, number, 0)
        assert (np.sort(order) == np.arange(N)).all()
        first[order[:48]] += 1
    spreads = (first - 2000 / 3) / np.sqrt(2000 * 2 / 9)
    print(f"each patch among the first third {first.min()} to {first.max()} times of 2000")
    assert np.abs(spreads).max() < 4.5 and 0.8 < spreads.std() < 1.2
    again = random_order(scene, 7, 0)
    assert (again == random_order(scene, 7, 0)).all()
    for other in (random_order(scene, 8, 0), random_order(scene, 7, 1),
                  random_order(items[1][0], 7, 0)):  # fmt: skip
        assert (again != other).any()


def test_the_oracle_keeps_what_the_question_is_about_and_nothing_else():
    seen, nothing, parts = 0, 0, 0
    for scene, questions in frozen_set("cpu", 60):
        cover = coverage(scene)
        for number, question in enumerate(questions):
            order = oracle_order(scene, question, number, 0)
            about = [*question.things, *(len(scene.things) + i for i in question.texts)]
            if not about:
                assert (order == random_order(scene, number, 0)).all()
                nothing += 1
                continue
            assert (order == question_patches(scene, question)).all()
            # Each of them shows one of the parts; the least budget holds something of each part.
            assert (cover[about][:, order].max(0) > 0).all()
            for part in about:
                assert (cover[part][order[:16]] > 0).any() or len(about) > 16
                parts += 1
            seen += 1
    print(f"{seen} questions about {parts} parts, {nothing} about nothing that is there")
    assert seen > 250 and nothing > 5


def test_what_an_order_names_stays(lvlm, images, asked):
    orders = [random_order(scene, number, 3) for scene, number, _ in asked]
    orders[4] = orders[4][:7]  # has no more than seven to keep
    budgets = [32] * len(orders)
    budgets[9], budgets[11] = 5, None
    prompts = [question.prompt for _, _, question in asked]
    method = given_order(orders, N)
    made = lvlm.generate(images, prompts, method=method, keep=budgets, max_new_tokens=6)
    wanted = [32] * len(orders)
    wanted[4], wanted[9], wanted[11] = 7, 5, N
    assert made.kept == wanted
    for row, order in enumerate(orders):
        if row != 11:
            chosen = np.asarray(made.selections.indices[row])
            assert (chosen[: wanted[row]] == order[: wanted[row]]).all()
            assert (chosen[wanted[row] :] == N).all()
    assert made.selections.energy is None  # nobody measured it


@pytest.mark.deep
def test_resprunes_own_picks_as_an_order_give_its_answers(lvlm, images, asked):
    prompts = [question.prompt for _, _, question in asked]
    own = lvlm.generate(images, prompts, keep=32, max_new_tokens=6)
    picks = [np.asarray(row[:32]) for row in own.selections.indices]
    given = lvlm.generate(images, prompts, method=given_order(picks, N), keep=32, max_new_tokens=6)
    assert given.texts == own.texts and given.noun_backend == "none"
    full = lvlm.generate(images, prompts, method="none", max_new_tokens=6)
    other = [row != mine for row, mine in zip(full.texts, own.texts, strict=True)]
    assert sum(other) > 5, "pruning changes no answer: the test decides nothing"
    print(f"{len(prompts)} answers equal, {sum(other)} of them unlike the full model's")


@pytest.mark.parametrize("order", [[], [3, 3], [-1, 2], [5, N]])
def test_no_order(order):
    with pytest.raises(CallError, match="row 1"):
        given_order([np.arange(4), np.array(order, np.int32)], N)


def test_settings():
    names = [setting.name for setting in settings(("resprune", "blank"), (Fraction(2, 9),))]
    assert names == ["full", "blank", "resprune 2/9"]
    assert len(settings()) == 2 + 3 * 4
    with pytest.raises(CallError, match="magic"):
        settings(("magic",))
    with pytest.raises(CallError, match="ratio 1"):
        settings(("resprune",), (Fraction(1),))


@pytest.mark.parametrize(
    ("said", "answer", "right"),
    [(" Red ", "red", True), ("two", "2", True), ("2", "2", True), ("red.", "red", False),
     ("", "0", False), ("one", "one", False), ("ring ring", "ring", False)],
)  # fmt: skip
def test_exact_match(said, answer, right):
    assert is_right(said, answer) is right


# --- relevance ------------------------------------------------------------------------------------


def test_named_patches_are_those_of_what_the_nouns_name(items):
    checked = 0
    for scene, _ in items:
        cover = coverage(scene)
        shapes = [thing.shape for thing in scene.things]
        for noun, rows in [
            *((shape, [i for i, s in enumerate(shapes) if s == shape]) for shape in set(shapes)),
            ("objects", range(len(shapes))),
            ("Text", range(len(shapes), len(cover))),
            ("image", []),
        ]:
            for word in (noun, f"{noun}s" if noun in shapes else noun):
                mask = measure.named(scene, ["color", word])
                rows = list(rows)
                shown = (cover[rows] >= 0.05).any(0) if rows else np.zeros(N, bool)
                assert (mask >= shown).all() and mask.sum() <= shown.sum() + len(rows)
                checked += 1
        both = measure.named(scene, [shapes[0], "text"])
        assert (both == measure.named(scene, [shapes[0]]) | measure.named(scene, ["text"])).all()
    print(f"{checked} nouns")
    assert checked > 40


@pytest.mark.deep
def test_the_areas_are_those_of_resprunes_own_relevance(lvlm, images, asked):
    areas = measure.relevance_aucs(lvlm, images, asked)
    prompts = [question.prompt for _, _, question in asked]
    # The seed rule "text" begins with the most relevant token: the same relevance decides it.
    begun = lvlm.generate(images, prompts, keep=16, seed_rule="text", max_new_tokens=6)
    table = np.asarray(lvlm.state["language_model"]["embed_tokens"]["embedding"][...])
    tokenizer = lvlm.encoder.tokenizer
    slow = 0
    for row, (scene, _, _) in enumerate(asked):
        nouns = begun.nouns[row]
        members = measure.named(scene, nouns)
        ids = {i for noun in nouns for i in tokenizer.encode(f" {noun}", add_special_tokens=False)}
        visual = np.asarray(images.visual.embeddings[row])
        every = np.asarray(cosines(visual, table[sorted(ids)]))
        scores = np.maximum(every.max(1), 0) if ids else np.ones(N)
        assert np.asarray(begun.selections.indices[row])[0] == scores.argmax() or not ids
        if not members.any():
            assert np.isnan(areas[row])
            continue
        pairs = scores[members][:, None] - scores[~members][None]
        assert abs(areas[row] - ((pairs > 0) + 0.5 * (pairs == 0)).mean()) < 2e-3
        slow += 1
    print(f"{slow} of {len(asked)} areas equal the count of pairs")
    assert slow >= 8 and np.isnan(areas).sum() == len(asked) - slow


# --- a whole measurement --------------------------------------------------------------------------


@pytest.mark.deep
def test_a_batch_says_what_each_question_alone_would(lvlm, items, measured):
    flat = [(scene, i, q) for scene, questions in items for i, q in enumerate(questions)]
    alone = {"full": {"method": "none"}, "resprune 2/9": {"keep": 2 / 9},
             "alpha0 2/9": {"keep": 2 / 9, "alpha": 0.0}}  # fmt: skip
    equal = 0
    for row in (2, 13, 24):  # the last one is in the batch that was filled up
        scene, number, question = flat[row]
        options = dict(alone)
        for name, order in [("random 2/9", random_order(scene, number, 0)),
                            ("oracle 2/9", oracle_order(scene, question, number, 0))]:  # fmt: skip
            options[name] = {"keep": 2 / 9, "method": given_order([order], N)}
        for name, more in options.items():
            made = lvlm.generate(render(scene), question.prompt, max_new_tokens=6, **more)
            assert measured.texts[name][row] == made.texts[0], name
            assert measured.kept[name][row] == made.kept[0], name
            equal += 1
    grey = np.full((168, 168, 3), 127, np.uint8)
    made = lvlm.generate(grey, flat[3][2].prompt, method="none", max_new_tokens=6)
    assert measured.texts["blank"][3] == made.texts[0]
    told = len(set(measured.texts["full"])), len(set(measured.texts["random 1/9"]))
    print(f"{equal + 1} answers equal those of single calls; {told} different ones in two settings")
    assert min(told) > 5


def test_what_is_kept(items, measured):
    budgets = {"2/9": 32, "1/9": 16}
    for setting in measured.settings:
        kept = measured.kept[setting.name]
        if setting.ratio is None:
            assert (kept == N).all()
        elif setting.method != "oracle":
            assert (kept == budgets[str(setting.ratio)]).all()
    flat = [(scene, q) for scene, questions in items for q in questions]
    for ratio, budget in budgets.items():
        sizes = [len(question_patches(scene, question)) or N for scene, question in flat]
        assert measured.kept[f"oracle {ratio}"].tolist() == [min(budget, n) for n in sizes]


@pytest.fixture(scope="module")
def figures(lvlm, measured):
    """Figures of answers that are right by design: full all but 5, resprune 2/9 ten fewer."""
    items = []
    said = iter(measured.texts["full"])
    for scene, questions in measured.items:
        own = [dataclasses.replace(q, answer=next(said).strip().lower()) for q in questions]
        items.append((scene, own))
    texts = {name: ["no such answer"] * 25 for name in measured.texts}
    right = list(measured.texts["full"])
    texts["full"] = ["no"] * 5 + right[5:]
    texts["resprune 2/9"] = right[:2] + ["no"] * 13 + right[15:]
    made = dataclasses.replace(measured, items=items, texts=texts)
    return summary(lvlm, made, model="small", split="test")


def test_the_figures(figures):
    rows = {row["name"]: row for row in figures["settings"]}
    assert rows["full"]["accuracy"]["overall"]["right"] == 20
    assert rows["resprune 2/9"]["accuracy"]["overall"]["right"] == 12
    assert sum(one["right"] for name, one in rows["full"]["accuracy"].items()
               if name != "overall") == 20  # fmt: skip
    lost = rows["resprune 2/9"]["lost"]["overall"]
    assert lost["value"] == 8 / 25 and lost["low"] < 8 / 25 < lost["high"]
    assert rows["blank"]["lost"]["overall"]["value"] == 20 / 25
    gains = {(one["ratio"], one["over"]): one["gain"]["value"] for one in figures["comparisons"]
             if one["method"] == "resprune"}  # fmt: skip
    assert gains["2/9", "random"] == gains["2/9", "alpha0"] == 12 / 25
    assert gains["1/9", "random"] == 0
    assert len(figures["comparisons"]) == 6 and SLICE == 40
    assert figures["slice"] == {"scenes": 5, "questions": 25, "right": figures["slice"]["right"]}
    assert figures["slice"]["right"]["resprune 2/9"] == 12
    kinds = rows["full"]["kinds"]
    assert sum(asked for _, asked in kinds.values()) == 25
    assert sum(right for right, _ in kinds.values()) == 20
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert figures["visual_tokens"] == N and len(figures["weights"]) == 64
    assert figures["relevance_auc"]["overall"]["questions"] >= 15


def test_the_tables_and_the_card_say_the_figures(figures):
    text = markdown(figures)
    assert "| all | all tokens | 144.0 | 80.0 (37.6 to 96.4) |  |" in text
    assert "not a claim about 7B models" in text and "95 % intervals" in text
    assert text.count("\n### ") == 6
    for line in text.splitlines():
        if line.startswith("|"):
            assert line.endswith("|") and "nan" not in line
    told = card(figures)
    assert "| all | all tokens | 144.0 | 80.0 (37.6 to 96.4) |  |" in told
    assert "not a claim about 7B models" in told
    for stage in stages_of("cpu"):
        assert f"| {stage.name} | {stage.schedule.steps:,} | " in told
    # Of three questions a family, 80 % decide nothing; nobody is right without the image.
    area = figures["relevance_auc"]["overall"]["value"]
    assert [row[1:] for row in goal_table(figures)[1]] == [
        ("80.0", "undecided"), ("80.0 (attributes)", "undecided"), ("0.0", "yes"), ("+80.0", "yes"),
        ("+80.0", "no"), (f"{area:.3f}", "yes" if area >= 0.75 else "no"),
    ]  # fmt: skip


def test_a_failed_row_ends_the_measurement(lvlm, images, asked):
    broken = dataclasses.replace(
        images, visual=dataclasses.replace(
            images.visual, embeddings=images.visual.embeddings.at[3, 5, 0].set(np.nan)
        )
    )  # fmt: skip
    with pytest.raises(RunError, match=r"resprune 1/9: .*not finite"):
        answer(lvlm, broken, asked, Setting("resprune", Fraction(1, 9)))


@pytest.mark.deep
def test_smaller_pictures_are_measured_from_the_pictures(lvlm, items):
    made = measure.measure(lvlm, items[:1], settings(("downsample",), (Fraction(1, 9),)))
    assert [setting.name for setting in made.settings] == ["full", "downsample 1/9"]
    assert (made.kept["downsample 1/9"] == 16).all() and (made.kept["full"] == N).all()
    assert (made.averages["downsample 1/9"] == 16).all() and all(made.texts["downsample 1/9"])


def test_a_model_of_other_images_is_refused(checkpoint):
    with pytest.raises(CallError, match=r"56 pixels.*168"):
        measure.preset_of(load_model(checkpoint, dtype="float32"))


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def no_cache(monkeypatch):
    monkeypatch.setattr(evaluate, "use_compilation_cache", lambda: None)


def test_the_command(folder, tmp_path, capsys, no_cache):
    out, readme = tmp_path / "accuracy.json", tmp_path / "README.md"
    words = ["pocket", "eval", "--model", str(folder), "--questions", "15", "--output", str(out)]
    words += ["--card", str(readme), "--figure", str(tmp_path / "f.png")]
    asked = ["resprune", "random", "scope:combine=add,alpha=0.5", "divprune"]
    assert cli.main([*words, "--methods", *asked, "--ratios", "2/9", "1/9"]) == 0
    said = capsys.readouterr().out
    assert "not a claim about 7B models" in said and "15 questions about 3 scenes" in said
    figures = json.loads(out.read_text())
    assert [row["name"] for row in figures["settings"]] == [
        "full",
        *(f"{name} {ratio}" for ratio in ("2/9", "1/9") for name in asked),
    ]
    assert all(row["kept"] == row["budget"] for row in figures["settings"])
    pairs = {(one["method"], one["over"]) for one in figures["comparisons"]}
    assert pairs == {(name, "random") for name in asked if name != "random"}
    assert (figures["model"], figures["preset"], figures["split"]) == ("small", "cpu", "test")
    assert readme.read_text() == card(figures)
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width > 800
    # The same figures again, without a model, as Markdown.
    assert cli.main(["pocket", "eval", "--results", str(out), "--markdown"]) == 0
    assert capsys.readouterr().out == markdown(figures)


@pytest.mark.deep
def test_all_methods_in_parts_and_several_draws(folder, tmp_path, capsys, no_cache):
    out, parts = tmp_path / "f.json", tmp_path / "parts"
    words = ["pocket", "eval", "--model", str(folder), "--questions", "5", "--ratios", "2/9"]
    words += ["--resume", str(parts), "--output", str(out), "--draws", "3"]
    assert cli.main([*words, "--methods", "random", "fastv:k=1"]) == 0
    first = json.loads(out.read_text())
    rows = {row["name"]: row for row in first["settings"]}
    assert (
        list(rows) == ["full", "random 2/9", "fastv:k=1 2/9"] and rows["random 2/9"]["draws"] == 3
    )
    # Inside the LLM the layers in front of the drop saw all.
    assert rows["fastv:k=1 2/9"]["kept"] == 32 < rows["fastv:k=1 2/9"]["average"] < N
    texts = json.loads((parts / "random.json").read_text())["texts"]
    assert list(texts) == ["random 2/9", "random 2/9 draw 1", "random 2/9 draw 2"]
    assert len({tuple(said) for said in texts.values()}) > 1
    # What is there is not asked again: it may be changed, and the change is believed.
    changed = json.loads((parts / "fastv_k=1.json").read_text())
    changed["kept"]["fastv:k=1 2/9"] = [7] * 5
    (parts / "fastv_k=1.json").write_text(json.dumps(changed))
    assert cli.main([*words, "--methods", "random", "fastv:k=1", "uniform"]) == 0
    again = {row["name"]: row for row in json.loads(out.read_text())["settings"]}
    assert again["fastv:k=1 2/9"]["kept"] == 7 and "uniform 2/9" in again
    assert again["random 2/9"] == rows["random 2/9"]
    assert "| random tokens (mean of 3 draws) |" in markdown(json.loads(out.read_text()))
    capsys.readouterr()
    assert cli.main([*words, "--methods", "random", "--rng-seed", "1"]) == 2
    assert "measured with other rng_seed" in capsys.readouterr().err
    (parts / "fastv_k=1.json").write_text("{")
    assert cli.main([*words, "--methods", "fastv:k=1"]) == 1
    assert "remove it" in capsys.readouterr().err


def test_what_a_model_cannot_run_is_named(lvlm):
    names, reasons = measure.of_the_model(lvlm)
    assert {"full", "oracle", "uniform", "scope", "visionzip"} <= set(names)
    assert "agilepruner" in reasons and "average" in reasons["agilepruner"]
    assert "layers 0 to 1" in reasons["fastv"]  # of which the drop is behind
    assert set(names).isdisjoint(reasons)


def test_a_results_file_that_is_none(tmp_path, capsys):
    for text, word in (("{", "JSON"), ("[]", "has no"), ('{"settings": []}', "comparisons")):
        (tmp_path / "r.json").write_text(text)
        assert cli.main(["pocket", "eval", "--results", str(tmp_path / "r.json")]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("resprune: ") and word in line
