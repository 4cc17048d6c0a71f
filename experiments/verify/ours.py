"""Our side of `resprune verify`: the checkpoint here, laid out on what the reference was given."""

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from resprune_jax.errors import RunError
from resprune_jax.experiments.verify.reference import NEW_TOKENS, Reference
from resprune_jax.methods import ResPrune, VisualTokens
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.families.registry import checkpoint_config, make_family, module_class
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.chat import EncodedPrompt, PromptEncoder
from resprune_jax.models.prompts.generation_file import read_generation_settings
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.generation import Call, Chosen
from resprune_jax.models.running.plan import Prompts


class Ours:
    """Our side of the comparison; the weights are read at their first use.

    Attributes:
        answer: what the model said from all visual tokens, once that check has run.
    """

    def __init__(
        self,
        reference: Reference,
        folder: Path,
        picture: Image.Image,
        question: str,
        dtype: str,
        template: str | None = None,
    ) -> None:
        """Read the small files.

        Args:
            reference: what transformers made of the same picture and question.
            folder: the checkpoint.
            picture: an upright RGB image.
            question: a plain question.
            dtype: "float32" or "bfloat16".
            template: a chat template in place of the checkpoint's.
        """
        self.reference = reference
        self.folder = folder
        self.picture = picture
        self.question = question
        self.dtype = dtype
        self.template = template
        self.answer = ""
        raw, self.config = checkpoint_config(folder)
        self.settings = read_generation_settings(folder, self.config.text.vocab_size, raw)
        self.family = make_family(self.config, folder)
        self.encoder = PromptEncoder.from_checkpoint(folder, self.config, chat_template=template)

    @cached_property
    def lvlm(self) -> LVLM:
        """The whole model."""
        return load_model(self.folder, dtype=self.dtype, chat_template=self.template)

    @cached_property
    def module(self) -> Any:
        """The module with its parameters, for its parts."""
        made = module_class(self.config)
        abstract = nnx.eval_shape(
            lambda: made(self.config, rngs=nnx.Rngs(0), dtype=jnp.dtype(self.dtype))
        )
        return nnx.merge(nnx.graphdef(abstract), self.lvlm.state)

    @cached_property
    def pictures(self) -> Any:
        """The picture as our processor reads it."""
        return self.family.read([[self.picture]], "processor")

    @property
    def own_pixels(self) -> np.ndarray:
        """What our processor gives, in the shape of the reference's."""
        name, real = self.family.real_pixels(self.pictures)
        return np.asarray(self.pictures.inputs[name])[real]

    @cached_property
    def encoded(self) -> VisualTokens:
        """Our visual tokens of the reference's pixels, by the program that answers use."""
        inputs, pixels = dict(self.pictures.inputs), self.reference.pixels
        if self.own_pixels.shape != pixels.shape:
            raise RunError(f"pixels are {self.own_pixels.shape} here and {pixels.shape} there")
        name, real = self.family.real_pixels(self.pictures)
        inputs[name] = np.array(inputs[name])
        inputs[name][real] = pixels
        return self.lvlm.programs.encode(self.lvlm.parameters, inputs)

    @cached_property
    def visual(self) -> VisualTokens:
        """The reference's visual tokens in our layout."""
        own = self.encoded
        embeddings = np.zeros(own.embeddings.shape, np.float32)
        embeddings[0, : len(self.reference.embeddings)] = self.reference.embeddings
        return dataclasses.replace(own, embeddings=jnp.asarray(embeddings, self.dtype))

    def call(self, *, pruned: bool) -> Call:
        """The reference's prompt about its visual tokens, laid out here."""
        reference = self.reference
        ids, placeholder = reference.ids, reference.placeholder
        behind = np.concatenate([[False], (ids[1:] == placeholder) & (ids[:-1] == placeholder)])
        short = ids[~behind].astype(np.int32)
        nowhere = np.zeros((len(short), 2), np.int32)
        prompt = EncodedPrompt(reference.text, short, ("",) * len(short), nowhere, 0, "")
        method = ResPrune(alpha=reference.alpha, seed_rule="max_norm") if pruned else None
        call = self.lvlm.lay_out(
            Prompts([prompt], [[]], "none"), self.visual, self.pictures.layouts,
            [len(reference.picks) if pruned else None], CallOptions(max_new_tokens=NEW_TOKENS),
            method=method, new_tokens=NEW_TOKENS,
        )  # fmt: skip
        if call.plan.totals[0] != len(reference.embeddings):
            raise RunError(
                f"the picture gives {call.plan.totals[0]} visual tokens here and"
                f" {len(reference.embeddings)} there"
            )
        words = np.zeros((1, buckets.noun_bucket(len(reference.words))), np.int32)
        words[0, : len(reference.words)] = reference.words
        there = np.arange(words.shape[1])[None] < len(reference.words)
        plan = dataclasses.replace(call.plan, noun_ids=words, noun_valid=there)
        return dataclasses.replace(call, plan=plan)

    def assembled(self, *, pruned: bool) -> Any:
        """The prompt as the decoder takes it, with the reference's visual tokens and picks."""
        kept = np.asarray(self.encoded.valid).copy()
        if pruned:
            kept[:] = False
            kept[0, self.reference.picks] = True
        return self.lvlm.assemble(self.call(pruned=pruned), Chosen(kept))
