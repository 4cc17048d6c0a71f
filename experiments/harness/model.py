"""The class behind `lmms-eval eval --model resprune`: lmms-eval's requests in, its results out.

What is done with them stands in `arguments`, `requests` and `answering`, which know nothing of
lmms-eval. This module is imported by lmms-eval alone.
"""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics

from resprune_jax.errors import CallError, shown
from resprune_jax.experiments.common import use_compilation_cache
from resprune_jax.experiments.harness.answering import Answering
from resprune_jax.experiments.harness.arguments import ModelArguments, read
from resprune_jax.experiments.harness.identity import settings_of
from resprune_jax.experiments.harness.journal import Answer, Journal
from resprune_jax.experiments.harness.requests import (
    Asked,
    Content,
    drawing_of,
    from_messages,
)
from resprune_jax.experiments.progress import compiles, progress


class ResPrune(lmms):
    """A checkpoint that answers lmms-eval's tasks from the visual tokens that a method keeps."""

    is_simple = False

    def __init__(
        self,
        batch_size: Any = 1,
        max_batch_size: Any = None,
        device: str | None = None,
        **model_args: Any,
    ) -> None:
        """Load the model.

        Args:
            batch_size: questions that run together, as lmms-eval's --batch_size.
            max_batch_size: not used: a batch has the size that is asked for.
            device: as lmms-eval's --device: refused where JAX runs on something else.
            **model_args: see `arguments`.

        Raises:
            CallError, RunError: an argument that cannot be, or a model that cannot be loaded.
        """
        super().__init__()
        self.arguments = read(model_args)
        size = _batch_size(batch_size)
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise CallError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: resprune runs as one process; start"
                " lmms-eval alone, and tasks on several machines apart"
            )
        use_compilation_cache()
        _check_device(device)
        self.lvlm = self._load(self.arguments)
        aspect = self.arguments.aspect or self.lvlm.family.trained_aspect
        self.options = replace(self.arguments.options, image_aspect=aspect)
        self.lvlm.method_of(self.options)  # a method that cannot run says so before data
        journal = None
        if self.arguments.resume is not None:
            told = settings_of(self.arguments, self.lvlm, self.options, size)
            journal = Journal(self.arguments.resume, told)
        self._answering = Answering(self.lvlm, self.options, batch_size=size, journal=journal)
        self.batch_size = size

    def _load(self, arguments: ModelArguments) -> Any:
        from resprune_jax.models.load import load_model

        return load_model(arguments.pretrained, **arguments.loading)

    def generate_until(self, requests: Sequence[Any]) -> list[GenerationResult]:
        """Answer requests, in batches.

        Args:
            requests: lmms-eval's, of a task's `generate_until`.

        Returns:
            A result each, with the counts of its tokens.

        Raises:
            CallError, RunError: see `Answering`.
        """
        answers = self._answer(self._asked(requests))
        return [
            GenerationResult(
                answer.text,
                TokenCounts(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens),
            )
            for answer in answers
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[list[str]]:
        """Answer requests round by round: what a task asks next depends on what was answered.

        A round's question is a message of its own; what was said before is in it where the task
        writes it there.

        Args:
            requests: lmms-eval's, of a task's `generate_until_multi_round`.

        Returns:
            The answers of all rounds, a list each.
        """
        said: list[list[str]] = [[] for _ in requests]
        told: list[Any] = [None] * len(requests)
        active = list(range(len(requests)))
        number = 0
        while active:
            asked, going = [], []
            for place in active:
                _, doc_to_messages, kwargs, row, task, split = _chat(requests[place])
                where = _where(task, row)
                messages = doc_to_messages
                if number == 0:
                    messages = doc_to_messages(self.task_dict[task][split][row])
                else:
                    payload = doc_to_messages(
                        self.task_dict[task][split][row],
                        round_idx=number,
                        previous_output=list(said[place]),
                        previous_round_info=told[place],
                    )
                    if not isinstance(payload, tuple) or len(payload) != 4 or payload[1]:
                        continue
                    messages, _, _, told[place] = payload
                content = from_messages(messages, where)
                asked.append(Asked(where, _given(content), drawing_of(kwargs)))
                going.append(place)
            for place, answer in zip(going, self._answer(asked), strict=True):
                said[place].append(answer.text)
            active = going
            number += 1
        return said

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Refuse: lmms-eval 0.7.3 gives no such request to a chat model.

        Raises:
            CallError: always; `--force_simple` takes the class that can.
        """
        raise CallError("tasks of log-likelihoods are of the simple kind: add --force_simple")

    def generate_visual_cot(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse: no image is generated here.

        Raises:
            CallError: always.
        """
        raise CallError("visual_cot tasks need a model that draws images, which this one does not")

    @property
    def chat_template(self) -> NoReturn:
        """Refuse `--apply_chat_template`: the checkpoint's template is always used."""
        raise CallError("leave --apply_chat_template out: the checkpoint's own template is used")

    def _asked(self, requests: Sequence[Any]) -> list[Asked]:
        """Requests as questions whose images are not read yet."""
        times: Counter[Any] = Counter()
        asked = []
        for request in requests:
            _, doc_to_messages, kwargs, row, task, split = _chat(request)
            where = _where(task, row)
            asked.append(
                Asked(where, self._reader(doc_to_messages, task, split, row, where),
                      drawing_of(kwargs), times[task, row])
            )  # fmt: skip
            times[task, row] += 1
        return asked

    def _reader(
        self, doc_to_messages: Callable[[Any], Any], task: str, split: str, row: int, where: str
    ) -> Callable[[], Content]:
        def content() -> Content:
            return from_messages(doc_to_messages(self.task_dict[task][split][row]), where)

        return content

    def _answer(self, asked: list[Asked]) -> list[Answer]:
        with progress("requests", len(asked)) as step, compiles(beside=True):
            answers = self._answering(asked, step)
        own = self._answering.figures
        log_metrics(
            total_elapsed_time=own.seconds,
            total_gen_tokens=own.output_tokens,
            avg_speed=own.output_tokens / own.seconds if own.seconds else 0.0,
            additional_metrics={
                "kept_visual_tokens": own.kept / max(1, own.questions),
                "visual_tokens": own.visual_tokens / max(1, own.questions),
                "batch_first_token_s": sum(own.first_token) / max(1, len(own.first_token)),
            },
        )
        self._answering.figures = type(own)()
        return answers


def _given(content: Content) -> Callable[[], Content]:
    return lambda: content


def _where(task: str, row: int) -> str:
    return f"task {task}, row {row}"


def _chat(request: Any) -> tuple[Any, ...]:
    """The six parts of a chat request.

    Raises:
        CallError: other parts, as another version of lmms-eval may give.
    """
    if len(request.args) != 6 or not callable(request.args[1]):
        raise CallError(
            "this request of lmms-eval has other parts than those of 0.7.3, with which this plug-in"
            f" was tested: {shown([type(part).__name__ for part in request.args])}"
        )
    return tuple(request.args)


def _batch_size(given: Any) -> int:
    text = str(given)
    if not text.isdecimal() or not 1 <= int(text) <= 4096:
        raise CallError(f"--batch_size {given} is no whole number from 1 on: give one such as 8")
    return int(text)


def _check_device(given: str | None) -> None:
    """Refuse a device that JAX does not run on, in place of taking another one silently."""
    if given is None:
        return
    import jax

    kind, _, number = given.partition(":")
    own = jax.default_backend()
    if {"cuda": "gpu", "rocm": "gpu"}.get(kind, kind) != own or number not in ("", "0"):
        raise CallError(
            f"--device {given} was asked for, and JAX runs on {own}: leave --device out; JAX takes"
            " the platform of JAX_PLATFORMS, and the GPUs of CUDA_VISIBLE_DEVICES"
        )
