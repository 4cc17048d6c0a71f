"""What follows from the times of `bench generate`: shares of what the machine can do.

Everything is worked out from the JSON file alone: the sizes of the model, the measured rates of the
device ("speeds"), and the times. FLOPs are those of `resprune_jax.costs`, 2 a multiply-add.

**The theoretical speed-up** to the first token is the full model's floor over the pruned one's,
where a floor is the time that encoding and prefill take at the measured rates: of each the larger
of its FLOPs over the matmul rate and its bytes over the bandwidth. Choosing has no part in it.
"""

import dataclasses
import functools
from typing import Any

from resprune_jax.costs import (
    DecoderShape,
    decoder_flops,
    kv_bytes,
    projector_flops,
    vision_tower_flops,
)


@dataclasses.dataclass(frozen=True)
class Work:
    """What a pass has to do at the least; padding is not counted.

    Attributes:
        decoder: sizes of the language model.
        vocabulary: rows of its head.
        vision: arguments of `costs.vision_tower_flops`.
        visual_tokens: of an image.
        encode_bytes: of the vision tower's and the projector's parameters.
        decoder_bytes: of the language model's parameters that every pass reads: the head is among
            them, the embedding table, of which a pass takes a few rows, is not.
    """

    decoder: DecoderShape
    vocabulary: int
    vision: dict[str, int]
    visual_tokens: int
    encode_bytes: int
    decoder_bytes: int

    def facts(self) -> dict[str, Any]:
        """Plain data, as the JSON file holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> "Work":
        """The work that `facts` came from."""
        return cls(**facts | {"decoder": DecoderShape(**facts["decoder"])})

    def encode_flops(self, batch: int) -> float:
        """FLOPs of the vision tower and the projector for `batch` images."""
        sizes: dict[str, Any] = dict(self.vision)
        tower = vision_tower_flops(self.visual_tokens, **sizes)
        return batch * (
            tower
            + projector_flops(
                self.visual_tokens,
                vision_hidden=self.vision["hidden"],
                hidden=self.decoder.hidden,
            )
        )

    def prefill_flops(self, batch: int, tokens: int) -> float:
        """FLOPs of the language model for prompts of `tokens`, and of the head for the last one."""
        head = 2.0 * self.decoder.hidden * self.vocabulary
        return batch * (decoder_flops(tokens, self.decoder) + head)

    def prefill_bytes(self, batch: int, tokens: int) -> float:
        """Bytes that prefill cannot do without: parameters read, the cache written."""
        return self.decoder_bytes + batch * kv_bytes(tokens, self.decoder)

    def step_bytes(self, batch: int, tokens: int, new_tokens: int) -> float:
        """Bytes that a step of decoding reads: parameters, and the cache at its mean length.

        Args:
            batch: prompts.
            tokens: of a prompt.
            new_tokens: of an answer; the first comes from prefill, the others are a step each.
        """
        # Step i of 1 ... T - 1 attends to the prompt and to i tokens of the answer.
        return self.decoder_bytes + batch * kv_bytes(tokens + new_tokens / 2, self.decoder)


@functools.lru_cache(maxsize=4)
def _leaves(config: Any, dtype: str) -> Any:
    """Every parameter's path and shape."""
    from flax import nnx

    from resprune_jax.models.families.registry import module_class

    made = module_class(config)
    abstract = nnx.eval_shape(lambda: made(config, rngs=nnx.Rngs(0), dtype=dtype))
    return nnx.to_flat_state(nnx.split(abstract)[1])


def count_parameters(config: Any, dtype: str) -> int:
    """Parameters of an architecture; they are as many in any dtype."""
    return sum(leaf.size for _, leaf in _leaves(config, dtype))


def model_work(config: Any, dtype: str) -> Work:
    """The work of a model of the LLaVA family.

    Args:
        config: its architecture.
        dtype: of its parameters and its cache.
    """
    import jax.numpy as jnp

    encode = decoder = 0
    for path, leaf in _leaves(config, dtype):
        size = leaf.size * leaf.dtype.itemsize
        if path[0] in ("vision_tower", "multi_modal_projector"):
            encode += size
        elif "embed_tokens" not in path or config.tie_word_embeddings:
            decoder += size
    text, vision = config.text, config.vision
    shape = DecoderShape(
        layers=text.num_layers, hidden=text.hidden_size, intermediate=text.intermediate_size,
        kv_heads=text.num_kv_heads, head_dim=text.head_dim, bytes=jnp.dtype(dtype).itemsize,
    )  # fmt: skip
    tower = {
        "layers": config.num_vision_blocks, "hidden": vision.hidden_size,
        "intermediate": vision.intermediate_size,
        "patch_values": vision.num_channels * vision.patch_size**2,
    }  # fmt: skip
    return Work(shape, text.vocab_size, tower, config.num_visual_tokens, encode, decoder)


def first_token_floor(
    work: Work, batch: int, tokens: int, rate: float, bandwidth: float
) -> float:  # fmt: skip
    """Seconds that encoding and prefill take at the measured rates; see the module.

    Args:
        work: of the model.
        batch: prompts.
        tokens: of a prompt, visual ones included.
        rate: FLOPs a second of a matrix product of the model's dtype.
        bandwidth: bytes a second.
    """
    encode = max(work.encode_flops(batch) / rate, work.encode_bytes / bandwidth)
    prefill = work.prefill_flops(batch, tokens) / rate
    return encode + max(prefill, work.prefill_bytes(batch, tokens) / bandwidth)


def add_columns(report: dict[str, Any]) -> None:
    """Add to every measured side what follows from its time and from the full model's.

    To all of them: "bandwidth_share" (of decoding: the part of a step that reading its bytes takes
    at the measured bandwidth) and "matmul_share" (of prefill: the part that its FLOPs take at the
    measured matmul rate). To a pruned side whose full model was measured the same way: "speedup" to
    the first token, "theoretical", "realised" (the one over the other), and "choosing", the share
    of the time that prefill saved which choosing cost (None: prefill saved nothing), and "why"
    where the first token is no sooner.

    Args:
        report: as the JSON file holds it; what was there before is replaced.
    """
    work = Work.from_facts(report["model"]["work"])
    rate = report["speeds"][f"matmul_{report['model']['dtype']}"]
    bandwidth = report["speeds"]["bandwidth"]
    for row in report["rows"].values():
        batch, text = row["batch"], row["text_tokens"]
        full = {side["way"]: side["ms"] for side in row["sides"] if side["keep"] is None}
        for side in row["sides"]:
            for name in ("speedup", "theoretical", "realised", "choosing", "why"):
                side.pop(name, None)
            ms, keep = side["ms"], side["keep"]
            tokens = text + (work.visual_tokens if keep is None else keep)
            step = work.step_bytes(batch, tokens, row["new_tokens"]) / bandwidth
            prefill = work.prefill_flops(batch, tokens) / rate
            side["bandwidth_share"] = 1e3 * step / ms["token"]["median"]
            side["matmul_share"] = 1e3 * prefill / ms["prefill"]["median"]
            if keep is None or (other := full.get(side["way"])) is None:
                continue
            every = text + work.visual_tokens
            floors = [first_token_floor(work, batch, n, rate, bandwidth) for n in (every, tokens)]
            side["theoretical"] = floors[0] / floors[1]
            compare(side, other)
            side["realised"] = side["speedup"] / side["theoretical"]


def compare(side: dict[str, Any], full: dict[str, Any]) -> None:
    """Add to a pruned side its speed-up to the first token over the full model of its own
    implementation, what choosing costs of what it saves, and "why" where it is no sooner.

    Args:
        side: pruned.
        full: times of the full model, measured the same way.
    """
    ms = side["ms"]
    first, before = ms["first_token"], full["first_token"]
    spent = ms["select"]["median"]
    saved = full["prefill"]["median"] - ms["prefill"]["median"]
    side["speedup"] = before["median"] / first["median"]
    side["choosing"] = spent / saved if saved > 0 else None
    if first["median"] < before["median"]:
        return
    side["why"] = (
        f"choosing takes {spent:.3g} ms and prefill is {saved:.3g} ms shorter"
        if saved < spent
        else f"the spread of the runs ({first['low']:.3g} to {first['high']:.3g} ms) is wider"
        " than the gain"
    )
