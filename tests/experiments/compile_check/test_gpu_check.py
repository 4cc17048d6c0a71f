"""`resprune gpu-check` without a GPU's compiler: its cards, its words, what it would compile.

What only the real compiler can say is in `test_gpu_compiler.py`, the counter of launches in
`test_launches.py`.
"""

import importlib.metadata
import importlib.util
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from resprune_jax.engines import ENGINES, KERNELS
from resprune_jax.errors import CallError, RunError
from resprune_jax.experiments import cli
from resprune_jax.experiments.compile_check import command
from resprune_jax.experiments.compile_check.cases import CASES
from resprune_jax.experiments.compile_check.compiler import Compiled, Memory, compile_abstract
from resprune_jax.experiments.compile_check.gpu import command as gpu_check
from resprune_jax.experiments.compile_check.gpu import target as gpu_target
from resprune_jax.experiments.compile_check.gpu.cards import CARDS
from resprune_jax.experiments.compile_check.gpu.target import GpuTarget, require_plugin
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.selection import cases
from resprune_jax.experiments.compile_check.target import Figures
from resprune_jax.models.decoder.attention import attend, paths_taken

MEMORY = Memory(arguments=100, outputs=30, temporaries=7, aliased=20, code=3)


# The cards.


@pytest.mark.parametrize("name", CARDS)
def test_a_card_is_described(name: str) -> None:
    card, text = CARDS[name], CARDS[name].description()
    assert text.count("{") == text.count("}") == 3
    fields = dict(re.findall(r"(\w+): (\S+)", text))
    assert fields["core_count"] == str(card.multiprocessors)
    assert (fields["platform_name"], fields["device_memory_size"]) == ('"CUDA"', str(card.memory))
    assert f"cuda_compute_capability {{ major: {card.capability[0]} minor: 0 }}" in text
    # A block may take all but one KiB of a multiprocessor's shared memory.
    assert int(fields["shared_memory_per_core"]) - 1024 == int(
        fields["shared_memory_per_block_optin"]
    )
    assert GpuTarget(name).limit < card.memory


def test_cards_differ_in_what_their_data_sheets_say() -> None:
    h100, h200, a100 = (CARDS[name] for name in ("h100", "h200", "a100"))
    assert h100.memory // 2**30 == a100.memory // 2**30 == 79 and h200.memory // 2**30 == 139
    assert h100.capability == h200.capability == (9, 0) and a100.capability == (8, 0)
    assert h200.bandwidth > h100.bandwidth > a100.bandwidth
    assert h100.multiprocessors == h200.multiprocessors == 132 and a100.multiprocessors == 108


@pytest.mark.parametrize("name", CARDS)
def test_every_engine_that_a_card_takes_is_compiled(name: str) -> None:
    target = GpuTarget(name)
    assert set(ENGINES) - set(target.engines) == {"pallas_tpu"} | (
        {"mosaic_gpu"} if name == "a100" else set()
    )
    made = list(cases(target))
    assert {engine for engine, *_ in made} == set(target.engines)
    for engine, (count, _, keep), *_ in made:
        assert engine not in KERNELS or KERNELS[engine][1](count, keep)


# The way of attention.


def test_the_way_of_attention_is_noted_where_it_is_gone() -> None:
    def traced(size: int) -> None:
        x = jax.ShapeDtypeStruct((1, size, 2, 8), jnp.bfloat16)
        jax.eval_shape(lambda x: attend(x, x, x), x)

    with paths_taken() as small:
        traced(16)
    with paths_taken() as both:
        traced(16)
        traced(2048)
    traced(32)
    assert small == {"xla"} and both == {"xla", "blockwise"}


# What helps where the compiler fails.


class Stubborn:
    """A lowered program that compiles with cuBLAS's products alone."""

    def __init__(self, lowered: Any, problem: str) -> None:
        self.lowered, self.problem, self.asked = lowered, problem, list[dict[str, Any]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lowered, name)

    def compile(self, options: dict[str, Any]) -> Any:
        self.asked.append(options)
        if options.get("xla_gpu_enable_triton_gemm", True):
            raise jax.errors.JaxRuntimeError(self.problem)
        return self.lowered.compile()


@pytest.mark.parametrize(
    ("problem", "helped"),
    [
        ("INTERNAL: Couldn't find output tile sizes that satisfy hlo: %dot.263 = ...", True),
        ("INTERNAL: something else", False),
    ],
)
def test_products_that_triton_has_no_tiles_for(problem: str, helped: bool) -> None:
    target = GpuTarget("h100")
    lowered = Stubborn(jax.jit(lambda x: x * 2).lower(jnp.ones(8)), problem)

    def compiled() -> Compiled:
        return compile_abstract(lambda: lowered, options=target.options, instead=target.instead)

    if not helped:
        with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
            compiled()
        return
    assert compiled().memory is not None
    assert lowered.asked == [
        {"xla_gpu_autotune_level": 0},
        {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
    ]


def test_memory_that_does_not_suffice_is_no_failure() -> None:
    lowered = Stubborn(
        jax.jit(lambda x: x * 2).lower(jnp.ones(8)), "RESOURCE_EXHAUSTED: too much\nof it"
    )
    made = compile_abstract(lambda: lowered, instead=GpuTarget("h100").instead)
    assert made.memory is None and made.problem == "too much"


# What it says.


@pytest.fixture
def with_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the plug-in were there."""
    for module in (gpu_check, gpu_target):
        monkeypatch.setattr(module, "require_plugin", lambda: ("jax-cuda13-plugin", "0.0.1"))


def row(name: str, launches: str = "740") -> Row:
    figures = Figures({"launches": launches}, {"kernels": {"launches": 740}})
    setting = {"batch": 1, "length": 640, "attention": "xla"}
    return Row(name, "prefill", setting, Compiled(MEMORY, None, 2.0), 2**34, figures=figures)


@pytest.mark.usefixtures("with_plugin")
def test_a_table_for_each_card(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def rows_of(options: gpu_check.GpuCheckOptions, target: GpuTarget) -> list[Row]:
        asked.append((options.model, options.batch, target.name))
        return [row(name) for name in options.model]

    monkeypatch.setattr(command, "rows_of", rows_of)
    assert cli.main(["gpu-check", "--card", "h100", "a100"]) == 0
    both = ("llava-1.5-7b", "qwen2.5-vl-7b")
    assert asked == [(both, (1,), "h100"), (both, (1,), "a100")]
    said = capsys.readouterr()
    lines = [" ".join(line.split()) for line in said.out.splitlines() if line.strip()]
    head = "program batch length attention launches arguments outputs temporary aliased code in all"
    assert lines[0] == "h100" and lines[1] == f"{head} verdict"
    assert lines[3] == "llava-1.5-7b prefill 1 640 xla 740 100 B 30 B 7 B 20 B 3 B 120 B fits"
    assert lines.count("a100") == 1
    assert said.err.splitlines()[0] == (
        "h100: llava-1.5-7b prefill (batch 1, length 640, attention xla): fits, launches 740, "
        "compiled in 2 s"
    )


@pytest.mark.usefixtures("with_plugin")
def test_json_names_the_card_of_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "rows_of", lambda options, target: [row("m")])
    assert cli.main(["gpu-check", "--json", "--card", "h100", "h200"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["plugin"] == "jax-cuda13-plugin 0.0.1" and report["dtype"] == "bfloat16"
    assert [each["card"] for each in report["rows"]] == ["h100", "h200"]
    assert report["rows"][0]["kernels"] == {"launches": 740}
    assert report["rows"][0]["attention"] == "xla" and report["rows"][0]["total"] == 120


@pytest.mark.usefixtures("with_plugin")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--card", "b200"], "b200"),
        (["--batch", "0"], "--batch"),
        (["--model", "llava-13b"], "llava-13b"),
        (["--topology", "v5e:2x2"], "--topology"),
    ],
)
def test_wrong_calls(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gpu-check", *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def installed(monkeypatch: pytest.MonkeyPatch, *modules: str, version: str = "") -> None:
    """As if of the plug-ins these were there, in this version."""
    real, versions = importlib.util.find_spec, importlib.metadata.version
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name, *a: real("json") if name in modules
        else None if name in gpu_target.PLUGINS else real(name, *a),
    )  # fmt: skip
    monkeypatch.setattr(
        importlib.metadata, "version",
        lambda name: version if name in gpu_target.PLUGINS.values() else versions(name),
    )  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--json"], ["--selection"]])
def test_without_the_plugin(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch)
    assert cli.main(["gpu-check", *words]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    assert "CUDA plug-in" in said.err and "pip install 'resprune-jax[gpu-check]'" in said.err


@pytest.mark.parametrize("module", gpu_target.PLUGINS)
def test_either_plugin_serves_if_it_is_that_of_the_installed_jax(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = gpu_target.PLUGINS[module]
    installed(monkeypatch, module, version=jaxlib.__version__)
    assert require_plugin() == (package, jaxlib.__version__)
    installed(monkeypatch, module, version="0.4.1")
    with pytest.raises(CallError, match=rf"{package} is 0\.4\.1, jaxlib"):
        require_plugin()


@pytest.mark.usefixtures("with_plugin")
def test_a_plugin_that_refused_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax.experimental import topologies

    def refused(*given: Any, **named: Any) -> None:
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr(topologies, "get_topology_desc", refused)
    with pytest.raises(RunError, match="set JAX_PLATFORMS=cpu"):
        GpuTarget("h100").devices()


def test_the_names_of_models_are_those_that_there_are() -> None:
    from typing import get_args

    assert set(get_args(command.ModelName)) == set(CASES)
    assert set(get_args(gpu_check.CardName)) == set(CARDS)
