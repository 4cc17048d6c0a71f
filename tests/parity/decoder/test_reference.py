"""The layer-by-layer reference itself, against transformers' own forward pass and `generate`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.checkpoints.llava import IMAGE_SIZE, IMAGE_TOKEN_ID, NUM_VISUAL_TOKENS
from tests.methods.oracles.decoder import accounting
from tests.parity.decoder import methods
from tests.parity.decoder.reference import (
    Choice,
    Drop,
    View,
    decode,
    llava_embeddings,
    margins,
    parts,
    prefill,
)

LAYERS, HEADS, GROUPS, SIZE = 6, 4, 2, 8
IDS = [1, 7, 9, *[4] * 12, 11, 13, 17, 19, 23]
VISUAL = list(range(3, 15))
TEXT = len(IDS) - len(VISUAL)
BOUND = 2e-5


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    """Six layers, grouped heads; weights so large that attention is far from even."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=HEADS * SIZE,
        intermediate_size=40,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=256,
        initializer_range=0.25,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.weight.uniform_(0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def embeddings(llama: LlamaForCausalLM) -> torch.Tensor:
    """(S, d): text from the table, visual tokens at random."""
    torch.manual_seed(1)
    rows = llama.model.embed_tokens(torch.tensor(IDS)).detach().clone()
    rows[VISUAL] = 0.25 * torch.randn(len(VISUAL), rows.shape[1])
    return rows


def forward(model: Any, embeddings: torch.Tensor, **options: Any) -> Any:
    """transformers' own pass."""
    with torch.no_grad():
        return model(inputs_embeds=embeddings[None], **options)


def close(got: np.ndarray, expected: Any) -> None:
    """Within the bound, relative to the largest number."""
    expected = np.asarray(expected)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    print(f"{error:.1e}")
    assert got.shape == expected.shape
    assert error <= BOUND


@contextmanager
def hidden_columns(model: Any, before: int, gone: Sequence[int]) -> Iterator[None]:
    """Layers from `before` on do not see the tokens `gone`: a drop that removes nothing."""

    def mask(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        size = args[0].shape[1]
        seen = torch.ones(size, size, dtype=torch.bool).tril()
        seen[:, list(gone)] = False
        seen |= torch.eye(size, dtype=torch.bool)  # a dropped token's own row must not be empty
        kwargs["attention_mask"] = torch.zeros(size, size).masked_fill(~seen, -torch.inf)[
            None, None
        ]
        return args, kwargs

    layers = parts(model)[0].layers[before:]
    handles = [layer.register_forward_pre_hook(mask, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_without_drops_it_is_the_model(llama: Any, embeddings: torch.Tensor) -> None:
    trace = prefill(llama, embeddings, VISUAL)
    close(trace.logits, forward(llama, embeddings).logits[0])
    assert trace.lengths == [len(IDS)] * LAYERS
    assert trace.places == list(range(len(IDS)))
    tokens, logits = decode(llama, trace, 16)
    own = llama.generate(
        inputs_embeds=embeddings[None],
        attention_mask=torch.ones(1, len(IDS), dtype=torch.long),
        do_sample=False,
        max_new_tokens=16,
        eos_token_id=None,
    )
    assert margins(logits).min() > 1e-3
    assert tokens == own[0].tolist()
    assert trace.lengths == [len(IDS) + 15] * LAYERS


@pytest.mark.parametrize("renumber", [False, True])
@pytest.mark.parametrize("before", [0, 3, LAYERS])
def test_a_drop_that_keeps_all_changes_nothing(
    llama: Any, embeddings: torch.Tensor, before: int, renumber: bool
) -> None:
    trace = prefill(llama, embeddings, VISUAL, methods.fixed(before, range(12), renumber=renumber))
    np.testing.assert_array_equal(trace.logits, prefill(llama, embeddings, VISUAL).logits)
    assert trace.kept == [list(range(12))]


def test_a_drop_before_layer_0_is_a_shorter_prompt(llama: Any, embeddings: torch.Tensor) -> None:
    kept = [0, 5, 6, 11]
    places = [*range(3), *(3 + i for i in kept), *range(15, len(IDS))]
    short, own = embeddings[places], torch.tensor([places])
    trace = prefill(llama, embeddings, VISUAL, methods.fixed(0, kept))
    close(trace.logits, forward(llama, short, position_ids=own).logits[0])
    assert trace.places == places
    trace = prefill(llama, embeddings, VISUAL, methods.fixed(0, kept, renumber=True))
    close(trace.logits, forward(llama, short).logits[0])


@pytest.mark.parametrize("before", [1, 2, 5])
def test_a_drop_is_a_mask_from_its_layer_on(
    llama: Any, embeddings: torch.Tensor, before: int
) -> None:
    kept = [1, 2, 7, 10]
    trace = prefill(llama, embeddings, VISUAL, methods.fixed(before, kept))
    gone = [3 + i for i in range(12) if i not in kept]
    with hidden_columns(llama, before, gone):
        close(trace.logits, forward(llama, embeddings).logits[0][trace.places])
    assert trace.lengths == [len(IDS)] * before + [len(IDS) - 8] * (LAYERS - before)
    # Each new token's logits are those of the whole text run again under the mask.
    tokens, logits = decode(llama, trace, 6)
    longer = torch.cat([embeddings, llama.model.embed_tokens(torch.tensor(tokens[:-1]))]).detach()
    with hidden_columns(llama, before, gone):
        close(logits, forward(llama, longer).logits[0][len(IDS) - 1 :])


def test_renumbered_segments_decode_as_they_were_filled(
    llama: Any, embeddings: torch.Tensor
) -> None:
    drops = [
        *methods.fixed(2, [0, 1, 4, 6, 9, 11], renumber=True),
        Drop(4, lambda view: Choice([1, 3, 4], view.hidden()[[3, 4]] / 2), renumber=True),
    ]
    trace = prefill(llama, embeddings, VISUAL, drops)
    assert trace.kept == [[0, 1, 4, 6, 9, 11], [1, 6, 9, -1, -1]]
    assert trace.places == [0, 1, 2, 4, 9, 12, -1, -1, *range(15, 20)]
    assert trace.lengths == [20, 20, 14, 14, 13, 13]
    for layer, length in zip(trace.cache, trace.lengths, strict=True):
        assert layer.positions.tolist() == list(range(length))
    tokens, logits = decode(llama, trace, 6)
    longer = torch.cat([embeddings, llama.model.embed_tokens(torch.tensor(tokens[:-1]))]).detach()
    again = prefill(llama, longer, VISUAL, drops)
    close(logits, again.logits[-6:])
    assert again.lengths == trace.lengths


def test_decoding_stops(llama: Any, embeddings: torch.Tensor) -> None:
    tokens, _ = decode(llama, prefill(llama, embeddings, VISUAL), 8)
    last = next(i for i in range(1, 8) if tokens[i] not in tokens[:i])
    again, logits = decode(llama, prefill(llama, embeddings, VISUAL), 8, stop=tokens[last])
    assert again == tokens[: last + 1]
    assert len(logits) == last + 1


def test_what_a_method_sees_is_the_models_own(llama: Any, embeddings: torch.Tensor) -> None:
    views: list[View] = []

    def look(view: View) -> Choice:
        views.append(view)
        return Choice(range(12))

    prefill(llama, embeddings, VISUAL, [Drop(3, look)])
    (view,) = views
    bare: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []
    attention = llama.model.layers[3].self_attn
    handles = [
        attention.k_proj.register_forward_hook(lambda module, args, out: bare.append(out)),
        attention.q_proj.register_forward_hook(lambda module, args, out: seen.append(out)),
    ]
    own = forward(
        llama, embeddings, output_attentions=True, output_hidden_states=True, use_cache=True
    )
    close(view.attention(), own.attentions[2][0])
    close(view.hidden(), own.hidden_states[3][0])
    close(view.final_norm(), llama.model.norm(own.hidden_states[3][0]).detach())
    close(view.keys(), own.past_key_values.layers[2].keys[0])
    close(view.next_keys(), own.past_key_values.layers[3].keys[0])
    # The last row of layer 3's attention follows from the query and the keys.
    keys = np.repeat(view.next_keys(), HEADS // GROUPS, axis=0)
    logits = np.einsum("hd,hsd->hs", view.next_query(), keys) / np.sqrt(SIZE)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    close(weights / weights.sum(axis=-1, keepdims=True), own.attentions[3][0, :, -1])
    for handle in handles:
        handle.remove()
    # Without norm and RoPE: the weights times the states.
    close(view.bare_keys(), (own.hidden_states[3][0] @ attention.k_proj.weight.T).detach())
    assert np.abs(view.bare_keys() - bare[0][0].numpy(force=True)).max() > 0.1
    assert view.text_after == list(range(15, 20))
    assert view.positions == list(range(20))


def test_a_choice_that_is_none(llama: Any, embeddings: torch.Tensor) -> None:
    for kept in ([3, 3], [4, 2]):
        with pytest.raises(ValueError, match="ascend"):
            prefill(llama, embeddings, VISUAL, methods.fixed(2, kept))
    merged = Drop(2, lambda view: Choice([1], view.hidden()[:1]))
    with pytest.raises(ValueError, match="renumber"):
        prefill(llama, embeddings, VISUAL, [merged])
    with pytest.raises(ValueError, match="no attention"):
        prefill(llama, embeddings, VISUAL, methods.fastv_drops(3, layer=0))


METHODS: dict[str, tuple[Callable[[], list[Drop]], list[int]]] = {
    "fastv": (lambda: methods.fastv_drops(5), [12, 12, 5, 5, 5, 5]),
    "dart": (
        lambda: methods.dart_drops(4, image_pivots=2, text_pivots=2),
        [12, 12, 6, 6, 6, 6],
    ),
    "adaptprune": (
        lambda: methods.adaptprune_drops(4, (3, 4), layer=3),
        [12, 12, 12, 4, 4, 4],
    ),
    "pdrop": (
        lambda: methods.pdrop_drops(12, (1, 3, 5), (0.5, 0.25, 0.125)),
        [12, 6, 6, 3, 3, 1],
    ),
    # 5 of 12: 7 go, 2 + 1 of them become 1; then 3 of 6: 3 go, 0 + 1 becomes 1.
    "sparsevlm": (lambda: methods.sparsevlm_drops((1, 3), (5, 3)), [12, 12, 6, 6, 4, 4]),
    "sparsevlm_plus": (
        lambda: methods.sparsevlm_plus_drops((1, 3), (5, 3), size=SIZE, heads=2),
        [12, 12, 5, 5, 3, 3],
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_and_fills_what_it_says(
    llama: Any, embeddings: torch.Tensor, name: str
) -> None:
    drops, counts = METHODS[name]
    trace = prefill(llama, embeddings, VISUAL, drops())
    assert trace.lengths == [count + TEXT for count in counts]
    changes = [i for i in range(1, LAYERS) if counts[i] != counts[i - 1]]
    schedule = [(i, counts[i]) for i in changes]
    assert accounting.layer_counts(12, schedule, LAYERS) == counts
    renumbered = name in ("pdrop", "sparsevlm")
    for layer, cached in enumerate(trace.cache):
        positions = cached.positions.tolist()
        assert positions == sorted(set(positions))
        if renumbered:
            assert positions == list(range(trace.lengths[layer]))
        else:
            assert positions[-5:] == list(range(15, 20))
    tokens, logits = decode(llama, trace, 16)
    assert len(tokens) == 16
    assert np.isfinite(logits).all()


def test_it_runs_a_llava_model(reference: Any) -> None:
    torch.manual_seed(2)
    ids = torch.tensor([[1, 20, *[IMAGE_TOKEN_ID] * NUM_VISUAL_TOKENS, 30, 40, 50]])
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    embeddings = llava_embeddings(reference, **inputs)
    visual = list(range(2, 2 + NUM_VISUAL_TOKENS))
    with torch.no_grad():
        close(prefill(reference, embeddings, visual).logits, reference(**inputs).logits[0])
    trace = prefill(reference, embeddings, visual, methods.fastv_drops(6, layer=1))
    assert trace.lengths[:2] == [21, 11]
