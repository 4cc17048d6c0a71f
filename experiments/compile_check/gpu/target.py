"""A GPU as a target: JAX's CUDA plug-in, which holds the compiler, and a described card.

Needs no GPU, no driver and none of NVIDIA's libraries; where cuDNN's wheel is installed, too, its
attention is among what is compiled. Nothing can be timed: where a card at hand would try several
kernels for a product and keep the fastest, the compiler's own estimate decides.
"""

import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from typing import Any, ClassVar

from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments.compile_check.gpu.cards import CARDS
from resprune_jax.experiments.compile_check.gpu.launches import read_launches
from resprune_jax.experiments.compile_check.target import Figures, Target

PLUGINS = {"jax_cuda13_plugin": "jax-cuda13-plugin", "jax_cuda12_plugin": "jax-cuda12-plugin"}
"""Modules of the plug-ins that hold the compiler, and the packages that they come with."""

SHARE = 0.95
"""Of a card's memory that programs may use: what XLA_PYTHON_CLIENT_MEM_FRACTION=.95 gives them. By
default JAX gives them 0.75."""


class GpuTarget(Target):
    """One described card."""

    platform: ClassVar[str] = "gpu"
    reads_models: ClassVar[bool] = True

    def __init__(self, card: str) -> None:
        """Name the card, one of `CARDS`."""
        self.name = card
        self.card = CARDS[card]
        self.capability = self.card.capability
        self.label = {"card": card}

    @property
    def engines(self) -> tuple[str, ...]:
        """All that run on a GPU of this kind."""
        from resprune_jax.engines import ENGINES, KERNELS

        mine = tuple(name for name in ENGINES if KERNELS.get(name, ("gpu",))[0] == "gpu")
        # Clusters of thread blocks came with compute capability 9.0.
        clusters = self.card.capability >= (9, 0)
        return tuple(name for name in mine if clusters or name != "mosaic_gpu")

    @property
    def limit(self) -> int:
        """Bytes of the card's memory that programs may use."""
        return int(SHARE * self.card.memory)

    @property
    def options(self) -> Mapping[str, Any]:
        """Nothing can be timed."""
        return {"xla_gpu_autotune_level": 0}

    def instead(self, problem: str) -> Mapping[str, Any] | None:
        """cuBLAS's products, where XLA's Triton finds no tiles for one by its estimate alone.

        A card at hand would have tried both. Rows say whose products they have.
        """
        if "tile sizes" in problem:
            return {**self.options, "xla_gpu_enable_triton_gemm": False}
        return None

    def facts(self) -> dict[str, Any]:
        """See `Target.facts`."""
        return {"plugin": " ".join(require_plugin())}

    def figures(self, text: str, layers: int = 0) -> Figures:
        """The kernels that the program launches; see `launches`."""
        return read_launches(text, layers)

    def devices(self) -> list[Any]:
        """The card.

        Raises:
            CallError: no plug-in, or not that of the installed JAX.
            RunError: it does not start.
        """
        require_plugin()
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # that there is no driver is no news
        from jax.errors import JaxRuntimeError
        from jax.experimental import topologies

        try:
            described = topologies.get_topology_desc(
                self.name, "cuda", target_config=self.card.description(), topology="1x1x1"
            )
        except NotImplementedError as error:
            # It refused to load: it looks for a driver where JAX may use any platform.
            raise RunError(
                "JAX's CUDA plug-in does not start without a GPU: set JAX_PLATFORMS=cpu"
            ) from error
        except JaxRuntimeError as error:
            raise RunError(f"JAX's CUDA plug-in does not take the card: {error}") from error
        return list(described.devices)


def require_plugin() -> tuple[str, str]:
    """Package and version of the plug-in.

    Raises:
        CallError: it is not installed, or not in the version of the installed JAX.
    """
    import jaxlib

    for module, package in PLUGINS.items():
        if importlib.util.find_spec(module) is not None:
            version = importlib.metadata.version(package)
            if version != jaxlib.__version__:
                raise CallError(
                    f"{package} is {version}, jaxlib {jaxlib.__version__}: install the same "
                    "version of both, with pip install 'resprune-jax[gpu-check]'"
                )
            return package, version
    raise CallError(
        "compiling for a GPU needs JAX's CUDA plug-in (400 MB), which is not installed: "
        "pip install 'resprune-jax[gpu-check]'"
    )
