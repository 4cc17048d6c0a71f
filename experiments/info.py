"""`resprune info`: what a checkpoint holds and what its visual tokens cost, from shapes alone."""

import dataclasses
import json
import math
import re
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from resprune_jax.errors import CallError
from resprune_jax.experiments.common import (
    DType,
    Keep,
    ModelOptions,
    console,
    import_models,
    model_name,
    parse_keep,
)

if TYPE_CHECKING:
    from resprune_jax.costs import DecoderShape
    from resprune_jax.models.checkpoint.formats import ModelConfig
    from resprune_jax.models.families.base import ImageLayout

# The paper's budgets, as shares: 192, 128 and 64 of LLaVA-1.5's 576 visual tokens.
PAPER_BUDGETS = (1 / 3, 2 / 9, 1 / 9)

LARGEST_SIDE = 100_000

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
    size: Annotated[
        tuple[str, ...],
        tyro.conf.arg(
            metavar="WxH ...", help_behavior_hint="(default: the tower's own, or some usual ones)"
        ),
    ] = ()
    """Sizes of images in pixels, such as 1920x1080; costs are those of the first."""
    dtype: Annotated[
        DType | None,
        tyro.conf.arg(
            metavar="{float32,bfloat16,float16}", help_behavior_hint="(default: the checkpoint's)"
        ),
    ] = None
    """Number format of weights and cache."""
    json: bool = False
    """Print JSON in place of tables."""


def decoder_shape(config: "ModelConfig", bytes_per_number: int) -> "DecoderShape":
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


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of a size as a person writes it.

    Raises:
        CallError: something else than two whole numbers with an x between, or sides that no image
            has.
    """
    found = re.fullmatch(r"(\d{1,9})[xX×](\d{1,9})", text.strip())
    sides = tuple(int(n) for n in found.groups()) if found else ()
    if not sides or min(sides) < 1 or max(sides) > LARGEST_SIDE:
        raise CallError(
            f"--size {text!r} is no image's size: write width and height in pixels, such as"
            f" 1920x1080, {LARGEST_SIDE} at most"
        )
    return sides[0], sides[1]


def count_parameters(config: "ModelConfig") -> dict[str, int]:
    """Parameters that run, by part, from abstract shapes: nothing is allocated.

    Args:
        config: the architecture.

    Returns:
        Counts by the keys of `PARTS`. Vision blocks behind the one that feeds the projector are in
        the checkpoint's files, but never run and are not counted.
    """
    import jax.numpy as jnp
    from flax import nnx

    from resprune_jax.models.families.registry import module_class

    made = module_class(config)
    # Decoder layers are alike: one is traced in place of eighty.
    of: Any = config  # a dataclass of its family
    one_layer = dataclasses.replace(of, text=dataclasses.replace(of.text, num_layers=1))
    abstract = nnx.eval_shape(lambda: made(one_layer, rngs=nnx.Rngs(0), dtype=jnp.bfloat16))
    counts = dict.fromkeys(PARTS, 0)
    for path, leaf in nnx.to_flat_state(nnx.state(abstract)):
        part, times = str(path[0]), 1
        if part == "language_model":
            part = "embed_tokens" if path[1] == "embed_tokens" else "layers"
            times = config.text.num_layers if path[1] == "layers" else 1
        elif part == "visual":
            part = "multi_modal_projector" if path[1] == "merger" else "vision_tower"
        elif part == "image_newline":
            part = "multi_modal_projector"
        counts[part] += times * math.prod(leaf.get_value().shape)
    return counts


def describe(
    config: "ModelConfig",
    budgets: tuple[Keep, ...],
    images: list[tuple[tuple[int, int], "ImageLayout"]],
    *,
    bytes_per_number: int,
) -> dict[str, Any]:
    """The facts about an architecture, as `--json` prints them.

    Args:
        config: the architecture.
        budgets: budgets beside the full model; each as `LVLM.generate` takes it.
        images: (width, height) of images, and what each gives; costs are those of the first.
        bytes_per_number: of weights and cache.

    Returns:
        Parameters by part, visual tokens, and a row a budget with the paper's FLOPs and KV bytes
        (visual tokens only, `costs.py`).
    """
    from resprune_jax import costs
    from resprune_jax.models.prompts import budgets as resolving

    (size, first), total = images[0], images[0][1].tokens
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
        "family": family_name(config),
        "size": list(size),
        "visual_tokens": total,
        **vision_facts(config, size, first),
        "images": [
            {
                "size": list(each),
                "visual_tokens": layout.tokens,
                "newlines": layout.newlines,
                "kept": [resolving.ceiling(keep, layout.tokens) for keep in budgets],
            }
            for each, layout in images
        ],
        "budgets": rows,
    }


def family_name(config: "ModelConfig") -> str:
    """The family as users know it."""
    from resprune_jax.models.families.registry import family_class

    return str(family_class(config).name)


def vision_facts(
    config: "ModelConfig", size: tuple[int, int], layout: "ImageLayout"
) -> dict[str, Any]:
    """How an image of this (width, height) is cut, and what its tower and projector cost."""
    from resprune_jax.models.families.registry import family_class

    costs = family_class(config).vision_costs(config, size[::-1], layout)
    return {
        "grid": list(costs.grid),
        "tiles": costs.tiles,
        "vision_tower_flops": costs.tower_flops,
        "projector_flops": costs.projector_flops,
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
    sizes = tuple(parse_size(text) for text in options.size)

    import_models()
    from resprune_jax.models.checkpoint.hub import resolve_checkpoint
    from resprune_jax.models.checkpoint.reading import resolve_dtype
    from resprune_jax.models.families.registry import checkpoint_config, family_class
    from resprune_jax.models.prompts.generation_file import read_generation_settings

    folder = resolve_checkpoint(options.model, revision=options.revision, weights=False)
    raw, config = checkpoint_config(folder)
    answers = read_generation_settings(folder, config.text.vocab_size, raw)
    family = family_class(config)
    if not sizes:
        sizes = tuple((width, height) for height, width in family.usual_sizes(config))
    layout = family.layouts(config, folder)
    images = [(size, layout(size[1], size[0])) for size in sizes]
    dtype = resolve_dtype(options.dtype, folder, raw)
    facts = {
        "model": model_name(options.model),
        "dtype": dtype.name,
        "answers": answers.applied,
        "sampling": dict(answers.sampling),
        **describe(config, budgets, images, bytes_per_number=dtype.itemsize),
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
    title = f"{facts['model']}  ({facts['family']}, {facts['dtype']})"
    out.print(Text(title, style="bold"))
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
    width, height = facts["size"]
    cut = f"{rows}x{columns}"
    if facts.get("tiles", 1) > 1:
        lines = facts["images"][0]["newlines"]
        cut = f"{facts['tiles']} tiles of {cut}, unpadded; {lines} newlines"
    out.print(
        f"An image of {width}x{height} pixels gives {facts['visual_tokens']} visual tokens"
        f" ({cut}); vision tower {flops_text(facts['vision_tower_flops'])}FLOPs,"
        f" projector {flops_text(facts['projector_flops'])}FLOPs."
    )
    if len(facts["images"]) > 1:
        table = Table("image", box=box.SIMPLE_HEAD)
        table.add_column("visual tokens", justify="right")
        table.add_column("kept", justify="right")
        for image in facts["images"]:
            kept = ", ".join(str(count) for count in image["kept"])
            name = f"{image['size'][0]}x{image['size'][1]}"
            table.add_row(name, str(image["visual_tokens"]), kept)
        out.print(table)
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
    for name, settings in (
        ("Answers are shaped by", facts["answers"]),
        ("With --sample they are drawn by", facts["sampling"]),
    ):
        if settings:
            said = ", ".join(f"{key} {value}"[:80] for key, value in settings.items())
            out.print(f"{name} the checkpoint's {said}.", markup=False)
    out.print(
        "Counted as the paper counts: visual tokens only, prefill, 2 FLOPs a multiply-add. Choice"
        " is the selection, one inner-product pass a pick.",
        style="dim",
    )
