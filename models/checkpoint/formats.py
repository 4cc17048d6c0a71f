"""How the checkpoints of each model family are named and stored, by their `model_type`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from resprune_jax.models.checkpoint import names as checkpoint_keys
from resprune_jax.models.checkpoint.names import Source
from resprune_jax.models.families.llava.config import LlavaConfig
from resprune_jax.models.families.llava_next.config import LlavaNextConfig
from resprune_jax.models.families.qwen_vl import names as checkpoint_keys_qwen
from resprune_jax.models.families.qwen_vl.config import Qwen25VLConfig

ModelConfig = LlavaConfig | LlavaNextConfig | Qwen25VLConfig
"""The architecture of a model of any family."""


class KeyTable(Protocol):
    """What a module of key names offers; `names.py` documents each."""

    DIALECTS: dict[str, dict[str, str]]

    def canonical_key(self, key: str) -> str:
        """The canonical name of a key in any dialect."""
        ...

    def dialect_key(self, key: str, dialect: str) -> str:
        """The name that a canonical key has in a dialect."""
        ...

    def source_of(self, path: Sequence[str | int], shape: Sequence[int]) -> Source:
        """Where a parameter comes from."""
        ...

    def is_unused(self, key: str, known: Iterable[str], num_blocks: int | None) -> bool:
        """Whether a checkpoint rightly holds a tensor that the model has no parameter for."""
        ...


@dataclass(frozen=True)
class CheckpointFormat:
    """The checkpoints of one model family.

    Attributes:
        model_type: its name in `config.json`.
        architecture: Hugging Face's class, the entry `architectures` of `config.json`.
        config: the class of the parsed configuration.
        keys: the module of its key names.
        vision: the first part of the vision tower's parameter paths.
    """

    model_type: str
    architecture: str
    config: type[ModelConfig]
    keys: KeyTable
    vision: str = "vision_tower"


LLAVA = CheckpointFormat("llava", "LlavaForConditionalGeneration", LlavaConfig, checkpoint_keys)
LLAVA_NEXT = CheckpointFormat(
    "llava_next", "LlavaNextForConditionalGeneration", LlavaNextConfig, checkpoint_keys
)
QWEN_2_5_VL = CheckpointFormat(
    "qwen2_5_vl",
    "Qwen2_5_VLForConditionalGeneration",
    Qwen25VLConfig,
    checkpoint_keys_qwen,
    vision="visual",
)

FORMATS: Mapping[str, CheckpointFormat] = {
    own.model_type: own for own in (LLAVA, LLAVA_NEXT, QWEN_2_5_VL)
}
"""Every supported format by its `model_type`."""


def format_of(config: Any) -> CheckpointFormat:
    """The format of a parsed configuration; LLaVA-1.5's for anything that is none."""
    return next((own for own in FORMATS.values() if type(config) is own.config), LLAVA)
