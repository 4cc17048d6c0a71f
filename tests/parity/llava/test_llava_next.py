"""The LLaVA-NeXT port against transformers (torch, float32, CPU) on small random checkpoints."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from resprune_jax.methods.base import NEWLINE, PATCH
from resprune_jax.models.families.llava_next.anyres import AnyresTables, make_tables, packing
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.llava_next.images import stack_tiles
from resprune_jax.models.families.registry import read_config, save_checkpoint
from tests.checkpoints.joined import LAYERS, joined
from tests.checkpoints.llava import IMAGE_TOKEN_ID, VOCABULARY
from tests.checkpoints.llava_next import DIALECTS, reference_model, rename_dialect
from tests.compiles import backend_compiles
from tests.models.families.test_anyres import EXTREME, PUBLISHED, random_sizes
from tests.parity.llava.next_pairs import (
    NO_ROW,
    SIZES,
    TOKENS,
    Batch,
    Pair,
    answer,
    encode,
    excess,
    packed,
    pair,
    prompts,
    read_port,
    standard_batch,
    tiled,
    torch_images,
    torch_logits,
)


def port_logits(tower: Any, decoder: Any, batch: Batch) -> np.ndarray:
    """The port's logits at the batch's valid positions, from pixels to the head."""
    tokens = encode(*tower, batch.pixels, batch.tables).embeddings
    return np.asarray(answer(*decoder, tokens, batch.ids, batch.valid))[batch.valid]


def test_visual_tokens_of_a_batch_of_different_sizes() -> None:
    models = pair("vicuna")
    images = tiled(models, [*SIZES[:3], NO_ROW])
    tokens = encode(*models.port(), *stack_tiles(images, models.config))
    assert tokens.valid.shape == (4, TOKENS)
    inputs = torch_images(images)
    tiles = [torch.from_numpy(image.tiles) for image in images]
    with torch.no_grad():
        reference = models.torch_model.model.get_image_features(**inputs).pooler_output
        towers = [
            models.torch_model.model.vision_tower(
                own, output_hidden_states=True, output_attentions=True
            )
            for own in tiles
        ]
    width = models.config.vision.hidden_size
    features = packed(
        models, [own.hidden_states[-2][:, 1:] for own in towers], inputs["image_sizes"],
        torch.zeros(width),
    )  # fmt: skip
    scores = [own.attentions[-2].mean(1)[:, 0, 1:, None] for own in towers]
    saliency = packed(models, scores, inputs["image_sizes"], torch.zeros(1))
    newline = models.torch_model.model.image_newline.detach().numpy()
    for row, expected in enumerate(own.numpy() for own in reference):
        real = np.asarray(tokens.valid[row])
        count = len(expected)
        assert (real == (np.arange(TOKENS) < count)).all()
        scale = expected.std()  # far below 1 here
        name = f"{images[row].size}, {count} tokens"
        got = np.asarray(tokens.embeddings[row])
        assert excess(name, got[:count] / scale, expected / scale) <= 1
        assert (got[count:] == 0).all()
        assert excess(f"{name}, features", tokens.features[row, :count], features[row]) <= 1
        error = float(np.abs(tokens.saliency[row, :count] - saliency[row][:, 0]).max())
        kind = np.asarray(tokens.kind[row])
        lines = kind == NEWLINE
        print(f"{name}: {lines.sum()} newlines, CLS scores off by {error:.1e}")
        assert error <= 1e-6
        assert (got[lines] == newline).all() and (tokens.saliency[row][lines] == 0).all()
        assert (tokens.saliency[row][real & ~lines] > 0).all()
        assert ((kind == PATCH) | lines).all() and not lines[count:].any()


@pytest.mark.parametrize("variant", ["vicuna", "mistral", "mistral-window"])
def test_logits_of_a_batch_of_different_sizes(variant: str) -> None:
    models, batch = pair(variant), standard_batch(variant)
    window = models.config.text.sliding_window
    assert (window is not None) == (variant == "mistral-window")
    assert window is None or window < batch.valid.sum(axis=1).min()
    got = port_logits(models.port(), models.port(), batch)
    assert np.isfinite(got).all()
    assert excess(f"{variant}, window {window}", got, batch.logits) <= 1
    assert np.array_equal(got.argmax(-1), batch.logits.argmax(-1))
    assert 0.5 < batch.logits.std() < 2


@pytest.mark.deep
def test_logits_of_a_long_prompt_with_two_pictures() -> None:
    models = pair("mistral-window")
    images = tiled(models, [(37, 200), (90, 120)])
    pixels, tables = stack_tiles(images, models.config, rows=[[0, 1]])
    counts = [len(packing(*image.size, models.config).index) for image in images]
    ids, valid = prompts([counts], [450], length=576)
    assert valid.sum() > 500
    expected = torch_logits(models, ids, valid, images)[valid]
    port = models.port()
    got = answer(*port, encode(*port, pixels, tables).embeddings, ids, valid)
    assert excess(f"{len(expected)} tokens", np.asarray(got)[valid], expected) <= 1


@pytest.mark.deep
def test_a_window_that_the_file_leaves_out_is_4096() -> None:
    """Numbers decide, not configurations: behind 4096 tokens the first ones are out of sight."""
    models = pair("mistral-missing")
    assert models.config.text.sliding_window == 4096
    assert pair("mistral").config.text.sliding_window is None
    images = tiled(models, [(37, 200)])
    count = len(packing(37, 200, models.config).index)
    ids, valid = prompts([[count]], [4140], length=4200)
    rows = np.arange(4097, valid.sum())
    with torch.no_grad():
        out = models.torch_model.model(
            input_ids=torch.from_numpy(ids).long(),
            attention_mask=torch.from_numpy(valid).long(),
            **torch_images(images),
        )
        expected = models.torch_model.lm_head(out.last_hidden_state[0, rows]).numpy()
    pixels, tables = stack_tiles(images, models.config)
    for window in (4096, None):
        config = replace(models.config, text=replace(models.config.text, sliding_window=window))
        port = models.port(config)
        tokens = encode(*port, pixels, tables).embeddings
        got = np.asarray(answer(*port, tokens, ids, valid))[0, rows]
        ratio = excess(f"{len(rows)} rows behind 4096, window {window}", got, expected)
        assert ratio <= 1 if window else ratio > 10


def test_greedy_tokens() -> None:
    """32 of them, one at a time with a cache, as transformers' generate."""
    steps, models = 32, pair("mistral")
    images = tiled(models, SIZES[:1])
    pixels, tables = stack_tiles(images, models.config)
    count = int(np.asarray(tables.valid).sum())
    ids, valid = prompts([[count]], [24], length=count + 24)
    graph, state = models.port()
    tokens = encode(graph, state, pixels, tables).embeddings
    with torch.no_grad():
        whole = models.torch_model.generate(
            input_ids=torch.from_numpy(ids).long(), max_new_tokens=steps, do_sample=False,
            eos_token_id=VOCABULARY - 1, **torch_images(images),
        )  # fmt: skip
    expected = whole[0, ids.shape[1] :].numpy()

    @jax.jit
    def run(state: Any) -> jax.Array:
        model, length = nnx.merge(graph, state), ids.shape[1]
        here = ids[0] == IMAGE_TOKEN_ID
        x = model.embed(ids).at[0, np.flatnonzero(here)].set(tokens[0, :count])
        places = jnp.arange(length, dtype=jnp.int32)[None]
        hidden, cache = model.prefill(x, places, jnp.asarray(valid), length + steps)

        def step(carry: Any, at: jax.Array) -> Any:
            token, cache = carry
            x = model.embed(token[None, None])
            hidden, cache = model.decode_step(x, at[None, None], at, cache)
            return (model.project_logits(hidden[0, 0]).argmax().astype(jnp.int32), cache), token

        first = model.project_logits(hidden[0, -1]).argmax().astype(jnp.int32)
        return jax.lax.scan(step, (first, cache), length + jnp.arange(steps))[1]

    got = np.asarray(run(state))
    print(f"{(got == expected).sum()} of {steps} greedy tokens")
    np.testing.assert_array_equal(got, expected)


def test_packing_is_transformers_for_thousands_of_sizes() -> None:
    """Numbers of patches through transformers' own packing, at the published tile size."""
    pins = [list(pin) for pin in PUBLISHED.image_grid_pinpoints]
    config = SimpleNamespace(
        vision_config=SimpleNamespace(image_size=336, patch_size=14), image_grid_pinpoints=pins
    )
    cases = [*EXTREME, *random_sizes(2500, rng_seed=8)]
    tokens = 0
    for first in range(0, len(cases), 50):
        some = cases[first : first + 50]
        own = [packing(*size, PUBLISHED) for size in some]
        numbers = [torch.arange(each.tiles * 576).reshape(each.tiles, 576, 1) for each in own]
        rows, lengths = LlavaNextModel.pack_image_features(
            SimpleNamespace(config=config), numbers, torch.tensor(some), "default",
            torch.tensor([-1]),
        )  # fmt: skip
        assert lengths.tolist() == [len(each.index) for each in own]
        for each, row in zip(own, rows, strict=True):
            np.testing.assert_array_equal(each.index, row[:, 0].numpy(), err_msg=str(each.size))
        tokens += int(lengths.sum())
    print(f"{len(cases)} sizes, {tokens} visual tokens in transformers' order")


def test_padding_has_no_effect_unless_it_is_unmasked() -> None:
    models = pair("vicuna")
    images = tiled(models, SIZES[1:3])
    port = models.port()
    pixels, tables = stack_tiles(images, models.config, tiles=8, tokens=256, batch=4)
    pixels[~np.asarray(tables.tile_valid)] = np.nan
    wide = encode(*port, pixels, tables)
    ids, valid = prompts([[36], [20], [36], [20]], [60, 76, 60, 76])
    broad = np.asarray(answer(*port, wide.embeddings, ids, valid))
    for row, image in enumerate(images):
        # The first fills its 36 slots, the second leaves 16 of them empty.
        alone = encode(*port, *stack_tiles([image], models.config, tokens=36))
        real, own = np.asarray(wide.valid[row]), np.asarray(alone.valid[0])
        assert real.sum() == own.sum() == (36, 20)[row]
        for name in ("embeddings", "features", "saliency", "coords", "kind"):
            got, expected = (np.asarray(getattr(x, name)) for x in (wide, alone))
            scale = max(float(np.abs(expected).max()), 1e-30)
            error = float(np.abs(got[row][real] - expected[0][own]).max()) / scale
            assert error <= 1e-6, name
            assert (got[row][~real] == 0).all(), name
        single = answer(*port, alone.embeddings, ids[row : row + 1, :96], valid[:1, :96])
        assert valid[row].sum() == 96
        assert excess(f"row {row}, padded logits", broad[row, :96], np.asarray(single)[0]) <= 1
    # The same tables with the padding declared real, and an answer that reads it.
    more = replace(tables, valid=np.ones_like(tables.valid), index=np.maximum(tables.index, 0))
    wrong = encode(*port, np.nan_to_num(pixels), more)
    ids[0, 87:96] = IMAGE_TOKEN_ID
    right, spoilt = (np.asarray(answer(*port, x.embeddings, ids, valid)) for x in (wide, wrong))
    assert excess("padding unmasked", spoilt[0, :96], right[0, :96]) > 10


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_torchs_tensors(dialect: str, tmp_path: Path) -> None:
    models = pair("mistral")
    folder = rename_dialect(models.directory, tmp_path / dialect, dialect)
    _, state = read_port(folder, models.config)
    theirs = {k.removeprefix("model."): v for k, v in models.torch_model.state_dict().items()}
    compared = 0
    for path, leaf in nnx.to_flat_state(state):
        *front, last = map(str, path)
        if front and front[-1] in LAYERS:
            value = joined(theirs, path, leaf.shape)
            np.testing.assert_array_equal(np.asarray(leaf[...]), value, strict=True)
            compared += len(LAYERS[front[-1]])
            continue
        last = last if last in ("bias", "image_newline", "class_embedding") else "weight"
        value = theirs[".".join([*front, last])].numpy()
        if path[-1] == "kernel":
            value = value.reshape(len(value), -1).T
        np.testing.assert_array_equal(np.asarray(leaf[...]), value, strict=True)
        compared += 1
    # Block 3 of 4 is behind the feature layer -2, and so is the last norm; its queries and keys,
    # and the norm in front of them, are read.
    assert compared == len(theirs) - 10 - 2
    print(f"dialect {dialect}: {compared} parameters bit-equal")


@pytest.mark.parametrize("dialect", ["hub", "v4.52"])
def test_a_saved_checkpoint_loads_in_torch(dialect: str, tmp_path: Path) -> None:
    models = pair("mistral")
    _, state = models.port()
    folder = save_checkpoint(tmp_path, read_config(models.directory), state, dialect=dialect)
    again = reference_model(folder)
    ids, valid = prompts([[36]], [30])
    images = tiled(models, SIZES[1:2])
    expected = torch_logits(models, ids, valid, images)
    assert (torch_logits(replace(models, torch_model=again), ids, valid, images) == expected).all()


@pytest.mark.deep
def test_a_stream_of_sizes_compiles_once_a_bucket() -> None:
    models = pair("vicuna")
    port = models.port()
    rng = np.random.default_rng(4)
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (50, 2))).astype(int)
    batches = [
        stack_tiles(tiled(models, [(int(height), int(width))]), models.config)
        for height, width in sides
    ]
    program = jax.jit(lambda s, x, t: nnx.merge(port[0], s).encode_images(x, t, saliency=True))
    shapes, over = set(), []
    with backend_compiles() as seen:
        for pixels, tables in batches:
            tokens = program(port[1], pixels, tables)
            shapes.add((*tables.tile_valid.shape, tables.index.shape[1]))
            over.append(tables.index.shape[1] / np.asarray(tables.valid).sum())
        jax.block_until_ready(tokens)
    print(f"50 sizes, {len(shapes)} buckets, {len(seen)} compiles")
    assert len(seen) == len(shapes) <= 6


def faulty_config(config: LlavaNextConfig, fault: str) -> LlavaNextConfig:
    """The configuration with one mistake in it."""
    if fault == "vision epsilon":
        return replace(config, vision=replace(config.vision, layer_norm_eps=1e-6))
    if fault == "last vision block":
        return replace(config, num_vision_blocks=config.num_vision_blocks + 1)
    return replace(config, text=replace(config.text, rms_norm_eps=1e-6))


@pytest.mark.deep
@pytest.mark.parametrize("fault", ["vision epsilon", "last vision block", "text epsilon"])
def test_a_planted_fault_in_the_model_fails_the_gate(fault: str) -> None:
    models, batch = pair("vicuna"), standard_batch("vicuna")
    right, wrong = models.port(), models.port(faulty_config(models.config, fault))
    got = port_logits(
        right if fault == "text epsilon" else wrong,
        wrong if fault == "text epsilon" else right,
        batch,
    )
    assert excess(fault, got, batch.logits) > 10


def faulty_tables(models: Pair, batch: Batch, fault: str) -> AnyresTables:
    """The batch's tables with one mistake in them."""
    tables, config = batch.tables, models.config
    index, kind = np.array(tables.index), np.array(tables.kind)
    tile, patch = np.divmod(index, config.patches_per_tile)
    match fault:
        case "pinpoints in another order":  # a square picture fits two equally well
            flipped = replace(config, image_grid_pinpoints=config.image_grid_pinpoints[::-1])
            index[1] = make_tables([[SIZES[1]]], flipped, tokens=TOKENS).index[0]
        case "unpadded one row too early":
            index[0, 16:61] = index[0, 25:70]
        case "tiles by columns":
            index = np.where(tile == 2, 3 * 16 + patch, np.where(tile == 3, 2 * 16 + patch, index))
        case "newline is a patch":
            kind[:] = PATCH
        case "base tile last":
            index[0, :70] = np.roll(index[0, :70], -16)
            kind[0, :70] = np.roll(kind[0, :70], -16)
    return replace(tables, index=index, kind=kind)


@pytest.mark.deep
@pytest.mark.parametrize(
    "fault",
    [
        "pinpoints in another order",
        "unpadded one row too early",
        "tiles by columns",
        "newline is a patch",
        "base tile last",
    ],
)
def test_a_planted_fault_in_the_tables_fails_the_gate(fault: str) -> None:
    models, batch = pair("vicuna"), standard_batch("vicuna")
    wrong = replace(batch, tables=faulty_tables(models, batch, fault))
    assert excess(fault, port_logits(models.port(), models.port(), wrong), batch.logits) > 10
