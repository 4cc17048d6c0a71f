"""What a user holds: an `LVLM`, which answers questions about images (`load.py` makes it)."""

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np
from jax.typing import DTypeLike

from resprune_jax.errors import CallError, one_of, shown
from resprune_jax.methods import Method, VisualTokens, for_rows, get_method
from resprune_jax.models.families.base import Family, Layouts, Picture, Pictures
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.prompts.generation_file import GenerationSettings
from resprune_jax.models.prompts.options import CallOptions, ImageAspect, takes_options
from resprune_jax.models.running.compiling import compiling
from resprune_jax.models.running.encoded import (
    Encoded,
    Images,
    adopt,
    media_of,
    no_tokens,
    read_pictures,
    rows_of,
    spread,
)
from resprune_jax.models.running.generation import (
    Call,
    Generation,
    Selected,
    first_rows,
    row_errors,
)
from resprune_jax.models.running.plan import (
    Planned,
    Prompts,
    Questions,
    check_ceiling,
    check_lengths,
    make_plan,
    planned,
    read_prompts,
    read_questions,
)
from resprune_jax.models.running.programs import EMPTY
from resprune_jax.models.running.runner import Runner
from resprune_jax.models.running.warm_up import Sizes, warm_up
from resprune_jax.prompts import NounExtractor

Announce = Callable[[list[Planned]], None]


class LVLM(Runner):
    """A vision-language model with its processor, tokenizer and pruning methods.

    Made by `load_model`. Parameters stay on the devices in `state`, a plain pytree; nothing of a
    call is kept, so one instance serves any number of calls.

    Attributes:
        family: the model family: its processor, layouts and positions.
        state: the parameters, split from the Flax module.
        dtype: their dtype.
        settings: what the checkpoint says of its answers.
        mesh: the device mesh, or None.
        path: the checkpoint's folder.
    """

    def __init__(
        self,
        family: Family,
        state: Any,
        *,
        path: Path,
        encoder: PromptEncoder,
        dtype: DTypeLike,
        mesh: jax.sharding.Mesh | None = None,
        settings: GenerationSettings | None = None,
        extractor: NounExtractor | None = None,
    ) -> None:
        super().__init__(
            family, state, eos_ids=encoder.eos_ids, dtype=dtype, settings=settings, mesh=mesh
        )
        self.path = path
        self.encoder = encoder
        # By tagger as it was asked for; each takes seconds to load.
        self._extractors: dict[tuple[Any, bool], NounExtractor] = {}
        if extractor is not None:
            self._extractors["auto", False] = extractor

    def extractor(
        self, tagger: str | os.PathLike[str] = "auto", *, strict: bool = False
    ) -> NounExtractor:
        """The noun extractor of a tagger, loaded at its first use.

        Args:
            tagger: see `NounExtractor`.
            strict: refuse the lexicon that "auto" falls back to.

        Returns:
            The extractor, the same one for the same arguments.

        Raises:
            CallError, RunError: see `NounExtractor`.
        """
        if not isinstance(tagger, str | os.PathLike):
            return NounExtractor(tagger, strict)  # says what is wrong with it
        if (tagger, strict) not in self._extractors:
            self._extractors[tagger, strict] = NounExtractor(tagger, strict)
        return self._extractors[tagger, strict]

    def encode(self, images: Images, *, image_aspect: ImageAspect = "processor") -> Encoded:
        """Run the vision tower and projector; the result serves any number of questions.

        Args:
            images: one image, a list of B images, or a list of B lists: the images of a prompt.
            image_aspect: "processor" (what the checkpoint's own processor does) or "pad" (pad to a
                square with the mean colour, the original pipeline of LLaVA-1.5).

        Returns:
            The visual tokens of the B rows.

        Raises:
            CallError, RunError: an image that is not there, not one, or beyond the stated limits.
        """
        one_of("image_aspect", image_aspect, get_args(ImageAspect))
        if isinstance(images, Encoded):
            return images
        if isinstance(images, VisualTokens):
            return adopt(images, self.family)
        rows = rows_of(images)
        return self._encoded(rows, read_pictures(self.family, rows, image_aspect))

    def _encoded(self, rows: list[list[Picture]], pictures: Pictures | None) -> Encoded:
        """The visual tokens of all rows; those without a picture have none."""
        if pictures is None:
            return Encoded(no_tokens(self.config.text.hidden_size, self.dtype), ((),) * len(rows))
        made = self.run_tower(pictures)
        return Encoded(made.visual, spread(rows, pictures.layouts))

    @takes_options
    def generate(
        self,
        images: Images,
        prompts: Questions,
        *,
        options: CallOptions,
        announce: Announce | None = None,
    ) -> Generation:
        """Answer questions about images from the visual tokens that a method keeps.

        Every field of `CallOptions` is a keyword: `generate(images, prompts, keep=128, alpha=0.5)`.

        Args:
            images: one image, one for each prompt, a list of images for each prompt, or what
                `encode` gave; a single image serves all prompts. None, alone or in the list, is a
                question without a picture.
            prompts: a question, a list of B questions, or a list of questions for each image,
                `[["What is it?", "Is it red?"], ["How many?"]]`: each image is encoded once, and
                entries of the result, `keep` and `alpha` count the questions one after the other.
            options: fields in place of keywords, or below them.
            announce: called with what each prompt's images give and what is kept of them, once the
                images are read and before anything runs on the devices.

        Returns:
            A `Generation`. A row whose visual tokens or logits are not finite fails alone: see
            its `errors`.

        Raises:
            CallError: a wrong argument, before anything is compiled.
            RunError: an image file that is broken.
        """
        begin = time.perf_counter()
        ceiling = self.settings.ceiling(options)
        options = self.settings.resolve(options)
        assert options.max_new_tokens is not None
        with compiling() as compiled:
            call = self._prepare(
                images, prompts, options, new_tokens=options.max_new_tokens, ceiling=ceiling,
                announce=announce,
            )  # fmt: skip
            jax.block_until_ready(call.visual)
            encoded = time.perf_counter()
            plan = call.plan
            most = np.full(plan.size, options.max_new_tokens)
            if ceiling is not None:
                most = np.minimum(most, ceiling - plan.valid[: plan.size].sum(axis=1))
            made = self.run(call, last=int(most.max()))
        selection, kept, tokens = made.selection, made.kept, made.tokens[: plan.size]
        errors = row_errors(selection, made.finite, plan)
        rows = [
            row[:0] if error else row[:last][row[:last] != EMPTY]
            for row, error, last in zip(tokens, errors, most, strict=True)
        ]
        return Generation(
            texts=[self.encoder.decode(row) for row in rows],
            tokens=rows,
            selections=None if selection is None else first_rows(selection, plan.size),
            kept=plan.own(kept).sum(axis=1).tolist(),
            visual_tokens=[int(n) for n in plan.totals[: plan.size]],
            nouns=[[noun.text for noun in own] for own in call.prompts.nouns],
            noun_backend=call.prompts.backend,
            errors=errors,
            prompts=[prompt.text for prompt in call.prompts.encoded],
            timings={
                "encode": encoded - begin,
                **made.timings,
                "total": time.perf_counter() - begin,
                "compile": compiled.seconds,
            },
            rows=list(plan.about),
        )

    @takes_options
    def select(self, images: Images, prompts: Questions, *, options: CallOptions) -> Selected:
        """Choose visual tokens as `generate` does, and answer nothing.

        Arguments are those of `generate`; without a `keep` every token stays. Those that only an
        answer reads (`max_new_tokens`, sampling) change nothing.

        Returns:
            A `Selected`: indices, energies, relevance, nouns and counts of every row.

        Raises:
            CallError, RunError: see `generate`.
        """
        begin = time.perf_counter()
        with compiling() as compiled:
            call = self._prepare(images, prompts, options, new_tokens=0)
            jax.block_until_ready(call.visual)
            encoded = time.perf_counter()
            selection, kept = self.choose(call)
            relevance = None if selection is None else self.relevance(call)
            jax.block_until_ready((kept, relevance))
        end, plan = time.perf_counter(), call.plan
        mask = plan.own(kept)
        return Selected(
            selections=None if selection is None else first_rows(selection, plan.size),
            mask=mask,
            relevance=None if relevance is None else np.asarray(relevance)[: plan.size],
            kept=mask.sum(axis=1).tolist(),
            visual_tokens=plan.totals[: plan.size].tolist(),
            nouns=[[noun.text for noun in own] for own in call.prompts.nouns],
            noun_backend=call.prompts.backend,
            errors=row_errors(selection, np.ones(plan.size, bool), plan),
            rows=list(plan.about),
            timings={
                "encode": encoded - begin,
                "select": end - encoded,
                "total": end - begin,
                "compile": compiled.seconds,
            },
        )

    @takes_options
    def warm_up(
        self,
        sizes: Sizes = ((336, 336),),
        *,
        options: CallOptions,
        prompt_lengths: Sequence[int] = (64,),
        batch_sizes: Sequence[int] = (1,),
    ) -> int:
        """Compile ahead what `generate` runs, so that calls in these buckets compile nothing.

        Every combination of sizes, budgets (`keep`), lengths and batch sizes is run once on blank
        pictures. A batch stands for one of equal sizes; prompts of more than 32 tokens of nouns
        take a shape of their own.

        Args:
            sizes: of the pictures to come, (height, width) in pixels each; (frames, height, width)
                for a video; a list of such for prompts with several.
            options: as the calls will have them, `keep` a list of the budgets to come; fields are
                keywords too.
            prompt_lengths: tokens of the prompts to come, without visual tokens.
            batch_sizes: prompts of a call, each with its own pictures.

        Returns:
            How many different shapes were run.

        Raises:
            CallError: an argument that `generate` would refuse.
        """
        return warm_up(self, sizes, options, prompt_lengths=prompt_lengths, batch_sizes=batch_sizes)

    @takes_options
    def logits(
        self, images: Images, prompts: Questions, *, options: CallOptions
    ) -> tuple[jax.Array, jax.Array]:
        """Next-token scores at every position of the (pruned) prompts, for parity and scoring.

        Arguments are those of `generate`; without a `keep`, this is the full model.

        Returns:
            (logits (B, P, V) float32, valid (B, P) bool); rows are right padded, and only valid
            positions mean anything.
        """
        call = self._prepare(images, prompts, options, new_tokens=0)
        plan = call.plan
        _, kept = self.choose(call)
        logits, valid = self.programs.score(self.state, *self.assemble(call, kept)[:3])
        return logits[: plan.size], valid[: plan.size]

    def method_of(self, options: CallOptions) -> Method | None:
        """The method of a call with its settings; None keeps every token."""
        if options.keeps_all:
            return None
        settings = options.settings
        if isinstance(options.method, str) and options.method == "resprune":
            settings = {**self.family.defaults, **settings}
        return get_method(options.method, **settings)

    def _prepare(
        self,
        images: Images,
        prompts: Questions,
        options: CallOptions,
        *,
        new_tokens: int,
        ceiling: int | None = None,
        announce: Announce | None = None,
    ) -> Call:
        """Check the whole call, run the vision tower and lay the prompts out."""
        media = media_of(images)
        questions, rows = read_questions(prompts, len(media))
        method = self.method_of(options)
        if method is not None:
            for_rows(method, len(questions), len(questions))  # settings for another number of rows
        # A prompt without images has nothing to leave out.
        each = [
            keep if media[row] else None
            for keep, row in zip(options.budgets(len(questions)), rows, strict=True)
        ]
        options.check_seeds(len(questions))
        if not (announce is None or callable(announce)):
            raise CallError(f"announce is a function, got {shown(announce)}")
        # Where every token is kept there is nothing to guide: no tagger is loaded or spoken of.
        pruned = any(budget is not None for budget in each)
        conditioned = pruned and method is not None and "text" in method.needs
        extractor = None
        if conditioned and options.text == "nouns":
            extractor = self.extractor(options.tagger, strict=options.strict_nouns)
        read = read_prompts(
            self.encoder, questions, [media[row] for row in rows],
            text=options.text if conditioned else None, extractor=extractor,
            ocr_line=options.ocr_line, chat_template=options.chat_template, rows=rows,
        )  # fmt: skip
        given, pictures = [], None
        if isinstance(images, VisualTokens):
            images = adopt(images, self.family)
        if isinstance(images, Encoded):
            layouts = images.layouts
        else:
            given = rows_of(images)
            pictures = read_pictures(self.family, given, options.image_aspect)
            layouts = spread(given, () if pictures is None else pictures.layouts)
        # Before the tower runs: images know how many tokens they give.
        check_lengths(self.family, read, layouts, each, options, new_tokens=new_tokens)
        check_ceiling(read, layouts, ceiling, self.settings.source)
        if announce is not None:
            announce(planned([layouts[row] for row in rows], each, options))
        encoded = images if isinstance(images, Encoded) else self._encoded(given, pictures)
        return self.lay_out(
            read, encoded.visual, encoded.layouts, each, options, method=method,
            new_tokens=new_tokens,
        )  # fmt: skip

    def lay_out(
        self,
        prompts: Prompts,
        visual: VisualTokens,
        layouts: Layouts,
        keep: list[Keep],
        options: CallOptions,
        *,
        method: Method | None,
        new_tokens: int,
    ) -> Call:
        """A call behind its checks: prompts and visual tokens in static shapes.

        Args:
            prompts: B questions.
            visual: the visual tokens of their images.
            layouts: of the rows of images, which the prompts are about.
            keep: a budget for each prompt.
            options: the call's; what they leave to the checkpoint is filled in.
            method: what chooses; None keeps every token.
            new_tokens: room for an answer in the model's context.
        """
        plan = make_plan(
            self.family, self.encoder, prompts, layouts, keep, options,
            slots=visual.valid.shape[1], new_tokens=new_tokens,
        )  # fmt: skip
        positions = options.positions or self.family.positions
        if method is not None:
            method = for_rows(method, plan.size, len(plan.rows))
        return Call(prompts, plan, visual, self.settings.resolve(options), positions, method)
