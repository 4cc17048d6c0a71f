"""Which test modules need torch, read from their source: nothing is imported to find out.

A module needs torch if it imports it anywhere, imports another test module that does, or has a test
that takes a fixture of conftest.py that does.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

TORCH = ("torch", "safetensors.torch")


def modules_that_need_torch(root: Path) -> list[Path]:
    """The test modules below `root`/tests that cannot run without torch, sorted.

    Args:
        root: the folder that holds `tests`.
    """
    known: dict[Path, bool] = {}
    trees: dict[Path, ast.Module] = {}

    def tree(path: Path) -> ast.Module:
        if path not in trees:
            trees[path] = ast.parse(path.read_text(encoding="utf-8"))
        return trees[path]

    def reaches_torch(node: ast.AST) -> bool:
        for name in _imported(node):
            if any(name == each or name.startswith(f"{each}.") for each in TORCH):
                return True
            path = root / (name.replace(".", "/") + ".py")
            if name.startswith("tests.") and path.is_file() and needs(path):
                return True
        return False

    def needs(path: Path) -> bool:
        if path not in known:
            known[path] = False  # two modules that import each other
            known[path] = reaches_torch(tree(path))
        return known[path]

    shared = _functions(tree(root / "tests" / "conftest.py"))
    fixtures = {name for name, (node, _) in shared.items() if reaches_torch(node)}
    while more := {n for n, (_, takes) in shared.items() if takes & fixtures} - fixtures:
        fixtures |= more

    def takes_fixture(path: Path) -> bool:
        own = _functions(tree(path))
        return any(takes & (fixtures - own.keys()) for _, takes in own.values())

    modules = sorted((root / "tests").rglob("test_*.py"))
    return [path for path in modules if needs(path) or takes_fixture(path)]


def _imported(node: ast.AST) -> Iterator[str]:
    """Names of all modules that a piece of source imports, also inside functions."""
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            yield from (alias.name for alias in each.names)
        elif isinstance(each, ast.ImportFrom) and each.module:
            yield each.module
            yield from (f"{each.module}.{alias.name}" for alias in each.names)


def _functions(module: ast.Module) -> dict[str, tuple[ast.AST, set[str]]]:
    """Each function of a module by name, with the names of its arguments."""
    return {
        node.name: (node, {argument.arg for argument in node.args.args})
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
    }
