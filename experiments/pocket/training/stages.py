"""The two stages of training: what a batch holds and what is minimised."""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from resprune_jax.experiments.pocket.model.recipe import recipe
from resprune_jax.experiments.pocket.scenes.frozen import split_seed
from resprune_jax.experiments.pocket.scenes.parts import PAGES
from resprune_jax.experiments.pocket.scenes.scene import make_scene
from resprune_jax.experiments.pocket.scenes.words import Draw
from resprune_jax.experiments.pocket.training.answers import NAMES, opening_ids
from resprune_jax.experiments.pocket.training.dense import Heads, dense_loss, normalise
from resprune_jax.experiments.pocket.training.drills import DRILLS
from resprune_jax.experiments.pocket.training.segments import run_segments
from resprune_jax.experiments.pocket.training.targets import targets
from resprune_jax.experiments.pocket.training.trainer import Batch, Loss
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava.module import Llava

_LEVELS = 3  # a stream of random draws of its own


def initial(preset: str, rng_seed: int) -> tuple[Any, Any]:
    """Graph and random parameters of the model and its training heads.

    Returns:
        (graph definition, state) of `{"model": Llava, "heads": Heads}`.
    """
    sizes = recipe(preset)
    config = LlavaConfig.from_hf(sizes.hf_config())
    rngs = nnx.Rngs(rng_seed)
    model = Llava(config, rngs=rngs)
    # What a layer adds to the residual stream starts small, the less the deeper the model.
    for blocks, names in (
        (model.vision_tower.encoder.blocks, ("self_attn.out_proj", "mlp.fc2")),
        (model.language_model.layers, ("self_attn.o_proj", "mlp.down_proj")),
    ):
        for block in blocks:
            for name in names:
                part, layer = name.split(".")
                kernel = getattr(getattr(block, part), layer).kernel
                kernel[...] = kernel[...] * (2 * len(blocks)) ** -0.5
    embeddings: Any = model.vision_tower.embeddings
    embeddings.class_embedding[...] = 0.1 * embeddings.class_embedding[...]
    # Random places, small beside what a patch shows, were never learnt to be told apart.
    places = _waves(sizes.scenes.grid, sizes.vision_width)
    embeddings.position_embedding.embedding[1:] = jnp.asarray(0.5 * places)
    heads = Heads(sizes.width, sizes.vision_width, rngs=rngs)
    return nnx.split(nnx.Dict(model=model, heads=heads))


def _waves(grid: int, width: int) -> np.ndarray:
    """(grid^2, width): sines and cosines of the column, then of the row, from half a turn up."""
    at = (np.arange(grid) + 0.5) / grid
    turns = np.geomspace(0.5, grid / 4, width // 4)
    waves = 2 * np.pi * at[:, None] * turns
    one = np.concatenate([np.sin(waves), np.cos(waves)], axis=1)  # [grid, width / 2]
    row, column = np.divmod(np.arange(grid * grid), grid)
    return np.concatenate([one[column], one[row]], axis=1).astype(np.float32)


@dataclass(frozen=True)
class See:
    """Batches of the first stage: scenes and what their patches show.

    Attributes:
        preset: "cpu" or "gpu".
        images: a batch.
        steps: of the stage; scenes get harder over the first tenth.
    """

    preset: str
    images: int
    steps: int

    def __call__(self, step: int) -> Batch:
        config = recipe(self.preset).scenes
        made = []
        for index in range(step * self.images, (step + 1) * self.images):
            rng_seed = split_seed("train", index)
            easy = step < self.steps / 10
            weights = ((1, 0.3), (2, 0.4), (3, 0.3)) if easy else ((3, 0.2), (4, 0.4), (PAGES, 0.4))
            level = Draw(rng_seed, _LEVELS).weighted(weights)
            made.append(asdict(targets(make_scene(config.at_level(level), rng_seed))))
        return {name: np.stack([one[name] for one in made]) for name in made[0]}


def see_loss(graph: Any) -> Loss:
    """The first stage's loss; see `dense_loss`."""

    def loss(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        parts = nnx.merge(graph, params)
        x, _ = parts.model.vision_tower.encode(normalise(batch["image"]))
        visual = parts.model.multi_modal_projector(x[:, 1:])
        return dense_loss(parts.model, parts.heads, visual, x[:, 0], batch)

    return loss


VISUAL_NORM = 8.0
"""Of a visual token when the second stage begins; a word's row of the embedding table has 1."""


def levelled(graph: Any, params: Any, batch: dict[str, Any]) -> Any:
    """Parameters with the projector's output scaled down; its read-outs say what they said.

    Only the directions of visual tokens count in most of the first stage, and they come out of it
    fifty times as long as words: nothing that the decoder's layers add would turn them.

    Args:
        graph: of `initial`.
        params: from the first stage.
        batch: of `See`, to measure on.
    """
    parts = nnx.merge(graph, jax.tree.map(jnp.array, params))
    model, heads = parts.model, parts.heads
    # One compiled function of the pytree: eager layers would be compiled one by one.
    norm = jax.jit(_visual_norm)(model, batch["image"])
    scale = VISUAL_NORM / norm
    last = model.multi_modal_projector.linear_2
    for entries in (last.kernel, last.bias):
        entries[...] = entries[...] * scale
    for head in (heads.middle, heads.centre, heads.anchor, heads.word, heads.digits):
        head.kernel[...] = head.kernel[...] / scale
    return nnx.split(parts)[1]


def _visual_norm(model: Llava, images: jax.Array) -> jax.Array:
    tower: Any = model.vision_tower
    x, _ = tower.encode(normalise(images))
    return jnp.linalg.norm(model.multi_modal_projector(x[:, 1:]), axis=-1).mean()


def answer_loss(
    graph: Any, *, dense: float = 0.5, questions: float = 0.3, tower: bool = True
) -> Loss:
    """The second stage's loss: cross entropy of the answers' tokens.

    Args:
        graph: of `initial`.
        dense: weight of the first stage's loss, so that patches go on telling what they show.
        questions: weight of the questions' own tokens: what follows "the red" is something red that
            the image shows, which is to be looked up as an answer is.
        tower: whether vision tower and projector learn too; `dense` counts only then.
    """

    def loss(params: Any, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        parts = nnx.merge(graph, params)
        model = parts.model
        x, _ = model.vision_tower.encode(normalise(batch["image"]))
        visual = model.multi_modal_projector(x[:, 1:])
        if tower:
            total, seen = dense_loss(model, parts.heads, visual, x[:, 0], batch)
        else:
            total, seen, visual = jnp.zeros(()), {}, jax.lax.stop_gradient(visual)
        if "keep" in batch:
            visual = jnp.take_along_axis(visual, batch["keep"][..., None], axis=1)
        opening = model.embed(jnp.array(opening_ids()))
        opening = jnp.broadcast_to(opening, (len(visual), *opening.shape))
        prefix = jnp.concatenate([opening, visual], axis=1)
        ids, segment = batch["ids"], batch["segment"]
        hidden = run_segments(
            model.language_model, prefix, model.embed(ids), segment, batch["place"]
        )
        logits = model.project_logits(hidden[:, :, :-1])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, :, 1:])
        learn = batch["learn"][:, :, 1:]
        asked = (batch["place"][:, :, 1:] > 0) & (segment[:, :, 1:] >= 0) & ~learn
        answers = jnp.sum(each * learn) / jnp.sum(learn)
        asking = jnp.sum(each * asked) / jnp.sum(learn)
        metrics = {"answers": answers, "asking": asking, "dense": total}
        # A question is right when none of its answer's tokens is wrong.
        wrong = (jnp.argmax(logits, -1) != ids[:, :, 1:]) & learn
        numbers = jnp.arange(batch["family"].shape[1])
        which = segment[:, :, 1:, None] == numbers
        mistakes = jnp.sum(wrong[..., None] & which, axis=(1, 2))  # [B, Q]
        learnt = jnp.sum(learn[..., None] & which, axis=(1, 2))
        for number, name in enumerate(NAMES):
            own = batch["family"] == number
            right = (mistakes == 0).astype(jnp.float32)
            if name in DRILLS:  # many facts in one: the share of its tokens
                right = 1 - mistakes / jnp.maximum(learnt, 1)
            # None of a kind in a batch is no accuracy: the log's mean leaves it out.
            metrics[name] = jnp.sum(right * own) / jnp.where(own.any(), own.sum(), jnp.nan)
        keep = ("shape", "colour", "word", "digit", "third")
        metrics |= {f"see_{name}": seen[name] for name in keep if name in seen}
        return answers + questions * asking + dense * total, metrics

    return loss
