"""What a pruning method may read: visual tokens and the question, in static shapes."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax

PATCH, NEWLINE = 0, 1
"""Values of `VisualTokens.kind`."""

OPTIONAL = (
    "features",
    "saliency",
    "received",
    "coords",
    "kind",
    "class_features",
    "encoder_keys",
    "clip_patches",
    "early_saliency",
    "next_saliency",
    "next_keys",
    "tile",
    "entering",
    "class_entering",
)
"""The fields of `VisualTokens` that can be absent."""

ON_REQUEST = frozenset(OPTIONAL) - {"saliency", "coords", "kind"}
"""Those of them that are only made for a method that reads them; the rest costs next to nothing."""

BEHIND = frozenset({"next_saliency", "next_keys"})
"""Those of the tower's block behind the last one that runs."""

INSIDE = frozenset({"entering", "class_entering"})
"""Those for methods that run the tower's blocks themselves."""

CLASS_TOKEN = BEHIND | INSIDE | {"saliency", "class_features", "early_saliency"}
"""Those that a vision tower with a class token gives, `BEHIND` where it has such a block, `INSIDE`
where a picture is one tile."""

ATTENDED = frozenset({"received", "encoder_keys"})
"""Those of the attention in the block that feeds the projector that need no class token: the first
is there on every tower, the keys where each token is one patch."""

SHOWN = CLASS_TOKEN | ATTENDED
"""Those that a tower shows beside its output and the attention of its class token."""

CLIP = frozenset({"clip_patches", "clip_text"})
"""What a model has to which a CLIP was given, see `load_model`."""

LAYER_NEEDS = frozenset(
    {
        "attention",
        "next_attention",
        "text_attention",
        "gravity",
        "keys",
        "final_states",
        "bare_keys",
    }
)
"""What a method that drops inside the decoder may name beside: fields of `LayerView`."""

NEEDS = frozenset({*OPTIONAL, *LAYER_NEEDS, *CLIP, "text"})
"""What a method's `needs` may name: fields of `VisualTokens`, of `LayerView`, and the question's
text, as the LLM or as CLIP embeds it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerView:
    """What the decoder shows of its visual tokens in front of layer K, where some of them leave.

    N counts the visual tokens that are still there, merged ones included, M the text tokens behind
    the last of them, H heads, KV key/value heads. Entries of padding are 0. Absent parts are
    `None`. A method's own rule sees one prompt: the same fields without their axis B.

    Attributes:
        image: (B, N) int32, which of its prompt's images each token is of, -1 for a merged one.
        memory: what the method's `begin` made of the prompt before layer 0.
        attention: (B, H, N) float32, what the last prompt token gave them in layer K - 1, after the
            softmax over the whole sequence.
        next_attention: (B, H, N) float32, what it would give them in layer K.
        text_attention: (B, H, M, N) float32, what each text token gave them in layer K - 1.
        gravity: (B, M, N) float32, the attention that rotary positions alone would make: queries
            and keys of ones.
        keys: (B, N, KV, hd), keys of layer K - 1 with their rotation.
        text_keys: (B, M, KV, hd), likewise; there with `keys`.
        final_states: (B, N, d), the states in front of layer K after the decoder's last norm.
        text_final_states: (B, M, d), likewise; there with `final_states`.
        bare_keys: (B, N, KV hd), layer K's key projection of the states as they are: no norm, no
            rotation.
    """

    image: jax.Array
    memory: Any = None
    attention: jax.Array | None = None
    next_attention: jax.Array | None = None
    text_attention: jax.Array | None = None
    gravity: jax.Array | None = None
    keys: jax.Array | None = None
    text_keys: jax.Array | None = None
    final_states: jax.Array | None = None
    text_final_states: jax.Array | None = None
    bare_keys: jax.Array | None = None


class VisionBlock(Protocol):
    """A block of a vision tower in its two halves, for one picture of S tokens, CLS first."""

    def attend(self, x: jax.Array, bias: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What attention adds to (S, v), (S,) float32 added to all scores of each key; and the keys
        (S, H, h)."""

    def feed(self, x: jax.Array) -> jax.Array:
        """What the MLP adds to (S, v)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of a batch of images, ready to enter the LLM.

    Absent parts are `None`, so that XLA drops the work that would make them. A method's own rule
    sees one image: the same fields without their axis B.

    Attributes:
        embeddings: (B, N, d), projected tokens in the LLM's input embedding space.
        valid: (B, N) bool, False for padding.
        features: (B, N, v), the vision tower's output before the projector.
        saliency: (B, N) float32, CLS-to-patch attention, mean over heads.
        received: (B, N) float32, the attention that the token receives in the block that feeds the
            projector: the mean over heads and over the queries of all tokens of its own tile or
            frame, the class token among them where there is one. 0 for newlines. Of a token that is
            made of several patches, their mean, weighted as the token is.
        coords: (B, N, 2) float32, (row, column) of each token in its image plane.
        kind: (B, N) int8, `PATCH` or `NEWLINE`; `None` means that all are patches.
        class_features: (B, N, v), the class token as the vision tower gives it, of each token's own
            tile.
        encoder_keys: (B, N, h) float32, the token's key in the block that feeds the projector, mean
            over heads.
        clip_patches: (B, N, c) float32, W_vis LN_post(features): each patch in the space of CLIP's
            texts; 0 for newlines.
        early_saliency: (B, N) float32, as `saliency`, of the vision tower's first block.
        next_saliency: (B, N) float32, CLS-to-patch attention in the block behind the one that feeds
            the projector, its heads not split: softmax(q k / sqrt(v)) over CLS and patches.
        next_keys: (B, N, v) float32, the token's key in that block.
        tile: (B, N, 3) int32, the tile that each token is of, 0 for the whole picture, from 1 on in
            raster order, -1 for newlines; then the rows and columns of tiles that its picture has.
        entering: (B, N, v), the token as it enters the vision tower's first block.
        class_entering: (B, N, v), likewise the class token of each token's own tile.
        blocks: the vision tower's blocks that run; there while a method that reads `entering`
            chooses.
        layer: where tokens leave inside the decoder, what it shows there; `embeddings` are the
            states of the tokens then.
    """

    embeddings: jax.Array
    valid: jax.Array
    features: jax.Array | None = None
    saliency: jax.Array | None = None
    received: jax.Array | None = None
    coords: jax.Array | None = None
    kind: jax.Array | None = None
    class_features: jax.Array | None = None
    encoder_keys: jax.Array | None = None
    clip_patches: jax.Array | None = None
    early_saliency: jax.Array | None = None
    next_saliency: jax.Array | None = None
    next_keys: jax.Array | None = None
    tile: jax.Array | None = None
    entering: jax.Array | None = None
    class_entering: jax.Array | None = None
    blocks: tuple[VisionBlock, ...] | None = field(default=None, metadata={"static": True})
    layer: LayerView | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptContext:
    """The question as a method sees it.

    Attributes:
        text: (B, M, d), rows of the LLM's input embedding table, one for each noun token; inside
            the decoder, the states of all text tokens behind the last visual one.
        text_valid: (B, M) bool, False for padding; a row without any valid entry has no noun.
        clip_text: (B, M', c) float32, CLIP's embeddings of the texts that the method's `clip_text`
            says; None for a method that does not read them.
        clip_text_valid: (B, M') bool, likewise, False for padding.
    """

    text: jax.Array
    text_valid: jax.Array
    clip_text: jax.Array | None = None
    clip_text_valid: jax.Array | None = None


def patches(image: VisualTokens) -> jax.Array:
    """The valid tokens of an image that show a part of it, (N,) bool: not its newlines."""
    return image.valid if image.kind is None else image.valid & (image.kind == PATCH)
