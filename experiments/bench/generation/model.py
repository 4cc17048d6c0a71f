"""Our side of the generation benchmark: a model with random weights and its compiled programs.

Everything that is timed comes from `jit(...).lower(...).compile()`, for one batch and one budget.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

NOUNS = 4
"""Noun tokens of a question, which guide the choice."""

SMALL: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 4,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "tie_word_embeddings": False,
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 256,
    },
    "text_config": {
        "model_type": "llama",
        "vocab_size": 4096,
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    },
}
"""LLaVA-1.5's 576 visual tokens, a language model of width 512 and 12 layers: for a CPU. Tower and
language model share the work about as in the 7B model."""


def model_config(name: str) -> tuple[dict[str, Any], str]:
    """A model of this benchmark: its `config.json` and the dtype of its weights."""
    if name == "small":
        return SMALL, "float32"
    from resprune_jax.experiments.compile_check.cases import CASES

    hf = CASES[name].hf
    return hf | {"vision_config": hf.get("vision_config") or _CLIP_LARGE}, "bfloat16"


_CLIP_LARGE = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A batch of questions about an image each, on the host.

    Attributes:
        pixels: (B, 3, H, W) float32.
        ids: (B, S) int32, the unpruned prompts, padded to their bucket.
        visual_index: (B, S) int32, -1 for text.
        valid: (B, S) bool.
        nouns: (B, NOUNS) int32, ids of noun tokens.
        text_tokens: of a prompt.
        visual_tokens: of an image.
    """

    pixels: Any
    ids: Any
    visual_index: Any
    valid: Any
    nouns: Any
    text_tokens: int
    visual_tokens: int


def make_inputs(config: Any, batch: int, text_tokens: int, rng_seed: int = 0) -> Inputs:
    """Draw a batch: smooth random pictures, random words half before and half behind each."""
    import numpy as np

    from resprune_jax.experiments.compile_check.models import make_workload

    rng = np.random.default_rng(rng_seed)
    grid = config.vision.grid
    picture = (config.vision.image_size,) * 2
    plan = make_workload(config, picture, batch, text_tokens).plan
    vocabulary = min(config.text.vocab_size, 32000)
    words = rng.integers(5, vocabulary, plan.ids.shape, dtype=np.int32)
    ids = np.where(plan.valid & (plan.visual_index < 0), words, plan.ids)
    size, side = len(ids), config.vision.image_size
    coarse = rng.standard_normal((size, config.vision.num_channels, 12, 12))
    fine = rng.standard_normal((size, config.vision.num_channels, side, side))
    repeats = -(-side // 12)
    pixels = coarse.repeat(repeats, axis=2).repeat(repeats, axis=3)[..., :side, :side]
    nouns = rng.integers(5, vocabulary, (size, NOUNS), dtype=np.int32)
    return Inputs(
        (pixels + 0.3 * fine).astype(np.float32), ids, plan.visual_index, plan.valid, nouns,
        text_tokens, grid * grid,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Pass:
    """One way through a model: a batch and a budget, everything ready.

    Attributes:
        run: encodes, selects, prefills and decodes; gives the seconds of "encode", "select",
            "prefill" and "decode", each waited for.
        tokens: ids that the last run generated, (B, T).
        planned: bytes beside the parameters of the largest program, as the compiler planned it.
    """

    run: Callable[[], dict[str, float]]
    tokens: Callable[[], Any]
    planned: int | None = None


class Ours:
    """The passes of one batch through our model; the vision tower is compiled once for all."""

    def __init__(self, config: Any, dtype: Any, state: Any, inputs: Inputs) -> None:
        """Nothing is compiled yet.

        Args:
            config: the architecture.
            dtype: of its parameters.
            state: the parameters.
            inputs: the batch.
        """
        import jax
        import jax.numpy as jnp

        from resprune_jax.models.running.precision import resolve_precision
        from resprune_jax.models.running.programs import programs

        self._programs: Any = programs(config, jnp.dtype(dtype), resolve_precision(None, dtype))
        self._state = tuple(jax.tree.leaves(state))  # as a `Runner` holds it
        self._inputs = inputs
        self._encode: Any = None
        self._visual: Any = None

    def make_pass(self, keep: int | None, new_tokens: int) -> Pass:
        """Compile what answers run at a budget.

        Args:
            keep: visual tokens to keep; None: all of them, nothing is selected.
            new_tokens: of each answer; no answer ends early.
        """
        if self._encode is None:
            pixels = {"pixels": self._inputs.pixels}
            self._encode = self._programs.encode.lower(self._state, pixels).compile()
            self._visual = self._encode(self._state, pixels)
        return _compile(
            self._programs, self._encode, self._state, self._inputs, self._visual, keep, new_tokens
        )


def _compile(
    run: Any, encode: Any, state: Any, inputs: Inputs, visual: Any, keep: int | None,
    new_tokens: int,
) -> Pass:  # fmt: skip
    """Compile the rest of a pass."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from resprune_jax.methods import get_method
    from resprune_jax.models.families.llava.family import LlavaFamily
    from resprune_jax.models.prompts import buckets

    size = len(inputs.ids)
    pixels = {"pixels": inputs.pixels}
    kept_tokens = inputs.visual_tokens if keep is None else keep
    length = buckets.length_bucket(inputs.text_tokens + kept_tokens)
    slots = buckets.new_token_bucket(new_tokens)
    rows = np.arange(size, dtype=np.int32)
    prompt = (inputs.ids, inputs.visual_index, inputs.valid, rows)

    # As a `Runner` calls them: these two are given the embedding table alone.
    words = {place: state[place] for place in run.words}
    compiled = [encode]
    select = None
    kept: Any = np.ones((size, inputs.visual_tokens), bool)
    if keep is not None:
        method = get_method("resprune", **LlavaFamily.resprune)
        choice = (
            rows, inputs.nouns, np.ones_like(inputs.nouns, bool), np.zeros(size, bool),
            np.full(size, keep, np.int32), np.float32(-1), method, None,
        )  # fmt: skip
        select = run.prune.lower(
            words, visual, *choice, keep=min(inputs.visual_tokens, buckets.length_bucket(keep))
        ).compile()
        compiled.append(select)
        _, kept, *_ = select(words, visual, *choice)
    lay_out = run.assemble.lower(
        words, *prompt, visual.embeddings, kept, None, length=length,
        positions=LlavaFamily.positions,
    ).compile()  # fmt: skip
    x, places, count, position = lay_out(words, *prompt, visual.embeddings, kept, None)
    fill = run.prefill.lower(state, x, places, count, slots=slots).compile()
    logits, cache = fill(state, x, places, count)
    likeliest = jax.jit(lambda x: jnp.argmax(x, axis=-1)).lower(logits).compile()
    answer = (
        np.int32(new_tokens), np.full(1, -1, np.int32), np.uint32(0), np.float32(1), np.float32(1)
    )  # fmt: skip
    decode = run.decode.lower(
        state, cache, logits, position, *answer, slots=slots, greedy=True
    ).compile()
    compiled += [lay_out, fill, decode]
    last: list[Any] = []

    def once() -> dict[str, float]:
        clock = Clock()
        visual = jax.block_until_ready(encode(state, pixels))
        clock.lap("encode")
        there = kept
        if select is not None:
            _, there, *_ = jax.block_until_ready(select(words, visual, *choice))
        clock.lap("select")
        x, places, count, position = lay_out(words, *prompt, visual.embeddings, there, None)
        logits, cache = fill(state, x, places, count)
        np.asarray(likeliest(logits))  # the first token, on the host
        clock.lap("prefill")
        tokens, _ = jax.block_until_ready(decode(state, cache, logits, position, *answer))
        clock.lap("decode")
        last[:] = [tokens]
        return clock.laps

    return Pass(once, lambda: np.asarray(last[0])[:, :new_tokens], _planned(compiled, state))


def _planned(compiled: list[Any], state: Any) -> int | None:
    """Bytes beside the parameters of the largest program."""
    import jax

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    plans = [program.memory_analysis() for program in compiled]
    if any(plan is None for plan in plans):
        return None
    return max(
        int(plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes)
        + max(0, int(plan.argument_size_in_bytes) - weights)
        for plan in plans
    )


class Clock:
    """Laps by name, in seconds."""

    def __init__(self) -> None:
        """Start."""
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """What was since the last lap."""
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
