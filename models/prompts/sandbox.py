"""The process that chat templates are rendered in: started by `render.py`, never imported.

A template is a program by strangers. Jinja's sandbox keeps it from files and from Python's insides,
but not from looping or allocating without end, so it runs here, where the system's limits of
processor time and memory end it. Only Jinja and the standard library are needed, so that the
process starts in a tenth of a second.

It reads one JSON line a rendering, and answers each with one.
"""

import json
import os
import resource
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

KEPT = 8
"""Compiled templates that are kept."""


class Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`, which marks answers for training: its content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The statements between the tags, as they are."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class Names(jinja2.utils.Namespace):
    """Jinja's `namespace`, without names that begin with an underscore."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *rest = args
        found = dict(*rest, **named)
        for name in found:
            _check_name(name)
        jinja2.utils.Namespace.__init__(self, found)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")


def _refuse(message: Any) -> None:
    raise jinja2.exceptions.TemplateError(str(message))


def _json(value: Any, **options: Any) -> str:
    known = ("ensure_ascii", "indent", "separators", "sort_keys")
    if unknown := set(options) - set(known):
        raise TypeError(f"tojson has no option {sorted(unknown)[0]!r}")
    return json.dumps(value, **{"ensure_ascii": False, **options})


def environment() -> ImmutableSandboxedEnvironment:
    """What templates may use: the names and filters that `transformers` gives them."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = _json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    made.globals["namespace"] = Names
    return made


def limit_memory(most: int) -> None:
    """Let this process have so many bytes in all."""
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        if hasattr(resource, name):
            own = getattr(resource, name)
            try:
                resource.setrlimit(own, (most, resource.getrlimit(own)[1]))
            except (ValueError, OSError):
                continue  # the system has a lower one, or none of this kind


def answer(
    known: dict[str, jinja2.Template], asked: dict[str, Any], longest: int
) -> dict[str, Any]:
    """Render one template."""
    try:
        template = known.get(asked["template"])
        if template is None:
            template = environment().from_string(asked["template"])
            while len(known) >= KEPT:
                known.pop(next(iter(known)))
            known[asked["template"]] = template
        parts, length = [], 0
        for part in template.generate(asked["names"]):
            parts.append(part)
            length += len(part)
            if length > longest:
                return {"error": f"it writes more than {longest} characters"}
        return {"text": "".join(parts)}
    except MemoryError:
        return {"error": "it needs too much memory"}
    except RecursionError:
        return {"error": "it calls itself without end"}
    except Exception as error:  # a template may raise anything
        return {"error": str(error)[:2000] or type(error).__name__}


def main() -> None:
    """Serve until standard input is closed."""
    cpu_s, memory, longest = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing that a template does may write between the answers
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    limit_memory(memory)
    known: dict[str, jinja2.Template] = {}
    for line in sys.stdin.buffer:
        # Counts processor time, and ends the process wherever it is, in C too.
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        made = answer(known, json.loads(line), longest)
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(made).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main()
