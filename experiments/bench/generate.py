"""`resprune bench generate`: from the picture to the last token, full and pruned, choice included.

Random weights: the words are noise, the work is that of real weights. On a GPU or TPU the shapes
are those of LLaVA-1.5-7B in bfloat16, on a CPU those of a small model.
"""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from resprune_jax.errors import CallError
from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.selection import start, write
from resprune_jax.experiments.bench.timing import (
    Side,
    Timing,
    free_memory,
    interleave_parts,
    leave_memory_to_torch,
    machine,
    note,
    peak_growth,
    taken,
)
from resprune_jax.experiments.common import (
    check_number,
    check_target,
    import_models,
    make_folder,
    shown,
)

ModelName = Literal["small", "llava-1.5-7b"]

PARTS = ("encode", "select", "prefill", "decode")
TEXT_TOKENS = 48
ROW_SECONDS = 40.0
"""No round of a batch begins after so many; one is always made."""
LONG = 4.0
"""Seconds; a pass that takes longer is not made again to see what it needs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions:
    """Measure whole answers with random weights: full against pruned, selection included."""

    model: Annotated[
        ModelName | None, shown("{small,llava-1.5-7b}", "small on a CPU, else llava-1.5-7b")
    ] = None
    """Shapes of the model."""
    keep: Annotated[tuple[int, ...], shown("COUNT ...", "192 128 64")] = (192, 128, 64)
    """Visual tokens to keep, each set against the full model."""
    batch: Annotated[tuple[int, ...], shown("B ...", "1 8 32")] = (1, 8, 32)
    """Prompts in a batch, each about an image of its own."""
    new_tokens: Annotated[int, shown("N", "32")] = 32
    """Tokens of an answer."""
    repeats: Annotated[int, shown("N", "10")] = 10
    """Rounds of a batch; fewer where they would take more than 40 seconds."""
    quick: bool = False
    """One image, 128 tokens, three rounds."""
    without_torch: bool = False
    """Leave transformers out."""
    resume: bool = False
    """Keep the batches that the JSON file holds already."""
    out: Annotated[Path, shown("DIR", "bench")] = Path("bench")
    """Folder for generate.json, generate.md and generate.png; made if missing."""
    debug: bool = False
    """Show the traceback when something fails."""


def check(options: GenerateOptions) -> None:
    """Refuse what cannot work before a model is made.

    Raises:
        CallError: an option that cannot work.
    """
    if not options.keep or not options.batch:
        raise CallError("give at least one --keep and one --batch")
    for name, counts in (("--keep", options.keep), ("--batch", options.batch)):
        for count in counts:
            check_number(name, count, 1)
    check_number("--new-tokens", options.new_tokens, 2)
    check_number("--repeats", options.repeats, 1)
    make_folder(options.out, "--out")
    for name in ("generate.json", "generate.png"):
        check_target(options.out / name, "--out")


def run(options: GenerateOptions) -> int:
    """Carry out `resprune bench generate`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: an option that cannot work.
        RunError: a measurement in which something was compiled.
    """
    import_models()
    from resprune_jax.experiments.bench import generate_report as bench_report
    from resprune_jax.experiments.bench.markdown import generate_markdown
    from resprune_jax.experiments.bench.model import model_config

    check(options)
    leave_memory_to_torch()
    about = machine()
    name = options.model or ("small" if about["platform"] == "cpu" else "llava-1.5-7b")
    hf, dtype = model_config(name)
    total = (hf["vision_config"]["image_size"] // hf["vision_config"]["patch_size"]) ** 2
    if worst := [count for count in options.keep if count >= total]:
        raise CallError(f"--keep {worst[0]}: the model has {total} visual tokens; keep fewer")
    path = options.out / "generate.json"
    report = start(path, about, "generate", options.resume)
    report["model"] = {"name": name, "dtype": dtype, "visual_tokens": total}
    missing = bench_torch.why_not(about["platform"]) if not options.without_torch else "left out"
    report["torch"] = missing
    if missing:
        note(f"transformers: {missing}")
    keep = options.keep if not options.quick else (128,) if total > 128 else options.keep[:1]
    repeats = min(options.repeats, 3) if options.quick else options.repeats
    bench = Bench(hf, dtype, report, same_weights=name == "small", with_torch=missing is None)
    for batch in options.batch[:1] if options.quick else options.batch:
        if (row := f"batch {batch}") in report["rows"]:
            note(f"{row}: kept")
            continue
        note(f"{row} ...")
        report["rows"][row] = bench.measure(batch, (None, *keep), options.new_tokens, repeats)
        write(path, report)
        bench_report.print_row(row, report["rows"][row])
    bench_report.print_end(report)
    bench_report.draw(report, options.out / "generate.png")
    words = options.out / "generate.md"
    words.write_text(generate_markdown(report), encoding="utf-8")
    note(f"written: {path}, {words}, {options.out / 'generate.png'}")
    return 0


class Bench:
    """A model with random weights, made when it is first needed, and its counterpart in torch."""

    def __init__(
        self, hf: dict[str, Any], dtype: str, report: dict[str, Any], *, same_weights: bool,
        with_torch: bool,
    ) -> None:  # fmt: skip
        import jax.numpy as jnp

        from resprune_jax.models.families.registry import read_model_config

        self.hf, self.config = hf, read_model_config(hf)
        self.dtype = jnp.dtype(dtype)
        self.report = report
        self.same_weights, self.with_torch = same_weights, with_torch
        self._state: Any = None

    @property
    def state(self) -> Any:
        """The parameters."""
        import jax

        from resprune_jax.experiments.bench.model import random_state

        if self._state is None:
            note("making random weights")
            self._state = jax.block_until_ready(random_state(self.config, self.dtype))
            leaves = jax.tree.leaves(self._state)
            self.report["model"] |= {
                "parameters": sum(leaf.size for leaf in leaves),
                "parameter_bytes": sum(leaf.nbytes for leaf in leaves),
            }
        return self._state

    def measure(
        self, batch: int, budgets: tuple[int | None, ...], new_tokens: int, repeats: int
    ) -> dict[str, Any]:
        """Measure one batch at every budget, ours and transformers' in turn.

        Args:
            batch: prompts.
            budgets: visual tokens to keep, None for all.
            new_tokens: of an answer.
            repeats: rounds.

        Returns:
            The row as the JSON file holds it: "sides", each with its budget and times.

        Raises:
            RunError: something was compiled while sides were timed.
        """
        from resprune_jax.experiments.bench import hf as bench_hf
        from resprune_jax.experiments.bench.model import compile_passes, make_inputs

        begun = time.perf_counter()
        facts: dict[str, Any] = {
            "batch": batch, "new_tokens": new_tokens, "text_tokens": TEXT_TOKENS, "sides": [],
            "left_out": {},
        }  # fmt: skip
        need = self._cache_bytes(batch, new_tokens) * (2 if self.with_torch else 1)
        if need > (free := int(0.9 * free_memory())):
            facts["left_out"]["all"] = f"its caches take {need:,} bytes, {free:,} are free"
            return facts
        inputs = make_inputs(self.config, batch, TEXT_TOKENS)
        made = compile_passes(self.config, self.dtype, self.state, inputs, budgets, new_tokens)
        passes: list[tuple[str, int | None, Any]] = [
            ("here", keep, each) for keep, each in zip(budgets, made, strict=True)
        ]
        with contextlib.ExitStack() as stack:
            if self.with_torch:
                import jax

                device = bench_torch.device_of(jax.default_backend())
                model = stack.enter_context(
                    bench_hf.loaded(self.hf, self.state, device, same_weights=self.same_weights)
                )
                for keep in budgets:
                    theirs = bench_hf.make_pass(model, inputs, keep, new_tokens, device)
                    passes.append(("transformers", keep, theirs))
            sides, needed = [], {}
            for where, keep, each in passes:
                name = f"{where} {keep}"
                usual = taken(each.run)
                if usual < LONG:  # the first run also did what is done only once
                    usual = taken(each.run)
                    needed[name] = self._needed(each, where)
                sides.append(Side(name, each.run, usual))
            times = interleave_parts(sides, repeats, ROW_SECONDS)
            tokens = {f"{where} {keep}": each.tokens()[:batch] for where, keep, each in passes}
        for where, keep, each in passes:
            name = f"{where} {keep}"
            facts["sides"].append(
                {"where": where, "keep": keep, "memory": needed.get(name) or _unseen(each)}
                | self._times(times[name], batch, new_tokens)
            )
        if self.with_torch and self.same_weights:
            equal = tokens["here None"] == tokens["transformers None"]
            facts["tokens_equal"] = float(equal.mean())
        compare(facts["sides"])
        return facts | {"seconds": time.perf_counter() - begun}

    def _cache_bytes(self, batch: int, new_tokens: int) -> int:
        """Keys and values of the full model's cache."""
        from resprune_jax.models.prompts import buckets

        text = self.config.text
        length = buckets.length_bucket(TEXT_TOKENS + self.report["model"]["visual_tokens"])
        length += buckets.new_token_bucket(new_tokens)
        width = text.num_layers * text.num_kv_heads * text.head_dim
        return 2 * buckets.batch_bucket(batch) * length * width * self.dtype.itemsize

    def _needed(self, made: Any, where: str) -> dict[str, int | None]:
        """Bytes beside the parameters: as planned by the compiler, and as seen in a pass."""
        import jax

        seen = None
        if jax.default_backend() == "cpu":
            seen = peak_growth(made.run)
        elif where == "transformers":
            seen = bench_torch.peak_memory(made.run)
        return {"planned": getattr(made, "planned", None), "measured": seen}

    @staticmethod
    def _times(parts: dict[str, Timing], batch: int, new_tokens: int) -> dict[str, Any]:
        """Milliseconds of a batch by part, to the first token and for each further one."""
        rounds = range(len(parts["decode"].samples))
        first = Timing(
            tuple(sum(parts[part].samples[turn] for part in PARTS[:3]) for turn in rounds)
        )
        token = Timing(tuple(each / (new_tokens - 1) for each in parts["decode"].samples))
        ms = {part: parts[part].facts() for part in PARTS}
        return {"ms": ms | {"first_token": first.facts(), "token": token.facts()}}


def _unseen(made: Any) -> dict[str, int | None]:
    """The memory of a pass that was too long to be made once more for it: as planned."""
    return {"planned": getattr(made, "planned", None), "measured": None}


def compare(sides: list[dict[str, Any]]) -> None:
    """Add to each pruned side its speed-up to the first token over the full model of its own
    implementation, and "why" where there is none.
    """
    full = {side["where"]: side["ms"] for side in sides if side["keep"] is None}
    for side in sides:
        if side["keep"] is None:
            continue
        ms, other = side["ms"], full[side["where"]]
        first, before = ms["first_token"], other["first_token"]
        side["speedup"] = before["median"] / first["median"]
        if first["median"] < before["median"]:
            continue
        spent = ms["select"]["median"]
        saved = other["prefill"]["median"] - ms["prefill"]["median"]
        side["why"] = (
            f"choosing takes {spent:.3g} ms and prefill is {saved:.3g} ms shorter"
            if saved < spent
            else f"the spread of the runs ({first['low']:.3g} to {first['high']:.3g} ms) is wider"
            " than the gain"
        )
