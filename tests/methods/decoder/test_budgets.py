"""Budgets of methods that drop inside the decoder, and what a schedule costs."""

from typing import Any

import pytest

from resprune_jax import costs
from resprune_jax.costs import DecoderShape, average_count, ratio_for_average, schedule_row
from resprune_jax.errors import CallError
from resprune_jax.methods import get_method
from resprune_jax.methods.decoder.base import DecoderMethod, scaled, stages
from tests.methods.oracles.decoder import accounting
from tests.methods.oracles.decoder.pdrop import pdrop_counts
from tests.methods.oracles.decoder.sparsevlm import LISTS
from tests.methods.oracles.decoder.sparsevlm_plus import LISTS_PLUS

N, LAYERS = 576, 32
VICUNA = DecoderShape(layers=32, hidden=4096, intermediate=11008, kv_heads=32, head_dim=128)


def drops(method: DecoderMethod, keep: int, *, outputs: bool = False) -> list[tuple[int, int]]:
    """(layer, tokens from it on), or of the layers' outputs."""
    made = method.drops(N, keep, LAYERS)
    return [(drop.before - outputs, drop.left) for drop in made]


@pytest.mark.parametrize(("k", "counts"), [(2, (166, 98, 30)), (3, (152, 82, 11))])
def test_one_drop_for_an_average(k: int, counts: tuple[int, ...]) -> None:
    for target, count in zip((192, 128, 64), counts, strict=True):
        method = get_method("fastv", k=k, keep_average=target)
        assert drops(method, N) == [(k, count)]
        assert count == accounting.keep_for_average(target, N, k)
        assert average_count(N, LAYERS, drops(method, N)) == pytest.approx(target, abs=0.5)
    # Without it, the budget is the count behind the drop.
    for keep in (192, 64, 1):
        assert drops(get_method("fastv", k=k), keep) == [(k, keep)]


def test_an_average_that_one_drop_cannot_have() -> None:
    with pytest.raises(CallError, match=r"cannot keep 36 of 576 .* at least 36.9"):
        get_method("fastv", keep_average=36).drops(N, N, LAYERS)
    assert drops(get_method("fastv", keep_average=37), N) == [(2, 1)]
    assert drops(get_method("fastv", keep_average=9999), N) == [(2, N)]


def test_dart_keeps_what_its_quotas_make() -> None:
    released = {192: 196, 128: 132, 64: 68, 63: 60, 7: 4, 1: 4}
    for keep, count in released.items():
        assert drops(get_method("dart"), keep) == [(2, count)]
        assert accounting.dart_count(keep) == count
    averages = [average_count(N, LAYERS, drops(get_method("dart"), n)) for n in (192, 128, 64)]
    assert averages == [219.75, 159.75, 99.75]  # the specification's 219.8, 159.8 and 99.8
    # The largest count of its own that does not exceed the average.
    for target, count in ((192, 164), (128, 92), (64, 28)):
        assert drops(get_method("dart", keep_average=target), N) == [(2, count)]


def test_pdrop_solves_for_an_average() -> None:
    for target, ratio in ((192, 0.560), (128, 0.420), (64, 0.192)):
        found = ratio_for_average(target, N, (2, 8, 16), LAYERS)
        assert found == pytest.approx(ratio, abs=5e-4)
        assert found == pytest.approx(accounting.ratio_for_average(target, N), abs=1e-9)
        for given in ({}, {"keep_average": target}):
            method = get_method("pdrop", layers=(2, 8, 16), **given)
            counts = pdrop_counts(N, [found, found**2, found**3])
            assert drops(method, target) == list(zip((2, 8, 16), counts, strict=True))
            # Counts are cut, as released, so that the average lies less than one below.
            assert target - 1 < average_count(N, LAYERS, drops(method, target)) <= target
    released = get_method("pdrop", fractions="0.5,0.25,0.125")
    assert drops(released, N) == [(8, 288), (16, 144), (24, 72)]
    assert average_count(N, LAYERS, drops(released, N)) == 270
    with pytest.raises(CallError, match=r"cannot average 64 of 576 .* 144 .* such as .* 2, 8, 16"):
        get_method("pdrop").drops(N, 64, LAYERS)


@pytest.mark.parametrize(("name", "lists"), [("sparsevlm", LISTS), ("sparsevlm-plus", LISTS_PLUS)])
def test_sparsevlm_takes_the_released_lists(name: str, lists: dict[int, Any]) -> None:
    merges = name == "sparsevlm"
    for keep, counts in lists.items():
        left = accounting.sparsevlm_outputs(N, counts, merge=merges)
        assert drops(get_method(name), keep) == list(zip((3, 7, 16), left, strict=True))
        assert [drop.kept for drop in get_method(name).drops(N, keep, LAYERS)] == list(counts)
    five = [drop.kept for drop in get_method(name).drops(5 * N, 640, LAYERS)]
    assert five == [5 * n for n in lists[128]]
    averages = [
        [average_count(N, LAYERS, drops(get_method(name), keep, outputs=outputs)) for keep in lists]
        for outputs in (True, False)
    ]
    if merges:
        assert [round(x, 1) for x in averages[0]][:2] == [192.0, 128.6]
        assert averages[0][3] == pytest.approx(64.8, abs=0.051)
        for got, printed in zip(averages[1], (206.5, 145.4, None, 82.3), strict=True):
            assert printed is None or got == pytest.approx(printed, abs=0.051)
    # Each drop leaves at least one token out; clusters of v1.5 count among those that are there.
    capped = get_method(name, keeps=(600, 600, 5)).drops(N, N, LAYERS)
    assert [drop.kept for drop in capped] == ([575, 575, 5] if merges else [575, 574, 5])
    # Between the lists, counts grow with the budget; an average is solved for on what layers do.
    sizes = [sum(d.kept for d in get_method(name).drops(N, n, LAYERS)) for n in range(1, N, 25)]
    assert sizes == sorted(sizes)
    for target in (192, 128, 100, 300):
        own = drops(get_method(name, keep_average=target), N)
        assert average_count(N, LAYERS, own) == pytest.approx(target, abs=1)


def test_layers_are_scaled_as_stated() -> None:
    for layers in (1, 3, 8, 24, 28, 32, 40, 80):
        for layer in (1, 2, 3, 5, 8):
            assert scaled(layer, layers, 32) == accounting.scaled_layer(layer, layers)
            assert scaled(layer, layers, 0) == layer
    assert stages((2, 6, 15), 28, 32) == [(2, 0), (5, 1), (13, 2)]
    assert [at for at, _ in stages((2, 6, 15), 28, 32)] == accounting.scaled_layers((2, 6, 15), 28)
    # On a shallow decoder drops fall together: the last of them is what happens.
    assert stages((8, 16, 24), 3, 32) == [(1, 0), (2, 2)]
    assert stages((2, 6, 15), 3, 32, later=1) == [(2, 2)]
    for name, layers in (("fastv", 2), ("sparsevlm", 2), ("pdrop", 1)):
        with pytest.raises(CallError, match="in front of layer"):
            get_method(name).drops(16, 6, layers)


def test_costs_of_a_schedule_are_the_oracles() -> None:
    for name, keep in (("fastv", 64), ("pdrop", 200), ("sparsevlm", 64)):
        own = drops(get_method(name), keep)
        counts = accounting.layer_counts(N, own)
        row = schedule_row(N, own, VICUNA)
        assert costs.layer_counts(N, LAYERS, own) == counts
        assert row.kept == own[-1][1]
        assert row.average == pytest.approx(accounting.average(N, own))
        assert row.flops == pytest.approx(accounting.flops(counts, 4096, 11008))
        assert row.kv_bytes == accounting.kv_bytes(counts, 32, 128)


@pytest.mark.parametrize(
    ("name", "given", "says"),
    [
        ("fastv", {"keep_average": 0}, "keep_average is a count"),
        ("fastv", {"keep_average": "many"}, "keep_average must be a finite number"),
        ("fastv", {"k": 0}, "k"),
        ("dart", {"image_pivots": 0}, "image_pivots"),
        ("pdrop", {"layers": (8, 8)}, "ascend"),
        ("pdrop", {"layers": "8,x"}, "layers must be a whole number"),
        ("pdrop", {"fractions": (0.5, 0.6, 0.1)}, "fractions fall"),
        ("pdrop", {"fractions": (0.5, 0.2)}, "one for each of 3"),
        ("pdrop", {"fractions": (0.5, 0.2, 0.1), "keep_average": 100}, "drop one"),
        ("sparsevlm", {"keeps": (5, 4)}, "one for each of 3"),
        ("sparsevlm", {"layers": (2, 6)}, "give keeps"),
        ("sparsevlm-plus", {"heads": 0}, "heads"),
    ],
)
def test_settings_that_cannot_work(name: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(CallError, match=says):
        get_method(name, given)
