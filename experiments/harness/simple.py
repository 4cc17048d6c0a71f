"""`--force_simple`: the same model for tasks of lmms-eval's older kind, and for log-likelihoods."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from lmms_eval.api.instance import GenerationResult

from resprune_jax.errors import CallError
from resprune_jax.experiments.harness.likelihood import Continued, losses
from resprune_jax.experiments.harness.model import ResPrune
from resprune_jax.experiments.harness.requests import (
    Asked,
    Content,
    drawing_of,
    from_visuals,
)
from resprune_jax.experiments.progress import compiles, progress


class _Pair(tuple[float, bool]):
    """(loss, whether it is the likeliest), which the response cache cannot keep."""

    def strip(self) -> NoReturn:
        """Called where the cache looks whether a text is empty.

        Raises:
            CallError: always.
        """
        raise CallError(
            "the response cache of lmms-eval 0.7.3 gives log-likelihoods back as text, which it"
            " cannot score: leave --use_cache out of this task"
        )


class ResPruneSimple(ResPrune):
    """Takes a context and a list of images in place of messages."""

    is_simple = True

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """The loss of continuations, as lmms-eval's multiple-choice tasks compare it.

        lmms-eval 0.7.3 takes the smallest of these numbers for the best (its own models return the
        loss too), so this is the mean negative log-likelihood, not its negative. A plain pair it
        makes a text of before it scores it; as the text of a result it stays what it is.

        Args:
            requests: (context, continuation or a function of the row, images, row, task, split).

        Returns:
            (loss, whether greedy decoding would say the same) a request, as results.

        Raises:
            CallError: see `losses`; a context without text.
        """
        found: list[tuple[float, bool]] = []
        with progress("requests", len(requests)) as step, compiles(beside=True):
            for at in range(0, len(requests), self.batch_size):
                rows = [self._continued(request) for request in requests[at : at + self.batch_size]]
                found += losses(self.lvlm, self.options, rows)
                step(len(rows))
        return [GenerationResult(_Pair(pair)) for pair in found]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Refuse: rounds are messages.

        Raises:
            CallError: always.
        """
        raise CallError("tasks of several rounds are asked as chats: leave --force_simple out")

    def _continued(self, request: Any) -> Continued:
        context, target, doc_to_visual, row, task, split = request.args
        doc = self.task_dict[task][split][row]
        where = f"task {task}, row {row}"
        if not context.strip():
            raise CallError(
                f"{where}: a continuation without any context (acc_mutual_info) has no question"
                " that tokens could be kept for"
            )
        said = target if isinstance(target, str) else str(target(doc))
        return Continued(from_visuals(doc_to_visual(doc), context, where), said)

    def _asked(self, requests: Sequence[Any]) -> list[Asked]:
        times: Counter[Any] = Counter()
        asked = []
        for request in requests:
            context, kwargs, doc_to_visual, row, task, split = request.args
            where = f"task {task}, row {row}"
            asked.append(
                Asked(where, self._shown(context, doc_to_visual, task, split, row, where),
                      drawing_of(kwargs), times[task, row])
            )  # fmt: skip
            times[task, row] += 1
        return asked

    def _shown(
        self, context: str, doc_to_visual: Callable[[Any], Any], task: str, split: str, row: int,
        where: str,
    ) -> Callable[[], Content]:  # fmt: skip
        def content() -> Content:
            return from_visuals(doc_to_visual(self.task_dict[task][split][row]), context, where)

        return content
