"""Which of the paper's numbers stand beside the measured ones, and which do not."""

from typing import Any

import pytest

from resprune_jax.experiments.benchmark.run.scores import Printed, backbone_of, printed_for


@pytest.mark.parametrize(
    ("model", "backbone"),
    [
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5"),
        ("liuhaotian/llava-v1.5-7b", "llava-1.5"),
        ("/models/llava-1.5-7b-hf/", "llava-1.5"),
        ("llava-hf/llava-1.5-13b-hf", None),
        ("llava-hf/llava-v1.6-vicuna-7b-hf", "llava-next"),
        ("llava-hf/llava-v1.6-mistral-7b-hf", None),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2.5-vl"),
        ("Qwen/Qwen2.5-VL-72B-Instruct", None),
        ("/llava-1.5-7b-hf/other", None),
        ("pocket", None),
    ],
)
def test_models_are_known_by_their_name(model: str, backbone: str | None) -> None:
    assert backbone_of(model) == backbone


def of(method: str, keep: str | None, **axes: Any) -> dict[str, Any]:
    return {"name": "x", "method": method, "keep": keep, "draw": 0, "settings": {}, **axes}


@pytest.mark.parametrize(
    ("name", "backbone", "configuration", "value"),
    [
        ("pope", "llava-1.5", of("none", None), 85.9),
        ("mme", "llava-1.5", of("none", None), 1862),
        ("pope", "llava-1.5", of("resprune", "1/3"), 87.6),
        ("vqav2", "llava-1.5", of("resprune", "192"), 77.4),
        ("gqa", "llava-1.5", of("resprune", "64"), 58.6),
        ("textvqa", "llava-1.5", of("divprune", "2/9"), 54.5),
        ("mm-vet", "llava-1.5", of("resprune", "1/9"), 30.2),
        ("sqa-img", "llava-1.5", of("resprune", "1/9", alpha=0.75), 69.0),
        ("sqa-img", "llava-1.5", of("resprune", "1/9", alpha=0.5), None),
        ("vizwiz", "llava-1.5", of("resprune", "1/9", settings={"alpha": 0.5}), None),
        ("vizwiz", "llava-1.5", of("resprune", "100"), None),
        ("vizwiz", "llava-1.5", of("uniform", "1/9"), None),
        ("mm-vet", "llava-1.5", of("hired", "1/3"), None),
        ("pope", "llava-next", of("none", None), 86.5),
        ("pope", "llava-next", of("resprune", "640"), 88.3),
        ("pope", "llava-next", of("resprune", "2/9"), 88.3),
        ("pope", "llava-next", of("resprune", "1/9"), 88.0),
        ("pope", "llava-next", of("resprune", "1/3"), None),
        ("mm-vet", "llava-next", of("none", None), None),
        ("mmbench-en", "qwen2.5-vl", of("resprune", "1/3"), 82.5),
        ("vqav2", "qwen2.5-vl", of("none", None), None),
        ("pope", None, of("none", None), None),
    ],
)  # fmt: skip
def test_a_number_stands_beside_its_own_setting_alone(
    name: str, backbone: str | None, configuration: dict[str, Any], value: float | None
) -> None:
    found = printed_for(name, backbone, configuration, 576)
    assert (None if found is None else found.value) == value


def test_a_number_says_where_it_is_printed() -> None:
    assert printed_for("sqa-img", "llava-1.5", of("resprune", "1/3"), 576) == Printed(
        69.1, "I", "ResPrune (Ours)", "Retain 192 visual tokens (pruning ratio = 66.7%)", "SQA-I"
    )
