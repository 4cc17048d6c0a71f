"""A CLIP beside a LLaVA: patches and questions in CLIP's own space, for methods that compare them.

The features are the LLaVA's own: its vision tower is CLIP's, up to the block that feeds the
projector. Of the CLIP's checkpoint the text tower and the head of the images are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from resprune_jax.errors import CallError, shown
from resprune_jax.methods.inputs import VisualTokens, patches
from resprune_jax.models.checkpoint.config_file import read_config
from resprune_jax.models.checkpoint.files import foreign
from resprune_jax.models.checkpoint.hub import resolve_checkpoint
from resprune_jax.models.checkpoint.reading import load_parameters
from resprune_jax.models.families.base import Family, pad_rows
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.chat import EncodedPrompt
from resprune_jax.models.prompts.tokenizer_files import load_tokenizer
from resprune_jax.models.towers.clip_text.config import UNKNOWN_EOS, ClipPairConfig
from resprune_jax.models.towers.clip_text.tower import ClipPair

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""The line behind the questions of benchmarks, which says nothing of the picture."""


@dataclass(frozen=True)
class ClipTexts:
    """Texts as the text tower takes them, padded to buckets with rows of row 0.

    Attributes:
        ids: (B, M, L) int32, 0 behind each text's end.
        real: (B, M, L) bool, False there.
        valid: (B, M) bool, the texts that each row has.
    """

    ids: np.ndarray
    real: np.ndarray
    valid: np.ndarray


class Clip:
    """The text tower and the head of the images, with their tokenizer.

    Attributes:
        config: every size.
        state: the parameters, float32.
        tokenizer: CLIP's own.
        path: the checkpoint's folder.
    """

    def __init__(self, config: ClipPairConfig, state: Any, *, tokenizer: Any, path: Path) -> None:
        self.config = config
        self.state = state
        self.tokenizer = tokenizer
        self.path = path

    @classmethod
    def from_checkpoint(
        cls, path_or_hub_id: str | Path, family: Family, *, token: str | None = None
    ) -> "Clip":
        """Load the CLIP whose vision tower a model has.

        Args:
            path_or_hub_id: a folder, or a Hub id.
            family: the model's.
            token: access token of a gated Hub id.

        Raises:
            CallError: no such checkpoint, no CLIP, one of another width than the model's tower, or
                a model whose tower is not CLIP's.
            CheckpointError: weights that do not fit; one error names everything.
        """
        if not family.takes_clip:
            raise CallError(
                f"clip={shown(str(path_or_hub_id))} is not for {family.name} as it is here, whose"
                " vision tower is not CLIP's: leave it out"
            )
        parts: list[Any] = []

        def judge(folder: Path) -> None:
            """The cheap parts first, before gigabytes are fetched."""
            config = ClipPairConfig.from_hf(read_config(folder, ("clip",)))
            own, width = config.vision.hidden_size, family.config.vision.hidden_size
            if own != width:
                raise CallError(
                    f"the CLIP {folder} reads features of width {own}, but this model's vision"
                    f" tower gives {width}: give the CLIP that the tower is from"
                )
            tokenizer = load_tokenizer(folder)
            _check_tokenizer(tokenizer, config, folder)
            parts[:] = config, tokenizer

        folder = resolve_checkpoint(path_or_hub_id, token=token, judge=judge)
        config, tokenizer = parts
        abstract = nnx.eval_shape(lambda: ClipPair(config, rngs=nnx.Rngs(0)))
        state = load_parameters(folder, abstract, dtype="float32")
        return cls(config, state, tokenizer=tokenizer, path=folder)

    def segments(self, text: str, *, cut: bool) -> list[np.ndarray]:
        """The ids of a text, begin and end tokens included, in parts of at most L.

        Args:
            text: to be tokenized.
            cut: leave out what goes beyond L, so that there is one part; its last id is the end
                token's. Else a part may be without a begin or an end token.
        """
        most = self.config.text.positions
        with foreign(f"the tokenizer of {self.path} is broken"):
            read = self.tokenizer(text, truncation=cut, max_length=most if cut else None,
                                  verbose=False)  # fmt: skip
            ids = np.asarray(read["input_ids"], np.int32)
        return [ids[at : at + most] for at in range(0, max(1, len(ids)), most)]

    def read(
        self,
        prompts: Sequence[EncodedPrompt],
        which: str,
        placeholders: Sequence[str],
        *,
        size: int,
    ) -> ClipTexts:
        """What a method reads of the prompts.

        Args:
            prompts: R of them.
            which: "prompt" or "question", see `Method.clip_text`.
            placeholders: texts that stand for images, in place of which there is a space.
            size: B, rows of the batch; those beyond R repeat row 0.
        """
        rows = []
        for prompt in prompts:
            whole = which == "prompt"
            text = prompt.text if whole else prompt.question.removesuffix(SHORT_ANSWER)
            for placeholder in placeholders:
                text = text.replace(placeholder, " ")
            rows.append(self.segments(text, cut=whole))
        most = buckets.image_bucket(max(map(len, rows)))
        ids = np.zeros((len(rows), most, self.config.text.positions), np.int32)
        real = np.zeros(ids.shape, bool)
        for row, parts in enumerate(rows):
            for number, part in enumerate(parts):
                ids[row, number, : len(part)] = part
                real[row, number, : len(part)] = True
        valid = np.arange(most) < np.asarray([[len(parts)] for parts in rows])
        return ClipTexts(*(pad_rows(x, size) for x in (ids, real, valid)))

    def texts(self, texts: ClipTexts) -> tuple[jax.Array, jax.Array]:
        """Embeddings (B, M, c) float32 of the texts, and (B, M) bool, which there are."""
        run, _ = _programs(self.config)
        return run(self.state, texts.ids, texts.real), jnp.asarray(texts.valid)

    def patches(self, visual: VisualTokens) -> jax.Array:
        """`VisualTokens.clip_patches` (B, N, c) of tokens that have features."""
        _, run = _programs(self.config)
        return run(self.state, visual)


@lru_cache(maxsize=8)
def _programs(config: ClipPairConfig) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """The jitted functions for texts and for patches, in full float32 on any device."""
    abstract = nnx.eval_shape(lambda: ClipPair(config, rngs=nnx.Rngs(0)))
    graph = nnx.graphdef(abstract)

    @jax.jit
    def texts(state: Any, ids: jax.Array, real: jax.Array) -> jax.Array:
        flat = [x.reshape(-1, x.shape[-1]) for x in (ids, real)]  # [B * M, L]
        with jax.default_matmul_precision("highest"):
            made = nnx.merge(graph, state).texts(*flat)
        return made.reshape(*ids.shape[:2], -1)

    @jax.jit
    def of_patches(state: Any, visual: VisualTokens) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            made = nnx.merge(graph, state).patches(visual.features)
        return jnp.where(patches(visual)[..., None], made, 0)

    return texts, of_patches


def _check_tokenizer(tokenizer: Any, config: ClipPairConfig, folder: Path) -> None:
    """Refuse a tokenizer that is not the text tower's."""
    with foreign(f"the tokenizer of {folder} is broken"):
        largest, end = max(tokenizer.get_vocab().values()), tokenizer.eos_token_id
    if largest >= config.text.vocab_size:
        raise CallError(
            f"the tokenizer of {folder} has an id {largest}, but its text tower has"
            f" {config.text.vocab_size} embeddings: they belong to different models"
        )
    own = config.text.eos_token_id
    if own not in (UNKNOWN_EOS, end):
        raise CallError(
            f"the tokenizer of {folder} ends texts with the id {end}, but config.json names"
            f" eos_token_id {own}: they belong to different models"
        )
