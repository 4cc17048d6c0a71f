"""The host's half of an `LVLM`: a call as the user writes it, checked, encoded and laid out."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from resprune_jax.choices import Precision
from resprune_jax.errors import CallError, shown
from resprune_jax.methods import Method, VisualTokens, for_rows, get_method
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import ON_REQUEST
from resprune_jax.models.families.base import Family, Layouts, Picture, Pictures
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.prompts.generation_file import GenerationSettings
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.clip import Clip
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
from resprune_jax.models.running.fitting import check_fits
from resprune_jax.models.running.generation import Call
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
from resprune_jax.models.running.runner import Runner
from resprune_jax.models.running.schedule import drops_of, make_schedule
from resprune_jax.prompts import NounExtractor

Announce = Callable[[list[Planned]], None]


class Preparer(Runner):
    """Lays calls out for the `Runner` that it is; nothing of a call is kept.

    Attributes:
        path: the checkpoint's folder.
        encoder: makes prompts of questions.
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
        clip: Clip | None = None,
        precision: Precision | None = None,
    ) -> None:
        super().__init__(
            family, state, eos_ids=encoder.eos_ids, dtype=dtype, settings=settings, mesh=mesh,
            clip=clip, precision=precision,
        )  # fmt: skip
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

    def _encoded(
        self, rows: list[list[Picture]], pictures: Pictures | None, needs: frozenset[str]
    ) -> Encoded:
        """The visual tokens of all rows; those without a picture have none."""
        if pictures is None:
            return Encoded(no_tokens(self.config.text.hidden_size, self.dtype), ((),) * len(rows))
        made = self.run_tower(pictures, needs)
        return Encoded(made.visual, spread(rows, pictures.layouts))

    def method_of(self, options: CallOptions) -> Method | None:
        """The method of a call with its settings; None keeps every token."""
        if options.keeps_all:
            return None
        settings = options.settings
        if isinstance(options.method, str) and options.method == "resprune":
            settings = {**self.family.defaults, **settings}
        method = get_method(options.method, settings)
        name = type(method).__name__
        if options.tolerance is not None and not method.measures_energy:
            raise CallError(
                f"tolerance is a share of residual energy, which {name} does not measure: leave it"
                " out"
            )
        check_fits(self.family, method, options.positions, clip=self.clip is not None)
        if isinstance(method, DecoderMethod):
            self._check_inside(method, options)
        elif method.stage == "decoder":
            raise CallError(
                f"{name} says that it drops tokens inside the decoder: make it a subclass of"
                " resprune_jax.methods.DecoderMethod, which says in front of which layers"
            )
        return method

    def _check_inside(self, method: DecoderMethod, options: CallOptions) -> None:
        """Refuse what means nothing where tokens leave inside the decoder.

        Raises:
            CallError: what it is, and why.
        """
        name = type(method).__name__
        if "text" in method.needs:
            raise CallError(
                f"{name} reads text, the question's nouns, which are not looked for where tokens"
                " leave inside the decoder: the prompt holds all text behind the images"
            )
        if "clip_text" in method.needs:
            raise CallError(
                f"{name} reads clip_text, which is not made where tokens leave inside the decoder"
            )
        if options.budget == "per_image":
            raise CallError(
                f"{name} drops tokens inside the decoder, where the images of a prompt share its"
                " budget: leave budget out"
            )
        if options.newline == "always":
            raise CallError(
                f"{name} drops tokens inside the decoder, where newline tokens compete as all"
                " others do: leave newline out"
            )
        budgets = options.keep if isinstance(options.keep, list | tuple) else [options.keep]
        if method.budgeted and any(keep is not None for keep in budgets):
            raise CallError(
                f"the settings of {name} say how many tokens stay, and keep was given too: drop one"
            )

    def _check_least(self, method: Method, plans: list[Planned], each: list[Keep]) -> None:
        """Refuse budgets below what a method can make of the images.

        Raises:
            CallError: the budget, and the smallest one.
        """
        blocks = getattr(self.config, "num_vision_blocks", 0)
        for plan, keep in zip(plans, each, strict=True):
            least = sum(method.least(tokens, blocks) for tokens in plan.images)
            if keep is not None and plan.kept < least:
                raise CallError(
                    f"{type(method).__name__} cannot leave {plan.kept} of {sum(plan.images)} visual"
                    f" tokens in {blocks} blocks of the vision tower: keep at least {least}"
                )

    def _budgets_of_rows(
        self,
        method: Method,
        images: Images,
        options: CallOptions,
        rows: Sequence[int],
        each: list[Keep],
    ) -> list[Keep]:
        """The budget of every row of images, which all its prompts share.

        Raises:
            CallError: images that are no pictures any more, prompts of other budgets about the same
                picture, or an option that means nothing.
        """  # fmt: skip
        name = type(method).__name__
        if isinstance(images, Encoded | VisualTokens):
            raise CallError(
                f"{name} makes pictures smaller before they are encoded: give the pictures, not"
                " what encode gave"
            )
        if options.newline == "always":
            raise CallError(f"{name} leaves no newline token out: leave newline out")
        found: dict[int, Keep] = {}
        for row, keep in zip(rows, each, strict=True):
            if found.setdefault(row, keep) != keep:
                raise CallError(
                    f"{name} reads a picture once, and prompts about one have budgets {found[row]}"
                    f" and {keep}: ask them one after the other"
                )
        return [found[row] for row in sorted(found)]

    def prepare(
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
        alone = method is not None and method.by_image and options.budget != "per_image"
        for row, keep in zip(rows, each, strict=True):
            if alone and keep is not None and len(media[row]) > 1:
                raise CallError(
                    f"{type(method).__name__} works image by image, and a prompt has"
                    f' {len(media[row])} images that share its budget: give budget="per_image"'
                )
        options.check_seeds(len(questions))
        if not (announce is None or callable(announce)):
            raise CallError(f"announce is a function, got {shown(announce)}")
        # Where every token is kept there is nothing to guide: no tagger is loaded or spoken of.
        pruned = any(budget is not None for budget in each)
        conditioned = pruned and method is not None and "text" in method.needs
        extractor = None
        source = None
        if conditioned and method is not None:
            source = options.text or method.text
        if source == "nouns":
            extractor = self.extractor(options.tagger, strict=options.strict_nouns)
        read = read_prompts(
            self.encoder, questions, [media[row] for row in rows],
            text=source, extractor=extractor,
            ocr_line=options.ocr_line, chat_template=options.chat_template, rows=rows,
        )  # fmt: skip
        smaller: list[Keep] = []
        if method is not None and method.stage == "pixels":
            smaller = self._budgets_of_rows(method, images, options, rows, each)
            # What is read small is kept whole.
            method, each = None, [None] * len(each)
        given, pictures = [], None
        if isinstance(images, VisualTokens):
            images = adopt(images, self.family)
        needs = frozenset() if method is None else frozenset(method.needs)
        if isinstance(images, Encoded):
            layouts = images.layouts
            for part in sorted(needs & ON_REQUEST):
                if getattr(images.visual, part) is None and any(layouts):
                    raise CallError(
                        f"{type(method).__name__} reads {part}, which these images were encoded"
                        f" without: encode them with needs=[{part!r}]"
                    )
        else:
            given = rows_of(images)
            pictures = read_pictures(self.family, given, options.image_aspect, smaller)
            layouts = spread(given, () if pictures is None else pictures.layouts)
        # Before the tower runs: images know how many tokens they give.
        inside = isinstance(method, DecoderMethod)
        entering: list[Keep] = [None] * len(each) if inside else each
        beside = 0 if method is None else method.beside
        check_lengths(
            self.family, read, layouts, entering, options, beside=beside, new_tokens=new_tokens
        )
        check_ceiling(read, layouts, ceiling, self.settings.source)
        own = [layouts[row] for row in rows]
        plans = planned(own, entering, options, beside)
        if method is not None:
            self._check_least(method, plans, each)
        if isinstance(method, DecoderMethod):
            totals = [sum(plan.images) for plan in plans]
            drops = drops_of(method, totals, each, self.config.text.num_layers)
            plans = [
                plan if row is None else replace(plan, kept=row[-1].left)
                for plan, row in zip(plans, drops, strict=True)
            ]
        if announce is not None:
            announce(plans)
        encoded = images if isinstance(images, Encoded) else self._encoded(given, pictures, needs)
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
        inside = isinstance(method, DecoderMethod)
        slots = visual.valid.shape[1]
        plan = make_plan(
            self.family, self.encoder, prompts, layouts, [None] * len(keep) if inside else keep,
            options, slots=slots, new_tokens=new_tokens,
            beside=0 if method is None else method.beside,
        )  # fmt: skip
        positions = options.positions or self.family.positions
        schedule = None
        if isinstance(method, DecoderMethod):
            layers = self.config.text.num_layers
            schedule = make_schedule(method, plan, keep, slots=slots, layers=layers)
            # As long as nothing has left they are the same.
            positions = self.family.positions
        elif method is not None:
            method = for_rows(method, plan.size, len(plan.rows))
        settings = self.settings.resolve(options)
        clip = None
        if method is not None and method.clip_text:
            assert self.clip is not None
            marks = [text for _, text in self.encoder.placeholders.values()]
            clip = self.clip.read(prompts.encoded, method.clip_text, marks, size=len(plan.rows))
        return Call(prompts, plan, visual, settings, positions, method, schedule, clip)
