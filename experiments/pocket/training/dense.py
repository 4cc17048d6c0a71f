"""The first stage's losses: words of patches through the LLM's embedding table, and what else a
patch and the class token should know.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from resprune_jax.experiments.pocket.model import tokenizer
from resprune_jax.experiments.pocket.scenes.labels import SLOTS, VOCABULARY
from resprune_jax.experiments.pocket.scenes.words import CHARACTERS, COLOURS, SHAPES, SIZES, WORDS
from resprune_jax.experiments.pocket.training.targets import NO_DIGIT, PRESENT
from resprune_jax.models.families.llava.module import Llava

LABEL_IDS = tuple(tokenizer.piece_id(word) for word in VOCABULARY)
"""Rows of the LLM's embedding table for the words that label patches."""

PLACE_IDS = tuple(
    tuple(tokenizer.piece_id(word) for word in words)
    for words in (("left", "center", "right"), ("top", "center", "bottom"))
)
"""Words for the thirds of the image, of columns and of rows."""

_KINDS = 4  # background, object, word, number
_RANGES = {
    "kind": (0, _KINDS),
    "shape": (_KINDS, _KINDS + len(SHAPES)),
    "colour": (_KINDS + len(SHAPES), _KINDS + len(SHAPES) + len(COLOURS)),
    "size": (len(VOCABULARY) - len(CHARACTERS) - len(SIZES), len(VOCABULARY) - len(CHARACTERS)),
}
"""Where in VOCABULARY the words of each slot lie; characters are the rest."""

Metrics = dict[str, jax.Array]


class Heads(nnx.Module):
    """Linear read-outs that only training uses."""

    def __init__(self, width: int, vision_width: int, *, rngs: nnx.Rngs) -> None:
        """Make them for visual tokens of `width` and a class token of `vision_width` numbers."""
        self.middle = nnx.Linear(width, 2, rngs=rngs)
        self.centre = nnx.Linear(width, 2, rngs=rngs)
        self.anchor = nnx.Linear(width, 1, rngs=rngs)
        self.word = nnx.Linear(width, len(WORDS), rngs=rngs)
        self.digits = nnx.Linear(width, 3 * (NO_DIGIT + 1), rngs=rngs)
        self.present = nnx.Linear(vision_width, PRESENT, rngs=rngs)
        self.scale = nnx.Param(jnp.array([16.0, 16.0]))  # of cosines: one of many, yes or no
        self.bias = nnx.Param(jnp.array(-4.0, jnp.float32))


def normalise(images: jax.Array) -> jax.Array:
    """(B, side, side, 3) uint8 to (B, 3, side, side) float32 in CLIP's normalisation."""
    mean = jnp.array([0.48145466, 0.4578275, 0.40821073])
    std = jnp.array([0.26862954, 0.26130258, 0.27577711])
    return ((images / 255.0 - mean) / std).transpose(0, 3, 1, 2)


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + 1e-6)


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """Mean of the values that count; 0 without any."""
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def _choice(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cross entropy and accuracy where the label is not negative."""
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
    right = jnp.argmax(logits, axis=-1) == labels
    return _mean(loss, labels >= 0), _mean(right.astype(jnp.float32), labels >= 0)


def dense_loss(
    model: Llava, heads: Heads, visual: jax.Array, first: jax.Array, batch: dict[str, jax.Array]
) -> tuple[jax.Array, Metrics]:
    """How badly visual tokens tell what patches show, and the class token what the image does.

    Args:
        model: for its embedding table.
        heads: the read-outs.
        visual: (B, N, d), after the projector.
        first: (B, v), the class token's features.
        batch: `Targets`, stacked.

    Returns:
        The loss, and accuracies.
    """
    labels = batch["labels"]  # [B, N, 7]
    words = unit(model.embed(jnp.array(LABEL_IDS)))  # [W, d]
    cosines = jnp.einsum("bnd,wd->bnw", unit(visual), words)
    scale = heads.scale[...]
    metrics: Metrics = {}
    total = jnp.zeros(())
    for slot, (start, stop) in _RANGES.items():
        own = labels[..., SLOTS.index(slot)]
        own = jnp.where(own >= 0, own - start, -1)
        loss, metrics[slot] = _choice(scale[0] * cosines[..., start:stop], own)
        total += loss
    shows = jax.nn.one_hot(labels, len(VOCABULARY)).sum(-2) > 0  # [B, N, W]; -1 gives no one
    each = optax.sigmoid_binary_cross_entropy(
        scale[1] * cosines + heads.bias[...], shows.astype(jnp.float32)
    )
    known = labels[..., 0] >= 0
    total += _mean(each.sum(-1), known)
    is_text = known & (labels[..., 4] >= 0)
    characters = cosines[..., -len(CHARACTERS) :]
    # One of many among characters, each of a patch's own counting alike: a patch in twenty shows
    # any, so the sum above hardly asks for them.
    printed = shows[..., -len(CHARACTERS) :].astype(jnp.float32)
    printed /= jnp.maximum(printed.sum(-1, keepdims=True), 1.0)
    spelt = optax.softmax_cross_entropy(scale[0] * characters, printed)
    total += _mean(spelt, is_text)
    best = jnp.take_along_axis(shows[..., -len(CHARACTERS) :], characters.argmax(-1)[..., None], -1)
    metrics["character"] = _mean(best[..., 0].astype(jnp.float32), is_text)

    visual = visual.astype(jnp.float32)
    shown = batch["anchor"] >= 0
    middle = jnp.nan_to_num(batch["middle"])
    away = jnp.abs(heads.middle(visual) - middle)
    total += 0.5 * _mean(optax.huber_loss(away, delta=0.5).sum(-1), shown)
    metrics["middle"] = _mean(away.max(-1), shown)
    # Attention hands on what a patch shows, not where it lies: where must be a part of what.
    centre = jnp.nan_to_num(batch["centre"])
    off = jnp.abs(heads.centre(visual) - centre)
    total += 3.0 * _mean(optax.huber_loss(off, delta=0.1).sum(-1), shown) / 0.1
    metrics["centre"] = _mean(off.max(-1), shown)
    # A read-out of its own can amplify what the decoder would not notice; words cannot.
    thirds = jnp.clip(1.5 * (centre + 1), 0, 2).astype(jnp.int32)  # [B, N, 2]
    places = unit(model.embed(jnp.array(PLACE_IDS)))  # [2, 3, d]
    alike = scale[0] * jnp.einsum("bnd,rwd->bnrw", unit(visual), places)
    loss, metrics["third"] = _choice(alike, jnp.where(shown[..., None], thirds, -1))
    total += 2.0 * loss
    anchor = heads.anchor(visual)[..., 0]
    is_anchor = (batch["anchor"] == 1).astype(jnp.float32)
    total += _mean(optax.sigmoid_binary_cross_entropy(anchor, is_anchor), shown)
    metrics["anchor"] = _mean(((anchor > 0) == (is_anchor > 0)).astype(jnp.float32), shown)
    text = batch["text"]
    loss, metrics["word"] = _choice(heads.word(visual), text[..., 0])
    total += 0.5 * loss
    digits = heads.digits(visual)
    digits = digits.reshape(*digits.shape[:-1], 3, NO_DIGIT + 1)
    loss, metrics["digit"] = _choice(digits, text[..., 1:])
    total += 0.5 * loss
    present = batch["present"].astype(jnp.float32)
    logits = heads.present(first.astype(jnp.float32))
    total += 0.05 * optax.sigmoid_binary_cross_entropy(logits, present).sum(-1).mean()
    metrics["present"] = _mean((logits > 0).astype(jnp.float32), present > 0)
    return total, metrics
