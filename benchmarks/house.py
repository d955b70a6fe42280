"""Counts that say how the house stands: lines, tables without a type, names of methods, sizes, circles.

    python benchmarks/house.py

Prints a table of what is, what is allowed, and where the largest share lies. tests/test_house.py holds the limits.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import sims
from sims.methods import METHODS

ROOT = Path(sims.__file__).parent
LINES, TABLES, NAMES = 26_500, 60, 20  # all of src/sims
FUNCTION, FILE = 60, 450  # lines of each
SHARED_NAMES = ("__init__", "options")  # a module of each package may have these names

#: Where a word that is the name of a method is something else: (file, word) -> what.
OTHER_THINGS = {
    ("api.py", "base"): "the table of options, and of a model that no method made",
    ("experiments/base_model.py", "base"): "its table of options, its folder, and the purpose of its seeds",
    ("experiments/improve/rounds.py", "base"): "the purpose that seeds of the base's training come from",
    ("fitting.py", "base"): "the table of options",
    ("guidance/head_guide.py", "head"): "the rule's kind, and the denoiser that it guides away from",
    ("measured.py", "sims"): "a folder of the package's own",
    ("report/svg.py", "sims"): "the salt of the names within a picture",
    ("runs/directory.py", "sims"): "the program",
}


@dataclass(frozen=True)
class Place:
    """Something found in a file."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.what}"


def files() -> list[Path]:
    """All modules of the package."""
    return sorted(ROOT.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path), str(path))


def lines() -> dict[str, int]:
    """Lines of every file."""
    return {name_of(path): len(text_of(path).splitlines()) for path in files()}


def tables() -> list[Place]:
    """Every ``dict[str, Any]``."""
    return [
        Place(name_of(path), number, "dict[str, Any]")
        for path in files()
        for number, line in enumerate(text_of(path).splitlines(), 1)
        for _ in range(line.count("dict[str, Any]"))
    ]


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of strings that are statements by themselves: docstrings, also those of fields."""
    return {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def method_names() -> list[Place]:
    """Every string outside methods/ that is the name of a method, but for the words of ``OTHER_THINGS``."""
    places = []
    for path in files():
        name = name_of(path)
        if name.startswith("methods/"):
            continue
        skipped = docstrings(tree_of(path))
        for node in ast.walk(tree_of(path)):
            if not isinstance(node, ast.Constant) or node.value not in METHODS or id(node) in skipped:
                continue
            if (name, node.value) not in OTHER_THINGS:
                places.append(Place(name, node.lineno, repr(node.value)))
    return places


def functions() -> dict[str, int]:
    """Lines of every function, its decorators not counted."""
    sizes = {}
    for path in files():
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                sizes[f"{name_of(path)}:{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1
    return sizes


def same_names() -> dict[str, list[str]]:
    """Modules that share a name with others."""
    by_name: dict[str, list[str]] = {}
    for path in files():
        if path.stem not in SHARED_NAMES:
            by_name.setdefault(path.stem, []).append(name_of(path))
    return {name: there for name, there in by_name.items() if len(there) > 1}


def _module(path: Path) -> str:
    return ".".join(["sims", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")


def _imported(path: Path, modules: set[str]) -> Iterator[str]:
    """What a module imports of the package when it is imported itself."""
    for node in _running(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:  # a module of a package, or a name of a module
                inner = f"{node.module}.{alias.name}"
                yield from {inner if inner in modules else str(node.module)} & modules


def _running(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported, without those for type checkers."""
    waiting: list[ast.stmt] = list(tree.body)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.If):
            waiting += node.orelse if "TYPE_CHECKING" in ast.dump(node.test) else [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            waiting += [*node.body, *node.orelse, *node.finalbody]


def circles() -> list[list[str]]:
    """Groups of modules that import each other, in whatever many steps."""
    modules = {_module(path) for path in files()}
    graph = {_module(path): set(_imported(path, modules)) - {_module(path)} for path in files()}

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = list(graph[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += graph[name]
        return seen

    below = {name: reached(name) for name in graph}
    groups = {tuple(sorted(other for other in below[name] if name in below[other])) for name in graph}
    return sorted(list(group) for group in groups if group)


def table() -> list[tuple[str, int, int, str]]:
    """What is counted: the count, its limit, and where most of it is."""
    most = Counter(place.file for place in tables()).most_common(3)
    names = Counter(place.file for place in method_names()).most_common(3)
    sizes, long = lines(), functions()
    long_functions = [name for name, size in long.items() if size > FUNCTION]
    long_files = [name for name, size in sizes.items() if size > FILE]

    def words(counts: list[tuple[str, int]]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts)

    return [
        ("lines", sum(sizes.values()), LINES, words(Counter(sizes).most_common(3))),
        ("dict[str, Any]", len(tables()), TABLES, words(most)),
        ("names of methods outside methods/", len(method_names()), NAMES, words(names)),
        (f"functions above {FUNCTION} lines", len(long_functions), 0, ", ".join(long_functions)),
        (f"files above {FILE} lines", len(long_files), 0, ", ".join(long_files)),
        ("names of several modules", len(same_names()), 0, ", ".join(same_names())),
        ("circles of imports", len(circles()), 0, "; ".join(", ".join(group) for group in circles())),
    ]


def main() -> int:
    """Print the table; 1 where a limit is passed."""
    rows = table()
    for what, count, limit, where in rows:
        print(f"{what:<36}{count:>8,} of {limit:>6,}  {where}")
    return int(any(count > limit for _, count, limit, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
