"""Loading entry points one by one, so that a broken plugin never stops another.

pluggy's own loader lets the first import error escape and hides the rest; here every entry point becomes a
:class:`PluginStatus` that says what was found, what went wrong and what to do about it.
"""

from __future__ import annotations

import importlib.metadata
import re
import shlex
import sys
import traceback as tracebacks
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

from paperhooks.errors import PluginBroken, PluginConflict, PluginError, PluginIncompatible
from paperhooks.info import ENTRY_POINT_GROUP, HOOK_API, PluginInfo
from paperhooks.io.harmless import error_text, printable
from paperhooks.plugins.containment import contained
from paperhooks.plugins.entry_points import EntryLine, canonical, given_lines, installed_lines

__all__ = [
    "IN_PROCESS",
    "PluginStatus",
    "State",
    "as_error",
    "check_info",
    "fix_for",
    "load_entry_points",
    "mark_duplicates",
    "trace_text",
]

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
    """One status an entry point, sorted by name.

    :param entry_points: None for those of the installed distributions.
    :param blocked: names of entry points or distributions that are not imported.
    """
    lines = installed_lines() if entry_points is None else given_lines(entry_points)
    names = frozenset(map(canonical, blocked))
    statuses = [_load(line, names) for line in lines]
    return mark_duplicates(sorted(statuses, key=lambda status: (status.name, status.distribution)))


def _load(line: EntryLine, blocked: frozenset[str]) -> PluginStatus:
    status = PluginStatus(line.name, "healthy", line.distribution, line.version, line.target)
    named = [name for name in (line.name, line.distribution) if canonical(name) in blocked]
    if named:
        return replace(status, state="blocked", fix=f"remove {named[0]!r} from PAPERHOOKS_BLOCK to use it")
    if line.fault:
        return replace(status, state="broken", error=line.fault, fix=_ask(status))
    try:
        with contained(f"the import of plugin {status.name!r} of {status.origin}"):
            info = importlib.metadata.EntryPoint(line.name, line.target, ENTRY_POINT_GROUP).load()
            file = getattr(sys.modules.get(line.target.partition(":")[0].strip()), "__file__", None)
            return check_info(replace(status, file=file if isinstance(file, str) else ""), info)
    except Exception as error:
        return _broken(status, error)


def _broken(status: PluginStatus, error: Exception) -> PluginStatus:
    return replace(
        status, state="broken", error=error_text(error), traceback=trace_text(error), fix=fix_for(status, error)
    )


def trace_text(error: BaseException) -> str:
    """The traceback of an error, also of one that breaks what formats it."""
    try:
        return printable("".join(tracebacks.format_exception(error)), lines=True)
    except BaseException:  # SystemExit too
        return error_text(error)


def fix_for(status: PluginStatus, error: BaseException) -> str:
    """What helps a plugin of which something cannot be imported."""
    leave_out = f"or leave it out with {_leave_out(status)}"
    known = isinstance(error, ImportError) and type(error) in (ImportError, ModuleNotFoundError)
    module = str(error.name or "") if known else ""  # type: ignore[attr-defined]
    distribution = shlex.quote(status.distribution)
    top = module.partition(".")[0]
    if module.startswith("paperhooks."):
        return f"it was written for another paperhooks: pip install --upgrade {distribution}, {leave_out}"
    if top and top not in (status.target.partition(":")[0].partition(".")[0], "paperhooks"):
        needed = _requirement(top, status.distribution)
        if type(error) is ImportError:
            return f"mend what it needs: pip install --force-reinstall {shlex.quote(needed or top)}, {leave_out}"
        if not needed:
            return f"{distribution} needs the module {top!r} and declares no library that brings it; {_ask(status)}"
        return f"install what it needs: pip install {shlex.quote(needed)}, {leave_out}"
    return f"reinstall it: pip install --upgrade --force-reinstall {distribution}, {leave_out}"


def _leave_out(status: PluginStatus) -> str:
    return f"PAPERHOOKS_BLOCK={shlex.quote(status.name)}"


def _ask(status: PluginStatus) -> str:
    return f"ask the authors of {status.distribution} to fix it, or leave it out with {_leave_out(status)}"


#: Modules whose distributions have other names.
_CALLED: Final = {
    "PIL": "pillow", "bs4": "beautifulsoup4", "cv2": "opencv-python", "dateutil": "python-dateutil", "fitz": "pymupdf",
    "google": "protobuf", "skimage": "scikit-image", "sklearn": "scikit-learn", "yaml": "pyyaml",
}  # fmt: skip


def _requirement(module: str, distribution: str) -> str:
    """What to install for a module, by what the distribution that needs it declares; empty where it declares nothing.

    A library of an extra is installed by the extra.
    """
    from packaging.requirements import Requirement

    try:
        wanted = list(map(Requirement, importlib.metadata.requires(distribution) or ()))
    except Exception:  # no such distribution, or metadata that cannot be read
        return ""
    names = {canonical(module), canonical(_CALLED.get(module, module))}
    for one in wanted:
        if canonical(one.name) in names:
            extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", str(one.marker or ""))
            return f"{distribution}[{extra[1]}]" if extra else f"{one.name}{one.specifier}"
    return ""


def check_info(status: PluginStatus, info: object) -> PluginStatus:
    """The status of a plugin that is described by ``info``, with what is wrong with that.

    :raises ValueError: for fields that cannot be meant.
    """
    if not isinstance(info, PluginInfo):
        error = f"{status.target} is {type(info).__name__}, not a paperhooks.PluginInfo"
        return replace(status, state="broken", error=error, fix=_ask(status))
    PluginInfo.__post_init__(info)  # a class derived from it may have left the checks out
    if info.api != HOOK_API:
        return replace(status, state="incompatible", info=info, **_api_mismatch(status, info.api))
    if info.name != status.name:
        error = f"the entry point is called {status.name!r} but PluginInfo.name is {info.name!r}"
        return replace(status, state="broken", info=info, error=error, fix=_ask(status))
    return replace(status, info=info)


def _api_mismatch(status: PluginStatus, api: int) -> dict[str, Any]:
    newer = api > HOOK_API
    package = "paperhooks" if newer else shlex.quote(status.distribution)
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
        fix=f"uninstall one of them: pip uninstall {' | '.join(map(shlex.quote, others))}",
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
