"""float32 parameters mean float32 products, whatever a backend would do by default."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resprune_jax.errors import CallError
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.running.precision import resolve_precision


def products(lvlm: LVLM) -> dict[str, list[str]]:
    """The precisions that each program's products of float32 numbers ask for, as lowered."""
    asked: dict[str, list[str]] = {}
    run: Any = lvlm.programs
    size, width = lvlm.config.vision.image_size, lvlm.config.text.hidden_size
    images = {"pixels": jax.ShapeDtypeStruct((1, 3, size, size), jnp.float32)}
    x = jax.ShapeDtypeStruct((1, 8, width), lvlm.dtype)
    places, count = jax.ShapeDtypeStruct((1, 8), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
    programs = {
        "encode": run.encode.lower(lvlm.parameters, images),
        "prefill": run.prefill.lower(lvlm.parameters, x, places, count, slots=8),
        "score": run.score.lower(lvlm.parameters, x, places, count),
    }
    logits, cache = programs["prefill"].out_info
    programs["decode"] = run.decode.lower(
        lvlm.parameters, cache, logits, count, np.int32(8), lvlm.eos_ids, np.uint32(0),
        np.float32(1), np.float32(1), slots=8, greedy=True,
    )  # fmt: skip
    for name, lowered in programs.items():
        text = lowered.as_text()
        lines = re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)
        asked[name] = [",".join(re.findall(r"precision = \[(\w+)", line)) for line in lines]
        assert len(asked[name]) > 5
    return asked


def test_every_product_of_float32_parameters_asks_for_float32(checkpoint: Path) -> None:
    exact = load_model(checkpoint, dtype="float32")
    rounded = load_model(checkpoint, dtype="float32", precision="tensorfloat32")
    half = load_model(checkpoint, dtype="bfloat16")
    counted = {}
    for lvlm, precision, word in (
        (exact, "float32", "HIGHEST"), (rounded, "tensorfloat32", "HIGH"), (half, None, "DEFAULT"),
    ):  # fmt: skip
        assert lvlm.precision == precision
        with jax.default_matmul_precision("default"):  # as users find it
            found = products(lvlm)
        for name, asked in found.items():
            # What asks for more by itself (the average of position embeddings) may.
            assert {"HIGHEST", word} >= set(asked) and asked.count(word) > 5, (name, set(asked))
            counted[precision, name] = len(asked)
    print(f"products as lowered: {counted}")


def test_the_models_do_not_share_programs(checkpoint: Path) -> None:
    exact = load_model(checkpoint, dtype="float32")
    assert load_model(checkpoint, dtype="float32").programs is exact.programs
    rounded = load_model(checkpoint, dtype="float32", precision="bfloat16")
    assert rounded.programs is not exact.programs


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("given", ["float32", "tensorfloat32", "bfloat16"])
def test_a_precision_for_parameters_of_16_bits_is_refused(dtype: str, given: Any) -> None:
    assert resolve_precision(None, dtype) is None
    with pytest.raises(CallError, match=rf"precision='{given}' .* these are {dtype}"):
        resolve_precision(given, dtype)


@pytest.mark.parametrize("given", ["tf32", "highest", "", 32])
def test_an_unknown_precision_is_refused(given: Any) -> None:
    with pytest.raises(CallError, match="precision"):
        resolve_precision(given, "float32")
