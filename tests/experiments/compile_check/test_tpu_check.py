"""`resprune tpu-check` without a TPU's compiler: what it would compile, its arithmetic, its words.

The same rows are compiled for this machine's CPU in place of a described TPU; what only the real
compiler can say is in `test_tpu_compiler.py`.
"""

import dataclasses
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, AxisType

from resprune_jax.experiments import cli
from resprune_jax.experiments.compile_check import command
from resprune_jax.experiments.compile_check.cases import CASES, Case
from resprune_jax.experiments.compile_check.compiler import Compiled, Memory, bytes_per_device
from resprune_jax.experiments.compile_check.models import abstract_state, model_rows
from resprune_jax.experiments.compile_check.rows import Row
from resprune_jax.experiments.compile_check.tpu import command as tpu_check
from resprune_jax.experiments.compile_check.tpu import target as tpu_target
from resprune_jax.experiments.compile_check.tpu.target import HBM, TpuTarget
from resprune_jax.models import LVLM, load_model
from resprune_jax.models.checkpoint.sharding import divide_mlps
from resprune_jax.models.families.registry import read_model_config
from resprune_jax.models.running import programs as generate
from tests.checkpoints.qwen_vl import tiny_qwen
from tests.experiments.compile_check.here import Here
from tests.experiments.compile_check.shallow import shallow

MIB = 2**20


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> LVLM:
    """A small Qwen2.5-VL."""
    return load_model(tiny_qwen(tmp_path_factory.mktemp("qwen")), dtype="float32")


# What would be compiled.


def test_the_published_sizes() -> None:
    """Counted from few layers, each of which is as large as the next."""
    layers = {"llava-1.5-7b": (32, 24), "qwen2.5-vl-7b": (28, 32), "qwen2-vl-7b": (28, 32)}
    counts = {}
    for name, (decoder, tower) in layers.items():
        config = read_model_config(CASES[name].hf)
        assert (config.text.num_layers, config.vision.num_layers) == (decoder, tower)
        one, more, higher = (
            bytes_per_device(
                abstract_state(read_model_config(shallow(name, *depth)), Here().mesh(), "bfloat16")
            )
            for depth in ((1, 2), (2, 2), (1, 3))
        )
        counts[name] = (one + (decoder - 1) * (more - one) + (tower - 2) * (higher - one)) // 2
    print(counts)
    # 7,063,427,072 published; the class token's norm and, but for its queries and keys, the last
    # vision block are not read.
    assert counts["llava-1.5-7b"] == 7_063_427_072 - 10_497_024
    assert counts["qwen2.5-vl-7b"] == 8_292_166_656
    assert counts["qwen2-vl-7b"] == 8_291_375_616


@pytest.mark.parametrize("name", CASES)
def test_a_chip_holds_its_share(name: str) -> None:
    mesh: Any = AbstractMesh((1, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    config = divide_mlps(read_model_config(shallow(name, 1)), mesh)
    state = abstract_state(config, mesh, jnp.bfloat16)
    whole = expected = 0
    for _, leaf in nnx.to_flat_state(state):
        value = leaf.get_value()
        split = sum("model" in np.atleast_1d(part) for part in value.sharding.spec if part)
        assert split <= 1
        whole += value.size * 2
        expected += value.size * 2 // 4**split
    share = bytes_per_device(state)
    print(f"{name}: {share / MIB:.0f} of {whole / MIB:.0f} MiB on each of 4 chips")
    assert share == expected
    assert whole / 4 <= share <= 1.07 * whole / 4


def test_parameters_lie_as_they_are_loaded(checkpoint: Path, qwen: LVLM) -> None:
    for path in (checkpoint, qwen.path):
        mesh = Here().mesh()
        lvlm = load_model(path, dtype="bfloat16", mesh=mesh)
        real = nnx.to_flat_state(lvlm.state)
        shapes = dict(nnx.to_flat_state(abstract_state(lvlm.config, mesh, jnp.bfloat16)))
        assert len(real) == len(shapes)
        split = 0
        for name, leaf in real:
            value, shape = leaf.get_value(), shapes[name].get_value()
            assert isinstance(shape, jax.ShapeDtypeStruct)
            assert (value.shape, value.dtype, value.sharding) == (
                shape.shape, shape.dtype, shape.sharding,
            ), name  # fmt: skip
            split += any(value.sharding.spec)
        print(f"{lvlm.family.name}: {len(real)} parameters lie alike, {split} of them split")
        assert 0 < split < len(real)


class Spy:
    """A jitted function that notes what it is called or lowered with."""

    def __init__(self, name: str, program: Any, calls: list[Any]) -> None:
        self.name, self.program, self.calls = name, program, calls

    def __call__(self, state: Any, *args: Any, **static: Any) -> Any:
        self._note(args, static)
        return self.program(state, *args, **static)

    def lower(self, state: Any, *args: Any, **static: Any) -> Any:
        """Lower the program."""
        self._note(args, static)
        return self.program.lower(state, *args, **static)

    def _note(self, args: Any, static: Any) -> None:
        leaves, tree = jax.tree.flatten(args)
        shapes = [(np.shape(x), jnp.result_type(x).name) for x in leaves]
        self.calls.append((self.name, static, tree, shapes))


def spy(calls: list[Any]) -> Callable[..., Any]:
    """`programs` whose functions note their calls."""

    def spied(config: Any, dtype: Any, precision: Any) -> Any:
        real = generate_programs(config, dtype, precision)
        fields = {
            field.name: Spy(field.name, getattr(real, field.name), calls)
            for field in dataclasses.fields(real)
            if callable(getattr(real, field.name))
        }
        return dataclasses.replace(real, **fields)

    return spied


generate_programs = generate.programs


@pytest.mark.deep
@pytest.mark.parametrize("family", ["llava", "qwen"])
def test_what_is_compiled_is_what_generate_runs(
    family: str, lvlm: LVLM, qwen: LVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Program by program: the same static arguments, shapes and dtypes; and all of them compile."""
    model = lvlm if family == "llava" else qwen
    rows, columns = (4, 4) if family == "llava" else (3, 4)
    keep = 7 if family == "llava" else 0.5
    pixels = np.random.default_rng(0).integers(0, 256, (2, rows * 28, columns * 28, 3), np.uint8)
    question = "What is on the table?"
    ran: list[Any] = []
    spied = spy(ran)
    programs = property(lambda self: spied(self.config, self.dtype, self.precision))
    monkeypatch.setattr(LVLM, "programs", programs)
    for budget in (None, keep):
        model.generate(list(pixels), [question] * 2, keep=budget, max_new_tokens=4)
    del ran[4]  # the second call's images
    compiled: list[Any] = []
    monkeypatch.setattr(generate, "programs", spy(compiled))
    found = list(
        model_rows(
            "tiny", model.config, Here(), size=pixels.shape[1:3], keep=keep, batch=2,
            dtype="float32", text_tokens=len(model.encoder.encode(question).ids) - 1,
            new_tokens=4,
        )
    )  # fmt: skip
    order = ["encode", "assemble", "prefill", "decode", "prune", "assemble", "prefill", "decode"]
    assert [name for name, *_ in ran] == [row.program for row in found] == order
    for one, other in zip(ran, compiled, strict=True):
        assert one == other
    print(f"{len(order)} programs, {sum(len(shapes) for *_, shapes in ran)} arguments alike")

    pruned = {"llava": 7, "qwen": 6}[family]
    assert [row.setting["visual_tokens"] for row in found] == [rows * columns] * 4 + [pruned] * 4
    assert all(row.passed and row.name == "tiny" for row in found)
    for row in found:
        memory = row.compiled.memory
        assert memory is not None and row.total is not None and row.total > row.held > 0
        assert memory.aliased >= row.donated
        assert (row.donated > 0) == (row.program == "decode")


# Whether it fits.

MEMORY = Memory(arguments=100, outputs=30, temporaries=7, aliased=20, code=3)


@pytest.mark.parametrize(
    ("held", "donated", "limit", "total", "verdict"),
    [
        (0, 20, 120, 120, "fits"),
        (0, 20, 119, 120, "does not fit 119 B"),
        # Parameters that this program does not read are there all the same.
        (150, 0, 170, 170, "fits"),
        (150, 0, 169, 170, "does not fit 169 B"),
        (0, 21, 1000, 120, "fits, but copies its cache"),
    ],
)
def test_what_fits(held: int, donated: int, limit: int, total: int, verdict: str) -> None:
    row = Row("m", "decode", {}, Compiled(MEMORY, None, 0.5), limit, held, donated)
    assert (row.total, row.verdict, row.fits) == (total, verdict, total <= limit)
    assert row.passed == (verdict == "fits")


def test_what_the_compiler_refused() -> None:
    row = Row("m", "decode", {}, Compiled(None, None, 0.5, "Ran out of memory"), 1000)
    assert row.total is None and not row.fits and not row.passed
    assert row.verdict == "does not fit: Ran out of memory"
    assert row.facts()["bytes"] is None


def test_a_chip_has_16_gb_less_what_the_compiler_keeps() -> None:
    assert HBM["v5e"] == TpuTarget("v5e:2x2").limit == 16 * 2**30 - 2**28


# What it says.


@pytest.fixture
def with_libtpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if libtpu were there."""
    monkeypatch.setattr(tpu_check, "require_libtpu", lambda: "0.0.1")
    monkeypatch.setattr(tpu_target, "require_libtpu", lambda: "0.0.1")


def rows() -> list[Row]:
    small, large = Compiled(MEMORY, None, 1.2), Compiled(None, None, 3.0, "Ran out of memory")
    setting = {"batch": 1, "visual_tokens": 576, "length": 0}
    return [
        Row("llava-1.5-7b", "encode", setting, small, 2**34),
        Row("llava-1.5-7b", "decode", setting | {"length": 704}, large, 2**34),
    ]


@pytest.mark.usefixtures("with_libtpu")
def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "180")  # else the reason takes two lines
    monkeypatch.setattr(command, "rows_of", lambda options, target: rows())
    assert cli.main(["tpu-check"]) == 1  # one does not fit
    said = capsys.readouterr()
    lines = [" ".join(line.split()) for line in said.out.splitlines() if line.strip()]
    assert lines[0].startswith("program batch visual tokens length arguments outputs temporary")
    assert lines[2] == "llava-1.5-7b encode 1 576 100 B 30 B 7 B 20 B 3 B 120 B fits"
    assert lines[3] == "llava-1.5-7b decode 1 576 704 does not fit: Ran out of memory"
    assert said.err.splitlines()[0] == (
        "llava-1.5-7b encode (batch 1, visual_tokens 576): fits, compiled in 1 s"
    )


@pytest.mark.usefixtures("with_libtpu")
def test_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "rows_of", lambda options, target: rows()[:1])
    assert cli.main(["tpu-check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["topology"] == "v5e:2x2" and report["libtpu"] == "0.0.1"
    assert report["rows"][0]["bytes"] == dataclasses.asdict(MEMORY)
    assert report["rows"][0]["total"] == 120 and report["rows"][0]["verdict"] == "fits"


@pytest.mark.parametrize("words", [[], ["--json"], ["--selection"]])
def test_without_libtpu(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "libtpu" else real(name, *a)
    )
    assert cli.main(["tpu-check", *words]) == 2
    said = capsys.readouterr()
    assert not said.out and said.err.count("\n") == 1
    assert "libtpu" in said.err and "pip install 'resprune-jax[tpu]'" in said.err


@pytest.mark.usefixtures("with_libtpu")
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--topology", "v9:2x2"], "unknown TPU topology 'v9:2x2': name a chip (v5e, v6e)"),
        (["--batch", "0"], "--batch"),
        (["--chips", "0"], "--chips"),
        (["--selection", "--chips", "1"], "leave out --chips"),
        (["--model", "llava-13b"], "llava-13b"),
        (["--programs", "encod"], "encod"),
        (["--selection", "--dtype", "float16"], "float16"),
    ],
)
def test_wrong_calls(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["tpu-check", *words]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


@pytest.mark.usefixtures("with_libtpu")
def test_more_chips_than_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TpuTarget, "devices", lambda self: [object()] * 4)
    assert cli.main(["tpu-check", "--chips", "5"]) == 2
    assert "--chips is 5, but v5e:2x2 has 4" in capsys.readouterr().err


@pytest.mark.usefixtures("with_libtpu")
def test_options_reach_the_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TpuTarget, "devices", lambda self: jax.devices()[:1] * 4)
    asked = []

    def case_rows(
        name: str, case: Case, target: TpuTarget, batch: int, programs: tuple[str, ...]
    ) -> list[Row]:
        assert programs == ("encode", "prune")
        asked.append((name, case, target.name, target.count, batch))
        return rows()[:1]

    monkeypatch.setattr(command, "case_rows", case_rows)
    words = ["--model", "qwen2.5-vl-7b", "--batch", "1", "4", "--topology", "v6e:1x1"]
    words += ["--programs", "encode", "prune"]
    assert cli.main(["tpu-check", *words, "--chips", "1"]) == 0
    assert asked == [
        ("qwen2.5-vl-7b", CASES["qwen2.5-vl-7b"], "v6e:1x1", 1, batch) for batch in (1, 4)
    ]
    assert capsys.readouterr().out.count("fits") == 2
