"""LLaVA-NeXT (v1.6): tiles to visual tokens, prompts to hidden states and logits.

As in `llava.py`, nothing here is jitted and nothing is mutated: the caller splits the module once,
passes its state as an argument, merges inside its own jitted function and calls these methods
there. Which patch becomes which visual token is in the tables of `anyres.py`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from resprune_jax.errors import CallError
from resprune_jax.methods.inputs import NEWLINE, SHOWN, VisualTokens
from resprune_jax.models.decoder.causal_lm import CausalLM
from resprune_jax.models.families.llava.module import Projector
from resprune_jax.models.families.llava_next.anyres import AnyresTables
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.towers.clip import ClipVision


class LlavaNext(CausalLM):
    """A LLaVA-NeXT model; parameter paths are the canonical checkpoint names."""

    def __init__(
        self, config: LlavaNextConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32
    ) -> None:
        """Make the parameters at random; under `nnx.eval_shape` only their shapes.

        Args:
            config: the architecture.
            rngs: for the random initial values.
            dtype: dtype of the parameters; softmax, norms and rotations are float32 inside.
        """
        self.config = config
        self.vision_tower = ClipVision(
            config.vision, config.num_vision_blocks, rngs=rngs, dtype=dtype
        )
        self.multi_modal_projector = Projector(config.tile_model, rngs=rngs, dtype=dtype)
        width = config.text.hidden_size
        newline = jax.random.normal(rngs.params(), (width,), dtype) * width**-0.5
        self.image_newline = nnx.Param(newline.astype(dtype))
        self._make_language_model(
            config.text, tied=config.tie_word_embeddings, rngs=rngs, dtype=dtype
        )

    @property
    def projector(self) -> Projector:
        """See `CausalLM.projector`."""
        return self.multi_modal_projector

    def vision_features(self, inputs: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        """See `CausalLM.vision_features`; "pixels" are (T, 3, H, W)."""
        return self.vision_tower(inputs["pixels"], saliency=True)

    def encode_images(
        self,
        pixels: jax.Array,
        tables: AnyresTables,
        *,
        saliency: bool = False,
        needs: frozenset[str] = frozenset(),
        smaller: bool = False,
    ) -> VisualTokens:
        """Turn tiles into packed visual tokens.

        Tiles do not see one another, and no table points into a tile of padding, so padding has no
        effect on valid tokens; those of padding are zero.

        Args:
            pixels: (B, T, 3, H, W), the tiles of each row's pictures, normalised, from
                `images.stack_tiles`; padding tiles may hold anything.
            tables: the same call's tables, B rows of T tiles and N visual tokens.
            saliency: also give the CLS attention (`VisualTokens.saliency`): that of each tile's own
                class token, as it is, so that scores of different tiles are compared raw. Newlines
                and padding have 0.
            needs: those of `inputs.ON_REQUEST` that are to be given too, each 0 for newlines and
                padding.
            smaller: tiles are squares of fewer whole patches than the tower's.

        Returns:
            B rows of N tokens: the base tile's patches, then the tile plane's rows with a newline
            behind each, padded behind; `kind` tells newlines apart.

        Raises:
            CallError: pixels of another shape than the tower's or the tables'.
        """
        expected = tuple(tables.tile_valid.shape)
        if pixels.ndim != 5 or pixels.shape[:2] != expected:
            raise CallError(
                f"pixels have shape {pixels.shape}, expected {expected} tiles of (3, H, W): take "
                "pixels and tables from one call of stack_tiles"
            )
        tiles = pixels.reshape(-1, *pixels.shape[2:])  # [B * T, 3, H, W]
        given: dict[str, Any] = {}
        scores: jax.Array | None  # [B * T, P]
        if needs & SHOWN:
            seen = self.vision_tower.look(tiles, smaller=smaller)
            encoded, scores, given = seen.features, seen.saliency, seen.parts()
        else:
            encoded, scores = self.vision_tower(
                tiles, saliency=saliency, smaller=smaller
            )  # [B * T, P, v]

        index = jnp.asarray(tables.index)  # [B, N]
        kind = jnp.asarray(tables.kind)
        with jax.named_scope("packing"):
            packed = _gather(encoded, index)  # [B, N, v]
            row = None if scores is None else _gather(scores, index)  # [B, N]
            more: dict[str, Any] = {
                name: _gather(part, index) for name, part in given.items() if name in needs
            }
        if "tile" in needs:
            more["tile"] = jnp.asarray(tables.tile)
        with jax.named_scope("projector"):
            # Behind the gather: unpadding leaves fewer tokens than there are patches.
            embeddings = self.multi_modal_projector(packed)  # [B, N, d]
        newline = self.image_newline[...].astype(embeddings.dtype)
        embeddings = jnp.where((kind == NEWLINE)[..., None], newline, embeddings)
        valid = jnp.asarray(tables.valid)
        return VisualTokens(
            embeddings=jnp.where(valid[..., None], embeddings, 0),
            valid=valid,
            features=packed if "features" in needs else None,
            saliency=row,
            coords=jnp.asarray(tables.coords),
            kind=kind,
            **more,
        )

    def visual_tokens(
        self, inputs: dict[str, Any], needs: frozenset[str] = frozenset()
    ) -> VisualTokens:
        """`encode_images` of what `stack_tiles` gives, "pixels" and "tables", with saliency."""
        return self.encode_images(
            inputs["pixels"], inputs["tables"], saliency=True, needs=needs,
            smaller="smaller" in inputs,
        )  # fmt: skip


def _gather(values: jax.Array, index: jax.Array) -> jax.Array:
    """Values of a row's patches (B * T, P, ...) at (B, N) places, 0 where a place names none."""
    rest = (1,) * (values.ndim - 2)
    rows = values.reshape(index.shape[0], -1, *values.shape[2:])  # [B, T * P, ...]
    at = index.reshape(*index.shape, *rest)
    # Places that name no patch read the first one, which every row has.
    taken = jnp.take_along_axis(rows, jnp.maximum(at, 0), axis=1)
    return jnp.where(at >= 0, taken, 0)
