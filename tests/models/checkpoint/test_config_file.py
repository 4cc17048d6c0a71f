"""What a folder is that cannot be used, by name, and what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.families.registry import FAMILIES, read_config

V15 = {"model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14-336"}
V16 = {**V15, "image_aspect_ratio": "anyres"}


def write(folder: Path, name: str = "config.json", **content: Any) -> Path:
    (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("base", ["llava-hf/llava-1.5-7b-hf", None, 7])
def test_an_adapter_is_named(tmp_path: Path, beside: bool, base: Any) -> None:
    write(tmp_path, "adapter_config.json", peft_type="LORA", base_model_name_or_path=base)
    if beside:
        write(tmp_path, model_type="llava")
    of = " of 'llava-hf/llava-1.5-7b-hf'" if isinstance(base, str) else ""
    said = rf"holds a PEFT adapter{of} \(adapter_config\.json\).*merge_and_unload"
    with pytest.raises(CallError, match=said):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("config", "twin"),
    [
        ({"model_type": "llava_llama"}, "llava-1.5-7b-hf"),
        ({**V15, "hidden_size": 4096}, "llava-1.5-7b-hf"),
        ({**V15, "hidden_size": 5120}, "llava-1.5-13b-hf"),
        ({**V16, "hidden_size": 5120}, "llava-v1.6-vicuna-13b-hf"),
        ({**V16, "hidden_size": 4096}, "llava-v1.6-vicuna-7b-hf"),
        ({**V16, "hidden_size": 7168}, "llava-v1.6-34b-hf"),
        ({**V16, "hidden_size": 4096, "vocab_size": 128256}, "llama3-llava-next-8b-hf"),
        ({**V16, "model_type": "llava_mistral"}, "llava-v1.6-mistral-7b-hf"),
        ({"model_type": "llava_qwen", "hidden_size": 896}, "llava-onevision-qwen2-0.5b-ov-hf"),
        ({"model_type": "llava_qwen", "hidden_size": []}, "llava-onevision-qwen2-7b-ov-hf"),
    ],
)
def test_the_original_llava_and_its_twin(tmp_path: Path, config: Any, twin: str) -> None:
    with pytest.raises(CallError, match=rf"the original LLaVA's format .*llava-hf/{twin}, or"):
        read_config(write(tmp_path, **config))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"model_type": "qwen3_vl"}, "Qwen3-VL"),
        ({"model_type": "internvl_chat"}, "InternVL"),
        ({"model_type": "llava_next_video"}, "LLaVA-NeXT-Video"),
        ({"model_type": "video_llava"}, "Video-LLaVA"),
        ({"model_type": "vipllava"}, "ViP-LLaVA"),
        ({"model_type": "smolvlm"}, "SmolVLM"),
        ({"model_type": "gemma3"}, "Gemma 3"),
        ({"model_type": "paligemma"}, "PaliGemma"),
        ({"model_type": "mllama"}, "Llama 3.2 Vision"),
        ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}, "Pixtral"),
        ({"model_type": "llava_next", "text_config": {"model_type": "granite"}}, "Granite Vision"),
    ],
)
def test_other_families_by_name(tmp_path: Path, config: Any, name: str) -> None:
    supported = ", ".join(FAMILIES)
    said = rf"\({name}\), which is not supported; supported: {supported}$"
    with pytest.raises(CallError, match=said):
        read_config(write(tmp_path, **config))


@pytest.mark.parametrize("kind", ["bert", None, 5, ["llava"], "", "\x1b[31m", "x" * 9999])
def test_unknown_model_types(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(CallError, match=r"has model_type .* is not supported") as caught:
        read_config(write(tmp_path, model_type=kind))
    assert len(str(caught.value)) <= 450 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("quantised", "name"),
    [
        ({"quant_method": "awq", "bits": 4}, " with AWQ"),
        ({"quant_method": "gptq"}, " with GPTQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, " with bitsandbytes"),
        ({"load_in_8bit": True}, " with bitsandbytes"),
        ({"quant_method": "made_up"}, " with 'made_up'"),
        ({"bits": 4}, ""),
        ("yes", ""),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_quantised_weights_by_name(tmp_path: Path, quantised: Any, name: str, nested: bool) -> None:
    part: dict[str, Any] = {"quantization_config": quantised}
    config = {"text_config": part} if nested else part
    with pytest.raises(CallError, match=rf"is quantised{name} \(config\.json"):
        read_config(write(tmp_path, model_type="llava", **config))


def test_what_stays_supported(tmp_path: Path) -> None:
    for kind in FAMILIES:
        for more in ({}, {"quantization_config": None}, {"quantization_config": {}}):
            assert read_config(write(tmp_path, model_type=kind, **more))["model_type"] == kind
