"""Loading entry points one by one, so that a broken plugin never stops another.

pluggy's own loader lets the first import error escape and hides the rest; here every entry point becomes a
:class:`PluginStatus` that says what was found, what went wrong and what to do about it.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import traceback as tracebacks
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from paperhooks.errors import PluginBroken, PluginConflict, PluginError, PluginIncompatible
from paperhooks.info import ENTRY_POINT_GROUP, HOOK_API, PluginInfo

__all__ = ["IN_PROCESS", "PluginStatus", "State", "as_error", "fix_for", "load_entry_points", "mark_duplicates"]

State: TypeAlias = Literal["healthy", "broken", "incompatible", "blocked", "duplicate"]

#: Stands for the distribution of plugins registered by :meth:`paperhooks.plugins.installed.Catalog.register`.
IN_PROCESS = "(this process)"


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """What is known about one installed plugin.

    name, distribution, version, target, file
        The entry point's name, the package it comes from, ``"package.module:PLUGIN"`` and the file of that module.
    state
        ``healthy``, or why the plugin is not used.
    info
        The plugin's description where it could be loaded.
    error, traceback, fix
        What went wrong, and what to do; empty for a healthy plugin.
    """

    name: str
    state: State
    distribution: str
    version: str = ""
    target: str = ""
    file: str = ""
    info: PluginInfo | None = None
    error: str = ""
    traceback: str = ""
    fix: str = ""

    @property
    def healthy(self) -> bool:
        """Whether the plugin's methods can be used."""
        return self.state == "healthy"

    @property
    def origin(self) -> str:
        """Distribution with version, for messages."""
        return f"{self.distribution} {self.version}".rstrip()

    def as_dict(self) -> dict[str, Any]:
        """Plain data for ``paperhooks plugins --json``."""
        data: dict[str, Any] = {
            key: getattr(self, key)
            for key in ("name", "state", "distribution", "version", "target", "file", "error", "traceback", "fix")
        }
        data["summary"] = self.info.summary if self.info else ""
        data["api"] = self.info.api if self.info else None
        data["methods"] = dict(self.info.methods) if self.info else {}
        data["paper"] = self.info.paper.url if self.info and self.info.paper else ""
        return data


def load_entry_points(
    entry_points: Iterable[importlib.metadata.EntryPoint] | None, blocked: Iterable[str]
) -> list[PluginStatus]:
    """One status an entry point, sorted by name; blocked ones are not imported."""
    if entry_points is None:
        entry_points = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP)
    blocked = frozenset(blocked)
    statuses = [_load(point, point.name in blocked) for point in entry_points]
    return mark_duplicates(sorted(statuses, key=lambda status: (status.name, status.distribution)))


def _load(point: importlib.metadata.EntryPoint, blocked: bool) -> PluginStatus:
    status = _bare_status(point)
    if blocked:
        return replace(status, state="blocked", fix=f"remove {point.name!r} from PAPERHOOKS_BLOCK to use it")
    try:
        info = point.load()
        # SystemExit too: a plugin that calls sys.exit() at import must not end the program that lists plugins.
    except (Exception, SystemExit) as error:
        return _broken(status, error)
    return _check_info(status, info)


def _bare_status(point: importlib.metadata.EntryPoint) -> PluginStatus:
    distribution = point.dist
    return PluginStatus(
        name=point.name,
        state="healthy",
        distribution=distribution.name if distribution else "(unknown distribution)",
        version=distribution.version if distribution else "",
        target=point.value,
        file=_module_file(point.module),
    )


def _module_file(module: str) -> str:
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a parent package that fails on import: the load below reports it
        return ""
    return (spec.origin or "") if spec else ""


def _broken(status: PluginStatus, error: BaseException) -> PluginStatus:
    text = f"{type(error).__name__}: {error}"
    trace = "".join(tracebacks.format_exception(error))
    return replace(status, state="broken", error=text, traceback=trace, fix=fix_for(status, error))


def fix_for(status: PluginStatus, error: BaseException) -> str:
    """What helps a plugin of which something cannot be imported."""
    leave_out = f"or leave it out with PAPERHOOKS_BLOCK={status.name}"
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    own = status.target.partition(":")[0].partition(".")[0]
    if missing and missing.startswith("paperhooks."):
        return f"it was written for another paperhooks: pip install --upgrade {status.distribution}, {leave_out}"
    if missing and missing.partition(".")[0] not in (own, "paperhooks"):
        return f"install what it needs: pip install {missing.partition('.')[0]}, {leave_out}"
    return f"reinstall it: pip install --upgrade --force-reinstall {status.distribution}, {leave_out}"


def _check_info(status: PluginStatus, info: object) -> PluginStatus:
    ask = f"ask the authors of {status.distribution} to fix it, or leave it out with PAPERHOOKS_BLOCK={status.name}"
    if not isinstance(info, PluginInfo):
        error = f"{status.target} is {type(info).__name__}, not a paperhooks.PluginInfo"
        return replace(status, state="broken", error=error, fix=ask)
    if info.api != HOOK_API:
        return replace(status, state="incompatible", info=info, **_api_mismatch(status, info.api))
    if info.name != status.name:
        error = f"the entry point is called {status.name!r} but PluginInfo.name is {info.name!r}"
        return replace(status, state="broken", info=info, error=error, fix=ask)
    return replace(status, info=info)


def _api_mismatch(status: PluginStatus, api: int) -> dict[str, Any]:
    newer = api > HOOK_API
    package = "paperhooks" if newer else status.distribution
    error = f"it was written for hook API {api}; this paperhooks speaks hook API {HOOK_API}"
    return {"error": error, "fix": f"pip install --upgrade {package}"}


def mark_duplicates(statuses: list[PluginStatus]) -> list[PluginStatus]:
    """Turn healthy plugins that share a name into ``duplicate`` ones, each naming all distributions."""
    by_name: dict[str, list[PluginStatus]] = {}
    for status in statuses:
        if status.healthy:
            by_name.setdefault(status.name, []).append(status)
    return [_duplicate(s, by_name[s.name]) if s.healthy and len(by_name[s.name]) > 1 else s for s in statuses]


def _duplicate(status: PluginStatus, same: list[PluginStatus]) -> PluginStatus:
    places = " and ".join(f"{other.origin} ({other.file or other.target})" for other in same)
    others = sorted({other.distribution for other in same} - {IN_PROCESS})
    return replace(
        status,
        state="duplicate",
        error=f"two plugins are called {status.name!r}: {places}",
        fix=f"uninstall one of them: pip uninstall {' | '.join(others)}",
    )


def as_error(status: PluginStatus) -> PluginError:
    """The exception for using, or in strict mode for finding, an unhealthy plugin."""
    kinds: dict[str, type[PluginError]] = {
        "incompatible": PluginIncompatible,
        "duplicate": PluginConflict,
        "blocked": PluginError,
    }
    reason = status.error or f"it is {status.state}"
    message = f"plugin {status.name!r} of {status.origin} cannot be used: {reason}; {status.fix}"
    error = kinds.get(status.state, PluginBroken)(message)
    if status.traceback:
        error.add_note(status.traceback)
    return error
