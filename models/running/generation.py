"""What a call is once it is laid out, and what it gives back."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import numpy as np

from resprune_jax.costs import BudgetRow, DecoderShape, schedule_row
from resprune_jax.methods import Method, VisualTokens
from resprune_jax.models.decoder.config import DecoderConfig
from resprune_jax.models.prompts.options import CallOptions, Positions
from resprune_jax.models.running.clip import ClipTexts
from resprune_jax.models.running.plan import Plan, Prompts
from resprune_jax.models.running.schedule import Schedule
from resprune_jax.selection import Selection


@dataclass(frozen=True)
class Generation:
    """What `LVLM.generate` gives, one entry a prompt.

    Attributes:
        texts: the answers, special tokens left out, surrounding blanks stripped.
        tokens: new token ids, up to and with the end-of-sequence id.
        selections: the batch's `Selection`, `None` if every row kept all tokens. A row with
            keep=None inside a pruned batch holds the whole image: read `kept`, not its row here.
            With budget="per_image", one for each image: arrays are (B, R, ...). Of a method that
            drops inside the LLM, its last drop's.
        kept: visual tokens that entered the LLM, or that went through its last layer.
        visual_tokens: visual tokens that the images gave.
        nouns: the nouns that conditioned the choice.
        noun_backend: which part-of-speech tagger found them.
        errors: why a row failed, else `None`; a failed row has an empty text.
        prompts: the texts that the model saw, before the image placeholder was expanded.
        timings: seconds for "encode", "select", "prefill", "decode" and "total", the devices
            waited for after each; compiles count where they happen, and "compile" is how much of
            the total they took.
        rows: which row of images each prompt is about.
        drops: where each prompt lost visual tokens: (layer, how many the layers from it on worked
            on); layer 0 for a choice in front of the LLM, empty where all were kept.
        costs: what its visual tokens cost the LLM: tokens at first, behind the last drop and on
            average over the layers, FLOPs of prefill, KV-cache bytes; None without any.
        done: whether the answer is at its end; False only between the stops of `stream`.
    """

    texts: list[str]
    tokens: list[np.ndarray]
    selections: Selection | None
    kept: list[int]
    visual_tokens: list[int]
    nouns: list[list[str]]
    noun_backend: str
    errors: list[str | None]
    prompts: list[str]
    timings: dict[str, float] = field(default_factory=dict)
    rows: list[int] = field(default_factory=list)
    drops: list[tuple[tuple[int, int], ...]] = field(default_factory=list)
    costs: list[BudgetRow | None] = field(default_factory=list)
    done: list[bool] = field(default_factory=list)


@dataclass(frozen=True)
class Selected:
    """What `LVLM.select` gives, one entry a prompt; nothing was answered.

    Attributes:
        selections: see `Generation.selections`: the tokens in order of choice, and energies.
        mask: (B, N) bool, the visual tokens that would enter the LLM.
        relevance: (B, N) float32, how relevant each visual token is to the question's nouns, which
            the gate raises to alpha; 0 for padding. None where the method reads no text, or no row
            is pruned.
        kept: how many visual tokens would enter the LLM.
        visual_tokens: visual tokens that the images gave.
        nouns: the nouns that conditioned the choice.
        noun_backend: which part-of-speech tagger found them.
        errors: why a row failed, else `None`.
        rows: which row of images each prompt is about.
        timings: seconds for "encode", "select" and "total", and "compile" of these.
    """

    selections: Selection | None
    mask: np.ndarray
    relevance: np.ndarray | None
    kept: list[int]
    visual_tokens: list[int]
    nouns: list[list[str]]
    noun_backend: str
    errors: list[str | None]
    rows: list[int]
    timings: dict[str, float]


@dataclass(frozen=True)
class Call:
    """A call of `generate`, checked and laid out, its images encoded.

    Attributes:
        prompts: the questions.
        plan: their static shapes.
        visual: the visual tokens of their images.
        options: what the call was told.
        positions: how position ids are counted: as the options say, or as the family does.
        method: what chooses the tokens; `None` keeps them all.
        schedule: where the method drops tokens inside the decoder; `None`: it does not.
        clip: the texts that CLIP reads for the method; `None`: it reads none.
    """

    prompts: Prompts
    plan: Plan
    visual: VisualTokens
    options: CallOptions
    positions: Positions
    method: Method | None
    schedule: Schedule | None = None
    clip: ClipTexts | None = None


@dataclass(frozen=True)
class Chosen:
    """What enters the LLM.

    Attributes:
        kept: (B, N) bool, the places of visual tokens that do.
        selection: `None` where every token does.
        merged: (B, N, d), what stands at these places where tokens were merged; `None`: the tokens.
    """

    kept: jax.Array | np.ndarray
    selection: Selection | None = None
    merged: jax.Array | None = None

    @property
    def failed(self) -> np.ndarray:
        """(B,) bool, rows of which an image could not be judged."""
        if self.selection is None:
            return np.zeros(len(self.kept), bool)
        counts = np.asarray(self.selection.count)
        return (counts.reshape(len(counts), -1) == 0).any(axis=1)


@dataclass(frozen=True)
class Outcome:
    """What the devices made of a call, rows that fill the batch's bucket included.

    Attributes:
        selection: see `Generation.selections`.
        kept: (B, N) bool, the visual tokens that entered the LLM.
        failed: (B,) bool, rows whose visual tokens could not be judged.
        finite: (B,) bool, whether the logits of all its steps are.
        tokens: (B, T) int32, `programs.EMPTY` where nothing was generated.
        timings: seconds for "select", "prefill" and "decode".
        ended: (B,) bool, rows that need no further step.
        left: (D, B) int32, visual tokens behind each drop inside the decoder.
    """

    selection: Selection | None
    kept: jax.Array | np.ndarray
    failed: np.ndarray
    finite: np.ndarray
    tokens: np.ndarray
    timings: dict[str, float]
    ended: np.ndarray
    left: np.ndarray | None = None


def drops_of_rows(made: Outcome, call: Call) -> list[tuple[tuple[int, int], ...]]:
    """See `Generation.drops`."""
    plan = call.plan
    rows: list[tuple[tuple[int, int], ...]] = []
    entered = plan.own(made.kept).sum(axis=1).tolist()
    for row, total in enumerate(plan.totals[: plan.size].tolist()):
        if call.schedule is not None and made.left is not None:
            counts = [] if call.schedule.full[row] else made.left[:, row].tolist()
            layers = [stop.before for stop in call.schedule.stops]
            rows.append(tuple(zip(layers, counts, strict=False)))
        else:
            rows.append(((0, entered[row]),) if entered[row] < total else ())
    return rows


def costs_of_rows(
    drops: list[tuple[tuple[int, int], ...]], plan: Plan, decoder: DecoderConfig, size: int
) -> list[BudgetRow | None]:
    """See `Generation.costs`.

    Args:
        drops: from `drops_of_rows`.
        plan: the batch.
        decoder: the language model.
        size: bytes of a number in the cache.
    """
    shape = DecoderShape(
        decoder.num_layers, decoder.hidden_size, decoder.intermediate_size,
        decoder.num_kv_heads, decoder.head_dim, size,
    )  # fmt: skip
    return [
        schedule_row(total, own, shape) if total else None
        for total, own in zip(plan.totals[: plan.size].tolist(), drops, strict=True)
    ]


def answered_ids(
    made: Outcome, errors: Sequence[str | None], most: np.ndarray, empty: int
) -> list[np.ndarray]:
    """The new token ids of each real row; none of a row that failed.

    Args:
        made: of the devices.
        errors: of `row_errors`.
        most: (B,) the most tokens of each row.
        empty: what the buffer holds where nothing was generated.
    """
    tokens = made.tokens[: len(errors)]
    return [
        row[:0] if error else row[:last][row[:last] != empty]
        for row, error, last in zip(tokens, errors, most, strict=True)
    ]


def first_rows(selection: Selection, size: int) -> Selection:
    return jax.tree.map(lambda x: np.asarray(x)[:size], selection)


def row_errors(failed: np.ndarray, finite: np.ndarray, plan: Plan) -> list[str | None]:
    """Why each row failed, or None; arguments as in `Outcome`."""
    size = plan.size
    failed = failed[:size] & (plan.totals[:size] > 0)
    return [
        "the visual tokens of this image are not finite (NaN or infinite): nothing was selected"
        if bad
        else None
        if good
        else "the model's logits are not finite (NaN or infinite)"
        for bad, good in zip(failed, finite, strict=False)
    ]
