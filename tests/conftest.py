"""Fixtures that the whole suite shares, so that each checkpoint is made and compiled once."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

# The same examples in every run: a failure is a change of the code, no draw and no loaded machine.
settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]
LEFT_OUT: list[Path] = []
if importlib.util.find_spec("torch") is None:
    from tests.torch_modules import modules_that_need_torch

    LEFT_OUT = modules_that_need_torch(ROOT)
collect_ignore = [str(path) for path in LEFT_OUT]

# The parity bounds speak of float32 products; no backend may round them.
jax.config.update("jax_default_matmul_precision", "highest")
# Most of a run's time goes into compiling, and modules, workers and targets compile many of the
# same programs: the Makefile names a folder of the checkout that keeps them. JAX tells of a program
# that was read from there as of one that was compiled, so that counts are the same. Whatever else
# keeps programs on this machine stays out.
PROGRAMS = os.environ.get("RESPRUNE_TEST_PROGRAMS") or None
jax.config.update("jax_compilation_cache_dir", PROGRAMS)
if PROGRAMS:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


QUICK = ("experiments", "methods", "models", "parity")
"""Rooms whose programs run once or twice: what they decide holds without XLA's optimisations."""
COMPILERS = ROOT / "tests/experiments/compile_check"
"""What an optimising compiler makes of a program is what is asked there."""


@pytest.fixture(scope="module", autouse=True)
def compiled_quickly(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compile without most optimisations there, which takes a third less time.

    Selection and its engines, the core, what `compile_check` asks of compilers, and all that runs
    in a process of its own (commands, servers, notebooks, the blocks of the documentation) are
    compiled as users have them. Torch must not wait for threads that others use.
    """
    room = request.path.relative_to(ROOT / "tests").parts[0]
    here = room in QUICK and not request.path.is_relative_to(COMPILERS)
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch else 1
    jax.config.update("jax_disable_most_optimizations", here)
    if torch and here:
        torch.set_num_threads(1)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
    if torch:
        torch.set_num_threads(threads)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Name the modules that a run without torch leaves out, of those that were asked for."""
    asked = [Path(config.invocation_params.dir, arg.split("::")[0]) for arg in config.args]
    left_out = [path for path in LEFT_OUT if any(path.is_relative_to(each) for each in asked)]
    if left_out:
        terminalreporter.section("torch is not installed")
        terminalreporter.line(f"left out, because they need it: {len(left_out)} modules")
        for path in left_out:
            terminalreporter.line(f"  {path.relative_to(ROOT).as_posix()}")


MOST_MAPS = 25_000
"""Mappings of memory behind which compiled programs are let go."""


@pytest.fixture(scope="module", autouse=True)
def room_for_programs() -> Iterator[None]:
    """Let go of a worker's compiled programs before it has too many.

    Each takes some of the 65,530 mappings that Linux gives a process, and XLA ends in a
    segmentation fault where there are none left: thousands of tests in one process get there.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def no_kept_programs() -> Iterator[None]:
    """Put away the persistent cache that a command has opened in this process.

    Later tests would find in it what an earlier run of that command has left.
    """
    yield
    if jax.config.jax_compilation_cache_dir != PROGRAMS:
        jax.config.update("jax_compilation_cache_dir", PROGRAMS)
        compilation_cache.reset_cache()


@pytest.fixture
def nothing_found() -> None:
    """For a test that tells what was compiled from what was found: nothing is found."""
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Call it with names of packages: for the rest of the test they are not installed.

    No `None` stands for them in `sys.modules`: libraries ask there what has been imported already.
    """

    def hide(*names: str) -> None:
        for name in names:
            monkeypatch.delitem(sys.modules, name, raising=False)

        def around(finder: Any) -> Any:
            def find_spec(name: str, *more: Any) -> Any:
                return None if name in names else finder.find_spec(name, *more)

            return SimpleNamespace(
                find_spec=find_spec, find_distributions=getattr(finder, "find_distributions", None)
            )

        monkeypatch.setattr(sys, "meta_path", [around(finder) for finder in sys.meta_path])

    return hide


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random LLaVA-1.5 checkpoint, as transformers saves it."""
    from tests.checkpoints.llava import tiny_llava

    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="session")
def reference(checkpoint: Path) -> Any:
    """The same checkpoint in torch."""
    from tests.checkpoints.llava import reference_model

    return reference_model(checkpoint)


@pytest.fixture(scope="session")
def lvlm(checkpoint: Path) -> Any:
    """The same checkpoint here."""
    from resprune_jax.models import load_model

    return load_model(checkpoint, dtype="float32")


@pytest.fixture(scope="session")
def clip_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random CLIP whose vision tower is as wide as the LLaVA's."""
    from tests.checkpoints.clip import tiny_clip

    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def with_clip(checkpoint: Path, clip_checkpoint: Path) -> Any:
    """The small LLaVA with it."""
    from resprune_jax.models import load_model

    return load_model(checkpoint, dtype="float32", clip=clip_checkpoint)


@pytest.fixture(scope="session")
def photographs() -> list[Image.Image]:
    """Images of several sizes whose patches differ: smooth colours, stripes and noise."""
    rng = np.random.default_rng(0)
    images = []
    for width, height in [(80, 60), (56, 56), (60, 100), (64, 64)]:
        x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
        waves = [np.sin(rng.uniform(5, 25) * x + rng.uniform(5, 25) * y) for _ in range(3)]
        pixels = 127 + 90 * np.stack(waves, axis=-1) + rng.normal(0, 25, (height, width, 3))
        images.append(Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)))
    return images
