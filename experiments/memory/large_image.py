"""A very large image on Qwen2.5-VL at a small width: memory, and the largest arrays made.

    python -m resprune_jax.experiments.memory.large_image

A picture of 3840 x 2160 pixels gives 42,196 patches and 10,549 visual tokens. It is read by the
image processor, encoded, selected from and answered about, from few visual tokens and from all, at
full length and small width: what grows with the number of tokens squared shows, what grows with the
width does not. The check fails when an attention holds more scores than [heads, block, S], the
selection an array larger than the Gram matrix, or the process more memory than the limit.
"""

import argparse
import dataclasses
import json
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from resprune_jax.experiments.memory.loading import resident_memory

LIMIT_GIB = 12.0
WORDS = 48
KEEP = 1024
NEW_TOKENS = 8

CONFIG: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
    "vision_config": {
        "depth": 4,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_heads": 4,
        "out_hidden_size": 128,
        "fullatt_block_indexes": [1, 3],
        "tokens_per_second": 2,
    },
    "text_config": {
        "vocab_size": 1024,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    },
}
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 12845056},
}


@dataclasses.dataclass(frozen=True)
class Step:
    """One compiled program.

    Attributes:
        name: of the program.
        elements: of the largest array in it.
        allowed: how many it may have, and why.
        temporary: bytes that it needs beside arguments and results.
        seconds: that one run took.
    """

    name: str
    elements: int
    allowed: tuple[int, str]
    temporary: int
    seconds: float

    @property
    def good(self) -> bool:
        """Whether no array is larger than allowed, nor all temporaries together than four such."""
        return self.elements <= self.allowed[0] and self.temporary <= 4 * 4 * self.allowed[0]

    def __str__(self) -> str:
        most, why = self.allowed
        return (
            f"{self.name:18} largest array {self.elements / 1e6:7.1f} M elements (at most "
            f"{most / 1e6:.1f} M: {why}), temporaries {self.temporary / 2**30:.2f} GiB, "
            f"{self.seconds:.1f} s"
        )


def largest_array(program: str) -> int:
    """Elements of the largest array that a compiled program's text names."""
    shapes = re.findall(r"\b(?:pred|bf16|[fsu]\d+)\[([\d,]+)\]", program)
    most = 0
    for shape in set(shapes):
        size = 1
        for side in shape.split(","):
            size *= int(side)
        most = max(most, size)
    return most


def check(height: int, width: int, *, keep: int = KEEP) -> list[Step]:
    """Encode, select and answer about a picture of noise.

    Args:
        height: of the picture, in pixels.
        width: the same.
        keep: visual tokens of the pruned answer.

    Returns:
        What each program took.
    """
    import jax
    import numpy as np
    from flax import nnx

    from resprune_jax.methods import get_method
    from resprune_jax.models.decoder.attention import BLOCK, BLOCKWISE_ABOVE
    from resprune_jax.models.families.qwen_vl.family import QwenFamily
    from resprune_jax.models.families.qwen_vl.module import Qwen25VL
    from resprune_jax.models.families.registry import read_model_config
    from resprune_jax.models.prompts.chat import EncodedPrompt
    from resprune_jax.models.prompts.options import CallOptions
    from resprune_jax.models.running.plan import Prompts, make_plan
    from resprune_jax.models.running.programs import programs

    config: Any = read_model_config(CONFIG)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
        family = QwenFamily(config, Path(folder))
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    pictures = family.read([[picture]], "processor")
    patches = len(pictures.inputs["patches"])
    tokens = pictures.layouts[0][0].tokens
    print(f"{height} x {width} pixels: {tokens * 4} patches in {patches}, {tokens} visual tokens")

    state = nnx.split(Qwen25VL(config, rngs=nnx.Rngs(0)))[1]
    run: Any = programs(config, np.dtype("float32"))
    steps: list[Step] = []

    def step(name: str, lowered: Any, *args: Any, allowed: tuple[int, str]) -> Any:
        compiled = lowered.compile()
        # What goes in is there anyway: at small sizes the parameters are larger than any score.
        given = max(np.size(leaf) for leaf in jax.tree.leaves(args))
        allowed = max(allowed[0], given), allowed[1]
        begin = time.perf_counter()
        result = jax.block_until_ready(compiled(*args))
        seconds = time.perf_counter() - begin
        temporary = int(compiled.memory_analysis().temp_size_in_bytes)
        steps.append(Step(name, largest_array(compiled.as_text()), allowed, temporary, seconds))
        print(steps[-1], flush=True)
        return result

    def scores(heads: int, length: int) -> tuple[int, str]:
        block = BLOCK if length * length > BLOCKWISE_ABOVE else length
        return heads * block * length, "[heads, block, S]"

    inputs = (state, pictures.inputs)
    vision = scores(config.vision.num_heads, patches)
    visual = step("encode", run.encode.lower(*inputs), *inputs, allowed=vision)
    slots = visual.valid.shape[1]

    ids = [config.image_token_id, *rng.integers(7, 1000, WORDS).tolist()]
    prompt = EncodedPrompt(
        "", np.asarray(ids, np.int32), ("",) * len(ids), np.zeros((len(ids), 2), np.int32), 0, ""
    )

    class Placeholders:
        placeholders = {"image": (config.image_token_id, "")}  # noqa: RUF012

    for budget in (keep, None):
        plan = make_plan(
            family, Placeholders(), Prompts([prompt], [[]], "none"),  # type: ignore[arg-type]
            pictures.layouts, [budget], CallOptions(), slots=slots, new_tokens=NEW_TOKENS,
        )  # fmt: skip
        kept = np.arange(slots) < plan.totals[:, None]
        name = f"{budget or tokens} tokens"
        if budget is not None:
            nouns = rng.integers(7, 1000, plan.noun_ids.shape).astype(np.int32)
            choice = (
                state, visual, plan.rows, nouns, np.ones_like(nouns, bool), plan.full, plan.limits,
                np.float32(-1), get_method("resprune", **family.resprune), None,
            )  # fmt: skip
            _, kept, *_ = step(
                "select", run.prune.lower(*choice, keep=plan.picks), *choice,
                allowed=(slots * slots, "the Gram matrix"),
            )  # fmt: skip
            assert int(np.asarray(kept).sum()) == min(budget, tokens)
        laid = (
            state, plan.ids, plan.visual_index, plan.valid, plan.rows, visual.embeddings, kept,
            plan.rope,
        )  # fmt: skip
        allowed = scores(config.text.num_heads, plan.length)
        *entered, position = run.assemble(*laid, length=plan.length, positions=family.positions)
        logits, cache = step(
            f"prefill {name}", run.prefill.lower(state, *entered, slots=64), state, *entered,
            allowed=allowed,
        )  # fmt: skip
        answer = (
            state, cache, logits, position, np.int32(NEW_TOKENS), np.full(1, -1, np.int32),
            np.uint32(0), np.float32(1), np.float32(1),
        )  # fmt: skip
        out, _ = step(
            f"decode {name}", run.decode.lower(*answer, slots=64, greedy=True), *answer,
            allowed=allowed,
        )  # fmt: skip
        made = np.asarray(out)[0, :NEW_TOKENS]
        assert (made >= 0).all() and np.isfinite(np.asarray(logits)).all()
    return steps


def main(arguments: list[str] | None = None) -> int:
    """Run the check; returns the exit status, 1 when something is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--height", type=int, default=2160, help="pixels (default: 2160)")
    parser.add_argument("--width", type=int, default=3840, help="pixels (default: 3840)")
    parser.add_argument("--keep", type=int, default=KEEP, help=f"visual tokens (default: {KEEP})")
    parser.add_argument(
        "--limit-gib", type=float, default=LIMIT_GIB, help=f"memory (default: {LIMIT_GIB:g})"
    )
    options = parser.parse_args(arguments)
    steps = check(options.height, options.width, keep=options.keep)
    _, peak = resident_memory()
    print(f"peak memory of the process {peak / 2**30:.2f} GiB (limit {options.limit_gib:g})")
    large = [step.name for step in steps if not step.good]
    if large:
        print(f"FAILED: too large arrays in {', '.join(large)}")
    if peak > options.limit_gib * 2**30:
        print("FAILED: the process takes more memory than the limit")
    failed = bool(large) or peak > options.limit_gib * 2**30
    if not failed:
        print("passed")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
