"""What a user holds: an `LVLM`, which answers questions about images (`load.py` makes it)."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
from jax.typing import DTypeLike

from resprune_jax.errors import CallError, one_of
from resprune_jax.methods import Method, VisualTokens, get_method
from resprune_jax.methods.base import NEWLINE
from resprune_jax.models.families.base import Family, ImageAspect, ImageLayout, Layouts
from resprune_jax.models.prompts import budgets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.running.encoded import Encoded, Images, media_of, rows_of
from resprune_jax.models.running.generation import (
    Call,
    Generation,
    check_sampling,
    first_rows,
    row_errors,
)
from resprune_jax.models.running.plan import Planned, Prompts, make_plan, planned, read_prompts
from resprune_jax.models.running.programs import EMPTY, Newline, Positions
from resprune_jax.models.running.runner import Runner
from resprune_jax.models.running.warm_up import Sizes, warm_up
from resprune_jax.prompts import NounExtractor, OcrLine, TextSource
from resprune_jax.selection import SMALLEST_TOLERANCE

Announce = Callable[[list[Planned]], None]

Budget = Literal["total", "per_image"]
"""Whether a prompt's images share its budget or have one each."""


class LVLM(Runner):
    """A vision-language model with its processor, tokenizer and pruning methods.

    Made by `load_model`. Parameters stay on the devices in `state`, a plain pytree; nothing of a
    call is kept, so one instance serves any number of calls.

    Attributes:
        family: the model family: its processor, layouts and positions.
        state: the parameters, split from the Flax module.
        dtype: their dtype.
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
        extractor: NounExtractor | None = None,
    ) -> None:
        super().__init__(family, state, eos_ids=encoder.eos_ids, dtype=dtype, mesh=mesh)
        self.path = path
        self.encoder = encoder
        self._extractor = extractor

    def extractor(self, *, strict: bool = False) -> NounExtractor:
        """The noun extractor, loaded at its first use; `strict` refuses the lexicon fallback."""
        if self._extractor is None or strict:
            self._extractor = NounExtractor(strict=strict)
        return self._extractor

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
        if isinstance(images, Encoded):
            return images
        if isinstance(images, VisualTokens):
            return self._adopt(images)
        return self.run_tower(self.family.read(rows_of(images), image_aspect))

    def _adopt(self, visual: VisualTokens) -> Encoded:
        """Visual tokens that somebody made or changed, one image a row."""
        if self.family.rope(np.zeros((0, 0)), np.zeros((0, 0)), ()) is not None:
            raise CallError(
                f"positions of {self.family.name} depend on the images' grids, which VisualTokens"
                " do not hold: pass what LVLM.encode gave"
            )
        valid = np.asarray(visual.valid)
        lines = np.zeros(len(valid), int)
        if visual.kind is not None:
            lines = (valid & (np.asarray(visual.kind) == NEWLINE)).sum(axis=1)
        counts = zip(valid.sum(axis=1).tolist(), lines.tolist(), strict=True)
        return Encoded(visual, tuple((ImageLayout(n, own),) for n, own in counts))

    def generate(
        self,
        images: Images,
        prompts: str | Sequence[str],
        *,
        method: str | Method = "resprune",
        keep: Keep | Sequence[Keep] = None,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        top_p: float = 1.0,
        rng_seed: int = 0,
        alpha: float | None = None,
        seed_rule: str | None = None,
        tolerance: float | None = None,
        image_aspect: ImageAspect = "processor",
        positions: Positions | None = None,
        budget: Budget = "total",
        newline: Newline = "candidate",
        chat_template: bool = True,
        text: TextSource = "nouns",
        ocr_line: OcrLine = "strip",
        strict_nouns: bool = False,
        announce: Announce | None = None,
    ) -> Generation:
        """Answer questions about images from the visual tokens that `method` keeps.

        Args:
            images: one image, one for each prompt, a list of images for each prompt, or what
                `encode` gave; a single image serves all prompts.
            prompts: a question or a list of B questions.
            method: "resprune", "none", or a `Method` instance.
            keep: budget for all rows or a list with one for each: a count (capped at the image's
                number of visual tokens), a ratio in (0, 1), or None for all tokens.
            max_new_tokens: the most tokens to generate; a row stops at its end-of-sequence id.
            temperature: 0 is greedy; above 0 the tokens are drawn.
            top_p: draw from the smallest set of tokens with this probability mass.
            rng_seed: seed of the random generator for drawing.
            alpha: strength of the text guidance; default the method's own.
            seed_rule: the rule for the seed token (Table VII); default the method's own.
            tolerance: stop a row's selection once the residual energy is at most this fraction of
                the total; `keep` stays the maximum.
            image_aspect: as for `encode`.
            positions: "reindex" (consecutive position ids after pruning) or "original"; default
                the family's own (LLaVA reindexes, Qwen2.5-VL does not).
            budget: "total" (a prompt's images share `keep`) or "per_image" (each has it).
            newline: "candidate" (newline tokens of LLaVA-NeXT compete for the budget) or "always"
                (they are kept beside it).
            chat_template: False takes the prompts as they are, image placeholder included.
            text: what conditions the choice: the question's "nouns", or every word of the "prompt"
                (Setting-1 of Table IV).
            ocr_line: "strip" leaves TextVQA's line of reference OCR tokens out of the nouns,
                "keep" lets them count.
            strict_nouns: refuse to run without spaCy's `en_core_web_sm`.
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
        chosen = self._method(method, alpha=alpha, seed_rule=seed_rule)
        check_sampling(max_new_tokens, temperature, top_p, rng_seed)
        call = self._prepare(
            images, prompts, method=chosen, keep=keep, max_new_tokens=max_new_tokens,
            tolerance=tolerance, positions=positions, budget=budget, newline=newline,
            chat_template=chat_template, text=text, ocr_line=ocr_line, strict_nouns=strict_nouns,
            image_aspect=image_aspect, announce=announce,
        )  # fmt: skip
        jax.block_until_ready(call.visual)
        encoded = time.perf_counter()
        plan = call.plan
        made = self.run(
            call, max_new_tokens=max_new_tokens, last=max_new_tokens, temperature=temperature,
            top_p=top_p, rng_seed=rng_seed,
        )  # fmt: skip
        selection, kept, tokens = made.selection, made.kept, made.tokens[: plan.size]
        errors = row_errors(selection, made.finite, plan.size)
        rows = [row[row != EMPTY] if not error else row[:0] for row, error in
                zip(tokens, errors, strict=True)]  # fmt: skip
        return Generation(
            texts=[self.encoder.decode(row) for row in rows],
            tokens=rows,
            selections=None if selection is None else first_rows(selection, plan.size),
            kept=[int(n) for n in np.asarray(kept).sum(axis=1)[: plan.size]],
            visual_tokens=[int(n) for n in plan.totals[: plan.size]],
            nouns=[[noun.text for noun in own] for own in call.prompts.nouns],
            noun_backend=call.prompts.backend,
            errors=errors,
            prompts=[prompt.text for prompt in call.prompts.encoded],
            timings={
                "encode": encoded - begin,
                **made.timings,
                "total": time.perf_counter() - begin,
            },
        )

    def warm_up(
        self,
        sizes: Sizes = ((336, 336),),
        *,
        keep: Keep | Sequence[Keep] = None,
        prompt_lengths: Sequence[int] = (64,),
        batch_sizes: Sequence[int] = (1,),
        max_new_tokens: int = 128,
        method: str | Method = "resprune",
        positions: Positions | None = None,
        budget: Budget = "total",
        newline: Newline = "candidate",
        temperature: float = 0.0,
    ) -> int:
        """Compile ahead what `generate` runs, so that calls in these buckets compile nothing.

        Every combination of the first four is run once on blank pictures. A batch stands for one of
        equal sizes; prompts of more than 32 tokens of nouns take a shape of their own.

        Args:
            sizes: of the pictures to come, (height, width) in pixels each; (frames, height, width)
                for a video; a list of such for prompts with several.
            keep: the budgets to come.
            prompt_lengths: tokens of the prompts to come, without visual tokens.
            batch_sizes: prompts of a call, each with its own pictures.
            max_new_tokens: as the calls will say; as are the other arguments.

        Returns:
            How many different shapes were run.

        Raises:
            CallError: an argument that `generate` would refuse.
        """
        each = list(keep) if isinstance(keep, Sequence) else [keep]
        check_sampling(max_new_tokens, temperature, 1.0, 0)
        chosen = self._method(method)
        settings = {
            "method": chosen,
            "positions": positions,
            "budget": budget,
            "newline": newline,
            "tolerance": None,
        }
        return warm_up(
            self, sizes, keep=budgets.parse(each, len(each), pruning=chosen is not None),
            prompt_lengths=prompt_lengths, batch_sizes=batch_sizes, max_new_tokens=max_new_tokens,
            settings=settings, drawing={"temperature": temperature, "top_p": 1.0, "rng_seed": 0},
        )  # fmt: skip

    def logits(
        self,
        images: Images,
        prompts: str | Sequence[str],
        *,
        method: str | Method | None = None,
        keep: Keep | Sequence[Keep] = None,
        alpha: float | None = None,
        seed_rule: str | None = None,
        tolerance: float | None = None,
        image_aspect: ImageAspect = "processor",
        positions: Positions | None = None,
        budget: Budget = "total",
        newline: Newline = "candidate",
        chat_template: bool = True,
        text: TextSource = "nouns",
        ocr_line: OcrLine = "strip",
        strict_nouns: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Next-token scores at every position of the (pruned) prompts, for parity and scoring.

        Arguments are those of `generate`; `method=None` is the full model, or "resprune" where a
        `keep` is given.

        Returns:
            (logits (B, P, V) float32, valid (B, P) bool); rows are right padded, and only valid
            positions mean anything.
        """
        if method is None:
            method = "none" if keep is None else "resprune"
        chosen = self._method(method, alpha=alpha, seed_rule=seed_rule)
        call = self._prepare(
            images, prompts, method=chosen, keep=keep, tolerance=tolerance, positions=positions,
            budget=budget, newline=newline, chat_template=chat_template, text=text,
            ocr_line=ocr_line, strict_nouns=strict_nouns, image_aspect=image_aspect,
        )  # fmt: skip
        plan = call.plan
        _, kept = self.select(call)
        logits, valid = self.programs.score(self.state, *self.assemble(call, kept)[:3])
        return logits[: plan.size], valid[: plan.size]

    def _method(self, method: str | Method, **settings: Any) -> Method | None:
        if method == "none":
            if given := [name for name, value in settings.items() if value is not None]:
                raise CallError(f"method 'none' has no settings, but {', '.join(given)} was given")
            return None
        if isinstance(method, str) and method == "resprune":
            asked = {name: value for name, value in settings.items() if value is not None}
            settings = {**self.family.resprune, **asked}
        return get_method(method, **settings)

    def _prepare(
        self,
        images: Images,
        prompts: str | Sequence[str],
        *,
        method: Method | None,
        keep: Keep | Sequence[Keep],
        max_new_tokens: int = 0,
        tolerance: float | None,
        positions: Positions | None,
        budget: Budget,
        newline: Newline,
        chat_template: bool,
        text: TextSource,
        ocr_line: OcrLine,
        strict_nouns: bool,
        image_aspect: ImageAspect,
        announce: Announce | None = None,
    ) -> Call:
        """Check the whole call, run the vision tower and lay the prompts out."""
        questions = [prompts] if isinstance(prompts, str) else list(prompts)
        if not questions:
            raise CallError("no prompt was given")
        self._check_rules(positions, budget, newline)
        if tolerance is not None and not SMALLEST_TOLERANCE <= tolerance < 1:
            raise CallError(f"tolerance must lie in [{SMALLEST_TOLERANCE:g}, 1), got {tolerance}")
        each = budgets.parse(keep, len(questions), pruning=method is not None)
        media = media_of(images)
        if len(media) not in (1, len(questions)):
            raise CallError(
                f"{len(media)} images for {len(questions)} prompts: give one image for all prompts,"
                " one for each, or a list of images for each"
            )
        conditioned = method is not None and "text" in method.needs
        extractor = None
        if conditioned and text == "nouns":
            extractor = self.extractor(strict=strict_nouns)
        read = read_prompts(
            self.encoder, questions, media if len(media) > 1 else media * len(questions),
            text=text if conditioned else None, extractor=extractor, ocr_line=ocr_line,
            chat_template=chat_template,
        )  # fmt: skip
        pictures: Any = images
        if not isinstance(images, Encoded | VisualTokens):
            pictures = self.family.read(rows_of(images), image_aspect)
        elif isinstance(images, VisualTokens):
            pictures = self._adopt(images)
        if announce is not None:
            own = pictures.layouts * (1 if len(pictures.layouts) > 1 else len(questions))
            per_image, lines = budget == "per_image", newline == "always"
            announce(planned(own, each, per_image=per_image, lines=lines))
        encoded = pictures if isinstance(pictures, Encoded) else self.run_tower(pictures)
        return self.lay_out(
            read, encoded.visual, encoded.layouts, each, method=method, positions=positions,
            budget=budget, newline=newline, tolerance=tolerance, max_new_tokens=max_new_tokens,
        )  # fmt: skip

    def lay_out(
        self,
        prompts: Prompts,
        visual: VisualTokens,
        layouts: Layouts,
        keep: list[Keep],
        *,
        method: Method | None,
        positions: Positions | None,
        budget: Budget,
        newline: Newline,
        tolerance: float | None,
        max_new_tokens: int,
    ) -> Call:
        """A call of `generate` behind its checks: prompts and visual tokens in static shapes."""
        self._check_rules(positions, budget, newline)
        plan = make_plan(
            self.family, self.encoder, prompts, layouts, keep, slots=visual.valid.shape[1],
            per_image=budget == "per_image", lines=newline == "always",
            max_new_tokens=max_new_tokens,
        )  # fmt: skip
        positions = positions or self.family.positions
        return Call(prompts, plan, visual, positions, newline, method, tolerance)

    def _check_rules(self, positions: Positions | None, budget: Budget, newline: Newline) -> None:
        if positions is not None:
            one_of("positions", positions, get_args(Positions))
        one_of("budget", budget, get_args(Budget))
        one_of("newline", newline, get_args(Newline))
