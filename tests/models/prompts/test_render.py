"""Chat templates in a process of their own: as transformers renders them, and never without end."""

import os
import signal
from typing import Any

import pytest

from resprune_jax.errors import CallError
from resprune_jax.models.prompts import render as rendering
from resprune_jax.models.prompts.render import TemplateError, render
from tests.models.prompts.chats import TEMPLATES, TOKENIZERS, encoder

MESSAGES = [
    {"role": "system", "content": "be <brief> & kind"},
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "caf\u00e9 \ud83d?"}]},
]
FEATURES = {
    "roles": "{% for m in messages %}{{ m['role'] | upper }}: {{ m.content }}\n{% endfor %}",
    "blocks": "{%- for m in messages %}\n  {%- if loop.first %}\n a\n  {% endif %}\n{% endfor -%}x",
    "json": "{{ messages | tojson }} {{ messages | tojson(indent=2) }}",
    "generation": "{% generation %}a{{ messages[0].role }}{% endgeneration %}b",
    "namespace": "{% set n = namespace(i=0) %}{% for m in messages %}{% set n.i = n.i + 1 %}"
    "{{ n.i }}{% endfor %}",
    "breaks": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}"
    "{% endfor %}",
    "names": "{{ bos_token }}|{{ tools is none }}|{{ unknown }}|{{ add_generation_prompt }}",
    "trimmed": "{% if true %}\n\nx\n{% endif %}\ny",
    "dict": "{{ dict(a=1) }} {{ messages[0].get('role', 'x') }} {{ messages[0].items() | list }}",
}


@pytest.mark.parametrize("name", FEATURES)
@pytest.mark.parametrize("add", [True, False])
def test_as_transformers(name: str, add: bool) -> None:
    tokenizer: Any = TOKENIZERS["byte"]
    wanted = tokenizer.apply_chat_template(
        MESSAGES, chat_template=FEATURES[name], tokenize=False, add_generation_prompt=add
    )
    names = {
        "messages": MESSAGES, "tools": None, "documents": None, "add_generation_prompt": add,
        **tokenizer.special_tokens_map,
    }  # fmt: skip
    assert render(FEATURES[name], names) == wanted


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "0.2 s"),
        ("{% for x in [1] | slice(10 ** 9) %}{% endfor %}", "0.2 s|too much memory"),
        ("{{ range(99999) | sum(start=0) }}{{ 7 ** (10 ** 9) }}", "0.2 s|too much memory"),
        ("{{ 'a'.ljust(3000000000) }}", "too much memory"),
        ("{{ '%3000000000d' % 1 }}", "too much memory"),
        ("{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}"
         "{% endfor %}", "too much memory|0.2 s"),
        ("{{ 'a' * 2000000 }}", "more than 1048576 characters"),
        ("{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaa{% endfor %}", "more than 1048576"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "calls itself without end"),
        ("{% include '/etc/passwd' %}", "."),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe|not safely|undefined"),
        ("{{ raise_exception('no') }}", "^no$"),
    ],
)  # fmt: skip
def test_no_template_goes_on_for_ever(
    monkeypatch: pytest.MonkeyPatch, template: str, said: str
) -> None:
    monkeypatch.setattr(rendering, "CPU_S", 0.2)
    rendering._PROCESS.stop()  # the next one starts with that limit
    try:
        with pytest.raises(TemplateError, match=said):
            render(template, {"messages": MESSAGES})
        assert render("{{ 1 + 1 }}", {}) == "2", "the next template is not harmed"
    finally:
        rendering._PROCESS.stop()


def test_a_template_without_end_is_one_line_for_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "CPU_S", 0.2)
    rendering._PROCESS.stop()
    busy = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    for template in (busy + TEMPLATES["parts"], TEMPLATES["string"] + busy):
        with pytest.raises(CallError, match=r"may not end; give the whole text with chat_template"):
            encoder(TOKENIZERS["byte"], template).encode("What?")
    rendering._PROCESS.stop()


def test_a_process_that_was_ended_is_started_again() -> None:
    assert render("a", {}) == "a"
    child = rendering._PROCESS._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert render("b", {}) == "b"
    assert rendering._PROCESS._child is not child
