"""The repository as data: its packages, their source files, and what those import."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "CORE",
    "PACKAGES",
    "PAPERS",
    "PLUGINS",
    "ROOT",
    "TESTBED",
    "TOOLKITS",
    "Import",
    "Package",
    "imports",
    "sources",
    "tree",
]

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Package:
    """A distribution of this repository."""

    folder: Path

    @property
    def project(self) -> dict[str, Any]:
        """The table ``[project]`` of its metadata."""
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    @property
    def name(self) -> str:
        """The distribution's name."""
        return str(self.project["name"])

    @property
    def module(self) -> str:
        """What is imported."""
        return self.name.replace("-", "_")

    @property
    def source(self) -> Path:
        """The folder of the module."""
        return self.folder / "src" / self.module

    def __str__(self) -> str:
        return self.name


CORE = Package(ROOT / "core")
TESTBED = Package(ROOT / "packages" / "testbed")
PLUGINS = [
    Package(file.parent)
    for file in sorted((ROOT / "packages").glob("*/pyproject.toml"))
    if file.parent != TESTBED.folder
]
_KINDS = {
    entry.get("path"): entry.get("kind", "paper")
    for entry in tomllib.loads((ROOT / "registry.toml").read_text(encoding="utf-8"))["plugin"]
}
TOOLKITS, PAPERS = (
    [each for each in PLUGINS if _KINDS.get(each.folder.relative_to(ROOT).as_posix()) == kind]
    for kind in ("toolkit", "paper")
)
PACKAGES = [CORE, TESTBED, *PLUGINS]


def sources(*packages: Package) -> list[Path]:
    """The Python files of packages, tests not included."""
    return [file for package in packages for file in sorted(package.source.rglob("*.py"))]


@cache
def tree(file: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


@dataclass(frozen=True)
class Import:
    """One imported module or name, and the name it is bound to; ``lazy`` when inside a function or for types."""

    target: str
    bound: str
    line: int
    lazy: bool

    @property
    def top(self) -> str:
        """The top-level package."""
        return self.target.partition(".")[0]


def imports(module: ast.Module) -> list[Import]:
    """Everything a module imports by an absolute name."""
    return list(_imports(module, lazy=False))


#: Functions that import the module whose name they are given.
_IMPORTERS = ("import_module", "require")


def _imports(node: ast.AST, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                bound = alias.asname or alias.name.partition(".")[0]
                yield Import(alias.name, bound, child.lineno, lazy)
        elif isinstance(child, ast.ImportFrom) and child.level == 0:
            for alias in child.names:
                yield Import(f"{child.module}.{alias.name}", alias.asname or alias.name, child.lineno, lazy)
        else:
            if isinstance(child, ast.Call) and ast.unparse(child.func).rpartition(".")[2] in _IMPORTERS:
                yield from (
                    Import(str(name.value), "", child.lineno, True)
                    for name in child.args[:1]
                    if isinstance(name, ast.Constant)
                )
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or _for_types(child)
            yield from _imports(child, lazy or later)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
