"""Public checkpoints: which load, what holds them against torch, which are refused and why.

`docs/reference/families.md` has the table of this module between two markers;
`python -m tests.parity.public_checkpoints` writes it, and `test_public_checkpoints.py` holds every
row: a configuration that loads has transformers' parameters, the tests named for parity exist, and
a refusal says what the table says.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from resprune_jax.errors import CallError
from resprune_jax.models.families.registry import read_config, read_model_config
from tests.parity import public_configs as hf

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "families.md"
BEGIN, END = "<!-- public checkpoints: begin -->", "<!-- public checkpoints: end -->"


@dataclass(frozen=True)
class Public:
    """A row.

    Attributes:
        names: Hub ids, those of one structure together.
        structure: what sets it apart.
        config: its `config.json`; of several names, the first one's.
        parity: test files, below tests/parity, that hold a small checkpoint of the structure
            against torch; none for a row that is refused.
    """

    names: str
    structure: str
    config: Mapping[str, Any]
    parity: tuple[str, ...] = ()


ROWS: tuple[Public, ...] = (
    Public("llava-hf/llava-1.5-7b-hf", "CLIP, Vicuna", hf.llava(hf.VICUNA_7B),
           ("llava/test_answers.py",)),
    Public("llava-hf/llava-1.5-13b-hf", "CLIP, Vicuna", hf.llava(hf.VICUNA_13B),
           ("llava/test_answers.py",)),
    Public("llava-hf/bakLlava-v1-hf", "CLIP, Mistral with a window", hf.llava(hf.MISTRAL),
           ("llava/test_llava_modules.py",)),
    Public("xtuner/llava-llama-3-8b-v1_1-transformers", "CLIP, Llama 3",
           hf.llava(hf.LLAMA3, 128257), ("llava/test_llava_modules.py",)),
    Public("fancyfeast/llama-joycaption-beta-one-hf-llava",
           "SigLIP, Llama 3.1 with RoPE of type llama3",
           hf.llava(hf.LLAMA31, 128077, vision_config=hf.SO400M,
                    vision_feature_select_strategy="full"),
           ("decoder/test_rope_types.py", "onevision/test_interleave.py")),
    Public("llava-hf/llava-v1.6-vicuna-7b-hf", "CLIP, Vicuna", hf.llava_next(hf.VICUNA_7B),
           ("llava/test_next_answers.py",)),
    Public("llava-hf/llava-v1.6-vicuna-13b-hf", "CLIP, Vicuna", hf.llava_next(hf.VICUNA_13B),
           ("llava/test_next_answers.py",)),
    Public("llava-hf/llava-v1.6-mistral-7b-hf", "CLIP, Mistral",
           hf.llava_next({**hf.MISTRAL, "rope_theta": 1e6, "sliding_window": None}),
           ("llava/test_next_answers.py",)),
    Public("llava-hf/llava-v1.6-34b-hf", "CLIP, Yi (theta 5e6)", hf.llava_next(hf.YI_34B, 64000),
           ("llava/test_next_kin.py",)),
    Public("llava-hf/llava-next-72b-hf", "CLIP, Qwen1.5", hf.llava_next(hf.QWEN15_72B, 151646),
           ("decoder/test_qwen2_decoders.py",)),
    Public("llava-hf/llava-next-110b-hf", "CLIP, Qwen1.5", hf.llava_next(hf.QWEN15_110B, 151646),
           ("decoder/test_qwen2_decoders.py",)),
    Public("llava-hf/llava-interleave-qwen-0.5b-hf", "SigLIP, Qwen1.5, tied head",
           hf.llava(hf.QWEN15_SMALL, 151646, tie_word_embeddings=True, **hf.LAST_BLOCK),
           ("onevision/test_interleave.py",)),
    Public("llava-hf/llava-interleave-qwen-7b-hf", "SigLIP, Qwen1.5",
           hf.llava(hf.QWEN15_7B, 151646, **hf.LAST_BLOCK), ("onevision/test_interleave.py",)),
    Public("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "SigLIP, Qwen2, tied head",
           hf.onevision(hf.QWEN2_SMALL, tie_word_embeddings=True),
           ("onevision/test_onevision.py",)),
    Public("llava-hf/llava-onevision-qwen2-7b-ov-hf", "SigLIP, Qwen2", hf.onevision(hf.QWEN2_7B),
           ("onevision/test_onevision.py",)),
    Public("llava-hf/llava-onevision-qwen2-72b-ov-hf", "SigLIP, Qwen2",
           hf.onevision(hf.QWEN2_72B), ("onevision/test_onevision.py",)),
    Public("llava-hf/llama3-llava-next-8b-hf", "CLIP, Llama 3, BOS in its template",
           hf.llava_next(hf.LLAMA3, 128256), ("llava/test_next_kin.py",)),
    Public("Qwen/Qwen2-VL-2B-Instruct", "tied head",
           hf.qwen("qwen2_vl", 1536, 8960, 28, (12, 2), hf.plain_tower(1536), tied=True),
           ("qwen/test_qwen2_vl.py",)),
    Public("Qwen/Qwen2-VL-7B-Instruct, ByteDance-Seed/UI-TARS-7B-DPO, "
           "allenai/olmOCR-7B-0225-preview", "own head",
           hf.qwen("qwen2_vl", 3584, 18944, 28, (28, 4), hf.plain_tower(3584)),
           ("qwen/test_qwen2_vl.py",)),
    Public("Qwen/Qwen2-VL-72B-Instruct", "own head",
           hf.qwen("qwen2_vl", 8192, 29568, 80, (64, 8), hf.plain_tower(8192)),
           ("qwen/test_qwen2_vl.py",)),
    Public("Qwen/Qwen2.5-VL-3B-Instruct", "tied head",
           hf.qwen("qwen2_5_vl", 2048, 11008, 36, (16, 2), hf.window_tower(2048), tied=True),
           ("qwen/test_qwen_answers.py",)),
    Public("Qwen/Qwen2.5-VL-7B-Instruct, XiaomiMiMo/MiMo-VL-7B-RL", "own head", hf.QWEN25_7B,
           ("qwen/test_qwen_answers.py",)),
    Public("Qwen/Qwen2.5-VL-32B-Instruct", "own head, MLP of 3456 in the tower",
           hf.qwen("qwen2_5_vl", 5120, 27648, 64, (40, 8), hf.window_tower(5120, 3456)),
           ("qwen/test_qwen_answers.py",)),
    Public("Qwen/Qwen2.5-VL-72B-Instruct", "own head, MLP of 3456 in the tower",
           hf.qwen("qwen2_5_vl", 8192, 29568, 80, (64, 8), hf.window_tower(8192, 3456)),
           ("qwen/test_qwen_answers.py",)),
    Public("Qwen/Qwen2.5-VL-7B-Instruct with YaRN", "RoPE of type yarn on three axes",
           {**hf.QWEN25_7B, "rope_scaling": hf.YARN}, ("decoder/test_rope_types.py",)),
    Public("Qwen/Qwen2.5-VL-7B-Instruct-AWQ", "quantised weights",
           {**hf.QWEN25_7B, "quantization_config": {"quant_method": "awq", "bits": 4}}),
    Public("Qwen/Qwen3-VL-8B-Instruct", "DeepStack, interleaved M-RoPE",
           {"model_type": "qwen3_vl"}),
    Public("OpenGVLab/InternVL3-8B-hf", "another tower", {"model_type": "internvl"}),
    Public("llava-hf/LLaVA-NeXT-Video-7B-hf", "pooled video", {"model_type": "llava_next_video"}),
    Public("LanguageBind/Video-LLaVA-7B-hf", "two towers", {"model_type": "video_llava"}),
    Public("llava-hf/vip-llava-7b-hf", "five feature layers", {"model_type": "vipllava"}),
    Public("ibm-granite/granite-vision-3.3-2b", "four feature layers, Granite",
           hf.llava_next({"model_type": "granite"}, 49155, vision_feature_layer=[-24, -20, -12, -1],
                         vision_config=hf.SO400M, vision_feature_select_strategy="full")),
    Public("mistral-community/pixtral-12b", "Pixtral's tower",
           hf.llava(hf.MISTRAL, 10, vision_config={"model_type": "pixtral"},
                    vision_feature_layer=-1, vision_feature_select_strategy="full")),
    Public("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "another family", {"model_type": "smolvlm"}),
    Public("google/gemma-3-4b-it", "another family", {"model_type": "gemma3"}),
    Public("google/paligemma2-3b-pt-224", "another family", {"model_type": "paligemma"}),
)  # fmt: skip


def refusal(config: Mapping[str, Any]) -> str | None:
    """Why a configuration is refused, as `load_model` would say it; `None` if it is not."""
    with TemporaryDirectory() as place:
        folder = Path(place) / "model"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        try:
            read_model_config(read_config(folder))
        except CallError as error:
            said = str(error).removeprefix(f"checkpoint {folder} ").split(";")[0].split(":")[0]
            return " ".join(said.split())
    return None


def table() -> str:
    """The table in Markdown, with the markers around it."""
    lines = [
        BEGIN,
        "| checkpoint | structure | loads | parity, or the reason |",
        "|---|---|---|---|",
    ]
    for row in ROWS:
        why = refusal(row.config)
        names = ", ".join(f"`{name}`" for name in row.names.split(", "))
        kind = str(row.config["model_type"])
        held = ", ".join(f"`{name}`" for name in row.parity)
        told = held if why is None else why.replace("|", "\\|")
        loads = "yes" if why is None else "refused"
        lines.append(f"| {names} | `{kind}`: {row.structure} | {loads} | {told} |")
    return "\n".join([*lines, END])


def document(text: str) -> str:
    """A document with the table between its markers."""
    before, rest = text.split(BEGIN)
    return before + table() + rest.split(END)[1]


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(table() + "\n")
