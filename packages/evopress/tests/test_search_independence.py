"""The search knows no provider, and the providers know nothing of the search: read off imports, names and strings."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import paperhooks_evopress
import pytest
from paperhooks.plugins import catalog
from paperhooks_evopress.plugin import PLUGIN

SOURCE = Path(paperhooks_evopress.__file__).parent
PACKAGE = "paperhooks_evopress"
#: Who offers levels: names of the methods, and of the modules and classes behind them.
PROVIDERS = {
    word.lower()
    for name, target in PLUGIN.methods.items()
    if hasattr(catalog().create_method(name if name == PLUGIN.name else f"{PLUGIN.name}/{name}"), "compression_levels")
    for word in (name, *target.partition(":")[0].split(".")[-1:], target.partition(":")[2])
}
#: What may not name one of them: the search itself, with all that it is made of.
SEARCH = (
    "algorithm", "search_schedule", "history", "spaces/space", "spaces/units", "spaces/ladders",
    "evaluator/evaluator", "evaluator/teacher", "evaluator/prefix_tree", "evaluator/minibatches", "method",
    "evaluator/calibration", "schedules", "spaces/targets", "spaces/problems", "report/search_report",
    "evaluator/shared_evaluator", "search_plan", "groundwork",
)  # fmt: skip


def words_of(tree: ast.Module) -> list[tuple[int, str]]:
    """Line and lower-case words of every name, import, attribute, keyword and string, documentation included."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        texts: list[str] = []
        if isinstance(node, ast.Name):
            texts = [node.id]
        elif isinstance(node, ast.Attribute):
            texts = [node.attr]
        elif isinstance(node, ast.arg | ast.keyword):
            texts = [node.arg or ""]
        elif isinstance(node, ast.alias):
            texts = [node.name, node.asname or ""]
        elif isinstance(node, ast.ImportFrom):
            texts = [node.module or ""]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            texts = [node.name]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts = [node.value]
        line = getattr(node, "lineno", 0)
        found += [(line, word.lower()) for text in texts for word in re.findall(r"[A-Za-z0-9]+", text)]
    return found


def imported(tree: ast.Module) -> set[str]:
    """The modules of this package that a module imports, at its top or further in."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {"." * node.level + (node.module or "")}
    return {name for name in found if name.startswith((PACKAGE, "."))}


def named(source: str) -> list[tuple[int, str]]:
    return [(line, word) for line, word in words_of(ast.parse(source)) if word in PROVIDERS]


def test_providers_are_known_by_their_names() -> None:
    assert {"drop", "sparsegpt", "gptq", "gguf"} <= PROVIDERS
    assert "evopress" not in PROVIDERS
    for source in ("from x.levels import gptq", "f('evopress/drop')", "a.GPTQ()", "'''of GGUF files'''", "f(gguf=1)"):
        assert named(source)
    assert not named("dropped = counters.dropped")


@pytest.mark.parametrize("module", SEARCH)
def test_the_search_names_no_provider(module: str) -> None:
    found = named((SOURCE / f"{module}.py").read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize("file", sorted((SOURCE / "levels").glob("*.py")), ids=lambda file: file.stem)
def test_providers_import_nothing_of_the_package_outside_themselves(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert [name for name in sorted(imported(tree)) if not name.startswith(f"{PACKAGE}.levels")] == []
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    odd = [text for text in strings if re.search(rf"{PACKAGE}\.(?!levels)", text)]
    assert odd == []


@pytest.mark.parametrize("module", SEARCH)
def test_the_search_imports_no_provider(module: str) -> None:
    tree = ast.parse((SOURCE / f"{module}.py").read_text(encoding="utf-8"))
    assert [name for name in imported(tree) if name.startswith((f"{PACKAGE}.levels", "."))] == []
