"""A training loop that survives being killed: deterministic batches, orbax checkpoints, a log.

A batch is a function of the stage and the step alone, so a run that stopped goes on bit by bit as
if it never had.
"""

import json
import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

logger = logging.getLogger("resprune_jax")

Batch = dict[str, np.ndarray]
Loss = Callable[[Any, dict[str, jax.Array]], tuple[jax.Array, dict[str, jax.Array]]]


@dataclass(frozen=True)
class Schedule:
    """How a stage is optimised: AdamW, warm-up, cosine decay, gradient clipping.

    Attributes:
        steps: of the stage.
        peak: highest learning rate.
        warm_up: steps up to it.
        last: learning rate at the end, as a share of `peak`.
        decay: weight decay.
        clip: largest norm of a gradient.
        tower: learning rate of the vision tower and projector, as a share of the others'.
    """

    steps: int
    peak: float
    warm_up: int = 100
    last: float = 0.02
    decay: float = 0.05
    clip: float = 1.0
    tower: float = 1.0

    def optimizer(self) -> optax.GradientTransformation:
        """The optax transformation."""
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.peak, self.warm_up, self.steps, self.last * self.peak
        )

        def decays(params: Any) -> Any:
            return jax.tree.map(lambda x: x.ndim > 1, params)

        def slow(params: Any) -> Any:
            parts = ("vision_tower", "multi_modal_projector")
            return jax.tree.map_with_path(
                lambda path, _: any(part in jax.tree_util.keystr(path) for part in parts), params
            )

        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=self.decay, mask=decays),
            optax.masked(optax.scale(self.tower), slow),
        )


def stream(make: Callable[[int], Batch], start: int, stop: int, workers: int) -> Iterator[Batch]:
    """The batches of steps [start, stop), drawn by other processes ahead of their use.

    Args:
        make: a function of the step that can be pickled.
        start: the first step.
        stop: one past the last.
        workers: processes; 0 draws in this one.
    """
    if not workers:
        yield from map(make, range(start, stop))
        return
    # Forking a process that runs JAX's threads can hang: start fresh ones.
    context = multiprocessing.get_context("spawn")
    with context.Pool(workers) as pool:
        ahead = [pool.apply_async(make, (s,)) for s in range(start, min(start + 3 * workers, stop))]
        for step in range(start, stop):
            batch = ahead.pop(0).get()
            if (coming := step + 3 * workers) < stop:
                ahead.append(pool.apply_async(make, (coming,)))
            yield batch


def _mean(values: list[float]) -> float | None:
    """The mean of those that are numbers; None without any, as JSON has no NaN."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else None


@lru_cache(maxsize=2)
def _update(loss: Loss, schedule: Schedule) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """The compiled step, (state, batch) -> (state, metrics); a run that goes on here shares it."""
    optimizer = schedule.optimizer()

    def update(state: Any, batch: dict[str, jax.Array]) -> tuple[Any, dict[str, jax.Array]]:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(state["params"], batch)
        norm = optax.tree.norm(grads)
        updates, opt = optimizer.update(grads, state["optimizer"], state["params"])
        new = optax.apply_updates(state["params"], updates)
        return {"params": new, "optimizer": opt}, metrics | {"loss": value, "norm": norm}

    return jax.jit(update, donate_argnums=0)


def train(
    folder: Path,
    params: Any,
    loss: Loss,
    make: Callable[[int], Batch],
    schedule: Schedule,
    *,
    workers: int = 1,
    save_every: int = 200,
    log_every: int = 20,
    say: Callable[[str], None] = print,
    stop_at: int | None = None,
) -> Any:
    """Run a stage, from its newest checkpoint if there is one.

    Args:
        folder: of the stage: checkpoints and `log.jsonl`.
        params: to start from.
        loss: of parameters and a batch; gives the loss and metrics.
        make: the batch of a step.
        schedule: how to optimise.
        workers: processes that draw batches.
        save_every: steps between checkpoints.
        log_every: steps between lines of the log.
        say: prints progress.
        stop_at: stop before this step, for tests of resuming.

    Returns:
        The trained parameters.
    """
    import orbax.checkpoint as ocp

    optimizer = schedule.optimizer()
    state = {"params": params, "optimizer": jax.jit(optimizer.init)(params)}
    # As a restored state lies: otherwise a run that goes on compiles the step again.
    state = jax.device_put(state, jax.devices()[0])
    folder.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
    with ocp.CheckpointManager((folder / "checkpoints").absolute(), options=options) as manager:
        first = 0
        if (newest := manager.latest_step()) is not None:
            state = manager.restore(newest, args=ocp.args.StandardRestore(state))
            first = newest
            say(f"{folder.name}: goes on from step {first} of {schedule.steps}")

        step_fn = _update(loss, schedule)
        last = min(schedule.steps, stop_at or schedule.steps)
        sums: dict[str, list[float]] = {}
        began = time.perf_counter()
        for step, batch in enumerate(stream(make, first, last, workers), start=first):
            state, metrics = step_fn(state, batch)
            for name, value in metrics.items():
                sums.setdefault(name, []).append(float(value))
            done = step + 1
            if done % log_every == 0 or done == last:
                means = {name: _mean(values) for name, values in sums.items()}
                took = (time.perf_counter() - began) / len(sums["loss"])
                sums, began = {}, time.perf_counter()
                with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps({"step": done, "seconds": took, **means}) + "\n")
                shown = " ".join(
                    f"{name} {value:.3g}" for name, value in means.items() if value is not None
                )
                say(f"{folder.name} {done}/{schedule.steps} {took:.2f} s/step {shown}")
            if done % save_every == 0 or done == last:
                manager.save(done, args=ocp.args.StandardSave(state))
        return state["params"]
