"""The other side of the generation benchmark: the same model in transformers (torch).

Full, and pruned by torch's Algorithm 1 between the projector and the language model, as a user of
transformers would do it: features, selection, `inputs_embeds`, a cache and greedy decoding. Three
ways: eager with a cache that grows; a static cache and a decode step through torch.compile, with
CUDA graphs on a GPU ("reduce-overhead"); eager with flash-attn's kernels.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from resprune_jax.experiments.bench import reference as bench_torch
from resprune_jax.experiments.bench.generation.model import Clock, Inputs, Pass
from resprune_jax.experiments.bench.generation.plan import Way
from resprune_jax.experiments.common import cache_argument

RECOMPILES = 64
"""A decode step is compiled for every batch and budget; torch gives up at 8 of its own accord, and
goes on without a compiler."""


def no_flash(device: str, dtype: str) -> str | None:
    """Why flash-attn's kernels cannot take part, or None.

    Args:
        device: torch's name of it.
        dtype: of the weights.
    """
    from transformers.utils import is_flash_attn_2_available

    if device != "cuda":
        return "flash-attn needs a GPU"
    if dtype not in ("bfloat16", "float16"):
        return f"flash-attn does not take {dtype}"
    return None if is_flash_attn_2_available() else "flash-attn is not installed"


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """torch.compile inside may compile the decode step as often as it is asked to, or fails."""
    import torch._dynamo.config as config

    patched: Any = config.patch(
        recompile_limit=RECOMPILES, accumulated_recompile_limit=4 * RECOMPILES,
        fail_on_recompile_limit_hit=True,
    )  # fmt: skip
    with patched:
        yield


@contextlib.contextmanager
def no_compiles() -> Iterator[None]:
    """Inside, what torch.compile would have to compile first is an error."""
    import torch

    with torch.compiler.set_stance("fail_on_recompile"):
        yield


def skipped_graphs() -> int:
    """How many graphs torch ran without CUDA graphs although "reduce-overhead" asked for them."""
    from torch._dynamo.utils import counters

    return int(counters["inductor"]["cudagraph_skips"])


def forget() -> None:
    """Let go of everything that torch.compile holds, and of free GPU memory."""
    import gc

    import torch

    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def compile_step(step: Callable[..., Any], device: str) -> Callable[..., Any]:
    """The decode step through torch.compile: one graph for one shape, no graph break allowed."""
    import torch

    mode = "reduce-overhead" if device == "cuda" else "default"
    compiled: Callable[..., Any] = torch.compile(step, mode=mode, fullgraph=True, dynamic=False)
    return compiled


def make_pass(
    model: Any, inputs: Inputs, keep: int | None, new_tokens: int, device: str, way: Way = "eager"
) -> Pass:
    """Lay out a pass through the model in transformers.

    Args:
        model: it.
        inputs: the batch.
        keep: visual tokens to keep; None: all of them.
        new_tokens: of each answer; no answer ends early.
        device: torch's name of it.
        way: "eager", "compiled" or "flash".
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
    cache_name = cache_argument(decoder)
    last: list[torch.Tensor] = []
    compiled = way == "compiled"
    choose = partial(bench_torch.choose, compiled=compiled)
    kept: Any = None

    def step(token: torch.Tensor, cache: Any) -> torch.Tensor:
        made = decoder(input_ids=token, use_cache=True, **{cache_name: cache})
        best: torch.Tensor = head(made.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True)
        return best

    if compiled:
        from transformers import StaticCache

        tokens = ids.shape[1] - len(visual) + (len(visual) if keep is None else keep)
        kept = StaticCache(config=decoder.config, max_cache_len=tokens + new_tokens - 1)
        step = compile_step(step, device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def once() -> dict[str, float]:
        if way == "flash":
            model.set_attn_implementation("flash_attention_2")
        if kept is not None:
            kept.reset()
            wait()
        try:
            # A graph that torch.compile made does not take tensors of the inference mode.
            with torch.no_grad() if compiled else torch.inference_mode():
                return passed()
        finally:
            if way == "flash":
                model.set_attn_implementation("sdpa")

    def passed() -> dict[str, float]:
        clock = Clock()
        features = torch.stack(list(model.model.get_image_features(pixels).pooler_output))
        wait()
        clock.lap("encode")
        if keep is not None:
            picks = choose(features, table(nouns), keep).sort(dim=1).values
            at = picks[..., None].expand(-1, -1, features.shape[-1])
            features = torch.gather(features, 1, at)
            wait()
        clock.lap("select")
        words = table(ids)
        prompt = torch.cat([words[:, :before], features, words[:, behind:]], dim=1)
        made = decoder(inputs_embeds=prompt, use_cache=True, **{cache_name: kept})
        token = head(made.last_hidden_state[:, -1]).argmax(dim=-1, keepdim=True)
        token.cpu()  # the first token, on the host
        clock.lap("prefill")
        answer, cache = [token], getattr(made, cache_name)
        for _ in range(new_tokens - 1):
            if compiled:
                torch.compiler.cudagraph_mark_step_begin()
                token = step(token, cache).clone()  # the next step writes where this one did
            else:
                token = step(token, cache)
            answer.append(token)
        last[:] = [torch.cat(answer, dim=1)]
        wait()
        clock.lap("decode")
        return clock.laps

    return Pass(once, lambda: last[0].cpu().numpy())
