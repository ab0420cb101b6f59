"""What is public: ``__all__`` is exactly what is exported, everything in it exists and is documented."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from repository import CORE, PACKAGES, ROOT, sources, tree

PACKAGE_MODULES = [*(package.module for package in PACKAGES), "paperhooks.testing"]


def module_name(file: Path) -> str:
    """``paperhooks.testing`` of ``core/src/paperhooks/testing/__init__.py``."""
    package = next(package for package in PACKAGES if package.source in file.parents)
    parts = file.relative_to(package.folder / "src").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sources(*PACKAGES)}
#: Modules whose classes derive from those of a library that no shared environment has.
NEEDING_LIBRARIES = {"paperhooks_miniplm.on_datatrove": "datatrove"}
MODULES = [name for name in FILES if not name.endswith("__main__")]


def exported(file: Path) -> list[str] | None:
    """The literal ``__all__`` of a file, or what the stub of a face lists."""
    stub = file.with_suffix(".pyi")
    if stub.is_file():
        body = ast.parse(stub.read_text(encoding="utf-8")).body
        listed = [alias.name for node in body if isinstance(node, ast.ImportFrom) for alias in node.names]
        return listed + [
            ast.unparse(target) for node in body if isinstance(node, ast.Assign) for target in node.targets
        ]
    for node in tree(file).body:
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def definitions(file: Path) -> dict[str, ast.AST]:
    """Functions and classes defined at the top of a file."""
    found = [n for n in tree(file).body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    return {node.name: node for node in found}


@pytest.mark.parametrize("name", MODULES)
def test_everything_in_all_exists_and_stands_there_once(name: str) -> None:
    names = exported(FILES[name])
    if names is None:
        pytest.skip("lists no public names")
    if name in NEEDING_LIBRARIES:
        pytest.importorskip(NEEDING_LIBRARIES[name])
    module = importlib.import_module(name)
    assert [each for each in names if not hasattr(module, each)] == []
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", MODULES)
def test_modules_that_define_something_public_say_what(name: str) -> None:
    defined = [each for each in definitions(FILES[name]) if not each.startswith("_")]
    if defined and exported(FILES[name]) is None:
        assert name in WITHOUT_ALL, f"{name} defines {defined} and has no __all__"


#: Modules whose every name without an underscore is public.
WITHOUT_ALL = {"paperhooks.errors", "paperhooks.info"}


@pytest.mark.parametrize("name", PACKAGE_MODULES)
def test_a_package_exports_exactly_its_all(name: str) -> None:
    module = importlib.import_module(name)
    names = exported(FILES[name])
    assert names is not None
    found = {each for each in dir(module) if not each.startswith("_") and not _incidental(module, each)}
    assert found == {each for each in names if not each.startswith("_")}


def _incidental(module, name: str) -> bool:
    """Submodules, the modules a package imports, and names of typing and __future__."""
    value = getattr(module, name)
    home = getattr(value, "__module__", "") or ""
    return inspect.ismodule(value) or home in ("typing", "__future__") or name in ("TYPE_CHECKING", "Any")


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_is_documented(name: str) -> None:
    file = FILES[name]
    public = exported(file) or []
    missing = []
    for each, node in definitions(file).items():
        if each in public or (name in WITHOUT_ALL and not each.startswith("_")):
            missing += _undocumented(each, node)
    assert missing == []


def _undocumented(name: str, node: ast.AST) -> list[str]:
    found = [] if ast.get_docstring(node) else [name]  # type: ignore[arg-type]
    if isinstance(node, ast.ClassDef):
        for method in node.body:
            hook = any("hookimpl" in ast.unparse(d) for d in getattr(method, "decorator_list", []))
            if isinstance(method, ast.FunctionDef) and not method.name.startswith("_") and not hook:
                found += [] if ast.get_docstring(method) else [f"{name}.{method.name}"]
    return found


def test_the_documentation_check_finds_gaps() -> None:
    node = ast.parse("class A:\n    def f(self): ...\n    @hookimpl\n    def g(self): ...").body[0]
    assert _undocumented("A", node) == ["A", "A.f"]


def test_typed_markers_are_there() -> None:
    assert [package.name for package in PACKAGES if not (package.source / "py.typed").is_file()] == []


def test_the_hook_api_is_the_registrys() -> None:
    import tomllib

    from paperhooks import HOOK_API

    assert tomllib.loads((ROOT / "registry.toml").read_text())["core"]["hook_api"] == HOOK_API
    assert CORE.module == "paperhooks"
