"""How a line of `bench generate` is measured: made ready, looked at, then timed in turn."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from resprune_jax.errors import RunError
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.engines import one_line
from resprune_jax.experiments.bench.generation.plan import Line
from resprune_jax.experiments.bench.timing import (
    SHORT,
    Side,
    Timing,
    free_memory,
    interleave_parts,
    no_compiles,
    note,
    peak_growth,
    taken,
)

PARTS = ("encode", "select", "prefill", "decode")
TEXT_TOKENS = 48
LONG = 4.0
"""Seconds; a pass that takes longer is not made again to see what it needs."""
LOOK_RUNS, LOOK_SECONDS = 3, 5.0
"""A line's first figures: so many passes, none begun after so many seconds."""


class UnmeasuredError(Exception):
    """This machine cannot measure a line; the text says why."""


class Bench:
    """A model with random weights, its counterpart in torch, and the passes of one batch.

    Attributes:
        took: seconds of the last line that was looked at, without making weights.
    """

    def __init__(
        self, hf: dict[str, Any], config: Any, dtype: str, new_tokens: int, *, same_weights: bool
    ) -> None:  # fmt: skip
        """Nothing is made yet.

        Args:
            hf: `config.json` of the model.
            config: its architecture.
            dtype: of its parameters.
            new_tokens: of an answer.
            same_weights: transformers gets our weights; else it draws its own.
        """
        import jax.numpy as jnp

        self.hf, self.config, self.dtype = hf, config, jnp.dtype(dtype)
        self.new_tokens, self.same_weights = new_tokens, same_weights
        self.took = 0.0
        self._state: Any = None
        self._model: Any = None
        self._batch: tuple[int, Any, Any] | None = None
        self._passes: dict[Line, Any] = {}
        self._usual: dict[Line, float] = {}
        self._tokens: dict[Line, Any] = {}

    def prepare(self, line: Line) -> None:
        """Make the weights that a line needs, unless they are there."""
        import jax

        from resprune_jax.experiments.bench.generation.weights import (
            load_transformers,
            random_state,
        )

        begun = time.perf_counter()
        if self._state is None and (line.where == "here" or self.same_weights):
            self._state = jax.block_until_ready(random_state(self.config, self.dtype))
            count = sum(leaf.size for leaf in jax.tree.leaves(self._state))
            note(
                f"{count / 1e6:,.0f} million random weights, made on the device from one block in"
                f" {time.perf_counter() - begun:.1f} s"
            )
        if line.where == "transformers" and self._model is None:
            begun = time.perf_counter()
            device = bench_torch.device_of(jax.default_backend())
            state = self._state if self.same_weights else None
            self._model = load_transformers(self.hf, state, device)
            whose = "the same weights" if self.same_weights else "random weights of its own"
            note(f"transformers' model, {whose}, in {time.perf_counter() - begun:.1f} s")

    def look(self, line: Line) -> dict[str, Any]:
        """Make a line ready and take its first figures, by itself.

        Args:
            line: what to measure.

        Returns:
            Its entry of the JSON file. "ready_s" is the time from nothing to the end of the first
            pass, compiling included; no other time has any of it. "in_turn" is False.

        Raises:
            UnmeasuredError: the machine cannot do it.
            RunError: something was compiled while it was timed.
        """
        try:
            self.prepare(line)
            self._check_memory(line)
            begun = time.perf_counter()
            entry = self._look(line)
            self.took = time.perf_counter() - begun
            return entry
        except (UnmeasuredError, RunError):
            raise
        except Exception as error:  # no compiler, no memory: a reason, not an end
            self._passes.pop(line, None)
            if line.where == "here" and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UnmeasuredError(one_line(error)) from None

    def _look(self, line: Line) -> dict[str, Any]:
        begun = time.perf_counter()
        skipped = self._skipped(line)
        made = self._make(line)
        usual = taken(made.run)
        ready = time.perf_counter() - begun
        if usual < LONG or line.way == "compiled":  # the first one did what is done only once
            usual = taken(made.run)
        needed = self._needed(line, made) if usual < LONG else None
        runs: list[dict[str, float]] = []
        begun = time.perf_counter()
        with no_compiles(line.name), _torch_compiles_nothing([line]):
            while len(runs) < LOOK_RUNS and (
                not runs or time.perf_counter() - begun + usual < LOOK_SECONDS
            ):
                runs.append(made.run())
        self._passes[line], self._usual[line] = made, usual
        self._tokens[line] = made.tokens()[: line.batch]
        notes = []
        if more := self._skipped(line) - skipped:
            notes.append(f"torch ran {more} graphs without CUDA graphs")
        parts = {part: Timing(tuple(run[part] for run in runs)) for part in PARTS}
        return line.head | {
            "ready_s": ready, "in_turn": False, "notes": notes,
            "memory": {"planned": made.planned, "measured": needed},
            "ms": times(parts, self.new_tokens),
        }  # fmt: skip

    def rounds(self, lines: Sequence[Line], repeats: int, seconds: float) -> dict[Line, Any]:
        """Time lines that were looked at in turn, if there is time for one round.

        Args:
            lines: what to time; what was not looked at takes no part.
            repeats: rounds.
            seconds: no round begins after so many.

        Returns:
            Times by line; none where a single round would take longer than `seconds`.

        Raises:
            RunError: something was compiled while lines were timed.
        """
        here = [line for line in lines if line in self._passes]
        usual = [self._usual[line] for line in here]
        if not here or sum(each * (2 if each < SHORT else 1) for each in usual) > seconds:
            return {}
        sides = [
            Side(line.name, self._passes[line].run, each)
            for line, each in zip(here, usual, strict=True)
        ]
        with _torch_compiles_nothing(here):
            found = interleave_parts(sides, repeats, seconds)
        return {line: times(found[line.name], self.new_tokens) for line in here}

    def equal_tokens(self, line: Line, other: Line) -> float | None:
        """The share of tokens that two lines generated alike; None where one was not looked at."""
        if line not in self._tokens or other not in self._tokens:
            return None
        return float((self._tokens[line] == self._tokens[other]).mean())

    def release(self) -> None:
        """Let go of the passes, and of what they hold."""
        theirs = any(line.where == "transformers" for line in self._passes)
        self._passes.clear()
        if theirs:
            from resprune_jax.experiments.bench.generation import hf

            hf.forget()

    def _make(self, line: Line) -> Any:
        """A pass, everything of ours compiled."""
        import jax

        from resprune_jax.experiments.bench.generation import hf
        from resprune_jax.experiments.bench.generation.model import Ours, make_inputs

        if self._batch is None or self._batch[0] != line.batch:
            inputs = make_inputs(self.config, line.batch, TEXT_TOKENS)
            ours = Ours(self.config, self.dtype, self._state, inputs)
            self._batch = line.batch, inputs, ours
        _, inputs, ours = self._batch
        if line.where == "here":
            return ours.make_pass(line.keep, self.new_tokens)
        device = bench_torch.device_of(jax.default_backend())
        return hf.make_pass(
            self._model, inputs, line.keep, self.new_tokens, device, line.way
        )  # fmt: skip

    def _check_memory(self, line: Line) -> None:
        """Refuse a line whose cache alone does not fit."""
        from resprune_jax.models.prompts import buckets

        text = self.config.text
        kept = self.config.num_visual_tokens if line.keep is None else line.keep
        length = buckets.length_bucket(TEXT_TOKENS + kept)
        length += buckets.new_token_bucket(self.new_tokens)
        width = text.num_layers * text.num_kv_heads * text.head_dim
        rows = buckets.batch_bucket(line.batch)
        need = 2 * rows * length * width * self.dtype.itemsize
        if need > (free := int(0.9 * free_memory())):
            raise UnmeasuredError(f"its cache takes {need:,} bytes, {free:,} are free")

    @staticmethod
    def _skipped(line: Line) -> int:
        if line.way != "compiled":
            return 0
        from resprune_jax.experiments.bench.generation import hf

        return hf.skipped_graphs()

    @staticmethod
    def _needed(line: Line, made: Any) -> int | None:
        """Bytes beside the parameters, as seen in a pass."""
        import jax

        if jax.default_backend() == "cpu":
            return peak_growth(made.run)
        return bench_torch.peak_memory(made.run) if line.where == "transformers" else None


def times(parts: dict[str, Timing], new_tokens: int) -> dict[str, Any]:
    """Milliseconds of a batch by part, to the first token and for each further one."""
    rounds = range(len(parts["decode"].samples))
    first = Timing(tuple(sum(parts[part].samples[turn] for part in PARTS[:3]) for turn in rounds))
    token = Timing(tuple(each / (new_tokens - 1) for each in parts["decode"].samples))
    ms = {part: parts[part].facts() for part in PARTS}
    return ms | {"first_token": first.facts(), "token": token.facts()}


@contextlib.contextmanager
def _torch_compiles_nothing(lines: Sequence[Line]) -> Iterator[None]:
    """Refuse times in which torch.compile worked, where a line runs through it."""
    if all(line.way != "compiled" for line in lines):
        yield
        return
    from resprune_jax.experiments.bench.generation import hf

    try:
        with hf.no_compiles():
            yield
    except RuntimeError as error:
        if isinstance(error, RunError) or "recompile" not in str(error):
            raise
        raise RunError(f"torch.compile had to work in a timed region: {one_line(error)}") from None
