"""How the checkpoints of a model family are named and stored."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from resprune_jax.models.checkpoint.names import Source

if TYPE_CHECKING:
    from resprune_jax.models.checkpoint.safetensors_files import TensorToWrite


class KeyTable(Protocol):
    """What a family's module of key names offers."""

    DIALECTS: dict[str, dict[str, str]]
    """Key dialects for writing: canonical prefix -> prefix in the file."""

    def canonical_key(self, key: str) -> str:
        """The canonical name of a key in any dialect; a key of no dialect as it is."""
        ...

    def sources_of(self, path: Sequence[str | int], shape: Sequence[int]) -> tuple[Source, ...]:
        """Where a parameter comes from, by its path in the module."""
        ...

    def is_unused(self, key: str, known: Iterable[str], num_blocks: int | None) -> bool:
        """Whether a checkpoint rightly holds a tensor that the model has no parameter for.

        Args:
            key: canonical name.
            known: canonical names of the model's parameters.
            num_blocks: vision blocks that the configuration counts; None if not known.
        """
        ...

    def fillers(self, tensors: "list[TensorToWrite]", config: Any) -> "list[TensorToWrite]":
        """Tensors that only Hugging Face's model has, to be written beside the model's own.

        Raises:
            CallError: parameters that are not those of the configuration.
        """
        ...


@dataclass(frozen=True)
class CheckpointFormat:
    """The checkpoints of one model family.

    Attributes:
        model_type: its name in `config.json`.
        architecture: Hugging Face's class, the entry `architectures` of `config.json`.
        keys: the module of its key names.
        vision: the first part of the vision tower's parameter paths.
    """

    model_type: str
    architecture: str
    keys: KeyTable
    vision: str = "vision_tower"


class ModelConfig(Protocol):
    """The architecture of a model of any family.

    Attributes:
        form: how its checkpoints are named and stored.
        vision: the vision tower.
        text: the language model.
        image_token_id: id of the placeholder of an image's visual tokens.
    """

    form: ClassVar[CheckpointFormat]

    @property
    def vision(self) -> Any:
        """The vision tower."""
        ...

    @property
    def text(self) -> Any:
        """The language model."""
        ...

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder of an image's visual tokens."""
        ...
