"""An extension of griffe: the fields of `CallOptions`, whose meaning stands in their metadata.

`models/prompts/options.py` writes each as `name: type = _option(default, about, unset=...)`, which
the commands' help is made of. Here the default takes the place of that call in the signature, and
what it is about becomes an entry of the class's docstring.
"""

import ast
from typing import Any

from griffe import Attribute, Class, Extension, Module

PARTS = ("PruneOptions", "PromptOptions", "DrawOptions")


class Options(Extension):
    """Reads the calls of `_option`."""

    def on_attribute_instance(self, *, node: Any, attr: Attribute, **_: Any) -> None:
        """Take a field apart: its default, what it is about, and what None stands for."""
        call = getattr(node, "value", None)
        if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "_option":
            return
        default, about = call.args
        unset = [ast.literal_eval(each.value) for each in call.keywords if each.arg == "unset"]
        attr.value = ast.unparse(default)
        told = [ast.literal_eval(about), *(f"None: {each}." for each in unset)]
        attr.extra["options"]["about"] = " ".join(told)

    def on_package(self, *, pkg: Module, **_: Any) -> None:
        """Write the entries into the docstring of the class that holds all fields."""
        if pkg.name != "resprune_jax":
            return
        module = pkg["models.prompts.options"]
        whole = module["CallOptions"]
        assert isinstance(whole, Class) and whole.docstring is not None
        entries = [
            f"    {name}: {about}"
            for part in PARTS
            for name, field in module[part].attributes.items()
            if (about := field.extra["options"].get("about"))
        ]
        assert entries, "no field of a call is written as an _option"
        whole.docstring.value += "\n\nArgs:\n" + "\n".join(entries)
