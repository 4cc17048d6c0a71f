"""`resprune sweep`: a grid of configurations on a data set, resumable, on any number of hosts.

The module is light: JAX comes in when something is asked.
"""

import dataclasses
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    Checkpoint,
    ClipCheckpoint,
    DType,
    check_number,
    model_name,
    shown,
    use_compilation_cache,
)
from resprune_jax.experiments.progress import progress
from resprune_jax.experiments.sweep.grid import Grid
from resprune_jax.models.prompts.options import ImageAspect

logger = logging.getLogger("resprune_jax")

Preset = Literal["none", "tables"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class GridOptions(Grid):
    """Options of every command that answers a data set under a grid of configurations."""

    output: Annotated[Path, shown("FOLDER", None)]
    """Results: Parquet files that are added block by block."""
    model: Checkpoint = "pocket"
    """Checkpoint folder, Hub id, or pocket for the one that comes with the package."""
    clip: ClipCheckpoint = None
    dtype: DType = "float32"
    """Precision of the model."""
    examples: Annotated[int | None, shown("N", "all")] = None
    """Only the first so many."""
    max_new_tokens: Annotated[int | None, shown("N", "the checkpoint's, else 128; pocket 6")] = None
    """The most tokens of an answer."""
    block: Annotated[int, shown("N", None)] = 40
    """Examples that are worked on together: what a kill loses at most."""
    batch: Annotated[int, shown("N", None)] = 64
    """Answers that run together on the devices, a multiple of 8."""
    num_processes: Annotated[int | None, shown("N", "what the cluster says, else 1")] = None
    """Processes that share the work."""
    process_id: Annotated[int | None, shown("N", "what the cluster says, else 0")] = None
    """Which of them this is, from 0 on."""
    coordinator: Annotated[str | None, shown("HOST:PORT", "what the cluster says, else none")] = (
        None
    )
    """Where process 0 can be reached by the others."""
    dry_run: bool = False
    """Say how many configurations, choices and answers there are and how long they will take."""
    debug: bool = False
    """Show the traceback when something fails."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(GridOptions):
    """Answer a data set under every configuration of a grid, and keep every row.

    Image work is shared, every distinct choice of tokens is answered once. A second call goes on
    where the first was stopped; resprune report makes tables and figures of the folder.
    """

    data: Annotated[str, shown("NAME_OR_PATH", None)] = "pocket:validation"
    """pocket:test, pocket:validation, a .jsonl or .parquet file of rows, or a folder of a data set
    (docs/how_to/data.md)."""
    preset: Preset = "none"
    """tables: the grids of the paper's Tables I and IV to VII and of the plot of tolerances, in
    place of one grid."""
    config: Annotated[Path | None, shown("FILE", "none")] = None
    """A TOML or JSON file with any of these options, and in place of one grid a list of grids;
    what the command line says as well must agree with it."""
    report: Annotated[Path | None, shown("DIR", "none")] = None
    """Write tables and figures here at the end, as resprune report does."""


def run(options: SweepOptions, *, report: Callable[[Path, Path], object] | None = None) -> int:
    """Carry out `resprune sweep`.

    Args:
        options: the command's options.
        report: makes a report of a results folder in another one, for `--report`.

    Returns:
        0, or 1 where a row failed.

    Raises:
        CallError: a wrong call, or a folder of another sweep.
        RunError: results that cannot be written.
    """
    from resprune_jax.experiments.sweep.config import read_config

    options, grids = read_config(options)
    check_options(options)
    if options.report is not None and (options.num_processes or 1) > 1:
        raise CallError("--report needs all rows: make it with resprune report when all have ended")

    def opened() -> Any:
        from resprune_jax.experiments.data.examples import open_dataset

        return open_dataset(options.data, options.examples)

    status = answer_all(options, grids, opened)
    if options.report is not None and report is not None and not options.dry_run:
        report(options.output, options.report)
    return status


def check_options(options: GridOptions) -> None:
    """Refuse numbers that cannot be.

    Raises:
        CallError: there is one.
    """
    from resprune_jax.experiments.sweep.hosts import check as check_hosts

    check_number("--block", options.block, 1, 100_000)
    check_number("--batch", options.batch, 8, 100_000)
    if options.batch % 8:
        raise CallError(f"--batch {options.batch}: give a multiple of 8")
    if options.examples is not None:
        check_number("--examples", options.examples, 1, 10**9)
    if options.max_new_tokens is not None:
        check_number("--max-new-tokens", options.max_new_tokens, 1, 2**31 - 1)
    check_hosts(options.num_processes, options.process_id, options.coordinator)


def answer_all(
    options: GridOptions,
    grids: Sequence[Grid],
    opened: Callable[[], Any],
    *,
    most: int | None = None,
    aspect: ImageAspect | None = "processor",
    template: Path | None = None,
    about: Mapping[str, Any] | None = None,
    done: Callable[[], object] | None = None,
) -> int:
    """Answer a data set under the configurations of some grids, what is not answered yet.

    Args:
        options: the command's; see `check_options`.
        grids: of configurations.
        opened: opens the data set, once the grids are known to be right.
        most: new tokens of an answer where the options do not say.
        aspect: how pictures are prepared; None as the model's authors do.
        template: a chat template in place of the checkpoint's.
        about: what the manifest says beside, with how pictures are prepared.
        done: called behind the rows, with the folder still held.

    Returns:
        0, or 1 where a row failed.

    Raises:
        CallError: a wrong call, or a folder of another run.
        RunError: results that cannot be written.
    """
    use_compilation_cache()
    from resprune_jax.experiments.sweep.engine import Engine
    from resprune_jax.experiments.sweep.grid import configurations
    from resprune_jax.experiments.sweep.hosts import Hosts, join, local_mesh
    from resprune_jax.experiments.sweep.identity import fingerprint
    from resprune_jax.models.load import load_model
    from resprune_jax.models.prompts.options import CallOptions

    chosen = configurations(grids)
    data = opened()
    # The others are met before JAX looks for devices, which a cluster may divide.
    hosts = Hosts()
    if not options.dry_run:
        hosts = join(
            digest=_plan(options, chosen, data.fingerprint),
            processes=options.num_processes, process=options.process_id,
            coordinator=options.coordinator,
        )  # fmt: skip
    lvlm = load_model(
        options.model, dtype=options.dtype, clip=options.clip, mesh=local_mesh(),
        chat_template=template,
    )  # fmt: skip
    if options.max_new_tokens is not None:
        most = options.max_new_tokens
    elif options.model == "pocket":
        most = 6
    call = CallOptions(
        max_new_tokens=most,
        image_aspect=lvlm.family.trained_aspect if aspect is None else aspect,
    )
    engine = Engine(lvlm, data, chosen, call, size=options.block, batch=options.batch)
    if options.dry_run:
        return forecast(engine)
    for name, why in engine.left_out.items():
        logger.warning("%s is left out: %s", name, why)
    manifest = manifest_of(options, engine, fingerprint(lvlm.path))
    if about is not None:
        manifest |= {"image_aspect": call.image_aspect, **about}
    return sweep(options, engine, manifest, hosts, done)


def _plan(options: GridOptions, chosen: Any, data: str) -> bytes:
    """What all processes of a sweep have in common, before any of them loads the model."""
    from resprune_jax.experiments.words import version

    told = {
        name: str(getattr(options, name))
        for name in ("clip", "dtype", "examples", "max_new_tokens", "block", "batch")
    }
    records = [one.record() for one in chosen]
    return json.dumps([version(), data, told, records], default=str).encode()


def manifest_of(options: GridOptions, engine: Any, fingerprint: str) -> dict[str, Any]:
    """What a results folder says of itself; two runs with one manifest give the same rows."""
    from resprune_jax.experiments.sweep.identity import fingerprint as fingerprint_of
    from resprune_jax.experiments.sweep.identity import own_methods
    from resprune_jax.experiments.sweep.shards import FORMAT
    from resprune_jax.experiments.words import version

    lvlm = engine.lvlm
    more: dict[str, Any] = {}  # of what not every sweep has
    if options.clip is not None:
        more["clip_fingerprint"] = fingerprint_of(lvlm.clip.path)
    if own := own_methods(one.method for one in engine.configurations):
        more["own_methods"] = own
    return {
        **more,
        "format": FORMAT,
        "code": version(),
        "model": model_name(options.model),
        "model_fingerprint": fingerprint,
        "clip": None if options.clip is None else model_name(options.clip),
        "data": engine.data.name,
        "data_fingerprint": engine.data.fingerprint,
        "precision": options.dtype,
        "tagger": lvlm.extractor().backend,
        "layers": lvlm.config.text.num_layers,
        "visual_tokens": engine.tokens,
        "block": options.block,
        "batch": options.batch,
        "max_new_tokens": engine.answerer.options.max_new_tokens,
        "examples": len(engine.data.examples),
        "configurations": [one.record() for one in engine.configurations],
        "left_out": engine.left_out,
    }


def sweep(
    options: GridOptions,
    engine: Any,
    manifest: dict[str, Any],
    hosts: Any,
    done: Callable[[], object] | None = None,
) -> int:
    """Run the blocks of this process that are not there yet; `done` is called behind them."""
    from resprune_jax.experiments.common import console
    from resprune_jax.experiments.sweep.shards import Shards

    failed = 0
    begin = time.perf_counter()
    with Shards(options.output, manifest, number=hosts.number, count=hosts.count) as shards:
        shards.write_examples(engine.data.examples)
        own = [block for block in range(engine.blocks) if hosts.owns(block)]
        left = [block for block in own if block not in shards.done]
        with progress("blocks", len(own), len(own) - len(left)) as step:
            for block in left:
                rows = engine.run(block)
                failed += sum(row["error"] is not None for row in rows)
                shards.write(block, rows)
                step()
        if done is not None:
            done()
    out = console()
    out.print(
        f"{len(engine.configurations)} configurations on {len(engine.data.examples)} examples:"
        f" {len(left)} of {len(own)} blocks answered now, in"
        f" {time.perf_counter() - begin:.0f} s; {options.output}",
        markup=False,
    )
    if failed:
        out.print(f"{failed} rows failed: their error says why", markup=False)
    return 1 if failed else 0


def forecast(engine: Any) -> int:
    """Say what a sweep will do, from its first blocks, and how long it will take."""
    from resprune_jax.experiments.common import console

    engine.run(0)  # compiles, which a run does once
    last = min(1, engine.blocks - 1)
    made = engine.choose(last)
    begin = time.perf_counter()
    engine.run(last)
    seconds = time.perf_counter() - begin
    asked = len(engine.configurations) * len(engine.data.examples)
    share = len(made.examples) / max(1, len(engine.data.examples))
    alone = len(engine.alone) * len(made.examples)
    choices, lists = len(engine.pruned) * len(made.examples), len(made.wanted)
    out = console()
    out.print(
        f"{len(engine.configurations)} configurations on {len(engine.data.examples)} examples are"
        f" {asked} rows in {engine.blocks} blocks.",
        markup=False,
    )
    out.print(
        f"In block {last}, {choices} choices give {lists} distinct keep lists, and {alone} answers"
        f" are of methods that share none. So in all: about {choices / share:.0f} choices,"
        f" {lists / share:.0f} distinct keep lists, {(lists + alone) / share:.0f} answers,"
        f" {seconds / share / 60:.1f} minutes on this machine, by one process.",
        markup=False,
    )
    return 0
