"""What a user holds: an `LVLM`, which answers questions about images (`load.py` makes it)."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import get_args

import jax
import numpy as np

from resprune_jax.arguments import whole
from resprune_jax.errors import one_of
from resprune_jax.methods import VisualTokens
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.options import CallOptions, ImageAspect, takes_options
from resprune_jax.models.running.compiling import compiling
from resprune_jax.models.running.encoded import Encoded, Images, adopt, read_pictures, rows_of
from resprune_jax.models.running.fitting import check_needs
from resprune_jax.models.running.generation import (
    Call,
    Generation,
    Outcome,
    Selected,
    answered_ids,
    costs_of_rows,
    drops_of_rows,
    first_rows,
    row_errors,
)
from resprune_jax.models.running.plan import Planned, Questions
from resprune_jax.models.running.preparing import Announce, Preparer
from resprune_jax.models.running.programs import EMPTY
from resprune_jax.models.running.warm_up import Sizes, Step, warm_up


class LVLM(Preparer):
    """A vision-language model with its processor, tokenizer and pruning methods.

    Made by `load_model`. Parameters stay on the devices in `state`, a plain pytree; nothing of a
    call is kept, so one instance serves any number of calls.

    Attributes:
        family: the model family: its processor, layouts and positions.
        state: the parameters, split from the Flax module.
        dtype: their dtype.
        precision: what float32 products are computed in, `None` for parameters of 16 bits.
        settings: what the checkpoint says of its answers.
        mesh: the device mesh, or None.
        path: the checkpoint's folder.
    """

    def encode(
        self,
        images: Images,
        *,
        image_aspect: ImageAspect = "processor",
        needs: Collection[str] = (),
    ) -> Encoded:
        """Run the vision tower and projector; the result serves any number of questions.

        Args:
            images: one image, a list of B images, or a list of B lists: the images of a prompt.
            image_aspect: "processor" (what the checkpoint's own processor does) or "pad" (pad to a
                square with the mean colour, the original pipeline of LLaVA-1.5).
            needs: optional parts of the visual tokens that the methods to come read, beside those
                that are always there: "features", and the others of `inputs.ON_REQUEST`.

        Returns:
            The visual tokens of the B rows.

        Raises:
            CallError, RunError: a part that this model does not have; an image that is not there,
                not one, or beyond the stated limits.
        """
        one_of("image_aspect", image_aspect, get_args(ImageAspect))
        check_needs(self.family, needs, "encode", clip=self.clip is not None)
        if isinstance(images, Encoded):
            return images
        if isinstance(images, VisualTokens):
            return adopt(images, self.family)
        rows = rows_of(images)
        pictures = read_pictures(self.family, rows, image_aspect)
        return self._encoded(rows, pictures, frozenset(needs))

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
        *_, made = self._answers(images, prompts, options, announce)
        return made

    @takes_options
    def stream(
        self,
        images: Images,
        prompts: Questions,
        *,
        options: CallOptions,
        announce: Announce | None = None,
        step: int = 8,
        grain: int | None = None,
    ) -> Iterator[Generation]:
        """Answer as `generate` does, and tell after every few tokens what there is.

        The decoder stops after `step` tokens, hands them over and goes on: the answers are those of
        `generate`. A row that is at its end stays as it is while others go on; whoever has enough
        leaves the loop. The call is checked, and its images are encoded, before this returns.

        Args:
            images: as for `generate`.
            prompts: as for `generate`.
            options: as for `generate`.
            announce: as for `generate`.
            step: tokens between two stops. Each stop costs the start of a program, and a shape that
                goes beyond its first one a program more than `generate` compiles.
            grain: prompts are padded to a multiple of so many tokens, words and kept visual tokens
                together; default the buckets of both, which are wider and of fewer sizes. Prompts
                that lose tokens inside the LLM keep to those.

        Returns:
            An iterator over `Generation`s; `done` says which rows have ended. The last one is what
            `generate` gives.

        Raises:
            CallError, RunError: see `generate`.
        """
        grain = None if grain is None else whole("grain", grain)
        return self._answers(images, prompts, options, announce, whole("step", step), grain)

    def _answers(
        self,
        images: Images,
        prompts: Questions,
        options: CallOptions,
        announce: Announce | None,
        step: int | None = None,
        grain: int | None = None,
    ) -> Iterator[Generation]:
        """What there is of the answers after every `step` tokens; None: all of them, once."""
        kept: list[int] = []

        def hear(plans: list[Planned]) -> None:
            kept[:] = [plan.kept for plan in plans]
            if announce is not None:
                announce(plans)

        begin = time.perf_counter()
        ceiling = self.settings.ceiling(options)
        options = self.settings.resolve(options)
        assert options.max_new_tokens is not None
        with compiling() as compiled:
            call = self.prepare(
                images, prompts, options, new_tokens=options.max_new_tokens, ceiling=ceiling,
                announce=hear if grain else announce,
            )  # fmt: skip
            jax.block_until_ready(call.visual)
        encoded = time.perf_counter() - begin
        plan = call.plan
        if grain and call.schedule is None:
            words = plan.valid[: plan.size].sum(axis=1) - plan.totals[: plan.size]
            length = buckets.multiple(int((words + kept).max()), grain)
            call = replace(call, plan=replace(plan, length=min(plan.length, length)))
        most = np.full(plan.size, options.max_new_tokens)
        if ceiling is not None:
            most = np.minimum(most, ceiling - plan.valid[: plan.size].sum(axis=1))

        def answers() -> Iterator[Generation]:
            spent = 0.0  # without what whoever reads them does in between
            start = time.perf_counter()
            with compiling() as later:
                for made in self.steps(call, last=int(most.max()), step=step):
                    spent += time.perf_counter() - start
                    yield self._generation(
                        call, made, most, {
                            "encode": encoded,
                            **made.timings,
                            "total": encoded + spent,
                            "compile": compiled.seconds + later.seconds,
                        },
                    )  # fmt: skip
                    start = time.perf_counter()

        return answers()

    def _generation(
        self, call: Call, made: Outcome, most: np.ndarray, timings: dict[str, float]
    ) -> Generation:
        """What the devices made of a call, for people; `most` (B,): the most tokens of each row."""
        plan = call.plan
        selection = made.selection
        errors = row_errors(made.failed, made.finite, plan)
        rows = answered_ids(made, errors, most, EMPTY)
        drops = drops_of_rows(made, call)
        full = np.asarray([len(row) for row in rows]) >= most
        return Generation(
            texts=[self.encoder.decode(row) for row in rows],
            tokens=rows,
            selections=None if selection is None else first_rows(selection, plan.size),
            kept=plan.own(made.kept).sum(axis=1).tolist(),
            visual_tokens=[int(n) for n in plan.totals[: plan.size]],
            nouns=[[noun.text for noun in own] for own in call.prompts.nouns],
            noun_backend=call.prompts.backend,
            errors=errors,
            prompts=[prompt.text for prompt in call.prompts.encoded],
            timings=timings,
            rows=list(plan.about),
            drops=drops,
            costs=costs_of_rows(drops, plan, self.config.text, self.dtype.itemsize),
            done=(made.ended[: plan.size] | full).tolist(),
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
            call = self.prepare(images, prompts, options, new_tokens=0)
            jax.block_until_ready(call.visual)
            encoded = time.perf_counter()
            chosen = self.choose(call)
            selection, kept, failed = chosen.selection, chosen.kept, chosen.failed
            if call.schedule is not None:
                dropped = self.drop(call, self.assemble(call, chosen))[-1]
                selection, kept = dropped.selection, dropped.kept
                failed = np.asarray(dropped.failed)
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
            errors=row_errors(failed, np.ones(plan.size, bool), plan),
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
        announce: Callable[[Step], None] | None = None,
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
            announce: called before a program is compiled and behind it with a `Step`: which, how
                many of how many, seconds so far. Programs that were compiled before are left out.

        Returns:
            How many different shapes were run.

        Raises:
            CallError: an argument that `generate` would refuse.
        """
        return warm_up(
            self, sizes, options, prompt_lengths=prompt_lengths, batch_sizes=batch_sizes,
            announce=announce,
        )  # fmt: skip

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
        call = self.prepare(images, prompts, options, new_tokens=0)
        plan = call.plan
        assembled = self.assemble(call, self.choose(call))
        if call.schedule is None:
            logits, valid = self.programs.score(self.parameters, *assembled[:3])
        else:
            logits, valid, *_ = self.drop(call, assembled, every=True)
        return logits[: plan.size], valid[: plan.size]
