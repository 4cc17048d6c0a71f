"""Hostile chat templates: loops, allocations, ways out of the sandbox, and damaged good ones."""

from typing import Any

import numpy as np

from resprune_jax.models.prompts import render
from resprune_jax.models.prompts.chat import PromptEncoder
from resprune_jax.models.prompts.tokenizer_files import load_tokenizer
from tests.attacks.harness import WRONG, Fault, Fuzzer, draw
from tests.attacks.inputs.checkpoints import base
from tests.attacks.inputs.mutations import damage

NAME = "templates"

GOOD = (
    "{% for m in messages %}{{ m['role'] | upper }}: {% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}",
    "{%- set ns = namespace(n=0) -%}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}{% set ns.n = ns.n + 1 %}<image>"
    "{% else %}{{ c.text | trim }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}",
)

# N is a large number.
BUSY = (
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "{{ 'a'.ljust(N) }}",
    "{{ '%Nd' % 1 }}",
    "{{ '{:Nd}'.format(1) }}",
    "{{ 'a' * N }}",
    "{{ [1] * N }}",
    "{{ [1] | slice(N) | list }}",
    "{{ range(99999) | batch(1, 0) | list }}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ 7 ** N }}",
    "{{ lipsum(n=N) }}",
    "{{ 'a' | center(N) }}",
    "{{ 'a b' | indent(N) }}",
    "{{ 'aaaa' | replace('a', 'b' * 99999) | replace('b', 'c' * 99999) }}",
    "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('a') }}",
    "{{ 'x' | wordwrap(0) }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}{{ f() }}{% endcall %}",
    "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "{{ ('a' * 9999) | list | tojson }}",
    "{% set x %}{% for i in range(99999) %}aaaaaaaaaaaaaaaa{% endfor %}{% endset %}{{ x * 99 }}",
    "{{ cycler(*range(99999)).next() * N }}",
    "{{ dict(a=1).fromkeys(range(99999), 'x' * N) }}",
    "{{ messages | map('list') | map('join', 'x' * N) | list }}",
    "{{ (1, 2) * N }}",
    "{% for a in range(9999) %}{{ strftime_now('%Y' * 9999) }}{% endfor %}",
    "{{ range(99999) | sum(start='') }}",
    "{{ range(99999) | groupby('x') | list }}",
    "{% filter upper %}{% for i in range(99999) %}{{ i * 'x' }}{% endfor %}{% endfilter %}",
)

ESCAPES = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ messages.__class__ }}",
    "{{ cycler.__init__.__globals__.os.system('touch broken') }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ namespace(__class__=1) }}",
    "{{ raise_exception.__globals__ }}",
    "{{ messages.append(1) }}",
    "{{ messages.clear() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os }}",
    "{% extends 'a' %}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ '%s' | format(raise_exception) }}",
    "{{ joiner() }}",
    "{{ raise_exception('a\nb\x1b[31m' * 999) }}",
    "{{ strftime_now('%s' * 99) }}",
    "{{ none() }}",
    "{{ dict(a=1).items().__class__ }}",
    "{{ tojson(messages) }}",
    "{{ messages | tojson(x=1) }}",
    "{% set messages = [] %}",
    "{{ undefined.x.y }}",
    "{{ 1 / 0 }}",
    "{% generation %}{% endfor %}",
    "{% generation %}{{ messages }}{% endgeneration %}",
    "{% break %}",
    "{{ [][9] }}",
    "{#",
    "{{",
    "",
    " ",
    "<image>",
    "{{ messages[0]['content'] }}" * 3,
    "{{ 'x' | attr('__class__') }}",
    "{{ messages | attr('pop') }}",
    "{{ bos_token.__add__('a') }}",
    "{% do messages.pop() %}",
    "{{ '\ud800' }}<image>{{ messages[0]['content'][-1]['text'] }}",
    "\ud800{{ 1 }}",
    "{{ '\0' }}",
)

QUESTIONS = (
    "What is it?",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "a\u2028b",
    "\u202eabc",
    "x" * 3000,
    "  blanks ",
    "\0",
    "resprune0question5f1c7d2e9b",
    "<s></s>",
    "'\"\\",
    "&lt;<b>",
)


def prepare() -> None:
    _tokenizer()
    # What ends a rendering is the same at a tenth of the time.
    render.CPU_S = 0.2
    render.render("{{ 1 }}", {})


def _tokenizer(kept: dict[str, Any] = {}) -> Any:  # noqa: B006 (kept between the cases)
    if not kept:
        kept["it"] = load_tokenizer(base("llava").folder)
    return kept["it"]


def run(seed: int) -> None:
    numbers = draw(NAME, seed)
    encoder = PromptEncoder(
        _tokenizer(), image_token_id=4, template=_template(numbers), eos_ids=[2], vocab_size=400
    )
    question = QUESTIONS[int(numbers.integers(len(QUESTIONS)))]
    images = ("image",) * int(numbers.integers(1, 4))
    got = encoder.encode(question, images)
    end = got.question_start + len(got.question)
    if (
        got.text[got.question_start : end] != got.question
        or got.question.strip() != question.strip()
    ):
        raise Fault(WRONG, f"the question is not where it should be in {got.text[:200]!r}")


def _template(numbers: np.random.Generator) -> str:
    good = GOOD[int(numbers.integers(len(GOOD)))]
    kind = numbers.random()
    if kind < 0.3:
        raw = damage(good.encode(), numbers)[:100_000]
        return raw.decode("utf-8", "surrogateescape" if numbers.random() < 0.2 else "replace")
    large = str(int(numbers.choice([10**6, 3 * 10**9, 10**12])))
    pool = BUSY if kind < 0.6 else ESCAPES
    bad = pool[int(numbers.integers(len(pool)))].replace("N", large)
    where = int(numbers.integers(3))
    if where == 0:
        return bad + good
    if where == 1:
        return good + bad
    return good.replace("{% endif %}", bad + "{% endif %}", 1)


FUZZERS = [Fuzzer(NAME, run, cases=500, quick=40, prepare=prepare)]
