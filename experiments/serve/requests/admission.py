"""From a request's body to a job for the worker: everything that can be said of it beforehand.

Pictures are decoded, the question is tokenized, the options are checked against the model: what can
never be answered is refused here, one request by itself, before it could spoil a batch.
"""

import dataclasses
import hashlib
import secrets
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from resprune_jax.arguments import settings_by_name
from resprune_jax.choices import METHODS
from resprune_jax.errors import CallError, ResPruneError, RunError, shown
from resprune_jax.experiments.common import parse_keep
from resprune_jax.experiments.serve.pictures.cache import ImageCache, Row
from resprune_jax.experiments.serve.pictures.urls import Sources
from resprune_jax.experiments.serve.requests.room import Hold
from resprune_jax.experiments.serve.requests.schema import Asked, read
from resprune_jax.experiments.serve.telling.errors import of_error, unknown_model, wrong
from resprune_jax.experiments.serve.telling.replies import method_name
from resprune_jax.methods import Method
from resprune_jax.methods.decoder.base import DecoderMethod
from resprune_jax.methods.inputs import ON_REQUEST
from resprune_jax.methods.settings import settings_of_rows
from resprune_jax.models.api import LVLM
from resprune_jax.models.families.base import ImageLayout
from resprune_jax.models.images.files import open_bytes
from resprune_jax.models.prompts import buckets
from resprune_jax.models.prompts.budgets import Keep
from resprune_jax.models.prompts.chat import Conversation, Turn
from resprune_jax.models.prompts.options import CallOptions
from resprune_jax.models.running.plan import Prompts, check_ceiling, check_lengths, planned

OF_METHOD = ("alpha", "aggregate", "nonnegative", "seed_rule", "method_settings", "tolerance")
"""Options that belong to the server's own method, and not to another that a request names."""

LONGEST_TOKEN = 32
"""Characters that a token of a question has at most on average; beyond, none is tokenized."""


@dataclass
class Work:
    """What the answerer needs to know of a request.

    Attributes:
        asked: the request.
        question: its last message, with those before it.
        options: of its call, resolved.
        words: tokens of its prompt beside the visual tokens.
        pictures: decoded, unless `row` is there.
        picture_key: what they are known by in the cache.
        row: what the cache had of them.
        needs: optional parts of the visual tokens that its method reads.
        by_pixels: its method makes pictures smaller before they are encoded.
        sent: the text that was sent of a stream.
    """

    asked: Asked
    question: Conversation
    options: CallOptions
    words: int
    pictures: list[Image.Image] = field(default_factory=list)
    picture_key: Hashable = None
    row: Row | None = None
    needs: frozenset[str] = frozenset()
    by_pixels: bool = False
    sent: str = ""


class Admission:
    """Reads requests.

    Args:
        lvlm: the model.
        name: that it is served by.
        defaults: options of requests that say nothing.
        sources: of pictures.
        cache: of encoded pictures.
        most_images: of a request.
        most_pixels: of a picture.
        seed: of requests that give none; None: another one for each.
    """

    def __init__(
        self,
        lvlm: LVLM,
        name: str,
        defaults: CallOptions,
        sources: Sources,
        cache: ImageCache,
        *,
        most_images: int,
        most_pixels: int,
        seed: int | None = None,
    ) -> None:
        self.lvlm = lvlm
        self.name = name
        self.defaults = defaults
        self.sources = sources
        self.cache = cache
        self.most_images = most_images
        self.most_pixels = most_pixels
        self.seed = seed

    def admit(self, body: bytes, hold: Hold) -> tuple[Hashable, Work]:
        """Judge a request.

        Args:
            body: of the POST.
            hold: what it holds of the memory; grows with its pictures.

        Returns:
            (which requests can share its batch, what is to be done).

        Raises:
            RequestError: why it cannot be answered.
        """
        asked = read(body, most_images=self.most_images)
        if asked.model != self.name:
            raise unknown_model(asked.model[:100], self.name)
        *before, last = asked.messages
        turns = tuple(Turn(each.role, each.text, len(each.images)) for each in before)
        question = Conversation(last.text, turns)
        urls = [url for each in asked.messages for url in each.images]
        try:
            options = self._options(asked)
            method = self.lvlm.method_of(options)
        except ResPruneError as error:
            raise of_error(error) from None
        work = Work(asked, question, options, 0)
        if method is not None:
            for name in settings_of_rows(method):
                raise wrong(f"{name} is one value: a request has one prompt", "method_settings")
            work.needs = frozenset(method.needs & ON_REQUEST)
            work.by_pixels = method.stage == "pixels"
        layout = self._pictures(work, urls, hold)
        # A data URL is as large as its body, which is not held any longer while the request waits.
        texts = tuple(dataclasses.replace(each, images=()) for each in asked.messages)
        work.asked = dataclasses.replace(asked, messages=texts)
        try:
            kept = self._measure(work, method, layout)
        except ResPruneError as error:
            raise of_error(error, "messages") from None
        return self._key(work, method, layout, kept), work

    def _options(self, asked: Asked) -> CallOptions:
        """The request's options over those of the server, resolved.

        Raises:
            CallError: one that cannot be.
        """
        given = dict(asked.options)
        base = self.defaults
        if given.get("method") == method_name(base.method):
            del given["method"]  # a class of a file too has this name in answers
        if (method := given.get("method")) is not None and method != base.method:
            if not isinstance(method, str) or method not in (*METHODS, "none"):
                raise CallError(
                    f"unknown method {shown(method)}: choose one of {', '.join((*METHODS, 'none'))}"
                )
            plain = CallOptions()
            changed: dict[str, Any] = {name: getattr(plain, name) for name in OF_METHOD}
            if method == "none":
                changed["keep"] = None
            base = dataclasses.replace(base, method=method, **changed)
        if "keep" in given:
            given["keep"] = parse_keep(given["keep"], "keep")
        for name in ("alpha", "tolerance"):
            value = given.get(name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not number:
                raise CallError(f"{name} is a number, got {shown(value)}")
        if "method_settings" in given:
            # What the request says of a setting goes before what the server says of it elsewhere.
            own = settings_by_name(given["method_settings"])
            unsaid: dict[str, Any] = {name: None for name in OF_METHOD[:4] if name in own}
            base = dataclasses.replace(base, **unsaid)
        # Of two that exclude each other the request's goes before the server's.
        if given.get("temperature") == 0:
            given.setdefault("sample", False)
        if given.get("sample") and base.temperature == 0:
            given.setdefault("temperature", None)
        drawn = self.seed if asked.seed is None else asked.seed
        if drawn is None:
            drawn = secrets.randbelow(2**32)
        return dataclasses.replace(base, **given, rng_seed=drawn)

    def _pictures(self, work: Work, urls: Sequence[str], hold: Hold) -> tuple[ImageLayout, ...]:
        """Look for the pictures in the cache, or decode them; what they will give."""
        if not urls:
            return ()
        names = [f"image {number}" for number in range(1, len(urls) + 1)]
        files = []
        for url, name in zip(urls, names, strict=True):
            files.append(self.sources.fetch(url, name))
            hold.add(len(files[-1]))
        digests = tuple(hashlib.sha256(content).digest() for content in files)
        work.picture_key = digests, work.options.image_aspect, work.needs
        if not work.by_pixels and (row := self.cache.get(work.picture_key)) is not None:
            work.row = row
            hold.drop(sum(map(len, files)))
            return row.layout
        layout = []
        for content, name in zip(files, names, strict=True):
            try:
                picture = open_bytes(content, name, most_pixels=self.most_pixels)
                hold.add(3 * picture.width * picture.height)
                layout.append(
                    self.lvlm.family.layout(picture.height, picture.width, together=len(urls))
                )
            except (CallError, RunError) as error:
                raise wrong(str(error), name, "invalid_image") from None
            work.pictures.append(picture)
        hold.drop(sum(map(len, files)))
        return tuple(layout)

    def _measure(self, work: Work, method: Method | None, layout: tuple[ImageLayout, ...]) -> int:
        """Check the prompt's length, and fill in what is known of it.

        Returns:
            How many visual tokens its prompt will hold.

        Raises:
            CallError: an empty question, one that is too long, or no room for an answer.
        """
        lvlm = self.lvlm
        context = lvlm.config.text.max_position_embeddings
        said = sum(len(message.text) for message in work.asked.messages)
        if said > context * LONGEST_TOKEN:
            raise CallError(
                f"the messages have {said} characters, beyond any that the model's context of"
                f" {context} tokens holds"
            )
        media = tuple(image.media for image in layout)
        template = work.options.chat_template
        prompt = lvlm.encoder.encode(work.question, media, chat_template=template)
        prompts = Prompts([prompt], [[]], "none", (0,))
        budget: list[Keep] = work.options.budgets(1) if layout else [None]
        if isinstance(method, DecoderMethod):
            budget = [None]
        beside = 0 if method is None else method.beside
        ceiling = lvlm.settings.ceiling(work.options)
        options = lvlm.settings.resolve(work.options)
        assert options.max_new_tokens is not None
        most = options.max_new_tokens
        check_lengths(
            lvlm.family, prompts, (layout,), budget, options, beside=beside, new_tokens=most
        )
        check_ceiling(prompts, (layout,), ceiling, lvlm.settings.source)
        work.words = len(prompt.ids) - len(layout)
        if ceiling is not None:
            most = min(most, ceiling - work.words - sum(image.tokens for image in layout))
        work.options = dataclasses.replace(options, max_new_tokens=most)
        return planned([layout], budget, options, beside)[0].kept

    def _key(
        self, work: Work, method: Method | None, layout: tuple[ImageLayout, ...], kept: int
    ) -> Hashable:
        """Which requests can share a batch: one method, one way of drawing, alike in size."""
        options, total = work.options, sum(image.tokens for image in layout)
        assert options.max_new_tokens is not None
        own: dict[str, Any] = {"keep": None, "max_new_tokens": None, "rng_seed": 0}
        if method is not None and options.alpha is not None and has_alpha_of_rows(method):
            own["alpha"] = 0
        shared = dataclasses.replace(options, **own)
        return (
            tuple((each.name, repr(getattr(shared, each.name)))
                  for each in dataclasses.fields(shared)),
            buckets.new_token_bucket(options.max_new_tokens),
            buckets.length_bucket(work.words + kept),
            buckets.image_bucket(total) if total else 0,
            work.needs,
        )  # fmt: skip


def has_alpha_of_rows(method: Method) -> bool:
    """Whether each row of a batch may have an alpha of its own."""
    return any(
        each.name == "alpha" and each.metadata.get("per_row") for each in dataclasses.fields(method)
    )
