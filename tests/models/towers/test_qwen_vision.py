"""The vision tower: padding without effect, one compile a bucket, memory of very large images."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import jaxprs_in_params

from resprune_jax.errors import CallError
from resprune_jax.models.decoder import attention
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.decoder.rope import apply_rope, axial_tables
from resprune_jax.models.families.qwen_vl.config import Qwen25VLConfig
from resprune_jax.models.families.qwen_vl.images import VisionInput, pack
from resprune_jax.models.families.qwen_vl.module import Qwen25VL
from resprune_jax.models.towers.qwen_vision.config import QwenVisionConfig
from resprune_jax.models.towers.qwen_vision.tables import VisionTables, make_tables
from resprune_jax.models.towers.qwen_vision.tower import QwenVision
from tests.compiles import backend_compiles

CONFIG = QwenVisionConfig(32, 56, 3, 2, 24, full_attention_blocks=(1,))
RAGGED, STRIP, CLIP = (1, 6, 10), (1, 2, 14), (2, 4, 4)


def tower(config: QwenVisionConfig) -> tuple[Any, Any]:
    """(graph, state) with random weights; biases and scales too."""
    graph, shapes = nnx.split(
        nnx.eval_shape(lambda: QwenVision(config, rngs=nnx.Rngs(0), dtype=jnp.float32))
    )
    return graph, random_state(shapes)


def random_state(shapes: Any) -> Any:
    """Random values for abstract parameters."""
    rng = np.random.default_rng(0)

    def fill(leaf: Any) -> np.ndarray:
        value = rng.normal(size=leaf.shape).astype(np.float32)
        return value / len(value) ** 0.5 if leaf.ndim > 1 else 0.5 + 0.2 * value

    return jax.tree.map(fill, shapes)


@partial(jax.jit, static_argnums=0)
def run(graph: Any, state: Any, patches: Any, tables: VisionTables) -> tuple[jax.Array, jax.Array]:
    """(features, merged cells)."""
    return nnx.merge(graph, state)(patches, tables)


def noise(grid: tuple[int, int, int], rng_seed: int) -> VisionInput:
    """Patches of noise."""
    count = grid[0] * grid[1] * grid[2]
    rng = np.random.default_rng(rng_seed)
    return VisionInput(rng.normal(size=(count, 1176)).astype(np.float32), grid)


def packed(*grids: tuple[int, int, int], patches: int) -> tuple[np.ndarray, VisionTables, int]:
    """(patches, tables, real patches) of noise in a bucket."""
    inputs = [noise(grid, number) for number, grid in enumerate(grids)]
    return *pack(inputs, CONFIG, patches=patches), sum(len(each.patches) for each in inputs)


def test_padding_has_no_effect() -> None:
    graph, state = tower(CONFIG)
    patches, tables, real = packed(RAGGED, STRIP, CLIP, patches=192)
    _, expected = run(graph, state, patches, tables)
    cells = real // 4
    # Whatever the padding holds, bit for bit.
    spoilt = patches.copy()
    spoilt[real:] = 100 * np.random.default_rng(9).normal(size=spoilt[real:].shape)
    _, again = run(graph, state, spoilt, tables)
    np.testing.assert_array_equal(expected[:cells], again[:cells])
    # In a larger bucket, and in none: the least patches that hold the rows of windows.
    error = {}
    for size in (152, 512):
        other, its_tables, _ = packed(RAGGED, STRIP, CLIP, patches=size)
        _, got = run(graph, state, other, its_tables)
        error[size] = float(np.abs(got[:cells] - expected[:cells]).max() / np.std(expected[:cells]))
    print(f"{real} patches in 192; in others max|d| {error} of the deviation")
    assert max(error.values()) <= 1e-5


@pytest.mark.parametrize("fault", ["frame", "window", "frames joined", "windows joined"])
def test_an_unmasking_fault_is_caught(fault: str) -> None:
    graph, state = tower(CONFIG)
    patches, tables, real = packed(RAGGED, STRIP, CLIP, patches=192)
    _, expected = run(graph, state, patches, tables)
    segments, windows = tables.segments.copy(), tables.windows.copy()
    window_segments = tables.window_segments.copy()
    if fault == "frame":
        segments[real:] = segments[real - 1]
    elif fault == "frames joined":
        segments[:real] = 0
    elif fault == "windows joined":
        window_segments[window_segments >= 0] = 0
    else:  # empty slots hold padding and belong to the window beside them
        windows[windows == len(patches)] = real
        window_segments = np.maximum(window_segments, window_segments.max(axis=1, keepdims=True))
    wrong = replace(tables, segments=segments, windows=windows, window_segments=window_segments)
    _, got = run(graph, state, patches, wrong)
    cells = slice(0, real // 4)
    error = float(np.abs(got[cells] - expected[cells]).max() / np.std(expected[cells]))
    print(f"{fault}: {error:.1e} of the deviation, {error / 1e-5:.0f} times the bound")
    assert error > 1e-3


def test_sizes_inside_a_bucket_compile_once() -> None:
    graph, state = tower(CONFIG)
    rng = np.random.default_rng(2)
    sizes = [(1, 8, 8), *((1, *(2 * int(n) for n in rng.integers(1, 6, 2))) for _ in range(12))]
    inputs = [pack([noise(grid, 0)], CONFIG, patches=256, tokens=32) for grid in sizes]
    with backend_compiles() as seen:
        for patches, tables in inputs:
            run(graph, state, patches, tables)[0].block_until_ready()
    print(f"{len(set(sizes))} sizes, {len(seen)} compiles")
    assert len(set(sizes)) > 8 and len(seen) == 1


def largest(jaxpr: Any) -> int:
    """Elements of the largest array any equation makes, inner programs included."""
    made = [0]
    for equation in jaxpr.eqns:
        made += [int(np.prod(out.aval.shape)) for out in equation.outvars]
        made += [largest(inner) for inner in jaxprs_in_params(equation.params)]
    return max(made)


def test_no_score_array_of_a_very_large_image() -> None:
    """3840 x 2160 pixels: 42,196 patches, 10,549 visual tokens."""
    config = replace(CONFIG, hidden_size=16, intermediate_size=16, num_layers=2)
    tables = make_tables([(1, 154, 274)], config)
    size, rows = len(tables.segments), len(tables.windows)
    assert size == 43_008 and int((tables.tokens < size // 4).sum()) == 10_549
    graph, state = nnx.split(
        nnx.eval_shape(lambda: QwenVision(config, rngs=nnx.Rngs(0), dtype=jnp.float32))
    )
    patches = jax.ShapeDtypeStruct((size, config.patch_values), jnp.float32)
    program = jax.make_jaxpr(lambda s, x, t: nnx.merge(graph, s)(x, t))(state, patches, tables)
    most, heads = largest(program.jaxpr), config.num_heads
    memory = run.lower(graph, state, patches, tables).compile().memory_analysis()
    scores = {"windows": rows * heads * 64 * 64, "bound": heads * attention.BLOCK * size}
    print(
        f"largest array {most} elements, {scores}, S * S = {size * size}; "
        f"{memory.temp_size_in_bytes / 2**20:.0f} MiB of temporaries"
    )
    assert most <= max(scores["windows"], size * 64) < scores["bound"]
    assert memory.temp_size_in_bytes < 4 * 8 * scores["windows"]


def test_visual_tokens_of_rows() -> None:
    text = DecoderConfig(50, 24, 16, 1, 2, 2, 12, qkv_bias=True)
    config = Qwen25VLConfig(vision=CONFIG, text=text, mrope_section=(2, 2, 2))
    graph, shapes = nnx.split(nnx.eval_shape(lambda: Qwen25VL(config, rngs=nnx.Rngs(0))))
    state = random_state(shapes)
    inputs = [noise(RAGGED, 0), noise(STRIP, 1), noise(CLIP, 2)]
    patches, tables = pack(inputs, CONFIG, rows=[[2, 1], [0]], patches=192, tokens=32)

    @jax.jit
    def encode(state: Any) -> tuple[Any, jax.Array]:
        model = nnx.merge(graph, state)
        tokens = model.encode_images(patches, tables, needs=frozenset({"features"}))
        return tokens, model.visual(patches, tables)[1]

    tokens, cells = encode(state)
    assert tokens.embeddings.shape == (2, 32, 24) and tokens.features.shape == (2, 32, 128)
    assert tokens.saliency is None and tokens.kind is None
    assert tokens.valid.sum(axis=1).tolist() == [15, 15]
    # The video's 8 cells and the strip's 7 come in this order; the first picture has 15.
    np.testing.assert_array_equal(tokens.embeddings[0, :8], cells[22:30])
    np.testing.assert_array_equal(tokens.embeddings[0, 8:15], cells[15:22])
    np.testing.assert_array_equal(tokens.embeddings[1, :15], cells[:15])
    assert (np.asarray(tokens.embeddings[:, 15:]) == 0).all()
    assert tokens.coords[1, 14].tolist() == [2, 4] and tokens.coords[0, 8].tolist() == [0, 0]


def places(*grids: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(frame, row, column) of each patch in the processor's order, cell by cell."""
    found, frame = [], 0
    for frames, rows, columns in grids:
        for _ in range(frames):
            for row in range(0, rows, 2):
                for column in range(0, columns, 2):
                    found += [(frame, row + i, column + j) for i in (0, 1) for j in (0, 1)]
            frame += 1
    return found


@partial(jax.jit, static_argnums=0)
def look(graph: Any, state: Any, patches: Any, tables: Any) -> Any:
    """What the tower shows, what it gives unasked, and the last block's q and k (P, H, hd)."""
    model = nnx.merge(graph, state)
    config, x = model.config, model.patch_embed(patches)
    rope = axial_tables(jnp.asarray(tables.coords), config.head_dim, config.rope_theta)
    for index, block in enumerate(model.blocks):
        qkv = block.attn.qkv(block.norm1(x)).reshape(1, len(x), 3, config.num_heads, -1)
        x, _ = block(x, rope, tables, windowed=index not in config.full_attention_blocks)
    q, k = apply_rope(qkv[:, :, 0], *rope)[0], apply_rope(qkv[:, :, 1], *rope)[0]
    return model.look(patches, tables), model(patches, tables), q, k


@pytest.mark.parametrize("windowed", [False, pytest.param(True, marks=pytest.mark.deep)])
def test_what_each_cell_receives(windowed: bool) -> None:
    """Loops over frames, windows of 8 x 8 patches, heads, queries and keys."""
    config = replace(CONFIG, num_layers=2, full_attention_blocks=() if windowed else (1,))
    graph, state = tower(config)
    patches, tables, real = packed(RAGGED, STRIP, CLIP, patches=192)
    (features, cells, received), plain, *both = look(graph, state, patches, tables)
    assert received.shape == (48,) and received.dtype == jnp.float32
    q, k = (np.asarray(x, np.float64) for x in both)
    at = places(RAGGED, STRIP, CLIP)
    assert len(at) == real

    def sees(s: int, t: int) -> bool:
        (frame, row, column), (other, down, right) = at[s], at[t]
        near = row // 8 == down // 8 and column // 8 == right // 8
        return frame == other and (near or not windowed)

    columns = np.zeros(real)
    for s in range(real):
        seen = [t for t in range(real) if sees(s, t)]
        for h in range(config.num_heads):
            powers = np.exp([q[s, h] @ k[t, h] / config.head_dim**0.5 for t in seen])
            columns[seen] += powers / powers.sum() / config.num_heads
    sizes = [sum(other[0] == own[0] for other in at) for own in at]
    wanted = (columns / sizes).reshape(-1, 4).mean(axis=1)
    np.testing.assert_allclose(received[: real // 4], wanted, rtol=0, atol=1e-5 * wanted.max())
    assert wanted.std() > 0.1 * wanted.mean()
    np.testing.assert_array_equal(plain[0], features)
    np.testing.assert_array_equal(plain[1], cells)


def test_bfloat16_stays_bfloat16_and_near() -> None:
    graph, state = tower(CONFIG)
    patches, tables, real = packed(RAGGED, STRIP, CLIP, patches=192)
    _, expected = run(graph, state, patches, tables)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), state)
    features, got = run(graph, half, patches, tables)
    assert features.dtype == got.dtype == jnp.bfloat16
    error = np.abs(np.asarray(got[: real // 4], np.float32) - expected[: real // 4])
    print(f"bfloat16: {error.max() / np.std(expected):.3f} of the deviation at most")
    assert error.max() < 0.1 * np.std(expected)


def test_patches_of_another_shape_are_refused() -> None:
    graph, state = tower(CONFIG)
    patches, tables, _ = packed(RAGGED, patches=192)
    with pytest.raises(CallError, match=r"expected \(192, 1176\)"):
        run(graph, state, patches[:64], tables)
