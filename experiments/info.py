"""`resprune info`: what a checkpoint holds and what its visual tokens cost, from shapes alone."""

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from resprune_jax.experiments.common import (
    DType,
    Keep,
    ModelOptions,
    console,
    model_name,
    parse_keep,
)

if TYPE_CHECKING:
    from resprune_jax.costs import DecoderShape
    from resprune_jax.models.config import LlavaConfig

# The paper's budgets, as shares: 192, 128 and 64 of LLaVA-1.5's 576 visual tokens.
PAPER_BUDGETS = (1 / 3, 2 / 9, 1 / 9)

PARTS = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
    "embed_tokens": "token embeddings",
    "layers": "decoder layers and norm",
    "lm_head": "output head",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InfoOptions(ModelOptions):
    """Show the parameters of a checkpoint and what its visual tokens cost; reads no weights."""

    keep: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="COUNT|RATIO ...", help_behavior_hint="(default: 1/3, 2/9 and 1/9 of them)"
        ),
    ] = ()
    """Budgets of visual tokens to set against the full model."""
    dtype: Annotated[
        DType | None,
        tyro.conf.arg(
            metavar="{float32,bfloat16,float16}", help_behavior_hint="(default: the checkpoint's)"
        ),
    ] = None
    """Number format of weights and cache."""
    json: bool = False
    """Print JSON in place of tables."""


def decoder_shape(config: "LlavaConfig", bytes_per_number: int) -> "DecoderShape":
    """The language model's sizes as the accounting of costs takes them."""
    from resprune_jax.costs import DecoderShape

    text = config.text
    return DecoderShape(
        layers=text.num_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        kv_heads=text.num_kv_heads,
        head_dim=text.head_dim,
        bytes=bytes_per_number,
    )


def count_parameters(config: "LlavaConfig") -> dict[str, int]:
    """Parameters that run, by part, from abstract shapes: nothing is allocated.

    Args:
        config: the architecture.

    Returns:
        Counts by the keys of `PARTS`. Vision blocks behind the one that feeds the projector are in
        the checkpoint's files, but never run and are not counted.
    """
    import jax.numpy as jnp
    from flax import nnx

    from resprune_jax.models.llava import Llava

    abstract = nnx.eval_shape(lambda: Llava(config, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    counts = dict.fromkeys(PARTS, 0)
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        part = str(path[0])
        if part == "language_model":
            part = "embed_tokens" if path[1] == "embed_tokens" else "layers"
        counts[part] += math.prod(leaf.get_value().shape)
    return counts


def describe(
    config: "LlavaConfig", budgets: tuple[Keep, ...], *, bytes_per_number: int
) -> dict[str, Any]:
    """The facts about an architecture, as `--json` prints them.

    Args:
        config: the architecture.
        budgets: budgets beside the full model; each as `LVLM.generate` takes it.
        bytes_per_number: of weights and cache.

    Returns:
        Parameters by part, visual tokens, and a row a budget with the paper's FLOPs and KV bytes
        (visual tokens only, `costs.py`).
    """
    from resprune_jax import costs
    from resprune_jax.models import budgets as resolving

    vision, total = config.vision, config.num_visual_tokens
    shape = decoder_shape(config, bytes_per_number)
    parameters = count_parameters(config)
    kept = [resolving.count(keep, total) for keep in budgets]
    rows = []
    for row in costs.budget_table(total, kept, shape):
        count = int(row.kept)
        chosen = costs.selection_flops(total, count, shape.hidden) if count < total else 0.0
        rows.append(
            {
                "kept": count,
                "share": count / total,
                "llm_flops": row.flops,
                "llm_flops_share": row.flops_ratio,
                "kv_bytes": int(row.kv_bytes),
                "kv_share": row.kv_ratio,
                "selection_flops": chosen,
            }
        )
    return {
        "parameters": {**parameters, "total": sum(parameters.values())},
        "parameter_bytes": sum(parameters.values()) * bytes_per_number,
        "image_size": vision.image_size,
        "grid": [vision.grid, vision.grid],
        "visual_tokens": total,
        "vision_tower_flops": costs.vision_tower_flops(
            vision.num_patches,
            layers=config.num_vision_blocks,
            hidden=vision.hidden_size,
            intermediate=vision.intermediate_size,
            patch_values=vision.num_channels * vision.patch_size**2,
        ),
        "projector_flops": costs.projector_flops(
            total, vision_hidden=vision.hidden_size, hidden=config.text.hidden_size
        ),
        "budgets": rows,
    }


def run(options: InfoOptions) -> int:
    """Carry out `resprune info`.

    Args:
        options: the command's options.

    Returns:
        0.

    Raises:
        CallError: no such checkpoint, one that is not supported, or an impossible budget.
        RunError: a configuration that is broken, or a Hub that cannot be reached.
    """
    budgets = tuple(parse_keep(text) for text in options.keep) or PAPER_BUDGETS

    from resprune_jax.models.checkpoint import read_config, resolve_dtype
    from resprune_jax.models.config import LlavaConfig
    from resprune_jax.models.hub import resolve_checkpoint

    folder = resolve_checkpoint(options.model, revision=options.revision, weights=False)
    raw = read_config(folder)
    config = LlavaConfig.from_hf(raw)
    dtype = resolve_dtype(options.dtype, folder, raw)
    facts = {
        "model": model_name(options.model),
        "dtype": dtype.name,
        **describe(config, budgets, bytes_per_number=dtype.itemsize),
    }
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        _print(facts)
    return 0


def flops_text(flops: float) -> str:
    """FLOPs in the unit that suits them, as "7.81 T"."""
    return _in_units(flops, 1000.0, ("", "k", "M", "G", "T", "P"))


def bytes_text(count: float) -> str:
    """Bytes in the unit that suits them, as "288 MiB"."""
    return _in_units(count, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def _in_units(value: float, step: float, units: tuple[str, ...]) -> str:
    power = 0
    while abs(value) >= step and power < len(units) - 1:
        value /= step
        power += 1
    digits = 0 if value >= 100 or power == 0 else 1 if value >= 10 else 2
    return f"{value:.{digits}f} {units[power]}".rstrip()


def _print(facts: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    out.print(Text(f"{facts['model']}  ({facts['dtype']})", style="bold"))
    size = facts["parameter_bytes"] / facts["parameters"]["total"]
    table = Table("part", box=box.SIMPLE_HEAD)
    for head in ("parameters", "memory"):
        table.add_column(head, justify="right")
    for part, name in PARTS.items():
        count = facts["parameters"][part]
        # A tied head has no parameters of its own.
        shown = f"{count:,}" if count else "the embeddings"
        table.add_row(name, shown, bytes_text(count * size) if count else "")
    total = facts["parameters"]["total"]
    table.add_section()
    table.add_row("all that runs", f"{total:,}", bytes_text(total * size))
    out.print(table)

    rows, columns = facts["grid"]
    side = facts["image_size"]
    out.print(
        f"An image of {side}x{side} pixels gives {facts['visual_tokens']} visual tokens"
        f" ({rows}x{columns}); vision tower {flops_text(facts['vision_tower_flops'])}FLOPs,"
        f" projector {flops_text(facts['projector_flops'])}FLOPs."
    )
    table = Table(box=box.SIMPLE_HEAD)
    for head in ("visual tokens", "share", "LLM FLOPs", "of full", "KV cache", "of full", "choice"):
        table.add_column(head, justify="right")
    for row in facts["budgets"]:
        table.add_row(
            str(row["kept"]),
            f"{row['share']:.1%}",
            flops_text(row["llm_flops"]),
            f"{row['llm_flops_share']:.1%}",
            bytes_text(row["kv_bytes"]),
            f"{row['kv_share']:.1%}",
            flops_text(row["selection_flops"]) if row["selection_flops"] else "",
        )
    out.print(table)
    out.print(
        "Counted as the paper counts: visual tokens only, prefill, 2 FLOPs a multiply-add. Choice"
        " is the selection, one inner-product pass a pick.",
        style="dim",
    )
