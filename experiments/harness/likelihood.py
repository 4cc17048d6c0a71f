"""How likely a model finds given continuations of an answer, behind the visual tokens it keeps.

The tokens are chosen by the question alone, as when it is answered: the continuation is not seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from resprune_jax.errors import CallError
from resprune_jax.experiments.harness.requests import Content
from resprune_jax.methods import Method
from resprune_jax.methods.inputs import ON_REQUEST
from resprune_jax.models.prompts.chat import EncodedPrompt, PromptEncoder
from resprune_jax.models.prompts.options import CallOptions


@dataclass(frozen=True)
class Continued:
    """A question and what its answer would be.

    Attributes:
        content: the question with its images.
        continuation: follows the prompt directly, a blank in front of it included.
    """

    content: Content
    continuation: str


def losses(lvlm: Any, options: CallOptions, rows: Sequence[Continued]) -> list[tuple[float, bool]]:
    """The mean negative log-likelihood of each continuation's tokens.

    Args:
        lvlm: an `LVLM`.
        options: how tokens are kept; all of `CallOptions` but how answers are drawn.
        rows: B continuations.

    Returns:
        (mean over the continuation's tokens of -log p, whether each is the likeliest) a row.

    Raises:
        CallError: a method that works elsewhere than in front of the LLM, or an empty continuation.
    """
    method = lvlm.method_of(options)
    if method is not None and method.stage in ("decoder", "pixels"):
        raise CallError(
            f"{type(method).__name__} works at the {method.stage}, where a continuation would take"
            " part in the choice: log-likelihoods are of methods in front of the LLM"
        )
    images: Any = [list(row.content.images) or None for row in rows]
    encoded = lvlm.encode(images, image_aspect=options.image_aspect, needs=_needs(method))
    call = lvlm.prepare(encoded, [row.content.text for row in rows], options, new_tokens=0)
    longer, counts = [], []
    for prompt, row in zip(call.prompts.encoded, rows, strict=True):
        made = _continued(lvlm.encoder, prompt, row)
        longer.append(made)
        counts.append(len(made.ids) - len(prompt.ids))
    each = [
        keep if row.content.images else None
        for keep, row in zip(options.budgets(len(rows)), rows, strict=True)
    ]
    call = lvlm.lay_out(
        replace(call.prompts, encoded=longer), encoded.visual, encoded.layouts, each, options,
        method=method, new_tokens=0,
    )  # fmt: skip
    assembled = lvlm.assemble(call, lvlm.choose(call))
    logits, valid = lvlm.programs.score(lvlm.parameters, *assembled[:3])  # [B, P, V], [B, P]
    lengths = np.asarray(valid).sum(axis=1)
    found = []
    for place, (prompt, count) in enumerate(zip(longer, counts, strict=True)):
        end = int(lengths[place])
        own = np.asarray(logits[place, end - count - 1 : end - 1], np.float32)  # [C, V]
        ids = np.asarray(prompt.ids[-count:])
        logs = np.asarray(jax.nn.log_softmax(own, axis=-1))
        loss = -float(logs[np.arange(count), ids].mean())
        found.append((loss, bool((own.argmax(axis=-1) == ids).all())))
    return found


def _needs(method: Method | None) -> set[str]:
    return set() if method is None else set(method.needs) & set(ON_REQUEST)


def _continued(encoder: PromptEncoder, prompt: EncodedPrompt, row: Continued) -> EncodedPrompt:
    """A prompt with its continuation behind it.

    Both are tokenized as one text where this leaves the prompt's own tokens as they are, else
    apart.

    Raises:
        CallError: a continuation that gives no token.
    """
    media = ["image"] * len(row.content.images)
    full = encoder.encode(prompt.text + row.continuation, media, chat_template=False)
    count = len(prompt.ids)
    if not np.array_equal(full.ids[:count], prompt.ids):
        tokens = encoder.tokenizer(
            row.continuation, add_special_tokens=False, return_offsets_mapping=True
        )
        ids = np.asarray(tokens["input_ids"], np.int32)
        start = len(prompt.text)
        full = replace(
            full,
            ids=np.concatenate([prompt.ids, ids]),
            pieces=(*prompt.pieces, *encoder.tokenizer.convert_ids_to_tokens(ids.tolist())),
            offsets=np.concatenate(
                [
                    prompt.offsets,
                    np.asarray(tokens["offset_mapping"], np.int32).reshape(-1, 2) + start,
                ]
            ),
        )
    if len(full.ids) == count:
        raise CallError(f"the continuation {row.continuation!r} gives no token")
    return replace(full, question_start=prompt.question_start, question=prompt.question)
