"""The house: which room imports which, how full each is, and what a family cost outside its own.

    python -m tests.house                    the picture of the imports
    python -m tests.house BASE..HEAD         lines that the commits of a range changed, by place

Rooms are folders. A room stands on a floor, and may import what stands below it or beside it, never
what is above; beside one another, rooms import one way only.
"""

import ast
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 15
"""Files of a room, `__init__.py` not counted."""

PACKAGES = ("resprune_jax", "models", "experiments")

# From the ground up: modules by their first names, the longest one that fits counts. A folder's own
# `base`, `common` or `errors` is what the others in it stand on; `api`, `registry` and `cli` stand
# on the others.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("resprune_jax.errors", "resprune_jax.choices"),
    ("resprune_jax.engines", "resprune_jax.text"),
    ("resprune_jax",),
    ("resprune_jax.methods.inputs", "resprune_jax.methods.settings"),
    ("resprune_jax.methods.base", "resprune_jax.methods.spectrum"),
    (
        "resprune_jax.methods.baselines",
        "resprune_jax.methods.encoder",
        "resprune_jax.methods.tokens",
        "resprune_jax.methods.decoder",
    ),
    ("resprune_jax.methods",),
    ("models.checkpoint",),
    ("models.prompts",),
    ("models.images",),
    ("models.decoder",),
    ("models.towers",),
    ("models.families.base",),
    ("models.families",),
    ("models.families.registry",),
    ("models.running",),
    ("models",),
    ("experiments.stopping",),
    ("experiments.common", "experiments.info"),
    ("experiments",),
    ("experiments.cli", "experiments.compare", "experiments.demo"),
    ("experiments.start", "experiments.__main__"),
)
_FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}

OWN = ("tests/", "docs/", "models/families/", "models/towers/", "README.md", "CHANGELOG.md")
"""Where a family's lines do not count as outside: its tests, documents, folder and tower."""
ROPE = ("models/decoder/rope.py", "models/decoder/rope_scaling.py")
"""Where new RoPE types live."""
SHARED = ("models/families/base.py", "models/families/registry.py")
"""Files among the families that belong to none of them."""


def modules() -> dict[str, Path]:
    """Every module by its name without the package's: "models.api", "resprune_jax.selection"."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            # The links in resprune_jax/ lead to the other two.
            if not name.startswith(("resprune_jax.models.", "resprune_jax.experiments.")):
                found[name.removesuffix(".__init__")] = path
    return found


@cache
def named(name: str, path: Path) -> tuple[str, ...]:
    """What a module imports, lazily or at once, as it stands there; types alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: list[str] = []
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parts = package.split(".")
                above = parts[: len(parts) - node.level + 1]
                module = ".".join([*above, module] if module else above)
            targets = [f"{module}.{each.name}" for each in node.names]
        if id(node) not in typing:
            found += targets
    return tuple(found)


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of this project that one imports."""
    for target in named(name, path):
        for prefix in ("resprune_jax.models", "resprune_jax.experiments"):
            if target == prefix or target.startswith(prefix + "."):
                target = target.removeprefix("resprune_jax.")
        while target and target not in known:
            target = target.rpartition(".")[0]
        if target and target != name:
            yield target


def floor(name: str) -> int:
    """The floor of a module: of the longest name in `FLOORS` that it begins with."""
    while name not in _FLOOR:
        name = name.rpartition(".")[0]
    return _FLOOR[name]


def room(name: str, path: Path) -> str:
    """The folder, or the module itself where it has a floor of its own."""
    folder = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return name if name in _FLOOR and name != folder else folder


def arrows() -> dict[tuple[str, str], set[str]]:
    """(room, room that it imports): "module > module" each."""
    known = modules()
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for name, path in known.items():
        if path.name == "__init__.py" and name in ("resprune_jax", "models"):
            continue  # the public names, and nothing else
        for target in imports(name, path, known):
            ends = room(name, path), room(target, known[target])
            if ends[0] != ends[1]:
                found[ends].add(f"{name} > {target}")
    return dict(found)


def upward() -> list[str]:
    """Imports of something on a higher floor."""
    return sorted(
        each
        for made in arrows().values()
        for each in made
        if floor(each.split(" > ")[0]) < floor(each.split(" > ")[1])
    )


def circles() -> list[str]:
    """Rooms beside one another that import both ways, through others or not."""
    below: dict[str, set[str]] = defaultdict(set)
    for here, there in arrows():
        below[here].add(there)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for each in below[waiting.pop()] - seen:
                seen.add(each)
                waiting.append(each)
        return seen

    return sorted(each for each in list(below) if each in reached(each))


def fullness() -> Counter[str]:
    """Files of each folder."""
    return Counter(
        path.parent.relative_to(ROOT).as_posix()
        for path in modules().values()
        if path.name != "__init__.py"
    )


def picture() -> str:
    """The rooms from the top floor down, each with what it imports and how often."""
    found = arrows()
    rooms = sorted({each for ends in found for each in ends}, key=lambda name: (-floor(name), name))
    lines = []
    for here in rooms:
        below = sorted(there for first, there in found if first == here)
        told = ", ".join(f"{there} {len(found[here, there])}" for there in below)
        lines.append(f"{floor(here):3}  {here:34}{'-> ' + told if told else ''}")
    return "\n".join(lines)


def outside(path: str) -> bool:
    """Whether a family's line in this file counts as outside its folder."""
    return path in SHARED or not path.startswith((*OWN, *ROPE))


def changed(commits: str) -> list[tuple[str, str, dict[str, int]]]:
    """What each commit of a range added and removed: (hash, subject, lines by file)."""
    told = subprocess.run(
        ["git", "log", "--reverse", "--no-merges", "--numstat", "-M", "--format=\t%h\t%s", commits],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found: list[tuple[str, str, dict[str, int]]] = []
    for line in filter(str.strip, told.splitlines()):
        first, second, third = line.split("\t", 2)
        if not first:
            found.append((second, third, {}))
        elif first != "-":  # a binary file has no lines
            found[-1][2][third] = int(first) + int(second)
    return found


def report(commits: str) -> str:
    """The lines of a range outside the families' folders, reshaping commits apart."""
    lines = []
    for short, subject, files in changed(commits):
        mine = {path: count for path, count in files.items() if outside(path)}
        kind = "reshape" if subject.lower().startswith("reshape") else "       "
        lines.append(f"{short} {kind} {sum(mine.values()):5} of {sum(files.values()):5}  {subject}")
        lines += [f"{'':23}{count:5}  {path}" for path, count in sorted(mine.items())]
    return "\n".join(lines)


def main(words: list[str]) -> int:
    """Print the picture, or the report of a range; 1 where an arrow runs up or a room is full."""
    if words:
        print(report(words[0]))
        return 0
    print(picture())
    wrong = [*upward(), *(f"circle through {each}" for each in circles())]
    wrong += [f"{name} holds {count} files" for name, count in fullness().items() if count > MOST]
    print("\n".join(wrong) or f"no arrow runs up, no circle, no room holds over {MOST} files")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
