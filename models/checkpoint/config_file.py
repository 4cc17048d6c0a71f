"""Reading the `config.json` of a folder, and saying what a folder is that cannot be used.

People have folders of many kinds that look like a checkpoint. Each that can be told apart is named,
with what to do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resprune_jax.errors import CallError, shown
from resprune_jax.models.checkpoint.files import cause, is_file
from resprune_jax.models.checkpoint.safetensors_files import CheckpointError, read_part

ADAPTER_FILE = "adapter_config.json"

# Model types of other families, as people know them.
_OTHERS = {
    "aya_vision": "Aya Vision",
    "blip-2": "BLIP-2",
    "deepseek_vl": "DeepSeek-VL",
    "deepseek_vl_v2": "DeepSeek-VL2",
    "florence2": "Florence-2",
    "gemma3": "Gemma 3",
    "gemma3n": "Gemma 3n",
    "glm4v": "GLM-4.1V",
    "granite_vision": "Granite Vision",
    "idefics2": "Idefics2",
    "idefics3": "Idefics3",
    "instructblip": "InstructBLIP",
    "internvl": "InternVL",
    "internvl_chat": "InternVL",
    "kimi_vl": "Kimi-VL",
    "llava_next_video": "LLaVA-NeXT-Video",
    "minicpmv": "MiniCPM-V",
    "mistral3": "Mistral Small 3",
    "mllama": "Llama 3.2 Vision",
    "molmo": "Molmo",
    "ovis": "Ovis",
    "paligemma": "PaliGemma",
    "phi3_v": "Phi-3 Vision",
    "pixtral": "Pixtral",
    "qwen2_5_omni": "Qwen2.5-Omni",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL",
    "smolvlm": "SmolVLM",
    "video_llava": "Video-LLaVA",
    "vipllava": "ViP-LLaVA",
}

# The same for the parts of a file of type "llava" or "llava_next" that make it another model.
_OTHER_VISION = {"pixtral": "Pixtral", "vipllava": "ViP-LLaVA"}
_OTHER_TEXT = {"granite": "Granite Vision"}

_ORIGINAL = ("llava_llama", "llava_mistral", "llava_mixtral", "llava_mpt", "llava_qwen")

_QUANTISED = {
    "awq": "AWQ",
    "gptq": "GPTQ",
    "bitsandbytes": "bitsandbytes",
    "bitsandbytes_4bit": "bitsandbytes",
    "bitsandbytes_8bit": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "hqq": "HQQ",
    "quanto": "Quanto",
    "torchao": "TorchAO",
}


def read_config(directory: str | Path, supported: Sequence[str]) -> dict[str, Any]:
    """Read the `config.json` of a checkpoint folder.

    Args:
        directory: the folder.
        supported: entries `model_type` of the families that there are.

    Returns:
        The parsed file.

    Raises:
        CallError: there is no such folder, or what it holds is not supported: another family, an
            original LLaVA, a LoRA adapter, quantised weights. The message says what to do.
        CheckpointError: the folder has no `config.json`, or a broken one.
    """
    directory = Path(directory)
    try:
        here, folder = directory.exists(), directory.is_dir()
    except (OSError, ValueError) as problem:
        raise CallError(f"checkpoint folder {directory} is no path: {cause(problem)}") from problem
    if not folder:
        what = "a file, not a folder" if here else "not there"
        raise CallError(f"checkpoint folder {directory} is {what}: give a folder with config.json")
    _refuse_adapter(directory)
    if not is_file(directory / "config.json"):
        raise CheckpointError(directory, ["it has no config.json: is this a checkpoint folder?"])
    config = read_part(directory, "config.json")
    _refuse_original(directory, config)
    _refuse_other_family(directory, config, supported)
    _refuse_quantised(directory, config)
    return config


def _refuse_adapter(directory: Path) -> None:
    """A LoRA adapter changes the weights that it stands beside, or for: the base is not meant."""
    if not is_file(directory / ADAPTER_FILE):
        return
    content = read_part(directory, ADAPTER_FILE)
    base = content.get("base_model_name_or_path")
    of = f" of {shown(base)}" if isinstance(base, str) and base else ""
    raise CallError(
        f"checkpoint {directory} holds a PEFT adapter{of} ({ADAPTER_FILE}), which is not read: "
        "merge it where peft is installed (merge_and_unload, then save_pretrained) and give the "
        f"new folder; if it is merged already, remove {ADAPTER_FILE}"
    )


def _refuse_original(directory: Path, config: Mapping[str, Any]) -> None:
    """The original LLaVA's own format: the text model's fields flat, the vision tower by name."""
    kind = config.get("model_type")
    flat = "mm_vision_tower" in config and "text_config" not in config
    if kind not in _ORIGINAL and not flat:
        return
    raise CallError(
        f"checkpoint {directory} is in the original LLaVA's format (model_type {shown(kind)}), "
        f"which is not read: use its twin on the Hugging Face Hub, {_twin(config)}, or convert "
        "your own with transformers' convert_llava_weights_to_hf.py"
    )


def _twin(config: Mapping[str, Any]) -> str:
    """The llava-hf repository of the same model, by what tells them apart."""
    kind, width, vocab = (config.get(key) for key in ("model_type", "hidden_size", "vocab_size"))
    tiled = config.get("image_aspect_ratio") == "anyres" or "image_grid_pinpoints" in config
    if kind == "llava_qwen":
        size = {896: "qwen2-0.5b", 8192: "qwen2-72b"}.get(_number(width), "qwen2-7b")
        return f"llava-hf/llava-onevision-{size}-ov-hf"
    if not tiled and kind != "llava_mistral":
        return f"llava-hf/llava-1.5-{'13b' if width == 5120 else '7b'}-hf"
    if kind == "llava_mistral":
        return "llava-hf/llava-v1.6-mistral-7b-hf"
    if isinstance(vocab, int) and vocab >= 128000:
        return "llava-hf/llama3-llava-next-8b-hf"
    size = {5120: "vicuna-13b", 7168: "34b"}.get(_number(width), "vicuna-7b")
    return f"llava-hf/llava-v1.6-{size}-hf"


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _refuse_other_family(
    directory: Path, config: Mapping[str, Any], supported: Sequence[str]
) -> None:
    kind = config.get("model_type")
    known = isinstance(kind, str) and kind in supported
    name = _OTHERS.get(kind) if isinstance(kind, str) and not known else None
    for section, others in (("vision_config", _OTHER_VISION), ("text_config", _OTHER_TEXT)):
        part = config.get(section)
        part_kind = part.get("model_type") if isinstance(part, Mapping) else None
        if isinstance(part_kind, str):
            name = name or others.get(part_kind)
    if known and name is None:
        return
    of = "" if name is None else f" ({name})"
    raise CallError(
        f"checkpoint {directory} has model_type {shown(kind)}{of}, which is not supported; "
        "supported: " + ", ".join(supported)
    )


def _refuse_quantised(directory: Path, config: Mapping[str, Any]) -> None:
    text = config.get("text_config")
    found = config.get("quantization_config")
    if not found and isinstance(text, Mapping):
        found = text.get("quantization_config")
    if not found:
        return
    method = found.get("quant_method") if isinstance(found, Mapping) else None
    if method is None and isinstance(found, Mapping):
        method = next((m for m in ("load_in_4bit", "load_in_8bit") if found.get(m)), None)
        method = method and "bitsandbytes"
    name = _QUANTISED.get(method, shown(method, 40)) if isinstance(method, str) else None
    by = "" if name is None else f" with {name}"
    raise CallError(
        f"checkpoint {directory} is quantised{by} (config.json has quantization_config), which is "
        "not supported: use the float weights that it was made from"
    )
