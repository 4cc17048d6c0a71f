"""Prompts to token ids: chat template, tokenizer, image placeholders, padding.

A prompt is tokenized once, with one placeholder id an image, as the exact text that the language
model sees; `expand` repeats the placeholders afterwards. So character offsets stay valid, and the
place of the user's question in the text is known from how the text was made, not from a search.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from resprune_jax.errors import CallError, RunError, one_of, say_once, shown
from resprune_jax.models.checkpoint.files import foreign, one_line, read_json
from resprune_jax.models.checkpoint.formats import ModelConfig
from resprune_jax.models.prompts.chat_files import (
    given_template,
    is_vicuna,
    read_eos_ids,
    read_template,
)
from resprune_jax.models.prompts.render import TemplateError, render
from resprune_jax.models.prompts.tokenizer_files import load_tokenizer

# Stands for the question while the text around it is found. Letters and digits only: whatever a
# template does to ordinary words, it does to this.
_SENTINEL = "resprune0question5f1c7d2e9b"

# What a template may have trimmed from a question.
_TRIMMED: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Turn:
    """A message in front of a question.

    Attributes:
        role: "system", "user" or "assistant".
        text: of it.
        images: how many pictures it shows, of those that the prompt is about the next ones.
    """

    role: "Role"
    text: str
    images: int = 0


@dataclass(frozen=True)
class Conversation:
    """A question with what was said before it; goes wherever a question does.

    Attributes:
        question: the user's last message, which is answered and whose nouns guide the choice.
        before: the earlier messages, in order.

    Raises:
        CallError: a role that is none, or another message than the user's with pictures.
    """

    question: str
    before: tuple[Turn, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is no conversation."""
        for turn in self.before:
            one_of("role", turn.role, get_args(Role))
            if not isinstance(turn.text, str):
                raise CallError(f"a message is a text, got {shown(turn.text)}")
            if turn.images and turn.role != "user":
                raise CallError(f"only the user shows pictures, and the {turn.role} has some")


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the language model reads it, image placeholders not yet expanded.

    Attributes:
        text: the whole text, chat template included.
        ids: (S,) int32 token ids, one for each placeholder.
        pieces: the S tokens as the tokenizer's vocabulary spells them.
        offsets: (S, 2) int32 start and end of each token in `text`, in characters; (0, 0) for
            tokens that the tokenizer added.
        question_start: where the question begins in `text`, in characters.
        question: the question as it stands in `text`; templates may trim blanks around it.
    """

    text: str
    ids: np.ndarray
    pieces: tuple[str, ...]
    offsets: np.ndarray
    question_start: int
    question: str


class PromptEncoder:
    """Turns questions into token ids with a checkpoint's tokenizer and chat template.

    Made by `from_checkpoint`. Ids equal those of `transformers`' processor for the same text, with
    one exception: a text that already begins with the BOS token never gets a second one, also with
    `chat_template=False` (`transformers` doubles it there).

    Attributes:
        tokenizer: the fast tokenizer of `transformers`.
        placeholders: by kind of media ("image", "video"), the placeholder's id and text.
        eos_ids: (E,) int32, the ids that end an answer.
        name: what messages call the checkpoint.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        image_token_id: int,
        video_token_id: int | None = None,
        template: str | None,
        eos_ids: Sequence[int],
        name: str = "this checkpoint",
        vicuna: bool = True,
        vocab_size: int | None = None,
    ) -> None:
        """Wrap a tokenizer that is already loaded.

        Args:
            tokenizer: a fast tokenizer of `transformers`.
            image_token_id: id of the image placeholder.
            video_token_id: id of the video placeholder, for a model that takes videos.
            template: a Jinja chat template, or None.
            eos_ids: the ids that end an answer.
            name: what messages call the checkpoint.
            vicuna: without a template, use Vicuna's; False refuses plain questions then.
            vocab_size: rows of the model's embedding table, which ids must be below.

        Raises:
            CallError: a slow tokenizer, one that does not know the placeholder, or one with ids
                beyond the embedding table.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise CallError(
                f"the tokenizer of {name} is a slow one ({type(tokenizer).__name__}), which gives "
                "no character offsets: add its tokenizer.json"
            )
        self.placeholders: dict[str, tuple[int, str]] = {}
        for media, token_id in (("image", image_token_id), ("video", video_token_id)):
            if token_id is None:
                continue
            with foreign(f"the tokenizer of {name} is broken"):
                known = 0 <= token_id < len(tokenizer) + 2**20
                text = tokenizer.convert_ids_to_tokens(token_id) if known else None
                # An ordinary piece of the vocabulary would melt into the text around it.
                known = text is not None and tokenizer.get_added_vocab().get(text) == token_id
            if not known or not text:
                raise CallError(
                    f"the tokenizer of {name} has no {media} placeholder with the id {token_id} "
                    f"that config.json names ({media}_token_index): they belong to different models"
                )
            self.placeholders[media] = token_id, text
        self.tokenizer = tokenizer
        self.eos_ids = np.asarray(list(dict.fromkeys(eos_ids)), np.int32)
        self._template = template
        self.name = name
        self._vicuna = vicuna
        if vocab_size is not None:
            self._check_ids(vocab_size)

    def _check_ids(self, vocab_size: int) -> None:
        """Refuse a tokenizer with tokens that the model has no embedding of."""
        with foreign(f"the tokenizer of {self.name} is broken"):
            ids: dict[str, int] = self.tokenizer.get_vocab()
        places = {token_id for token_id, _ in self.placeholders.values()}  # never looked up
        beyond = [(i, token) for token, i in ids.items() if i >= vocab_size and i not in places]
        if beyond:
            token_id, token = min(beyond)
            raise CallError(
                f"the tokenizer of {self.name} gives {shown(token)} the id {token_id}, but "
                f"the model has {vocab_size} embeddings: they belong to different models"
            )

    @property
    def image_token_id(self) -> int:
        """The id of the image placeholder."""
        return self.placeholders["image"][0]

    @classmethod
    def from_checkpoint(
        cls,
        directory: str | os.PathLike[str],
        config: ModelConfig,
        *,
        chat_template: str | Path | None = None,
    ) -> "PromptEncoder":
        """Load tokenizer, chat template and end-of-sequence ids of a checkpoint.

        `chat_files.py` says where the template and the ids come from.

        Args:
            directory: the checkpoint's folder.
            config: its configuration.
            chat_template: a Jinja template, or the path of its file, in place of the checkpoint's.

        Returns:
            The encoder.

        Raises:
            CallError: no tokenizer, a slow one, or one that does not know the placeholder; a chat
                template that is none.
            RunError: a file that cannot be read.
        """
        folder = Path(directory)
        given = None if chat_template is None else given_template(chat_template)
        tokenizer = load_tokenizer(folder)
        model = read_json(folder / "config.json")
        return cls(
            tokenizer,
            image_token_id=config.image_token_id,
            video_token_id=getattr(config, "video_token_id", None),
            template=read_template(folder, tokenizer) if given is None else given,
            eos_ids=read_eos_ids(folder, tokenizer, model),
            name=str(folder),
            vicuna=is_vicuna(model, config.text.vocab_size, tokenizer),
            vocab_size=config.text.vocab_size,
        )

    def encode(
        self,
        question: str | Conversation,
        media: Sequence[str] = ("image",),
        *,
        chat_template: bool = True,
    ) -> EncodedPrompt:
        """Turn a question about images and videos into token ids.

        Args:
            question: a plain question; with `chat_template=False`, the whole text with its image
                placeholders. A conversation goes into the chat template message by message.
            media: what it is about, "image" or "video" each, in this order; those of a
                conversation's earlier messages first.
            chat_template: put the question into the checkpoint's chat template, images first.
                LLaVA-1.5 without one gets Vicuna's, which is said once:
                "USER: <image>\\n{question} ASSISTANT:".

        Returns:
            The encoded prompt; without a template, its question is the whole text.

        Raises:
            CallError: an empty or blank question, text that is not valid Unicode, placeholders in
                a plain question, another number of placeholders than images, or a chat template
                that cannot be used.
        """
        before: tuple[Turn, ...] = ()
        if isinstance(question, Conversation):
            before = question.before
            question = question.question
            if before and not chat_template:
                raise CallError("a conversation needs a chat template: give the whole text instead")
        if not isinstance(question, str):
            raise CallError(f"a prompt is a text, got {type(question).__name__}")
        if not question.strip():
            raise CallError("the prompt is empty: ask a question")
        said = [question, *(turn.text for turn in before)]
        try:
            for text in said:
                text.encode()
        except UnicodeEncodeError as problem:
            raise CallError(f"the prompt is not valid Unicode: {problem.reason}") from problem
        if chat_template:
            for kind, (_, token) in self.placeholders.items():
                if any(token in text for text in said):
                    raise CallError(
                        f"the question holds the {kind} placeholder {token}, which the chat "
                        "template adds: leave it out, or give the whole text with "
                        "chat_template=False (--no-chat-template)"
                    )
            text, start, question = self._place(question, tuple(media), before)
        else:
            text, start = question, 0
        for kind, (_, token) in self.placeholders.items():
            found, given = text.count(token), list(media).count(kind)
            if found != given:
                raise CallError(
                    f"the prompt has {found} {kind} placeholders ({token}) for {given} {kind}s: "
                    "they must be as many"
                )
        ids, offsets = self._tokenize(text)
        kinds = {token_id: kind for kind, (token_id, _) in self.placeholders.items()}
        order = [kinds[token] for token in ids.tolist() if token in kinds]
        if order != list(media):
            raise CallError(
                f"the prompt's placeholders stand for {', '.join(order)}, but what was given is "
                f"{', '.join(media)}: bring them into one order"
            )
        with foreign(f"the tokenizer of {self.name} is broken"):
            pieces = tuple(self.tokenizer.convert_ids_to_tokens(ids.tolist()))
        return EncodedPrompt(text, ids, pieces, offsets, start, question)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of generated ids, special tokens left out, blanks around it stripped."""
        with foreign(f"the tokenizer of {self.name} cannot decode"):
            text = self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)
        return str(text).strip()

    def _tokenize(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids (S,) and character offsets (S, 2) of a whole prompt."""
        bos = self.tokenizer.bos_token
        # The processors of transformers add BOS through the tokenizer unless the text has it.
        given = bos is not None and text.startswith(bos)
        with foreign(f"the tokenizer of {self.name} is broken"):
            tokens = self.tokenizer(
                text, add_special_tokens=not given, return_offsets_mapping=True, verbose=False
            )
        ids = np.asarray(tokens["input_ids"], np.int32)
        for token_id, token in self.placeholders.values():
            marks, wanted = int((ids == token_id).sum()), text.count(token)
            if marks != wanted:
                raise RunError(
                    f"the tokenizer of {self.name} gives {marks} placeholder ids for {wanted} "
                    f"placeholders {token}: its tokenizer.json is broken"
                )
        return ids, np.asarray(tokens["offset_mapping"], np.int32).reshape(-1, 2)

    def _place(
        self, question: str, media: tuple[str, ...], before: tuple[Turn, ...] = ()
    ) -> tuple[str, int, str]:
        """The text around a question, where the question starts, and the question as it stands."""
        parts = self._parts
        try:
            around = self._render(_SENTINEL, media, parts, before).split(_SENTINEL)
            text = self._render(question, media, parts, before)
        except TemplateError as problem:
            raise self._unusable(one_line(problem)) from problem
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            raise self._unusable("what it writes is not valid Unicode")
        if len(around) != 2:
            raise self._unusable(f"it repeats the question or drops it ({len(media)} images)")
        front, behind = around
        for trim in _TRIMMED:
            if text == front + trim(question) + behind:
                return text, len(front), trim(question)
        raise self._unusable("it changes the question, so its place in the text is not known")

    @cached_property
    def _parts(self) -> bool:
        """Whether the template takes a message as a list of parts; else as one string."""
        if self._template is None:
            if not self._vicuna:
                raise self._unusable(
                    "there is none, and its language model is not Vicuna's kind; the format it was "
                    "trained on must be given (chat_template=, --chat-template FILE)"
                )
            say_once(
                f"chat template {self.name}",
                f"{self.name} has no chat template: Vicuna's is used (USER: ... ASSISTANT:)",
            )
            return False
        reasons = []
        for parts in (True, False):
            try:
                text = self._render(_SENTINEL, ("image",), parts)
            except TemplateError as problem:
                reasons.append(one_line(problem))
                if parts and "may not end" in reasons[0]:
                    raise self._unusable(reasons[0]) from problem
                continue
            counts = text.count(_SENTINEL), text.count(self.placeholders["image"][1])
            if counts == (1, 1):
                return parts
            reasons.append(f"it gives {counts[1]} placeholders and the question {counts[0]} times")
        raise self._unusable(f"as parts, {reasons[0]}; as a string, {reasons[1]}")

    def _render(
        self, question: str, media: tuple[str, ...], parts: bool, before: tuple[Turn, ...] = ()
    ) -> str:
        """The template's text for one question, the images of each message first."""
        shown_before = sum(turn.images for turn in before)
        if shown_before > len(media):
            raise CallError(f"the messages show {shown_before} images, and {len(media)} were given")
        turns: list[Turn] = [*before, Turn("user", question, len(media) - shown_before)]
        left = iter(media)
        messages: list[dict[str, Any]] = []
        for turn in turns:
            own = [next(left) for _ in range(turn.images)]
            whole = "".join(f"{self.placeholders[kind][1]}\n" for kind in own) + turn.text
            content = [{"type": kind} for kind in own] + [{"type": "text", "text": turn.text}]
            messages.append({"role": turn.role, "content": content if parts else whole})
        if self._template is None:
            return _vicuna(messages)
        names = {
            "messages": messages, "tools": None, "documents": None, "add_generation_prompt": True,
            **{name: str(token) for name, token in self.tokenizer.special_tokens_map.items()},
        }  # fmt: skip
        return render(self._template, names)

    def _unusable(self, reason: str) -> CallError:
        """The error for a chat template that does not work here."""
        return CallError(
            f"the chat template of {self.name} cannot be used: {reason}; give the whole text with "
            "chat_template=False (--no-chat-template)"
        )


def _vicuna(messages: Sequence[Mapping[str, Any]]) -> str:
    """Vicuna's format: what the system says, then turns; an answer ends with </s>."""
    made = ""
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "system":
            made += f"{text} "
        elif role == "user":
            made += f"USER: {text} "
        else:
            made += f"ASSISTANT: {text}</s>"
    return f"{made}ASSISTANT:"
