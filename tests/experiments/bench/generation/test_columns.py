"""The shares that `bench generate` prints, against slow and obvious counting."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resprune_jax.costs import DecoderShape
from resprune_jax.experiments.bench.generation import columns
from resprune_jax.experiments.bench.generation.columns import Work
from resprune_jax.models.families.llava.config import LlavaConfig
from tests.experiments.bench.generation.tiny import TINY

SIZES = st.integers(1, 9)
RATES = st.floats(1e3, 1e12)


@st.composite
def works(draw: st.DrawFn) -> Work:
    sizes = [draw(SIZES) for _ in range(14)]
    decoder = DecoderShape(*sizes[:5], bytes=draw(st.sampled_from([2, 4])))
    vision = {
        "layers": sizes[5], "hidden": sizes[6], "intermediate": sizes[7], "patch_values": sizes[8],
    }  # fmt: skip
    return Work(decoder, sizes[9], vision, sizes[10] + 1, 100 * sizes[11], 100 * sizes[12])


def product(rows: int, inner: int, width: int) -> int:
    """Multiplications and additions of a matrix product, counted."""
    return sum(2 * inner for _ in range(rows) for _ in range(width))


def counted_encode(work: Work) -> int:
    """A tower and a projector, product by product."""
    n, v = work.visual_tokens, work.vision
    d, m = v["hidden"], v["intermediate"]
    total = product(n, v["patch_values"], d)
    rows = n + 1  # the class token
    for _ in range(v["layers"]):
        total += 4 * product(rows, d, d) + product(rows, d, rows) + product(rows, rows, d)
        total += product(rows, d, m) + product(rows, m, d)
    return total + product(n, d, work.decoder.hidden) + product(n, *2 * [work.decoder.hidden])


def counted_prefill(work: Work, n: int) -> int:
    """A decoder over one prompt, product by product, and the head for its last token."""
    d, m = work.decoder.hidden, work.decoder.intermediate
    total = product(1, d, work.vocabulary)
    for _ in range(work.decoder.layers):
        total += 4 * product(n, d, d) + product(n, d, n) + product(n, n, d)
        total += 2 * product(n, d, m) + product(n, m, d)
    return total


def cached(work: Work, n: int) -> int:
    """Bytes of keys and values of n tokens, number by number."""
    shape = work.decoder
    numbers = sum(2 * shape.head_dim for _ in range(n) for _ in range(shape.kv_heads))
    return shape.layers * numbers * shape.bytes


@settings(deadline=None)
@given(works(), st.integers(1, 3), st.integers(1, 6), st.integers(2, 6))
def test_work_is_what_counting_gives(work: Work, batch: int, tokens: int, new: int) -> None:
    assert work.encode_flops(batch) == batch * counted_encode(work)
    assert work.prefill_flops(batch, tokens) == batch * counted_prefill(work, tokens)
    assert work.prefill_bytes(batch, tokens) == work.decoder_bytes + batch * cached(work, tokens)
    # Every step of an answer, one by one: it attends to the prompt, the answer so far and itself.
    steps = [
        work.decoder_bytes + batch * cached(work, tokens + position) for position in range(1, new)
    ]
    assert work.step_bytes(batch, tokens, new) == pytest.approx(sum(steps) / len(steps))
    assert Work.from_facts(work.facts()) == work


def times(encode: float, select: float, prefill: float, token: float) -> dict[str, Any]:
    """Medians in milliseconds, as the JSON file holds them."""
    parts = {
        "encode": encode, "select": select, "prefill": prefill, "token": token,
        "first_token": encode + select + prefill,
    }  # fmt: skip
    return {name: {"median": x, "low": x, "high": x} for name, x in parts.items()}


SPANS = st.floats(0.01, 1e4)


@settings(deadline=None)
@given(works(), RATES, RATES, st.lists(SPANS, min_size=7, max_size=7), st.integers(1, 3))
def test_columns_are_what_their_words_say(
    work: Work, rate: float, bandwidth: float, spans: list[float], batch: int
) -> None:
    keep, text, new = work.visual_tokens - 1, 3, 4
    full = {"way": "here", "keep": None, "ms": times(spans[0], 0.0, spans[1], spans[2])}
    kept = {"way": "here", "keep": keep, "ms": times(*spans[3:])}
    alone = {"way": "eager", "keep": keep, "ms": times(*spans[3:])}
    row = {"batch": batch, "text_tokens": text, "new_tokens": new, "sides": [kept, full, alone]}
    report = {
        "model": {"dtype": "float32", "work": work.facts()}, "rows": {"a": row},
        "speeds": {"matmul_float32": rate, "matmul_bfloat16": 1.0, "bandwidth": bandwidth},
    }  # fmt: skip
    columns.add_columns(report)
    once = deepcopy(report)
    columns.add_columns(report)
    assert report == once  # what is written behind every line does not add up

    floors = []
    for side, tokens in ((full, text + keep + 1), (kept, text + keep)):
        read = 0.0
        for position in range(1, new):
            read += (work.decoder_bytes + batch * cached(work, tokens + position)) / (new - 1)
        seconds = side["ms"]["token"]["median"] / 1e3
        assert side["bandwidth_share"] == pytest.approx(read / bandwidth / seconds)
        done = batch * counted_prefill(work, tokens)
        seconds = side["ms"]["prefill"]["median"] / 1e3
        assert side["matmul_share"] == pytest.approx(done / rate / seconds)
        encode = max(batch * counted_encode(work) / rate, work.encode_bytes / bandwidth)
        moved = work.decoder_bytes + batch * cached(work, tokens)
        floors.append(encode + max(done / rate, moved / bandwidth))
    assert "speedup" not in full and "theoretical" not in full
    assert kept["theoretical"] == pytest.approx(floors[0] / floors[1])
    speedup = (spans[0] + spans[1]) / (spans[3] + spans[4] + spans[5])
    assert kept["speedup"] == pytest.approx(speedup)
    assert kept["realised"] == pytest.approx(speedup * floors[1] / floors[0])
    saved = spans[1] - spans[5]
    assert (kept["choosing"] is None) == (saved <= 0)
    assert saved <= 0 or kept["choosing"] == pytest.approx(spans[4] / saved)
    assert ("why" in kept) == (kept["ms"]["first_token"]["median"] >= spans[0] + spans[1])
    # Another implementation's full model is no measure of this one.
    assert "speedup" not in alone and "realised" not in alone and "matmul_share" in alone


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tied", [False, True])
def test_bytes_are_those_of_the_parameters(dtype: str, tied: bool) -> None:
    config = LlavaConfig.from_hf(TINY | {"tie_word_embeddings": tied})
    work = columns.model_work(config, dtype)
    size = 4 if dtype == "float32" else 2
    table = 160 * 48
    layer = 4 * 48 * 48 + 3 * 48 * 64 + 2 * 48
    # One layer, the final norm, and either the head or the table in its place.
    assert work.decoder_bytes == size * (layer + 48 + table)
    every = columns.count_parameters(config, dtype)
    assert work.encode_bytes == size * (every - layer - 48 - table * (1 if tied else 2))
    assert work.decoder.bytes == size and work.visual_tokens == 16
    assert work.vision == {
        "layers": 1, "hidden": 32, "intermediate": 48, "patch_values": 3 * 14 * 14,
    }  # fmt: skip


def test_a_row_that_does_not_pay_says_why() -> None:
    full = times(10, 0, 20, 1)

    def side(select: float, prefill: float, spread: float = 0.0) -> dict[str, Any]:
        made = {"ms": times(10, select, prefill, 1)}
        first = made["ms"]["first_token"]
        first |= {"low": first["median"] - spread, "high": first["median"] + spread}
        columns.compare(made, full)
        return made

    pays, wasted, spread = side(1, 10), side(9, 12), side(0.5, 19.6, 2.0)
    assert pays["speedup"] == pytest.approx(30 / 21) and "why" not in pays
    assert pays["choosing"] == pytest.approx(0.1)
    assert wasted["why"] == "choosing takes 9 ms and prefill is 8 ms shorter"
    assert "why" in spread and spread["speedup"] < 1
    assert side(1, 20)["choosing"] is None and side(1, 25)["choosing"] is None
