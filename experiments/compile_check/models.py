"""Models of 7 billion parameters as shapes alone, through every program that an answer runs.

The programs are those of `LVLM.generate`, laid out by its own host code. What each gives, shardings
included, is what the next one is compiled for: the compiler's own choices are followed from the
image to the last token, as they would be on the chips.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from resprune_jax.experiments.compile_check.cases import Case
from resprune_jax.experiments.compile_check.compiler import (
    bytes_per_device,
    compile_abstract,
    traced_for,
)
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.target import Figures, Target

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from resprune_jax.models.families.base import Family
    from resprune_jax.models.prompts.budgets import Keep
    from resprune_jax.models.running.plan import Plan

TEXT_TOKENS = 48
"""Of the prompts: a system turn and a question."""

NEW_TOKENS = 64
"""Of an answer, at most."""


def abstract_state(config: Any, mesh: "Mesh", dtype: Any) -> Any:
    """The parameters of a model as shapes, laid on the mesh as `load_model` lays them."""
    from flax import nnx

    from resprune_jax.models.checkpoint.reading import abstract_parameters
    from resprune_jax.models.families.registry import module_class

    made = module_class(config)
    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=dtype))
    return abstract_parameters(abstract, mesh)


@dataclass(frozen=True)
class Workload:
    """A batch of prompts with an image each, laid out as `LVLM.generate` would.

    Attributes:
        family: the host's half of the model, without the processor of a checkpoint.
        images: inputs of `Programs.encode`: images of zeros.
        batched: whether the first axis of `images` runs over them.
        plan: the prompts.
    """

    family: "Family"
    images: Any
    batched: bool
    plan: "Plan"


def make_workload(
    config: Any,
    size: tuple[int, int],
    batch: int,
    text_tokens: int,
    *,
    keep: "Keep" = None,
    new_tokens: int = NEW_TOKENS,
) -> Workload:
    """Lay out a batch.

    Args:
        config: the architecture.
        size: (height, width) of an image in pixels, as the vision tower sees it.
        batch: prompts, each with an image.
        text_tokens: of a prompt, half of them in front of the image.
        keep: budget; None for all visual tokens.
        new_tokens: of an answer, at most.
    """
    from types import SimpleNamespace

    import numpy as np

    from resprune_jax.models.families.registry import family_class
    from resprune_jax.models.prompts.chat import EncodedPrompt
    from resprune_jax.models.prompts.options import CallOptions
    from resprune_jax.models.running.plan import Prompts, make_plan

    # A family is made with a checkpoint's processor; nothing here needs one.
    family = family_class(config).without_processor(config)
    pictures = family.blank(size, batch)
    ids = np.zeros(text_tokens + 1, np.int32)
    ids[text_tokens // 2] = config.image_token_id
    prompt = EncodedPrompt("", ids, ("",) * len(ids), np.zeros((len(ids), 2), np.int32), 0, "")
    encoder: Any = SimpleNamespace(placeholders={"image": (config.image_token_id, "")})
    plan = make_plan(
        family, encoder, Prompts([prompt] * batch, [[]] * batch, ""), pictures.layouts,
        [keep] * batch, CallOptions(), slots=pictures.slots, new_tokens=new_tokens,
    )  # fmt: skip
    return Workload(family, pictures.inputs, pictures.batched, plan)


def case_rows(
    name: str, case: Case, target: Target, batch: int, programs: Sequence[str] = ()
) -> Iterator[Row]:
    """`model_rows` of a published model in bfloat16."""
    from resprune_jax.models.families.registry import read_model_config

    config = read_model_config(case.hf)
    yield from model_rows(
        name, config, target, size=case.size, keep=case.keep, batch=batch, programs=programs
    )


def model_rows(
    name: str,
    config: Any,
    target: Target,
    *,
    size: tuple[int, int],
    keep: "Keep",
    batch: int,
    dtype: Any = "bfloat16",
    text_tokens: int = TEXT_TOKENS,
    new_tokens: int = NEW_TOKENS,
    programs: Sequence[str] = (),
) -> Iterator[Row]:
    """Compile what an answer runs: the tower, the selection, prefill and decode, full and pruned.

    Args:
        name: of the model.
        config: its architecture.
        target: the devices.
        size: (height, width) of an image in pixels.
        keep: the budget of the pruned prompts.
        batch: prompts.
        dtype: of the parameters.
        text_tokens: of a prompt.
        new_tokens: of an answer, at most.
        programs: those to show; none: all. What they get from others is compiled for them.

    Yields:
        A row a program, as soon as it is compiled.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from resprune_jax.methods import get_method
    from resprune_jax.methods.settings import for_each
    from resprune_jax.models.checkpoint.sharding import batch_sharding, divide_mlps
    from resprune_jax.models.decoder.attention import paths_taken
    from resprune_jax.models.prompts import buckets
    from resprune_jax.models.running import programs as running
    from resprune_jax.models.running.precision import resolve_precision

    dtype, mesh = jnp.dtype(dtype), target.mesh()
    config = divide_mlps(config, mesh)
    # The protocol of `Programs` has no `lower`.
    run: Any = running.programs(config, dtype, resolve_precision(None, dtype))
    state = tuple(jax.tree.leaves(abstract_state(config, mesh, dtype)))
    parameters = bytes_per_device(state)
    # What is laid out depends on the backend, too.
    with traced_for(target.platform, mesh.size, target.capability):
        works = [
            make_workload(config, size, batch, text_tokens, keep=budget, new_tokens=new_tokens)
            for budget in (None, keep)
        ]
    family = works[0].family
    slots = buckets.new_token_bucket(new_tokens)
    layers = {
        "encode": getattr(config, "num_vision_blocks", config.vision.num_layers),
        "prefill": config.text.num_layers,
        "decode": config.text.num_layers,
    }

    def put(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, x.shape))

    def row(
        program: str, plan: "Plan", length: int, lower: Any, *args: Any, donated: Any = ()
    ) -> Row:
        tokens = int(plan.limits[0])
        held = parameters + bytes_per_device(args)
        with traced_for(target.platform, mesh.size, target.capability), paths_taken() as paths:
            made = compile_abstract(
                lower,
                state,
                *args,
                keep_text=target.reads_models,
                options=target.options,
                instead=target.instead,
            )
        figures = Figures()
        if made.text:
            figures = target.figures(made.text, layers.get(program, 0))
        setting: dict[str, int | str] = {
            "batch": batch,
            "visual_tokens": tokens,
            "length": length,
            "attention": ", ".join(sorted(paths)),
        }
        return Row(
            name, program, setting, replace(made, text=""), target.limit, held,
            bytes_per_device(donated), figures,
        )  # fmt: skip

    images = jax.tree.map(put, works[0].images) if works[0].batched else works[0].images
    see = partial(run.encode.lower, needs=frozenset())  # as ResPrune and the full model do
    encoded = row("encode", works[0].plan, 0, see, images)
    wanted = frozenset(programs) or frozenset({"encode", "assemble", "prefill", "decode", "prune"})
    if "encode" in wanted:
        yield encoded
    if (visual := encoded.compiled.result) is None:
        return
    for work in works:
        plan = work.plan
        kept: Any = np.zeros(visual.valid.shape, bool)
        if not plan.full.all():
            method = for_each(get_method("resprune", **family.defaults), len(plan.rows))
            choose = partial(run.prune.lower, keep=plan.picks, newline="candidate")
            of_prompts = (plan.rows, plan.noun_ids, plan.noun_valid, plan.full, plan.limits)
            chosen = row(
                "prune", plan, 0, choose, visual, *map(put, of_prompts), np.float32(-1), method,
                None, None,
            )  # fmt: skip
            if "prune" in wanted:
                yield chosen
            if chosen.compiled.result is None:
                continue
            kept = chosen.compiled.result[1]
        if not wanted & {"assemble", "prefill", "decode"}:
            continue
        lay_out = partial(run.assemble.lower, length=plan.length, positions=family.positions)
        prompt = map(put, (plan.ids, plan.visual_index, plan.valid, plan.rows))
        rope = jax.tree.map(put, plan.rope)
        laid = row("assemble", plan, plan.length, lay_out, *prompt, visual.embeddings, kept, rope)
        if "assemble" in wanted:
            yield laid
        if laid.compiled.result is None or not wanted & {"prefill", "decode"}:
            continue
        x, places, count, position = laid.compiled.result
        fill = partial(run.prefill.lower, slots=slots)
        filled = row("prefill", plan, plan.length, fill, x, places, count)
        if "prefill" in wanted:
            yield filled
        if filled.compiled.result is None or "decode" not in wanted:
            continue
        logits, cache = filled.compiled.result
        answer = (
            np.int32(new_tokens), np.zeros(1, np.int32), np.uint32(0), np.float32(1), np.float32(1),
            None, None, None,  # nothing that a generation_config.json may ask for,
            None,  # and no answer that has begun
        )  # fmt: skip
        yield row(
            "decode", plan, plan.length + slots,
            partial(run.decode.lower, slots=slots, greedy=True),
            cache, logits, position, *answer, donated=cache,
        )  # fmt: skip
