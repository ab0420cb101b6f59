"""The rooms of a package and who imports whom, drawn from the code; imports inside functions and for types count
too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from repository import Package, imports, sources, tree

__all__ = ["ORDER", "Graph", "deep", "room", "underscores"]

#: The rooms of core from the ground up: a room imports from those before it. Rooms of one line do not know one another.
ORDER = (
    ("errors",),
    ("compat",),
    ("io",),
    ("info",),
    ("tokens",),
    ("reports", "weights"),
    ("models",),
    ("hooks", "logprobs"),
    ("plugins",),
    ("sessions", "data"),
    ("training", "compression", "generation"),
    ("",),  # the root, whose face offers all of them
    ("authoring",),
    ("cli",),
    ("testing",),
)


def room(module: str) -> str:
    """``sessions`` of ``paperhooks.sessions.chain``; empty for the root."""
    return module.partition(".")[2].partition(".")[0]


class Graph:
    """Modules of a package, and what each imports of it."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.files = {self._name(file): file for file in sources(package)}

    def _name(self, file: Path) -> str:
        parts = file.relative_to(self.package.folder / "src").with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @cached_property
    def edges(self) -> dict[str, set[str]]:
        """Module to the modules of the same package that it imports."""
        return {name: set(self._imported(file)) - {name} for name, file in self.files.items()}

    def _imported(self, file: Path) -> Iterator[str]:
        for each in imports(tree(file)):
            if each.top == self.package.module:
                yield next(name for name in self._prefixes(each.target) if name in self.files)

    @staticmethod
    def _prefixes(target: str) -> Iterator[str]:
        parts = target.split(".")
        yield from (".".join(parts[:n]) for n in range(len(parts), 0, -1))

    def cycles(self) -> list[list[str]]:
        """Sets of modules each of which reaches all others, sorted."""
        reached = {name: self._reached(name) for name in self.edges}
        circles = {
            tuple(sorted({name, *(other for other in reached[name] if name in reached[other])})) for name in reached
        }
        return sorted(list(circle) for circle in circles if len(circle) > 1)

    def _reached(self, start: str) -> set[str]:
        found: set[str] = set()
        queue = list(self.edges[start])
        while queue:
            name = queue.pop()
            if name not in found:
                found.add(name)
                queue += self.edges[name]
        return found


def deep(module: ast.Module, own: str) -> list[str]:
    """Imports of another package of the repository that go past a face: deeper than one room, or a room's module."""
    return [
        f"line {each.line}: {each.target}"
        for each in imports(module)
        if each.top.startswith("paperhooks") and each.top != own and each.target.count(".") > 2
    ]


def underscores(module: ast.Module) -> list[str]:
    """Private names that are imported, and private attributes of others than the module's own classes."""
    found = [f"line {each.line}: {each.target}" for each in imports(module) if _private(each.target.rpartition(".")[2])]
    known = {
        node.attr
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("self", "cls")
    }
    known |= {
        name
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        for part in node.body
        for name in (getattr(part, "name", ""), getattr(getattr(part, "target", None), "id", ""))
    }
    foreign = (
        node
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and _private(node.attr) and node.attr not in known
    )
    return found + [f"line {node.lineno}: {ast.unparse(node)}" for node in foreign]


def _private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
