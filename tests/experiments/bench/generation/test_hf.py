"""The ways through transformers' model: the same tokens by each, and nothing silently replaced."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from resprune_jax.errors import RunError
from resprune_jax.experiments.bench.generation import hf, weights
from resprune_jax.experiments.bench.generation import model as bench_model
from resprune_jax.experiments.bench.generation.measuring import Bench, UnmeasuredError
from resprune_jax.experiments.bench.generation.plan import Line
from resprune_jax.models.families.llava.config import LlavaConfig
from tests.experiments.bench.generation.tiny import TINY

NEW = 5


@pytest.fixture(scope="module")
def model() -> Any:
    """transformers' model with weights of its own, in float32 so that no two tokens tie."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    made = weights.load_transformers(TINY, None, "cpu")
    assert {str(p.dtype) for p in made.parameters()} == {"torch.bfloat16"}
    with torch.no_grad():
        for p in made.parameters():  # its own are so small that every token repeats
            p.normal_(0, 0.3)
    return made.float()


@pytest.fixture(scope="module")
def inputs() -> Any:
    return bench_model.make_inputs(LlavaConfig.from_hf(TINY), 2, 12)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without a compiler behind it: the graph is made and guarded, and run as is."""
    import torch

    def compile_step(step: Any, device: str) -> Any:
        return torch.compile(step, backend="eager", fullgraph=True, dynamic=False)

    monkeypatch.setattr(hf, "compile_step", compile_step)
    monkeypatch.setattr(hf.bench_torch, "_compile", lambda step: step)
    with hf.compiling():
        yield
    hf.forget()


def test_a_static_cache_and_a_compiled_step_give_the_tokens_of_eager(
    model: Any, inputs: Any, traced: None
) -> None:
    eager = hf.make_pass(model, inputs, 6, NEW, "cpu")
    fast = hf.make_pass(model, inputs, 6, NEW, "cpu", "compiled")
    assert set(eager.run()) == {"encode", "select", "prefill", "decode"}
    fast.run()
    once = fast.tokens()
    assert once.shape == (2, NEW) and len(set(once.ravel().tolist())) > 2
    np.testing.assert_array_equal(once, eager.tokens())
    with hf.no_compiles():  # the cache is emptied, nothing is compiled again
        fast.run()
    np.testing.assert_array_equal(fast.tokens(), once)


def test_a_step_that_is_not_compiled_yet_is_refused_inside_a_time(
    model: Any, inputs: Any, traced: None
) -> None:
    fast = hf.make_pass(model, inputs, 3, NEW, "cpu", "compiled")
    line = Line(2, "compiled", 3)
    bench = Bench(TINY, LlavaConfig.from_hf(TINY), "float32", NEW, same_weights=False)
    bench._passes[line], bench._usual[line] = fast, 0.0
    with pytest.raises(RunError, match=r"torch.compile had to work in a timed region"):
        bench.rounds([line], 1, 60.0)


@pytest.mark.deep
def test_the_real_compiler_gives_the_tokens_of_eager(model: Any, inputs: Any) -> None:
    with hf.compiling():
        for keep in (None, 6):
            eager, fast = (
                hf.make_pass(model, inputs, keep, NEW, "cpu", way) for way in ("eager", "compiled")
            )
            eager.run()
            fast.run()
            with hf.no_compiles():
                fast.run()
            np.testing.assert_array_equal(fast.tokens(), eager.tokens())
    hf.forget()


def test_a_machine_without_a_compiler_says_so(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_step(step: Any, device: str) -> Any:
        def fails(*arguments: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

        return fails

    monkeypatch.setattr(hf, "compile_step", compile_step)
    bench = Bench(TINY, LlavaConfig.from_hf(TINY), "float32", NEW, same_weights=False)
    monkeypatch.setattr(bench, "_model", model)
    with pytest.raises(UnmeasuredError, match=r"RuntimeError: InvalidCxxCompiler: no working C"):
        bench.look(Line(2, "compiled", None))
    assert not bench.rounds([Line(2, "compiled", None)], 1, 60.0)


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        ("cpu", "float32", "needs a GPU"), ("cpu", "bfloat16", "needs a GPU"),
        ("cuda", "float32", "does not take float32"),
        ("cuda", "bfloat16", "not installed"), ("cuda", "float16", "not installed"),
    ],
)  # fmt: skip
def test_why_flash_attention_takes_no_part(
    device: str, dtype: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers.utils

    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: False)
    assert said in str(hf.no_flash(device, dtype))
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    here = device == "cuda" and dtype != "float32"
    assert (hf.no_flash(device, dtype) is None) == here
