"""The rows of a sweep, against answering each configuration on its own."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from resprune_jax.errors import CallError
from resprune_jax.experiments.data.examples import Dataset, open_dataset
from resprune_jax.experiments.sweep.engine import Engine, Row
from resprune_jax.experiments.sweep.grid import Configuration, Grid, configurations
from resprune_jax.methods import VisualTokens
from resprune_jax.models.prompts.options import CallOptions

NEW = 3
QUESTIONS = (
    "What colour is the car?", "Is there a dog, or a cat?", "How many people stand on the street?",
    "What is written on the sign?", "Describe it.",
)  # fmt: skip
GRIDS = [
    Grid(
        methods=("none", "resprune"), keep=("1/3", "4"), alpha=(0.0, 0.5, 1.0),
        seed_rule=("cls_attention", "text", "center"),
    ),
    Grid(methods=("resprune",), keep=("1/3",), text=("nouns", "prompt"), relevance_sign=(1, -1)),
    Grid(methods=("resprune",), keep=("1/3",), aggregate=("mean", "pooled")),
    Grid(methods=("resprune",), keep=("1/3",), nonnegative=("shift", "minmax")),
    Grid(methods=("resprune", "spare"), keep=("0.9",), tolerance=("off", "0.3")),
    Grid(methods=("resprune", "divprune"), keep=("1/3",), positions=("original", "reindex")),
    Grid(methods=("random", "uniform", "scope"), keep=("1/3", "4"), draws=2),
    Grid(methods=("fastv", "visionzip", "pooling", "downsample"), keep=("1/3", "9")),
]  # fmt: skip

FEW = [
    Grid(methods=("none", "resprune"), keep=("1/3",), alpha=(0.0, 1.0)),
    Grid(methods=("uniform",), keep=("1/3",), positions=("original", "reindex")),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, photographs: list[Image.Image]) -> Dataset:
    """Seven questions about three pictures, not in the pictures' order."""
    folder = tmp_path_factory.mktemp("rows")
    for number, picture in enumerate(photographs[:3]):
        picture.save(folder / f"{number}.png")
    rows = [
        {"image": f"{picture}.png", "question": QUESTIONS[asked], "answer": "red"}
        for picture, asked in ((0, 0), (1, 1), (0, 2), (2, 3), (1, 0), (2, 4), (0, 1))
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return open_dataset(str(folder / "rows.jsonl"))


def engine(lvlm: Any, data: Dataset, chosen: list[Configuration], **more: Any) -> Engine:
    own = {"size": 40, "batch": 8, **more}
    return Engine(lvlm, data, chosen, CallOptions(max_new_tokens=NEW), **own)


def alone(lvlm: Any, data: Dataset, one: Configuration, **more: Any) -> list[tuple[str, int]]:
    """What `generate` answers under a configuration, and how many tokens it keeps."""
    told = one.options_for([each.key for each in data.examples], max_new_tokens=NEW, **more)
    if one.method == "random":
        assert len(set(told.settings["rng_seed"])) == len(data.examples)
    made = lvlm.generate(
        [data.pictures(each)[0] for each in data.examples],
        [each.question for each in data.examples], options=told,
    )  # fmt: skip
    assert made.errors == [None] * len(data.examples)
    return list(zip(made.texts, made.kept, strict=True))


def by_configuration(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["configuration"], []).append(row)
    return found


@pytest.mark.parametrize(
    "grids", [pytest.param(GRIDS, marks=pytest.mark.deep, id="all"), pytest.param(FEW, id="few")]
)
def test_rows_are_those_of_generate(lvlm: Any, data: Dataset, grids: list[Grid]):
    chosen = configurations(grids)
    rows = engine(lvlm, data, chosen).run(0)
    found = by_configuration(rows)
    assert list(found) == [one.name for one in chosen]
    differing, lists = 0, set()
    for one in chosen:
        own = found[one.name]
        assert [row["example"] for row in own] == [each.key for each in data.examples]
        said = [(row["answer"], row["kept"]) for row in own]
        assert said == alone(lvlm, data, one), one.name
        differing += said != [(row["answer"], row["kept"]) for row in found["none"]]
        lists |= {row["distinct"] for row in own}
    listed = sum(row["distinct"] is not None for row in rows)
    print(
        f"{len(rows)} rows of {len(chosen)} configurations, {listed} of them from"
        f" {len(lists) - 1} distinct lists; {differing} configurations answer unlike the full model"
    )
    assert differing >= len(chosen) // 2 and len(lists) - 1 < listed


@pytest.mark.deep
def test_pictures_are_padded_where_the_call_says_so(lvlm: Any, data: Dataset):
    grids = [
        Grid(methods=("none", "resprune"), keep=("1/3",)),
        Grid(methods=("fastv", "pooling", "downsample"), keep=("9",)),
    ]
    chosen = configurations(grids)
    assert lvlm.family.trained_aspect == "pad"
    options = CallOptions(max_new_tokens=NEW, image_aspect="pad")
    padded = Engine(lvlm, data, chosen, options, size=40, batch=8).run(0)
    found, cropped = by_configuration(padded), by_configuration(engine(lvlm, data, chosen).run(0))
    differing = 0
    for one in chosen:
        said = [(row["answer"], row["kept"]) for row in found[one.name]]
        assert said == alone(lvlm, data, one, image_aspect="pad"), one.name
        differing += said != [(row["answer"], row["kept"]) for row in cropped[one.name]]
    assert differing


@pytest.mark.deep
def test_rows_do_not_depend_on_blocks_or_batches(lvlm: Any, data: Dataset):
    chosen = configurations(GRIDS[:2])

    wanted = ("configuration", "example", "answer", "kept", "average", "nouns", "error", "score")

    def plain(rows: list[Row]) -> list[tuple[Any, ...]]:
        return [tuple(str(row[name]) for name in wanted) for row in rows]

    whole = plain(engine(lvlm, data, chosen).run(0))
    small = engine(lvlm, data, chosen, size=3, batch=16)
    assert small.blocks == 3
    parts = [row for block in range(3) for row in plain(small.run(block))]
    assert sorted(parts) == sorted(whole)


def test_a_list_is_answered_once(lvlm: Any, data: Dataset, monkeypatch: pytest.MonkeyPatch):
    made = engine(lvlm, data, configurations(FEW))
    ran: list[int] = []
    run = lvlm.run
    monkeypatch.setattr(
        lvlm, "run", lambda call, **more: ran.append(call.plan.size) or run(call, **more)
    )
    rows = made.run(0)
    lists = {(row["example"], row["distinct"]) for row in rows}
    assert len(lists) <= sum(ran) <= len(lists) + 8 * len(ran)
    print(f"{len(rows)} rows from {len(lists)} distinct lists in {len(ran)} batches")
    assert len(lists) < len(rows)


def test_what_kept_tokens_hold(lvlm: Any, data: Dataset):
    """Residual energy and effective rank, against explicit projections in float64."""
    chosen = configurations([Grid(methods=("none", "resprune", "random", "uniform"),
                                  keep=("1/3", "5"), draws=2)])  # fmt: skip
    made = engine(lvlm, data, chosen)
    chosen_of = made.choose(0)
    rows = by_configuration(made.run(0))
    visual = chosen_of.block.encoded.visual
    compared = 0
    for name, own in rows.items():
        for place, row in enumerate(own):
            mask = chosen_of.kept[name].mask[place]
            image = chosen_of.block.rows[place]
            tokens = np.asarray(visual.embeddings[image], np.float64)
            inside = tokens[mask[: len(tokens)]]
            basis = np.linalg.svd(inside, full_matrices=False)
            directions = basis.Vh[1e-3 * basis.S[0] < basis.S]
            left = tokens - tokens @ directions.T @ directions
            share = np.square(left).sum() / np.square(tokens).sum()
            weights = basis.S / basis.S.sum()
            assert row["residual"] == pytest.approx(share, abs=2e-5)
            rank = np.exp(-(weights * np.log(weights)).sum())
            assert row["effective_rank"] == pytest.approx(rank, rel=2e-3)
            compared += 0.01 < share < 0.99
    print(f"{compared} lists that leave between 1 and 99 % of the energy")
    assert compared > 20


def test_a_picture_that_breaks_fails_its_rows_alone(lvlm: Any, data: Dataset, tmp_path: Path):
    rows = []
    for number in range(3):
        colour = ("red", "green", "blue")[number]
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "question": "Which colour?", "answer": "red"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = open_dataset(str(tmp_path / "rows.jsonl"))
    (tmp_path / "1.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    made = engine(lvlm, own, configurations(FEW)).run(0)
    assert len(made) == 3 * len(configurations(FEW))
    for row in made:
        assert (row["error"] is not None) == (row["example"] == "1")
        assert (row["score"] is None) == (row["example"] == "1")


def test_rows_that_cannot_be_asked_fail_alone(
    lvlm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A placeholder in a question, one too long, a picture that the processor refuses."""
    for number in range(2):
        Image.new("RGB", (40, 40), ("red", "green")[number]).save(tmp_path / f"{number}.png")
    asked = ["Which colour?", "Is <image> red?", "red " * 5000, "Is it green?"]
    rows = [
        {"image": f"{n == 3:d}.png", "question": q, "answer": "red"} for n, q in enumerate(asked)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = open_dataset(str(tmp_path / "rows.jsonl"))
    made = engine(lvlm, own, configurations([*FEW, Grid(methods=("visionzip",), keep=("9",))]))
    for row in made.run(0):
        assert (row["error"] is not None) == (row["example"] in ("1", "2")), row
    encode = lvlm.encode

    def refusing(images: Any, **more: Any) -> Any:
        if any(np.asarray(picture[0])[0, 0, 1] > 100 for picture in images):
            raise CallError("the processor wants no green")
        return encode(images, **more)

    monkeypatch.setattr(lvlm, "encode", refusing)
    found = made.run(0)
    assert {row["example"] for row in found if row["error"] is None} == {"0"}
    assert {row["error"] for row in found if row["example"] == "3"} == {
        "the processor wants no green"
    }


def test_a_configuration_that_some_pictures_do_not_fit(
    lvlm: Any, data: Dataset, monkeypatch: pytest.MonkeyPatch
):
    chosen = configurations([Grid(methods=("none", "visionzip"), keep=("9",))])
    made = engine(lvlm, data, chosen)
    alone = made.answerer.alone

    def sometimes(block: Any, *more: Any) -> Any:
        if "Describe it." in block.questions:
            raise CallError("not this one")
        return alone(block, *more)

    expected = by_configuration(made.run(0))["visionzip keep=9"]
    monkeypatch.setattr(made.answerer, "alone", sometimes)
    for row, before in zip(
        by_configuration(made.run(0))["visionzip keep=9"], expected, strict=True
    ):
        if row["error"] is None:
            assert row["answer"] == before["answer"]
        else:
            assert (row["example"], row["error"]) == ("5", "not this one")
    monkeypatch.setattr(made.answerer, "alone", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        made.run(0)

    def never(*_: Any) -> Any:
        raise CallError("never")

    monkeypatch.setattr(made.answerer, "alone", never)
    with pytest.raises(CallError, match="configuration visionzip keep=9: never"):
        made.run(0)


def test_a_block_of_which_nothing_can_be_read(lvlm: Any, tmp_path: Path):
    Image.new("RGB", (40, 40)).save(tmp_path / "0.png")
    row = {"image": "0.png", "question": "Which colour?", "answer": "red"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    own = open_dataset(str(tmp_path / "rows.jsonl"))
    made = engine(lvlm, own, configurations(FEW))
    (tmp_path / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    rows = made.run(0)
    assert len(rows) == len(configurations(FEW)) and all(row["error"] for row in rows)


def test_tokens_that_are_not_finite_fail_their_rows(
    lvlm: Any, data: Dataset, monkeypatch: pytest.MonkeyPatch
):
    encode = lvlm.encode

    def broken(images: Any, **more: Any) -> Any:
        made = encode(images, **more)
        poisoned = made.visual.embeddings.at[0, 0].set(np.nan)
        visual: VisualTokens = dataclasses.replace(made.visual, embeddings=poisoned)
        return dataclasses.replace(made, visual=visual)

    monkeypatch.setattr(lvlm, "encode", broken)
    chosen = configurations([Grid(methods=("none", "resprune", "divprune", "random"), keep=("4",))])
    for row in engine(lvlm, data, chosen).run(0):
        about = data.examples[[each.key for each in data.examples].index(row["example"])]
        assert (row["error"] is not None) == (about.images == data.examples[0].images), row


def test_what_a_model_cannot_run(lvlm: Any, data: Dataset):
    with pytest.raises(CallError, match="configuration trim keep=4: Trim reads clip_patches"):
        engine(lvlm, data, configurations([Grid(methods=("trim",), keep=("4",))]))
    made = engine(lvlm, data, configurations([Grid(methods=("all",), keep=("1/3",))]))
    assert {"trim keep=1/3", "cdpruner keep=1/3", "agilepruner"} <= set(made.left_out)
    assert {"none", "resprune keep=1/3", "fastv keep=1/3"} <= set(made.methods)
    assert not set(made.left_out) & set(made.methods)


def test_questions_without_pictures(lvlm: Any, data: Dataset, tmp_path: Path):
    rows = [{"question": "What is two and two?", "answer": "four"},
            {"image": None, "question": "Which day is it?", "answer": "Monday"}]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    own = open_dataset(str(tmp_path / "rows.jsonl"))
    chosen = configurations([Grid(methods=("none", "resprune"), keep=("4",))])
    made = by_configuration(engine(lvlm, own, chosen).run(0))
    for name, found in made.items():
        print(name, [row["answer"] for row in found])
        assert [row["error"] for row in found] == [None, None]
        assert [row["kept"] for row in found] == [0, 0]
    answers = [[row["answer"] for row in found] for found in made.values()]
    assert answers[0] == answers[1]
