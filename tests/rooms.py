"""The rooms of a package and who imports whom, drawn from the code; imports inside functions and for types count
too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from repository import Package, imports, sources, tree

__all__ = ["ORDER", "TOP_MODULES", "Graph", "deep", "relative", "room", "underscores"]

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

#: Modules at the top of core that packages may import from.
TOP_MODULES = ("paperhooks.errors", "paperhooks.info", "paperhooks.compat")


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
                name = self.module_of(each.target)
                yield self.faces.get(name, {}).get(each.target.rpartition(".")[2], name)

    def module_of(self, target: str) -> str:
        """The module in ``package.module.Name``: the longest part that is one."""
        return next(name for name in self._prefixes(target) if name in self.files)

    @cached_property
    def faces(self) -> dict[str, dict[str, str]]:
        """Packages with a stub, to the names they hand on and the modules that these come from."""
        stubs = {name: file.with_suffix(".pyi") for name, file in self.files.items() if file.stem == "__init__"}
        return {name: dict(self._handed_on(name, stub)) for name, stub in stubs.items() if stub.is_file()}

    def _handed_on(self, name: str, stub: Path) -> Iterator[tuple[str, str]]:
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                yield from ((alias.name, self.module_of(f"{name}.{node.module}")) for alias in node.names)

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


def deep(module: ast.Module, own: str, graphs: Iterable[Graph]) -> list[str]:
    """Imports of another package of the repository by anything but a face: the package itself, or one of its rooms."""
    known = {graph.package.module: graph for graph in graphs if graph.package.module != own}
    return [
        f"line {i.line}: {i.target}" for i in imports(module) if i.top in known and not _by_face(i.target, known[i.top])
    ]


def _by_face(target: str, graph: Graph) -> bool:
    name = graph.module_of(target)
    return (name in graph.faces and target.count(".") - name.count(".") < 2) or name in TOP_MODULES


def relative(module: ast.Module) -> list[str]:
    """Imports by a relative name, which no other rule would see."""
    found = (node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.level)
    return [f"line {node.lineno}: {ast.unparse(node)}" for node in found]


def underscores(module: ast.Module) -> list[str]:
    """Private names that are imported, and private attributes of others: a class reads those of its own kind alone."""
    found = [f"line {each.line}: {each.target}" for each in imports(module) if _private(each.target.rpartition(".")[2])]
    return found + [
        f"line {line}: {text}"
        for line, text in _foreign(module, {n.name for n in ast.walk(module) if isinstance(n, ast.ClassDef)}, set())
    ]


def _foreign(node: ast.AST, classes: set[str], own: set[str]) -> Iterator[tuple[int, str]]:
    """Reads of private attributes inside ``node``; ``own`` are of the class around it, ``classes`` of the module."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _foreign(child, classes, _attributes(child))
            continue
        base, name = _read(child)
        if _private(name) and name not in own and base not in ("self", "cls", *classes):
            yield child.lineno, f"{ast.unparse(child)}.{name}"  # type: ignore[attr-defined]
        yield from _foreign(child, classes, own)


def _read(node: ast.AST) -> tuple[str, str]:
    """Of what a node reads which attribute, also by ``getattr`` and its kin."""
    if isinstance(node, ast.Attribute):
        return getattr(node.value, "id", ""), node.attr
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "delattr", "hasattr"):
        name = getattr(node.args[1], "value", "") if len(node.args) > 1 else ""
        return getattr(node.args[0], "id", ""), name if isinstance(name, str) else ""
    return "", ""


def _attributes(node: ast.ClassDef) -> set[str]:
    """Private names that a class has: fields, methods, and what it sets on itself."""
    of_self = (n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == "self")
    parts = (getattr(part, "name", "") or getattr(getattr(part, "target", None), "id", "") for part in node.body)
    return {name for name in (*of_self, *parts) if _private(name)}


def _private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")
