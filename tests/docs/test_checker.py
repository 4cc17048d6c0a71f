"""The checker finds what is wrong with a page: each fault here is planted."""

from pathlib import Path

import pytest

from tests.docs import inputs, pages, running, words
from tests.docs.running import BlockError, Machine
from tests.docs.test_blocks import MOST_MARKS, marks

pytestmark = pytest.mark.docs


def page(*parts: str) -> pages.Page:
    return pages.parse("\n\n".join(parts) + "\n", "planted.md")


def fence(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


FAILS = [
    (fence("python", "shown = 1", "print(shwon)"), ["planted.md", "line 3", "NameError", "shwon"]),
    (fence("sh", "resprune info --model pocket --kep 64"), ["planted.md:2", "--kep", "--keep"]),
    (fence("sh", "resprune benchmark --data DIR"), ["planted.md:2", "--name"]),
    (fence("sh", "resprune infos"), ["planted.md:2", "infos"]),
    (fence("sh", "true", "false   # a comment"), ["planted.md:3", "exit status 1"]),
    (fence("sh", "python -c 'import nothing_like_it'"), ["No module named"]),
    (fence("sh", "true --out gone.png"), ["--out gone.png", "no such file"]),
    (fence("sh", "make tets"), ["planted.md:2", "tets"]),
    (fence("sh", "pip install 'resprune-jax[cdua]'"), ["planted.md:2", "cdua"]),
    (fence("json", "{,}"), ["planted.md:2"]),
    (fence("jsonl", "{}", "}"), ["planted.md:2"]),
    (fence("toml", "a = "), ["planted.md:2"]),
    (fence("python", "print(1)") + "\n" + fence("text", "2"), ["the page shows\n2", "prints\n1"]),
    (fence("sh", "echo one") + "\n" + fence("text", "... two"), ["the page shows", "one"]),
    # What is not run is parsed all the same.
    ("<!-- test: not run: no GPU -->\n" + fence("sh", "resprune gpu-check --crad x"), ["--crad"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), FAILS, ids=[said[-1] for _, said in FAILS])
def test_a_block_that_fails(text: str, said: list[str], machine: Machine, tmp_path: Path) -> None:
    with pytest.raises(BlockError) as error:
        running.run(page(text), machine, tmp_path)
    assert all(word in str(error.value) for word in said), str(error.value)


def test_a_page_that_is_right(machine: Machine, tmp_path: Path) -> None:
    """Names stay, files too, what the shell continues is one command, output may have gaps."""
    text = page(
        fence("python", "# own.py", "number = 3"),
        "<!-- test: given: question -->",
        fence("python", "import own", "print(own.number + number, question)"),
        fence("text", "6 What ... star?"),
        fence("sh", "# a remark", "cat own.py \\", "  | grep -c number  # it's 1", "echo 'a", "b'"),
        fence("text", "1", "a", "b"),
    )  # fmt: skip
    assert running.run(text, machine, tmp_path) == 4


UNREADABLE = [
    (fence("pyhton", "1"), ["planted.md:1", "pyhton"]),
    (fence("", "resprune"), ["planted.md:1", "without a language"]),
    ("Text.\n\n    resprune methods", ["planted.md:3", "indented"]),
    ('!!! note\n\n    Text.\n\n    ```pyhton\n    1\n    ```', ["planted.md:5", "pyhton"]),
    ("<!-- test: not run: no GPU -->\n\nText.", ["planted.md:1", "no block"]),
    ("<!-- test: not run: no GPU -->", ["planted.md:1", "no block"]),
    (f"<!-- test: not run -->\n{fence('sh', 'true')}", ["planted.md:1", "no order"]),
    (f"<!-- test: comand 1: --quick -->\n{fence('sh', 'true')}", ["planted.md:1", "comand"]),
    (f"<!-- test: command 2: --quick -->\n{fence('sh', 'true')}", ["command 2 of 1"]),
    (fence("sh", "true", "echo 'never closed"), ["planted.md:3", "does not end"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), UNREADABLE, ids=[said[-1] for _, said in UNREADABLE])
def test_a_page_that_cannot_be_read(text: str, said: list[str]) -> None:
    with pytest.raises(pages.PageError) as error:
        page(text)
    assert all(word in str(error.value) for word in said), str(error.value)


def test_one_mark_too_many() -> None:
    one = f"<!-- test: not run: needs a GPU -->\n{fence('sh', 'true')}"
    two = (
        f"<!-- test: command 1 not run: here; command 2 not run: there -->\n{fence('sh', 'a', 'b')}"
    )
    assert len(marks([page(*[one] * (MOST_MARKS - 1), two)])) == MOST_MARKS + 1
    assert marks([page(one, two)])[1:] == ["planted.md:8: here", "planted.md:8: there"]


INLINE = [
    ("`resprune answer --modle M`", "--modle"),
    (
        "| `resprune answer --model M --image F --prompt T [--batch-size 8 \\| much]` |\n|---|",
        "much",
    ),
    ("`resprune sweep ... --reprot DIR`", "--reprot"),
    ("`resprune bnech start`", "bnech"),
    ("`bench strat`", "strat"),
    ("`--keeps`", "--keeps"),
    ("`--method-settings` and `--method-setting combine=add`", "--method-setting "),
    ("`make tets`", "tets"),
    ("`pip install -e .[cdua]`", "cdua"),
    ("`pytest -s tests/gone.py`", "tests/gone.py"),
    ("`python -m resprune_jax.gone.module`", "resprune_jax.gone"),
]


@pytest.mark.parametrize(("text", "said"), INLINE, ids=[said for _, said in INLINE])
def test_inline_code_that_names_nothing(text: str, said: str) -> None:
    _, (wrong,) = words.check_page(page(text))
    assert wrong.startswith("planted.md:1: ") and said.strip() in wrong.split("`")[-1]


def test_inline_code_that_is_right() -> None:
    count, wrong = words.check_page(page(
        "`resprune answer --rows FILE.jsonl`, `bench start`, `--keep 0.5`, `resprune methods`, "
        "`bench start --out`, "
        "`resprune info --model M [--size WxH ...] [--keep K]`, `make help`, "
        "`pip install .[serve]`, `resprune --version`, `JAX_PLATFORMS=cpu resprune demo`, "
        "`pytest -s tests/parity`",
        "`keep`, `a | b`, `resprune`, `lvlm.generate(images, prompts)`",
    ))  # fmt: skip
    assert (count, wrong) == (11, [])


def test_forms() -> None:
    assert list(words.forms("a --model M [--keep 128 | 0.5 | full] [--x ...]")) == [
        "a --model M --keep 128 --x", "a --model M --keep 0.5 --x", "a --model M --keep full --x",
    ]  # fmt: skip


def test_options_take_the_place_of_a_commands_own() -> None:
    made = running.changed("bench --sizes 1 2 --quick --out x  # why", "--sizes 3 --repeats 1")
    assert made == "bench --quick --out x --sizes 3 --repeats 1"


def test_an_id_without_a_checkpoint() -> None:
    with pytest.raises(KeyError, match="HUB"):
        inputs.hub_ids('load_model("Qwen/Qwen9-VL")')
