"""A small LLaVA-NeXT in torch and in the port, and the batches that the parity tests share."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from PIL import Image

from resprune_jax.models.checkpoint.reading import load_parameters
from resprune_jax.models.families.llava_next.anyres import AnyresTables, packing
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.llava_next.images import NextProcessor, TiledImage, stack_tiles
from resprune_jax.models.families.llava_next.module import LlavaNext
from resprune_jax.models.families.registry import read_config
from tests.checkpoints.llava import IMAGE_TOKEN_ID
from tests.checkpoints.llava_next import reference_model, tiny_next

# (height, width) of a batch of different sizes: five tiles; three; a column of newlines only;
# four tiles with padding on either side. And one that unpads to no row.
SIZES = [(90, 120), (56, 56), (300, 1), (37, 200)]
NO_ROW = (1, 300)

# The static shape of most tests: tiles, visual tokens, prompt tokens.
TILES, TOKENS, LENGTH = 5, 96, 144


@dataclass(frozen=True)
class Pair:
    """A torch model and the same checkpoint for the port."""

    torch_model: Any
    config: LlavaNextConfig
    directory: Path
    processor: NextProcessor

    def port(self, config: LlavaNextConfig | None = None) -> tuple[Any, nnx.State]:
        """(graph, state) of the port, under another configuration if one is given."""
        return read_port(self.directory, self.config if config is None else config)


def read_port(directory: Path, config: LlavaNextConfig) -> tuple[Any, nnx.State]:
    """The port with a folder's weights."""
    abstract = nnx.eval_shape(lambda: LlavaNext(config, rngs=nnx.Rngs(0)))
    return nnx.graphdef(abstract), load_parameters(directory, abstract, dtype="float32")


@lru_cache(maxsize=6)
def pair(variant: str) -> Pair:
    """One of `llava_next.VARIANTS`, made once a run."""
    directory = tiny_next(Path(mkdtemp()), variant=variant)
    config = LlavaNextConfig.from_hf(read_config(directory))
    processor = NextProcessor.from_checkpoint(directory, config)
    return Pair(reference_model(directory), config, directory, processor)


@lru_cache(maxsize=64)
def picture(height: int, width: int) -> Image.Image:
    """Noise over waves: every patch is its own."""
    rng = np.random.default_rng(1000 * height + width)
    x, y = np.meshgrid(np.linspace(0, 9, width), np.linspace(0, 7, height))
    waves = 127 + 60 * np.sin(x + 2 * y)[..., None] + rng.normal(0, 40, (height, width, 3))
    return Image.fromarray(waves.clip(0, 255).astype(np.uint8))


def tiled(models: Pair, sizes: Sequence[tuple[int, int]]) -> list[TiledImage]:
    """The pictures of these sizes, cut into tiles."""
    return models.processor.images([picture(*size) for size in sizes])


def torch_images(images: Sequence[TiledImage]) -> dict[str, torch.Tensor]:
    """Pictures as the torch model takes them: tiles padded with zeros, and sizes."""
    pixels = np.zeros((len(images), TILES, *images[0].tiles.shape[1:]), np.float32)
    for row, image in enumerate(images):
        pixels[row, : len(image.tiles)] = image.tiles
    sizes = torch.tensor([image.size for image in images])
    return {"pixel_values": torch.from_numpy(pixels), "image_sizes": sizes}


@partial(jax.jit, static_argnums=0)
def encode(graph: Any, state: Any, pixels: Any, tables: AnyresTables) -> Any:
    """VisualTokens with all optional parts."""
    model = nnx.merge(graph, state)
    return model.encode_images(pixels, tables, saliency=True, needs=frozenset({"features"}))


@partial(jax.jit, static_argnums=0)
def answer(graph: Any, state: Any, tokens: Any, ids: Any, valid: Any) -> Any:
    """(B, S, V): the row's visual tokens in place of its placeholders, and the decoder."""
    model = nnx.merge(graph, state)
    here = ids == IMAGE_TOKEN_ID
    index = jnp.clip(jnp.cumsum(here, axis=1) - 1, 0, tokens.shape[1] - 1)
    visual = jnp.take_along_axis(tokens, index[..., None], axis=1)
    x = jnp.where(here[..., None], visual, model.embed(ids))
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1], dtype=jnp.int32), ids.shape)
    return model.project_logits(model.forward(x, positions, valid))


def prompts(
    counts: Sequence[Sequence[int]], texts: Sequence[int], length: int = LENGTH
) -> tuple[np.ndarray, np.ndarray]:
    """Right-padded ids (B, S) with each row's pictures between its words, and their validity."""
    rng = np.random.default_rng(sum(texts))
    ids, valid = np.full((len(counts), length), 3, np.int32), np.zeros((len(counts), length), bool)
    for row, (own, words) in enumerate(zip(counts, texts, strict=True)):
        text = list(rng.integers(5, 380, words))
        for number in range(len(own)):
            at = 3 + number * 4
            text[at:at] = [-number - 1]
        expanded = np.concatenate([[IMAGE_TOKEN_ID] * own[-t - 1] if t < 0 else [t] for t in text])
        ids[row, : len(expanded)], valid[row, : len(expanded)] = expanded, True
    return ids, valid


@torch.no_grad()
def torch_logits(models: Pair, ids: np.ndarray, valid: np.ndarray, images: Any) -> np.ndarray:
    """(B, S, V) of the torch model."""
    return models.torch_model(
        input_ids=torch.from_numpy(ids).long(),
        attention_mask=torch.from_numpy(valid).long(),
        **torch_images(images),
    ).logits.numpy()


def excess(name: str, got: Any, expected: np.ndarray) -> float:
    """max|d| over the bound 1e-5 * max(1, std(reference)): at most 1 passes."""
    error = float(np.abs(np.asarray(got) - expected).max())
    bound = 1e-5 * max(1.0, float(expected.std()))
    print(f"{name}: max|d| {error:.2e}, std {expected.std():.2f}, {error / bound:.2f} of the bound")
    return error / bound


def packed(models: Pair, values: list[torch.Tensor], sizes: Any, newline: Any) -> list[np.ndarray]:
    """Values of every tile's patches (T, P, d), packed by transformers."""
    rows, _ = models.torch_model.model.pack_image_features(values, sizes, "default", newline)
    return [row.numpy() for row in rows]


@dataclass(frozen=True)
class Batch:
    """Four pictures of different sizes, each behind a few words, for both sides."""

    images: list[TiledImage]
    pixels: np.ndarray
    tables: AnyresTables
    ids: np.ndarray
    valid: np.ndarray
    logits: np.ndarray  # of the torch model, valid positions only


@lru_cache(maxsize=4)
def standard_batch(variant: str) -> Batch:
    """The batch of `SIZES`, and what torch makes of it."""
    models = pair(variant)
    images = tiled(models, SIZES)
    pixels, tables = stack_tiles(images, models.config)
    counts = [[len(packing(*size, models.config).index)] for size in SIZES]
    ids, valid = prompts(counts, [20, 55, 31, 26])
    expected = torch_logits(models, ids, valid, images)[valid]
    return Batch(images, pixels, tables, ids, valid, expected)
