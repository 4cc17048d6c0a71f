"""The other side of the generation benchmark: the same model in transformers (torch).

Full, and pruned by torch's Algorithm 1 between the projector and the language model, as a user of
transformers would do it: features, selection, `inputs_embeds`, its own cache and greedy decoding.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.model import Clock, Inputs
from resprune_jax.experiments.common import cache_argument


@contextmanager
def loaded(hf: dict[str, Any], state: Any, device: str, *, same_weights: bool) -> Iterator[Any]:
    """The model in transformers.

    Args:
        hf: its `config.json`.
        state: our parameters.
        device: torch's name of it.
        same_weights: write ours to a temporary checkpoint and load that; else transformers draws
            random weights of its own, of the same shapes and bfloat16.
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.utils import logging

    from resprune_jax.models.families.registry import save_checkpoint

    logging.disable_progress_bar()
    if same_weights:
        with tempfile.TemporaryDirectory(prefix="resprune-bench-") as name:
            save_checkpoint(Path(name), hf, state)
            model: Any = LlavaForConditionalGeneration.from_pretrained(name, dtype=torch.float32)
            yield model.to(device).eval()
        return
    with torch.device(device):
        model = LlavaForConditionalGeneration(LlavaConfig.from_dict(hf))
    yield model.to(torch.bfloat16).eval()


@dataclasses.dataclass(frozen=True)
class HfPass:
    """One way through the model; fields as `model.Pass`."""

    run: Callable[[], dict[str, float]]
    tokens: Callable[[], Any]


def make_pass(model: Any, inputs: Inputs, keep: int | None, new_tokens: int, device: str) -> HfPass:
    """Lay out a pass through the model in transformers.

    Args:
        model: it.
        inputs: the batch.
        keep: visual tokens to keep; None: all of them.
        new_tokens: of each answer; no answer ends early.
        device: torch's name of it.
    """
    import numpy as np
    import torch

    real = inputs.valid[0]
    ids = torch.from_numpy(inputs.ids[:, real].astype("int64")).to(device)
    visual = np.flatnonzero(inputs.visual_index[0][real] >= 0)
    before, behind = int(visual[0]), int(visual[-1]) + 1
    pixels = torch.from_numpy(inputs.pixels).to(device, model.dtype)
    nouns = torch.from_numpy(inputs.nouns.astype("int64")).to(device)
    decoder, head = model.model.language_model, model.lm_head
    table = decoder.get_input_embeddings()
    last: list[torch.Tensor] = []

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def once() -> dict[str, float]:
        with torch.inference_mode():
            return passed()

    def passed() -> dict[str, float]:
        clock = Clock()
        features = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
        wait()
        clock.lap("encode")
        if keep is not None:
            picks = bench_torch.choose(features, table(nouns), keep).sort(dim=1).values
            at = picks[..., None].expand(-1, -1, features.shape[-1])
            features = torch.gather(features, 1, at)
            wait()
        clock.lap("select")
        words = table(ids)
        prompt = torch.cat([words[:, :before], features, words[:, behind:]], dim=1)
        made = decoder(inputs_embeds=prompt, use_cache=True)
        token = head(made.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True)
        token.cpu()  # the first token, on the host
        clock.lap("prefill")
        answer, cache = [token], made.past_key_values
        for _ in range(new_tokens - 1):
            made = decoder(input_ids=token, use_cache=True, **{cache_argument(decoder): cache})
            token = head(made.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True)
            answer.append(token)
        last[:] = [torch.cat(answer, dim=1)]
        wait()
        clock.lap("decode")
        return clock.laps

    return HfPass(once, lambda: last[0].cpu().numpy())
