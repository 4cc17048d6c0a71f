"""What tokens receive on towers without a class token, against transformers' own attention."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers.models.qwen2_5_vl.modeling_qwen2_5_vl as qwen25
import transformers.models.qwen2_vl.modeling_qwen2_vl as qwen2
from flax import nnx
from transformers.vision_utils import get_vision_window_index

from resprune_jax.models import Video
from resprune_jax.models.towers.qwen_vision import tower as qwen_tower
from tests.parity.llava.next_pairs import picture
from tests.parity.onevision import pairs as onevision_pairs
from tests.parity.onevision import test_interleave
from tests.parity.qwen.pairs import pair, standard_batch

FILM = Video(np.stack([np.asarray(picture(60 + n, 90))[:60] for n in range(3)]), fps=4.0)


def close(name: str, got: Any, wanted: np.ndarray) -> bool:
    """Whether two are the same to 1e-5 of their mean, which is about 1 over the tokens."""
    assert np.shape(got) == wanted.shape
    error = float(np.abs(np.asarray(got) - wanted).max() / wanted.mean())
    print(
        f"{name}: max|d| {error:.1e} of the mean, shares {wanted.min():.2g} to {wanted.max():.2g}"
    )
    return error <= 1e-5


@torch.no_grad()
def siglip(model: Any, pixels: np.ndarray) -> torch.Tensor:
    """Of every patch of tiles (T, 3, S, S): the mean of its column over heads and queries."""
    made = model.model.vision_tower(torch.from_numpy(pixels), output_attentions=True)
    return made.attentions[-1].mean(dim=(1, 2))


def interleave() -> bool:
    lvlm = test_interleave.lvlm()
    rows = test_interleave.ROWS[1:]
    made = lvlm.encode(rows, needs=["received", "encoder_keys"])
    model, fine = test_interleave.torch_model(), True
    caught: list[torch.Tensor] = []
    highest: list[list[int]] = []
    attention = model.model.vision_tower.encoder.layers[-1].self_attn
    hook = attention.k_proj.register_forward_hook(lambda module, given, out: caught.append(out))
    for row, images in enumerate(rows):
        pixels = lvlm.family.processor(images)  # type: ignore[attr-defined]
        wanted = siglip(model, pixels).numpy().reshape(-1)
        real = np.asarray(made.valid[row])
        keys = caught.pop().reshape(len(wanted), attention.num_heads, -1).mean(dim=1).numpy()
        error = float(np.abs(np.asarray(made.encoder_keys[row])[real] - keys).max() / keys.std())
        print(f"interleave, row {row}: keys, max|d| {error:.1e} of the deviation")
        fine &= error <= 1e-5
        fine &= close(f"interleave, row {row}", np.asarray(made.received[row])[real], wanted)
        highest.append(sorted(np.argsort(-wanted, kind="stable")[:4].tolist()))
    hook.remove()
    chosen = lvlm.select(
        made, ["What?"] * len(rows), keep=4, method="fastervlm",
        method_settings={"attention": "received"},
    )  # fmt: skip
    fine &= [np.flatnonzero(own).tolist() for own in chosen.mask] == highest
    return fine


def onevision() -> bool:
    """Tiles packed by transformers as a map of one channel, its newlines 0."""
    lvlm, model = onevision_pairs.lvlm(), onevision_pairs.torch_model()
    rows: list[list[Any]] = [
        [picture(120, 130)], [picture(50, 80)], [picture(44, 44), picture(90, 40)], [FILM],
    ]  # fmt: skip
    made = lvlm.encode(rows, needs=["received"])
    fine = True
    for row, own in enumerate(rows):
        inputs = onevision_pairs.torch_inputs(own, "What?")
        line = torch.zeros(1)
        if own == [FILM]:
            frames = siglip(model, inputs["pixel_values_videos"][0].numpy())[..., None]
            parts = [model.model.apply_pooling(frames).flatten(0, 1), line[None]]
        else:
            tiles = inputs["pixel_values"]
            received = [siglip(model, each.numpy())[..., None] for each in tiles]
            if len(own) > 1:
                received = [each[:1] for each in received]
            parts, _ = model.model.pack_image_features(
                received, inputs["image_sizes"], image_newline=line,
                vision_aspect_ratio=model.config.vision_aspect_ratio,
            )  # fmt: skip
        wanted = torch.cat(list(parts))[:, 0].numpy()
        real = np.asarray(made.valid[row])
        fine &= close(f"onevision, row {row}", np.asarray(made.received[row])[real], wanted)
        assert not np.asarray(made.received[row])[~real].any()
    return fine


@partial(jax.jit, static_argnums=0)
def encode(graph: Any, state: Any, patches: Any, tables: Any) -> Any:
    model = nnx.merge(graph, state)
    return model.encode_images(patches, tables, needs=frozenset({"received"}))


def qwen(variant: str, patch: pytest.MonkeyPatch) -> bool:
    """One picture, two, a film and a picture; the reference turns its window order back."""
    source = qwen2 if variant == "qwen2" else qwen25
    models, caught = pair(variant), []
    plain = source.eager_attention_forward

    def caught_in(module: Any, *given: Any, **more: Any) -> Any:
        made = plain(module, *given, **more)
        caught.append((module, made[1][0]))  # a chunk (H, n, n)
        return made

    patch.setattr(source, "eager_attention_forward", caught_in)
    batch = standard_batch(models.config)
    tokens = encode(*models.port(), batch.patches, batch.tables)
    visual, fine = models.torch_model.model.visual, True
    for row, own in enumerate(batch.rows):
        grids = torch.tensor([each.grid for each in own])
        caught.clear()
        with torch.no_grad():
            visual(torch.from_numpy(np.concatenate([p.patches for p in own])), grid_thw=grids)
        frames = [made for module, made in caught if module is visual.blocks[-1].attn]
        assert [len(made[0]) for made in frames] == [
            rows * columns for count, rows, columns in grids.tolist() for _ in range(count)
        ]
        cells = torch.cat([made.mean(dim=(0, 1)) for made in frames]).reshape(-1, 4).mean(dim=1)
        if variant != "qwen2":
            order, _ = get_vision_window_index(grids, 2, 112, 14)
            cells = cells[torch.argsort(order)]
        real = np.asarray(tokens.valid[row])
        got = np.asarray(tokens.received[row])
        fine &= close(f"{variant}, row {row}", got[real], cells.numpy())
        assert not got[~real].any()
    return fine


@pytest.mark.deep
def test_siglip_of_ragged_rows() -> None:
    assert interleave()


def test_tiles_frames_and_newlines_of_onevision() -> None:
    assert onevision()


@pytest.mark.deep
@pytest.mark.parametrize("variant", ["untied", "qwen2"])
def test_packed_pictures_and_films_of_qwen(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert qwen(variant, monkeypatch)


@pytest.mark.deep
@pytest.mark.parametrize("fault", ["rows", "one head", "window order"])
def test_a_planted_fault_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over keys, which are all 1; a head alone; cells as the reference's windows list them."""
    columns = qwen_tower.attention_columns

    def spoilt(q: jax.Array, k: jax.Array, **more: Any) -> jax.Array:
        return (
            jnp.ones(q.shape[:2]) if fault == "rows" else columns(q[:, :, :1], k[:, :, :1], **more)
        )

    if fault == "window order":
        monkeypatch.setattr(torch, "argsort", lambda order: torch.arange(len(order)))
    else:
        monkeypatch.setattr(qwen_tower, "attention_columns", spoilt)
    encode.clear_cache()
    try:
        assert not qwen("untied", monkeypatch)
    finally:
        encode.clear_cache()
