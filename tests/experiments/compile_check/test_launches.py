"""The counter of kernel launches, on programs written by hand: a count can be checked by eye."""

import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resprune_jax.experiments.compile_check.gpu.launches import (
    Block,
    count,
    read_launches,
    structure,
)
from resprune_jax.experiments.compile_check.hlo import read_program

FUSED = """
%fused_add (x.1: f32[8]) -> f32[8] {
  %x.1 = f32[8]{0} parameter(0)
  %square = f32[8]{0} multiply(%x.1, %x.1), metadata={op_name="jit(f)/layer_0/square"}
  ROOT %sum.1 = f32[8]{0} add(%square, %x.1), metadata={op_name="jit(f)/layer_0/add"}
}
"""


def program(entry: str, *others: str) -> str:
    """A program whose entry computation has these lines; `others` are whole computations."""
    head = "HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8]{0})->f32[8]{0}}"
    tables = 'FileNames\n1 "f.py"\n\nStackFrames\n1 {file_location_id=1 parent_frame_id=1}\n'
    main = computation("ENTRY %main.9 (x: f32[8]) -> f32[8]", "%x = f32[8]{0} parameter(0)", entry)
    return "\n".join([head, "", tables, *map(textwrap.dedent, others), main, ""])


def computation(head: str, *lines: str) -> str:
    body = "\n".join(textwrap.indent(textwrap.dedent(line).strip("\n"), "  ") for line in lines)
    return f"{head} {{\n{body}\n}}\n"


def counted(text: str) -> Block:
    return structure(read_program(text))


def total(text: str) -> int:
    return count(counted(text)).total


def loop(body: str, trips: int | None = None, name: str = "while.1", scope: str = "") -> str:
    """A loop over a computation, whose condition is %asked."""
    known = f', backend_config={{"known_trip_count":{{"n":"{trips}"}}}}' if trips else ""
    return (
        f"%{name} = (s32[], f32[8]{{0}}) while(%start), condition=%asked, body=%{body}, "
        f'metadata={{op_name="jit(f)/{scope}while"}}{known}'
    )


ASKED = computation(
    "%asked (state: (s32[], f32[8])) -> pred[]",
    "%state = (s32[], f32[8]{0}) parameter(0)",
    "%at = s32[] get-tuple-element(%state), index=0",
    "ROOT %less = pred[] fusion(%at), kind=kLoop, calls=%fused_less",
)


def body(name: str, *launches: str) -> str:
    """A loop's body that makes these launches."""
    return computation(
        f"%{name} (state: (s32[], f32[8])) -> (s32[], f32[8])",
        "%state.1 = (s32[], f32[8]{0}) parameter(0)",
        *launches,
        "ROOT %again = (s32[], f32[8]{0}) tuple(%state.1)",
    )


def fusion(name: str, scope: str = "jit(f)/mul", calls: str = "fused_add") -> str:
    where = f', metadata={{op_name="{scope}" scheduling_name="{name}"}}' if scope else ""
    return f"%{name} = f32[8]{{0}} fusion(%x), kind=kLoop, calls=%{calls}{where}"


# What is a launch.


@pytest.mark.parametrize(
    ("line", "launches"),
    [
        ("%y = f32[8]{0} fusion(%x), kind=kLoop, calls=%fused_add", 1),
        ("%y = f32[8]{0} copy(%x)", 1),
        ("%y = f32[8]{0} sort(%x), dimensions={0}, to_apply=%fused_add", 1),
        ("%y = f32[8]{0} reduce(%x, %zero), dimensions={0}, to_apply=%fused_add", 1),
        ("%y = f32[8]{0} scatter(%x, %i, %u), to_apply=%fused_add", 1),
        ("%y = f32[8]{0} dynamic-update-slice(%x, %u, %i)", 1),
        ("%y = (f32[8]{0}, s8[4]{0}) custom-call(%x), custom_call_target=\"__cublas$gemm\"", 1),
        ("%y = f32[8]{0} never-heard-of(%x)", 1),
        ("%y = f32[8]{0} bitcast(%x)", 0),
        ("%y = (f32[8]{0}, f32[8]{0}) tuple(%x, %x)", 0),
        ("%y = f32[8]{0} get-tuple-element(%x), index=0", 0),
        ("%y = f32[3]{0} constant({1, 2, 3})", 0),
        ("%y = token[] after-all()", 0),
        ("%y = f32[8]{0} custom-call(%x), custom_call_target=\"Sharding\"", 0),
        # A pair that runs beside the others is one launch.
        (
            "%s = (f32[8]{0}, f32[8]{0:S(5)}, u32[]) copy-start(%x)\n"
            "%y = f32[8]{0:S(5)} copy-done(%s)",
            1,
        ),
        (
            "%s = ((f32[8]{0}), f32[8]{0}, s32[]) fusion-start(%x), kind=kLoop, calls=%fused_add\n"
            "%y = f32[8]{0} fusion-done(%s)",
            1,
        ),
    ],
)  # fmt: skip
def test_what_is_a_launch(line: str, launches: int) -> None:
    assert total(program(line, FUSED)) == launches


def test_names_of_computations_and_shapes_of_any_kind() -> None:
    odd = (
        "%y.1_2-a = (f32[8,4]{1,0:T(8,128)}, /*index=1*/(s32[], pred[2]{0})) fusion(%x), "
        'kind=kInput, calls=%fused_add, metadata={op_name="jit(f)/a(b)/mul)" stack_frame_id=3}, '
        'backend_config={"s":"a ) = ( b","n":{"k":"v"}}'
    )
    (launch,) = counted(program(odd, FUSED)).launches
    assert (launch.name, launch.kind) == ("y.1_2-a", "input fusion")
    assert launch.shape.startswith("(f32[8,4]{1,0:T(8,128)}") and launch.shape.endswith("))")
    assert launch.scope == "jit(f)/a(b)/mul)"


def test_a_program_that_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="without an entry"):
        read_program("HloModule m\n")
    with pytest.raises(ValueError, match="not an instruction: 'and now something else'"):
        read_program(program("and now something else"))


# How often.


@pytest.mark.parametrize("trips", [1, 7, 128])
def test_a_loop_counts_as_often_as_it_runs(trips: int) -> None:
    inside = body("step", fusion("a"), fusion("b"))
    text = program(f"{fusion('c')}\n{loop('step', trips)}", FUSED, ASKED, inside)
    assert total(text) == 1 + 2 * trips
    assert count(counted(text)).reads == 0  # the host counts, and does not ask


def test_loops_in_loops() -> None:
    inner = body("inner", fusion("a"))
    outer = body("outer", loop("inner", 5), fusion("b"))
    text = program(loop("outer", 3), FUSED, ASKED, inner, outer)
    assert total(text) == 3 * (5 + 1)


def test_loops_alike_are_shown_together() -> None:
    inside = body("step", fusion("a"), fusion("b"))
    lines = [loop("step", trips, f"while.{at}") for at, trips in enumerate([7, 5, 7, 7])]
    columns = read_launches(program("\n".join(lines), FUSED, ASKED, inside), 0).columns
    assert columns["in loops"] == "3 x 7 x 2, 5 x 2" and columns["launches"] == "52"


def test_layers_in_a_loop_are_all_layers() -> None:
    """Work that is moved into a scan is not fewer launches."""

    def layer(at: str) -> str:
        return "\n".join(fusion(f"{name}{at}", f"jit(f)/layer{at}/mul") for name in "abc")

    unrolled = program("\n".join(layer(f"_{at}") for at in range(32)), FUSED)
    scanned = program(loop("step", 32), FUSED, ASKED, body("step", layer("")))
    for text in (unrolled, scanned):
        assert total(text) == 96
        assert read_launches(text, 32).facts["kernels"]["launches_a_layer"] == 3


def test_a_loop_whose_trips_nobody_knows_is_given_by_the_trip() -> None:
    inside = body("step", fusion("a"), fusion("b"))
    text = program(f"{fusion('c')}\n{loop('step')}", FUSED, ASKED, inside)
    made = count(counted(text))
    # Asked in front of every trip and once more at the end, a launch and a read of the host each.
    assert (made.total, made.reads, len(made.unknown)) == (1 + 1, 1, 1)
    trip = count(made.unknown[0].body)
    assert (trip.total, trip.reads) == (2 + 1, 1)
    figures = read_launches(text, 0)
    assert figures.columns["launches"] == "2 + 3 a trip"
    assert figures.columns["host reads"] == "1 + 1 a trip"


def test_a_loop_in_a_loop_that_nobody_counts() -> None:
    inner = body("inner", fusion("a"), fusion("b"), fusion("c"))
    outer = body("outer", loop("inner", name="while.2"), fusion("d"))
    text = program(loop("outer"), FUSED, ASKED, inner, outer)
    figures = read_launches(text, 0)
    # Once: the outer's last question. A trip of it: its question, one launch, the inner's last
    # question. A trip of the inner: its question and three launches.
    assert figures.columns["launches"] == "1 + 3 a trip + 4 a trip"
    assert figures.columns["host reads"] == "1 + 2 a trip + 1 a trip"


def test_many_loops_that_nobody_counts_are_told_shortly() -> None:
    bodies = [body(f"b{n}", *(fusion(f"f{at}") for at in range(n))) for n in range(3)]
    lines = "\n".join(loop(f"b{n}", name=f"while.{n}") for n in range(3))
    columns = read_launches(program(lines, FUSED, ASKED, *bodies), 0).columns
    assert columns["launches"] == "3 + 1 to 3 a trip of 3 loops"
    assert columns["host reads"] == "3 + 1 to 1 a trip of 3 loops"


def test_an_unknown_loop_in_a_known_one_keeps_its_times() -> None:
    inner = body("inner", fusion("a"), fusion("b"))
    outer = body("outer", loop("inner"))
    text = program(loop("outer", 5), FUSED, ASKED, inner, outer)
    made = count(counted(text))
    assert (made.total, made.reads) == (5, 5)  # its last question, five times
    assert sum(made.times) == 5


@pytest.mark.parametrize("larger", ["then", "otherwise"])
@pytest.mark.parametrize("form", ["list", "pair"])
def test_the_larger_branch_counts(larger: str, form: str) -> None:
    sizes = {"then": 1, "otherwise": 2} | {larger: 4}
    branches = [
        computation(
            f"%{name} (x: f32[8]) -> f32[8]",
            "%x = f32[8]{0} parameter(0)",
            *(fusion(f"{name}{at}") for at in range(size)),
        )
        for name, size in sizes.items()
    ]
    named = {
        "list": "branch_computations={%otherwise, %then}",
        "pair": "true_computation=%then, false_computation=%otherwise",
    }[form]
    line = f"%y = f32[8]{{0}} conditional(%p, %x, %x), {named}"
    made = count(counted(program(line, FUSED, *branches)))
    assert (made.total, made.reads) == (4, 1)


@pytest.mark.parametrize(
    "line",
    [
        "%y = f32[8]{0} call(%x), to_apply=%command_buffer",
        "%s = ((f32[8]{0}), f32[8]{0}) async-start(%x), calls=%command_buffer\n"
        "%y = f32[8]{0} async-done(%s)",
        "%s = ((f32[8]{0}), f32[8]{0}) call-start(%x), to_apply=%command_buffer\n"
        "%y = f32[8]{0} call-done(%s)",
    ],
)
def test_what_is_called_counts_where_it_is_called(line: str) -> None:
    called = computation(
        "%command_buffer (x: f32[8]) -> f32[8]",
        "%x = f32[8]{0} parameter(0)",
        fusion("a"),
        loop("step", 4),
    )
    inside = body("step", fusion("b"))
    assert total(program(line, FUSED, ASKED, inside, called)) == 1 + 4
    assert total(program(f"{line}\n{line}", FUSED, ASKED, inside, called)) == 2 * (1 + 4)


# A tree of what runs: a launch, something free, or a loop, a conditional or a call with its parts.
trees = st.recursive(
    st.sampled_from(["launch", "free"]),
    lambda parts: st.tuples(
        st.sampled_from(["loop", "conditional", "call"]), st.lists(st.lists(parts, max_size=3),
                                                                  min_size=2, max_size=2),
        st.integers(1, 4),
    ),
    max_leaves=12,
)  # fmt: skip


def executed(tree: Any) -> tuple[int, int]:
    """(launches, host reads), by going through the program step by step."""
    if isinstance(tree, str):
        return (tree == "launch", 0)
    kind, (one, other), trips = tree

    def all_of(parts: list[Any]) -> tuple[int, int]:
        made = [executed(part) for part in parts]
        return sum(launches for launches, _ in made), sum(reads for _, reads in made)

    if kind == "call":
        return all_of(one)
    if kind == "conditional":
        launches, reads = max(all_of(one), all_of(other))
        return launches, reads + 1
    launches = reads = 0
    for _ in range(trips):
        more, asked = all_of(one)
        launches, reads = launches + more, reads + asked
    return launches, reads


def written(tree: Any, others: list[str]) -> str:
    """The tree as a line of a program, its computations appended to `others`."""
    name = f"c{len(others)}"
    others.append("")  # its number is taken
    if isinstance(tree, str):
        return fusion(name) if tree == "launch" else f"%{name} = f32[8]{{0}} bitcast(%x)"
    kind, branches, trips = tree
    made = []
    for parts in branches:
        lines = [written(part, others) for part in parts]
        made.append(f"{name}.b{len(made)}")
        others.append(body(made[-1], *lines))
    if kind == "loop":
        return loop(made[0], trips, name)
    if kind == "call":
        return f"%{name} = f32[8]{{0}} call(%x), to_apply=%{made[0]}"
    return f"%{name} = f32[8]{{0}} conditional(%p), branch_computations={{%{made[0]}, %{made[1]}}}"


@given(st.lists(trees, max_size=4))
def test_any_program_counts_as_it_runs(parts: list[Any]) -> None:
    others: list[str] = []
    entry = "\n".join(written(part, others) for part in parts)
    text = program(entry or "%y = f32[8]{0} bitcast(%x)", FUSED, ASKED, *others)
    made = count(counted(text))
    ran = [executed(part) for part in parts]
    assert made.total == sum(launches for launches, _ in ran)
    assert made.reads == sum(reads for _, reads in ran)


# Where, and what.


def test_layers_and_what_lies_beside_them() -> None:
    lines = [
        fusion("a", "jit(prefill)/language_model/layer_0/dot_general"),
        fusion("b", "jit(prefill)/language_model/layer_1/while/body/dot_general"),
        fusion("c", "jit(prefill)/language_model/layer_1/add"),
        fusion("d", "jit(prefill)/lm_head/dot_general"),
        fusion("e", "jit(prefill)/layer_norm/mul"),  # no layer, though it is called like one
        fusion("f", ""),  # its scope is that of what was fused
        "%g = f32[8]{0} copy(%x)",  # nobody knows: nothing reads it
    ]
    figures = read_launches(program("\n".join(lines), FUSED), 2)
    kernels = figures.facts["kernels"]
    assert kernels["launches"] == 7
    assert kernels["launches_a_layer"] == 2 and kernels["launches_beside"] == 3
    assert kernels["scope_lost"] == 1
    assert figures.columns["a layer"] == "2" and figures.columns["beside"] == "3"


def test_what_lost_its_scope_belongs_to_what_reads_it() -> None:
    lines = [
        "%a = f32[8]{0} copy(%x)",
        '%b = f32[8]{0} bitcast(%a), metadata={op_name="jit(f)/layer_7/reshape"}',
        "%c = f32[8]{0} fusion(%b), kind=kLoop, calls=%fused_less,"
        ' metadata={op_name="jit(f)/layer_1/mul"}',
        "%d = f32[8]{0} copy(%c)",
        "%e = (f32[8]{0}, f32[8]{0}) tuple(%d, %a)",
    ]
    made = count(counted(program("\n".join(lines), FUSED)))
    assert [launch.layer for launch in made.launches] == ["layer_1", "layer_1", ""]
    assert [launch.lost for launch in made.launches] == [True, False, True]
    assert made.lost == 2 and made.in_layers == 2


def test_what_lost_its_scope_in_a_loop_belongs_to_where_the_loop_is() -> None:
    inside = body("step", "%a = f32[8]{0} copy(%x)")
    text = program(loop("step", 3, scope="layer_4/"), FUSED, ASKED, inside)
    (launch,) = count(counted(text)).launches
    assert launch.layer == "layer_4" and launch.lost


def test_a_step_of_a_loop_that_nobody_counts_has_layers_too() -> None:
    layers = "\n".join(fusion(f"l{at}", f"jit(decode)/while/body/layer_{at}/mul") for at in (0, 1))
    text = program(
        f"{fusion('first')}\n{loop('step')}", FUSED, ASKED,
        body("step", layers, fusion("head", "jit(decode)/while/body/lm_head/mul")),
    )  # fmt: skip
    kernels = read_launches(text, 2).facts["kernels"]
    assert (kernels["launches"], kernels["launches_a_trip"]) == (2, [4])
    assert (kernels["launches_a_layer"], kernels["launches_beside"]) == (1, 2)


GEMM = computation(
    "%gemm_fusion (x.2: f32[8]) -> f32[8]",
    "%x.2 = f32[8]{0} parameter(0)",
    'ROOT %dot.1 = f32[8]{0} dot(%x.2, %x.2), metadata={op_name="jit(f)/layer_0/dot_general"}',
)


@pytest.mark.parametrize(
    ("line", "kind", "does"),
    [
        (fusion("a"), "loop fusion", "square add"),
        (fusion("a", calls="gemm_fusion"), "gemm", "dot_general"),
        (fusion("a", calls="gemm_fusion") + ', backend_config={"kind":"__triton_gemm"}',
         "triton gemm", "dot_general"),
        ('%a = f32[8]{0} custom-call(%x), custom_call_target="__cublas$lt$matmul"',
         "cublas gemm", "custom-call"),
        ('%a = f32[8]{0} custom-call(%x), custom_call_target="mosaic_gpu_v2"', "mosaic_gpu_v2",
         "custom-call"),
        ("%a = f32[8]{0} copy(%x), metadata={op_name=\"jit(f)/transpose\"}", "copy", "transpose"),
        ("%a = f32[8]{0} fusion(%x), kind=kCustom, calls=%fused_add, "
         'backend_config={"fusion_backend_config":{"kind":"__triton"}}', "triton fusion",
         "square add"),
    ],
)  # fmt: skip
def test_kinds(line: str, kind: str, does: str) -> None:
    (launch,) = counted(program(line, FUSED, GEMM)).launches
    assert (launch.kind, launch.does) == (kind, does)


def test_one_layer_is_listed() -> None:
    lines = [fusion(f"{name}{at}", f"jit(f)/layer_{at}/mul") for at in range(3) for name in "ab"]
    kernels: dict[str, Any] = dict(read_launches(program("\n".join(lines), FUSED), 3).facts)
    assert kernels["kernels"]["one_layer"] == ["loop fusion: square add"] * 2
