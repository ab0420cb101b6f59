"""What PluginInfo and Traits know of a plugin, as its entry in ``registry.toml`` has it, and writing it there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import RegistryError, require
from paperhooks.info import ENTRY_POINT_GROUP, MODES, PluginInfo
from paperhooks.io.files import write_text
from paperhooks.io.harmless import error_text
from paperhooks.io.toml import read_toml
from paperhooks.plugins.methods import implemented_hooks, import_target, known_hooks

__all__ = ["described", "entry_point", "table_of", "update_registry"]

_PAPER: Final = ("title", "authors", "year", "venue", "arxiv", "code")
_UNIONS: Final = ("devices", "dtypes", "attention", "parallel")


def described(info: PluginInfo, classes: Iterable[Any], process_wide: object = None) -> dict[str, Any]:
    """The keys of an entry that the code decides.

    ``supports`` holds where every method declares it; the lists are unions over the methods.

    :param classes: the plugin's method classes. :param process_wide: what ``info.hooks`` names.
    """
    classes = list(classes)
    traits = [cls.traits for cls in classes]
    found = {hook for owner in (*classes, process_wide) for hook in implemented_hooks(owner)}
    entry: dict[str, Any] = {
        "name": info.name,
        "kind": info.kind,
        "summary": info.summary,
        "hooks": [hook for hook in known_hooks() if hook in found],
        "hook_api": info.api,
    }
    if traits:
        entry |= {key: sorted({item for each in traits for item in getattr(each, key)}) for key in _UNIONS}
        entry["shared_work"] = any(each.shared_work for each in traits)
    if info.paper is not None:
        entry["paper"] = {key: value for key in _PAPER if (value := getattr(info.paper, key))}
    if traits:
        entry["supports"] = {mode: all(getattr(each, mode) for each in traits) for mode in MODES}
    return entry


def entry_point(project: dict[str, Any], name: str) -> str | None:
    """Under which target a package's metadata (the table ``[project]``) offer the plugin ``name``."""
    target = table_of(project, "entry-points", ENTRY_POINT_GROUP).get(name)
    return target if isinstance(target, str) else None


def table_of(data: Any, *keys: str) -> dict[str, Any]:
    """The table under ``keys``; an empty one where there is none, or something else."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else {}


def update_registry(file: Path) -> list[str]:
    """Write into every entry with a ``path`` what its code decides; everything else stays as it stands.

    :return: the names of the entries that have changed. The file is written only when there are any.
    :raises RegistryError: the file or a package's metadata cannot be read, or a plugin cannot be imported; nothing is
        written then. :raises MissingExtra: tomlkit is missing.
    """
    tomlkit = require("tomlkit", "paperhooks[cli]", "to change registry.toml and keep its comments")
    _, text, problems = read_toml(file)
    if problems:
        raise RegistryError("\n".join(map(str, problems)))
    try:
        document: Any = tomlkit.parse(text)
    except (ValueError, RecursionError) as error:
        raise RegistryError(f"{file} cannot be read: {error_text(error)}") from error
    changed = [str(entry["name"]) for entry in document.get("plugin", []) if "path" in entry and _updated(file, entry)]
    if changed:
        write_text(file, tomlkit.dumps(document))
    return changed


def _updated(file: Path, entry: Any) -> bool:
    name, before = str(entry.get("name", "")), entry.unwrap()
    try:
        data, _, problems = read_toml(file.parent / str(entry["path"]) / "pyproject.toml")
        target = entry_point(table_of(data, "project"), name)
        if problems or target is None:
            raise RegistryError(*map(str, problems) or [f"there is no entry point {name!r} in {entry['path']}"])
        info: PluginInfo = import_target(target)
        classes = [import_target(method) for method in info.methods.values()]
        found = described(info, classes, import_target(info.hooks) if info.hooks else None)
    except Exception as error:
        raise RegistryError(f"plugin {name!r}: {error_text(error)}") from error
    for key, value in found.items():
        if isinstance(value, dict):
            entry[key] = entry.get(key) or {}
            for inner, each in value.items():
                if entry[key].get(inner) != each:
                    entry[key][inner] = each
        elif entry.get(key) != value and not (
            isinstance(value, list) and sorted(entry.get(key) or ()) == sorted(value)
        ):
            entry[key] = value
    return bool(entry.unwrap() != before)
