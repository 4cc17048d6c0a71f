"""The accounting against the paper's Table VIII and against counts made by hand."""

import pytest

from resprune_jax.costs import (
    MIB,
    VICUNA_7B,
    DecoderShape,
    average_count,
    budget_table,
    decoder_flops,
    kv_bytes,
    layer_counts,
    layer_flops,
    projector_flops,
    schedule_row,
    selection_flops,
    vision_tower_flops,
)
from resprune_jax.errors import CallError
from resprune_jax.paper import tables

TOKENS = 2169.4  # visual tokens of LLaVA-NeXT on MME, on average: what Table VIII's numbers say


def test_table_viii() -> None:
    """FLOPs within 2 %, KV cache within 0.2 %, for the full model, a third and a ninth."""
    printed = tables()["VIII"].rows
    worst_flops = worst_cache = 0.0
    for row, share in zip(printed, (1, 3, 9), strict=True):
        flops = decoder_flops(TOKENS / share, VICUNA_7B) / 1e12
        cache = kv_bytes(TOKENS / share, VICUNA_7B) / MIB
        printed_flops, printed_cache = row.values["FLOPs (T)"], row.values["KV-cache (MB)"]
        assert printed_flops is not None and printed_cache is not None
        print(f"{flops:.2f} T (printed {printed_flops}), {cache:.1f} MiB (printed {printed_cache})")
        worst_flops = max(worst_flops, abs(flops / printed_flops - 1))
        worst_cache = max(worst_cache, abs(cache / printed_cache - 1))
    print(f"worst: FLOPs {worst_flops:.2%}, KV cache {worst_cache:.2%}")
    assert worst_flops <= 0.02 and worst_cache <= 0.002


def test_a_layer_by_hand() -> None:
    """n = 2, d = 3, m = 5: every product written out."""
    projections = 4 * 2 * (2 * 3 * 3)  # q, k, v, o: (2 x 3)(3 x 3)
    scores_and_values = 2 * 2 * (2 * 2 * 3)
    gated_mlp = 3 * 2 * (2 * 3 * 5)
    flops = layer_flops(2, hidden=3, intermediate=5)
    assert flops == projections + scores_and_values + gated_mlp
    decoder = DecoderShape(layers=7, hidden=3, intermediate=5, kv_heads=1, head_dim=2, bytes=4)
    assert decoder_flops(2, decoder) == 7 * flops
    assert kv_bytes(2, decoder) == 7 * 2 * (2 * 1 * 2) * 4
    assert decoder_flops(0, decoder) == 0 and kv_bytes(0, decoder) == 0


def test_grouped_heads_shrink_the_cache_alone() -> None:
    grouped = DecoderShape(32, 4096, 11008, kv_heads=8, head_dim=128)
    assert kv_bytes(576, grouped) * 4 == kv_bytes(576, VICUNA_7B)
    assert decoder_flops(576, grouped) == decoder_flops(576, VICUNA_7B)


@pytest.mark.parametrize(("kept", "average"), [(166, 192), (98, 128), (30, 64)])
def test_layer_averages_of_fastv(kept: int, average: int) -> None:
    """A drop at layer 2 of 32: what the paper's budgets mean for methods inside the model."""
    drops = [(2, kept)]
    assert layer_counts(576, 32, drops) == [576, 576] + [kept] * 30
    assert abs(average_count(576, 32, drops) - average) < 0.5
    row = schedule_row(576, drops, VICUNA_7B)
    assert (row.tokens, row.kept) == (576, kept) and round(row.average) == average
    # The cache is linear in the average, the FLOPs are not.
    assert kv_bytes(576, VICUNA_7B, drops) == pytest.approx(kv_bytes(row.average, VICUNA_7B))
    assert decoder_flops(576, VICUNA_7B, drops) > decoder_flops(row.average, VICUNA_7B)


def test_schedules_of_several_drops() -> None:
    assert layer_counts(100, 6, [(0, 90), (2, 50), (5, 10)]) == [90, 90, 50, 50, 50, 10]
    assert average_count(100, 6, [(0, 90), (2, 50), (5, 10)]) == 340 / 6
    assert average_count(100, 4) == 100
    whole = layer_flops(90, hidden=4096, intermediate=11008) * 2
    rest = layer_flops(50, hidden=4096, intermediate=11008) * 30
    assert decoder_flops(100, VICUNA_7B, [(0, 90), (2, 50)]) == pytest.approx(whole + rest)


def test_budget_table() -> None:
    """LLaVA-1.5: the full model and the paper's three budgets."""
    rows = budget_table(576, [192, 128, 64, 1000], VICUNA_7B)
    assert [row.tokens for row in rows] == [576, 192, 128, 64, 576]
    assert [row.kept for row in rows] == [row.average for row in rows] == [576, 192, 128, 64, 576]
    assert rows[0].flops_ratio == rows[0].kv_ratio == 1.0
    for row, share in zip(rows[1:4], (1 / 3, 2 / 9, 1 / 9), strict=True):
        assert row.kv_ratio == pytest.approx(share)
        # The attention square shrinks faster than the tokens.
        assert 0.95 * share < row.flops_ratio < share
        assert row.flops == decoder_flops(row.tokens, VICUNA_7B)
        assert row.kv_bytes == kv_bytes(row.tokens, VICUNA_7B)
    assert rows[0].kv_bytes == 288 * MIB


def test_vision_tower_projector_and_selection_by_hand() -> None:
    block = 4 * 3 * 4**2 + 2 * 3**2 * 4 + 2 * 3 * 4 * 6
    sizes = {"layers": 5, "hidden": 4, "intermediate": 6, "patch_values": 12}
    assert vision_tower_flops(2, **sizes) == 2 * (2 * 12 * 4 + 5 * block)
    block = 4 * 2 * 4**2 + 2 * 2**2 * 4 + 2 * 2 * 4 * 6
    assert vision_tower_flops(2, **sizes, cls_token=False) == 2 * (2 * 12 * 4 + 5 * block)
    assert projector_flops(3, vision_hidden=2, hidden=5) == 2 * 3 * (2 * 5 + 5 * 5)
    assert selection_flops(576, 128, 4096) == 2 * 576 * 128 * 4096
    # Choosing costs less than a hundredth of what it saves.
    saved = decoder_flops(576, VICUNA_7B) - decoder_flops(128, VICUNA_7B)
    assert selection_flops(576, 128, 4096) < saved / 100


@pytest.mark.parametrize(
    ("drops", "message"),
    [
        ([(4, 10)], "a drop at layer 4; expected ascending layers from 0 to 3"),
        ([(-1, 10)], "a drop at layer -1"),
        ([(2, 10), (2, 5)], "ascending"),
        ([(1, 101)], "101 tokens left from layer 1; expected 0 to 100"),
        ([(1, 10), (2, 20)], "20 tokens left from layer 2; expected 0 to 10"),
        ([(1, -1)], "-1 tokens left"),
    ],
)
def test_wrong_schedules(drops: list[tuple[int, float]], message: str) -> None:
    with pytest.raises(CallError, match=message):
        layer_counts(100, 4, drops)


def test_wrong_budgets() -> None:
    with pytest.raises(CallError, match="a budget of 0 tokens; expected at least 1"):
        budget_table(576, [64, 0], VICUNA_7B)
    with pytest.raises(CallError, match="a budget of nan tokens"):
        budget_table(576, [float("nan")], VICUNA_7B)
    with pytest.raises(CallError, match="0 visual tokens"):
        budget_table(0, [1], VICUNA_7B)
    with pytest.raises(CallError, match="-1 visual tokens"):
        layer_counts(-1, 4)
