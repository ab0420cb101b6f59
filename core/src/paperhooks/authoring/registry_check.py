"""Proof that the registry, the packages' metadata, PluginInfo and Traits say the same.

No network. An entry with ``path`` is compared with the package in that folder, whose module must be importable
(installed, or on ``PYTHONPATH``); an entry with ``repository`` is only checked against the schema.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from packaging.requirements import InvalidRequirement, Requirement

from paperhooks.authoring.claims import load_claims, package_folder
from paperhooks.authoring.registry_entry import described, entry_point, table_of
from paperhooks.errors import DataError, PluginBroken
from paperhooks.info import ENTRY_POINT_GROUP, HOOK_API, PluginInfo
from paperhooks.io.harmless import error_text
from paperhooks.io.options import shown
from paperhooks.io.toml import Problem, read_toml
from paperhooks.plugins.methods import import_target, validate_method
from paperhooks.plugins.registry import Registry, RegistryEntry, check_schema

__all__ = ["check_registry"]

#: Folders under packages/ that are not plugins.
NOT_PLUGINS: Final = frozenset({"testbed"})
#: Who decides a key, where it is not PluginInfo.
_ORIGINS: Final = dict.fromkeys(("devices", "dtypes", "attention", "parallel", "shared_work", "supports"), "Traits say")


def check_registry(path: str | Path) -> list[Problem]:
    """Every contradiction between a registry file and the packages beside it; empty when all agree."""
    file = Path(path)
    if file.is_dir():
        file = file / "registry.toml"
    registry, problems = check_schema(file)
    if registry is None:
        return problems
    problems += _check_core(registry) + _check_folders(registry)
    for entry in registry.entries:
        if entry.path is not None:
            problems += _EntryCheck(registry, entry).run()
    return problems


def _check_core(registry: Registry) -> list[Problem]:
    if registry.core["hook_api"] == HOOK_API:
        return []
    found = shown(registry.core["hook_api"])
    return [Problem(str(registry.file), 0, f"[core] hook_api is {found}; the core says {HOOK_API}")]


def _check_folders(registry: Registry) -> list[Problem]:
    root = registry.file.parent
    if not (root / "packages").is_dir():
        return []
    listed = {entry.path for entry in registry.entries}
    folders = sorted(p.parent for p in (root / "packages").glob("*/pyproject.toml") if p.parent.name not in NOT_PLUGINS)
    missing = [folder for folder in folders if folder.relative_to(root).as_posix() not in listed]
    return [
        Problem(str(registry.file), 0, f"packages/{folder.name} is not listed; add a [[plugin]]") for folder in missing
    ]


class _EntryCheck:
    """Compares one entry with its package."""

    def __init__(self, registry: Registry, entry: RegistryEntry) -> None:
        self.registry, self.entry = registry, entry
        self.folder = registry.file.parent / str(entry.path)
        self.problems: list[Problem] = []

    def run(self) -> list[Problem]:
        """All problems of this entry."""
        if not (self.folder / "pyproject.toml").is_file():
            self.fault("path", f"path = {self.entry.path!r}: there is no pyproject.toml")
            return self.problems
        target = self.check_pyproject()
        info = self.load_info(target) if target else None
        if info is not None and target:
            self.check_resources(info, target)
            self.check_described(info, self.load_methods(info))
        self.check_models()
        return self.problems

    def fault(self, key: str, message: str, table: str = "") -> None:
        """Note a problem at the line of a key."""
        line = self.registry.line(self.entry, key, table)
        self.problems.append(Problem(str(self.registry.file), line, f"plugin {self.entry.name!r}: {message}"))

    def check_pyproject(self) -> str | None:
        """Compare with the package's metadata; returns the entry point's target."""
        file = self.folder / "pyproject.toml"
        data, _, problems = read_toml(file)
        self.problems += problems
        project = table_of(data, "project")
        if project.get("name") != self.entry.distribution:
            self.fault(
                "distribution", f"distribution is {self.entry.distribution!r}, {file} says {project.get('name')!r}"
            )
        if "requires-python" not in project:
            self.fault("path", f"{file} lacks requires-python")
        self.check_dependency(project.get("dependencies"), file)
        target = entry_point(project, self.entry.name)
        if target is None:
            self.fault("name", f"{file} has no entry point {self.entry.name!r} in the group {ENTRY_POINT_GROUP!r}")
        return target

    def check_dependency(self, dependencies: Any, file: Path) -> None:
        """The package must depend on core by a range, and on no other plugin but toolkits."""
        others = (entry for entry in self.registry.entries if entry.kind != "toolkit" and entry != self.entry)
        siblings = {entry.distribution for entry in others}
        core = None
        for text in dependencies if isinstance(dependencies, list) else ():
            try:
                requirement = Requirement(str(text))
            except InvalidRequirement as error:
                self.fault("path", f"{file}: dependency {text!r} is malformed: {error}")
                continue
            if requirement.name in siblings:
                self.fault(
                    "path",
                    f"{file} depends on the plugin {requirement.name}; plugins depend on core and toolkits alone",
                )
            if requirement.name == self.registry.core["distribution"]:
                core = requirement
        if core is None:
            self.fault("path", f"{file} does not depend on {self.registry.core['distribution']}")
        elif any(spec.operator in ("==", "===") for spec in core.specifier):
            self.fault("path", f"{file} pins {core}; give a range such as >=0.1,<2")

    def load_info(self, target: str) -> PluginInfo | None:
        """Import the plugin's description."""
        try:
            info = import_target(target)
        except Exception as error:
            reason = f"{error_text(error)}; install it with: pip install -e {self.entry.path}"
            self.fault("name", f"{target} cannot be imported: {reason}")
            return None
        if isinstance(info, PluginInfo):
            return info
        self.fault("name", f"{target} is {type(info).__name__}, not a paperhooks.PluginInfo")
        return None

    def check_described(self, info: PluginInfo, classes: list[Any]) -> None:
        """What the code decides is what the entry says."""
        process_wide = self.load("the process-wide hooks", info.hooks) if info.hooks else None
        found = described(info, classes, process_wide)
        said = {"shared_work": False, **self.entry.data, "kind": self.entry.kind}
        if "paper" in self.entry.data and "paper" not in found:
            self.fault("paper", "the registry names a paper, PluginInfo.paper is None", "paper")
        for key, value in found.items():
            if isinstance(value, dict):
                for inner, each in value.items():
                    self.equal(inner, said.get(key, {}).get(inner), each, key)
            else:
                self.equal(key, said.get(key), value)

    def equal(self, key: str, said: Any, found: Any, table: str = "") -> None:
        """Note a difference between the entry and the code."""
        if said != found and not (isinstance(found, list) and sorted(said or ()) == sorted(found)):
            origin = "the code implements" if key == "hooks" else _ORIGINS.get(table or key, "PluginInfo says")
            name = f"{table}.{key}" if table else key
            fix = "; `paperhooks registry update` writes it"
            self.fault(key, f"{name} is {shown(said)}, {origin} {shown(found)}{fix}", table)

    def load(self, what: str, target: str) -> Any:
        """Import a target; a failure is noted and gives None."""
        try:
            return import_target(target)
        except Exception as error:
            self.fault("name", f"{what} ({target}) cannot be imported: {error_text(error)}")
            return None

    def load_methods(self, info: PluginInfo) -> list[Any]:
        """Import and validate the method classes."""
        classes = []
        for name, target in info.methods.items():
            found = self.load(f"method {name!r}", target)
            try:
                classes += [] if found is None else [validate_method(found, f"method {name!r} ({target})")]
            except PluginBroken as error:
                self.fault("hooks", str(error))
        return classes

    def check_resources(self, info: PluginInfo, target: str) -> None:
        """The demo can be imported, and the claims file is there, well formed, and speaks of this plugin."""
        if info.demo is not None:
            self.load("the demo", info.demo)
        if info.claims is None:
            return
        try:
            file = package_folder(target) / info.claims
            claims = load_claims(file)
        except DataError as error:
            self.fault("name", str(error))
            return
        if claims.plugin != info.name:
            self.fault("name", f"{file} says plugin = {claims.plugin!r}")

    def check_models(self) -> None:
        """Every family listed is named somewhere in the package's tests."""
        tests = "".join(
            file.read_text(encoding="utf-8", errors="replace") for file in sorted((self.folder / "tests").rglob("*.py"))
        )
        for model in self.entry.data.get("models", ()):
            if model not in tests:
                self.fault("models", f"models lists {model!r}, which no file in {self.entry.path}/tests mentions")
