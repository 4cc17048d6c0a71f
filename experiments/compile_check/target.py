"""What programs are compiled for: devices that are described and not there.

A target is all that `resprune tpu-check` and `resprune gpu-check` differ in: how its devices are
described to their compiler, how much memory one has, and what there is to read in a program that
was compiled for them. `tpu/` and `gpu/` have one each; models, selection engines and tables
(`models.py`, `selection.py`, `command.py`) know targets alone.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from resprune_jax.errors import CallError

if TYPE_CHECKING:
    from jax.sharding import Mesh

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was read in a compiled program beside its memory.

    Attributes:
        columns: for the table, by their heads.
        facts: for JSON.
    """

    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Target(ABC):
    """Devices of one kind and their compiler.

    Attributes:
        platform: of the devices, as `jax.default_backend` would name it there.
        reads_models: whether `figures` has something to say of the programs of models, too, and
            not of the selection engines alone.
        name: as users give it.
        count: how many devices a model is sharded over; None for all that are described.
        label: what a row says of it in JSON, where there may be several in one file.
        batches: images that the selection engines are compiled for.
        dtypes: of their tokens.
        capability: of a GPU, its compute capability.
    """

    platform: ClassVar[str]
    reads_models: ClassVar[bool] = False
    name: str
    count: int | None = None
    label: Mapping[str, str] = MappingProxyType({})
    batches: tuple[int, ...] = (1, 8)
    dtypes: tuple[str, ...] = ("bfloat16",)
    capability: tuple[int, int] | None = None

    @property
    @abstractmethod
    def engines(self) -> tuple[str, ...]:
        """The selection engines that are compiled for it."""

    @property
    @abstractmethod
    def limit(self) -> int:
        """Bytes of one device's memory that programs may use."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Of the compiler."""
        return {}

    def instead(self, problem: str) -> Mapping[str, Any] | None:
        """Options that help where the compiler fails with this message; None: there are none."""
        return None

    @abstractmethod
    def devices(self) -> list[Any]:
        """All devices that are described.

        Raises:
            CallError: devices that do not exist, or no compiler for them.
            RunError: the compiler does not start.
        """

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What a JSON file says of the target, its compiler's version among it."""

    def figures(self, text: str, layers: int = 0) -> Figures:
        """What a compiled program says of itself.

        Args:
            text: of the program.
            layers: of the decoder, or blocks of the vision tower, that it runs; 0: neither.
        """
        return Figures()

    def selection_figures(
        self, text: str, engine: str, size: tuple[int, int, int], batch: int
    ) -> Figures:
        """`figures` of a selection.

        Args:
            text: of the program.
            engine: its name.
            size: (N, d, K).
            batch: images.
        """
        return self.figures(text)

    def mesh(self) -> "Mesh":
        """The devices that a model is sharded over, with axes "data" and "model".

        Raises:
            CallError: as `devices`, or `count` is more than there are.
            RunError: as `devices`.
        """
        devices = self.devices()
        count = len(devices) if self.count is None else self.count
        if count > len(devices):
            raise CallError(f"--chips is {count}, but {self.name} has {len(devices)}")

        import numpy as np
        from jax.sharding import AxisType, Mesh

        grid = np.array(devices[:count]).reshape(1, count)
        return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))
