"""What is installed: plugins, their health, their methods.

The catalogue is process-wide and light: it imports the plugins' descriptions, never their methods, until a method is
asked for by name. Environment variables:

``PAPERHOOKS_BLOCK=a,b``
    Leaves plugins out without importing them, by their names or those of their distributions.
``PAPERHOOKS_STRICT=1``
    Makes a broken, incompatible or duplicate plugin fatal instead of a warning.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from paperhooks.errors import PluginBroken, PluginConflict, PluginError, PluginNotFound, did_you_mean
from paperhooks.info import PluginInfo
from paperhooks.io.harmless import error_text
from paperhooks.io.options import shown
from paperhooks.plugins.discovery import IN_PROCESS, PluginStatus, as_error, check_info, fix_for, load_entry_points
from paperhooks.plugins.methods import build_method, import_target, validate_method
from paperhooks.plugins.process_hooks import ProcessHooks

__all__ = ["Catalog", "catalog", "refresh"]

logger = logging.getLogger(__name__)


class Catalog:
    """The installed plugins. Use :func:`catalog` for the process-wide one, :meth:`discover` for a private one."""

    def __init__(self, statuses: Iterable[PluginStatus] = ()) -> None:
        self._statuses = list(statuses)
        self._classes: dict[str, type] = {}
        self._hooks: ProcessHooks | None = None

    @classmethod
    def discover(cls, entry_points: Iterable[importlib.metadata.EntryPoint] | None = None) -> Catalog:
        """Load the given entry points, or those installed under ``paperhooks.plugins``.

        Each unhealthy plugin is logged once as a warning on ``paperhooks.plugins.installed``, by name and with the fix.
        Raises PluginBroken, PluginIncompatible or PluginConflict instead when ``PAPERHOOKS_STRICT=1``.
        """
        statuses = load_entry_points(entry_points, _blocked_names())
        for status in statuses:
            if status.state in ("healthy", "blocked"):
                continue
            if _strict():
                raise as_error(status)
            logger.warning("plugin %r of %s is %s: %s. To fix it: %s", *_warning_fields(status))
        return cls(statuses)

    @property
    def plugins(self) -> tuple[PluginStatus, ...]:
        """All plugins found, healthy or not, sorted by name."""
        return tuple(sorted(self._statuses, key=lambda status: (status.name, status.distribution)))

    @property
    def healthy(self) -> tuple[PluginStatus, ...]:
        """The plugins whose methods can be used."""
        return tuple(status for status in self.plugins if status.healthy)

    def plugin(self, name: str) -> PluginStatus:
        """The healthy plugin of that name.

        Raises PluginNotFound (with the pip command where the registry knows it), or the error of an unhealthy one.
        """
        found = [status for status in self.plugins if status.name == name]
        if not found:
            raise PluginNotFound(f"no plugin is called {name!r}; {self._hint(name)}")
        for status in found:
            if status.healthy:
                return status
        raise as_error(found[0])

    def method_names(self) -> tuple[str, ...]:
        """Addresses of all methods of healthy plugins: ``plugin`` for its namesake, else ``plugin/method``."""
        return tuple(_address(status.name, method) for status, method in self._methods())

    def resolve(self, name: str) -> tuple[PluginStatus, str]:
        """Plugin and method name behind an address.

        ``"plugin/method"``, or a plugin's name for its method of the same name; nothing that is installed later can
        change what an address means. Raises PluginNotFound with the nearest address, or PluginConflict naming both
        distributions for the bare name of a method that several plugins offer.
        """
        if ":" in name:
            raise PluginNotFound(
                f"{name!r} is of the form that the command line takes; in Python give an object of the method's class "
                f"with its options, or paperhooks.plugins.catalog().create_method({name.partition(':')[0]!r}, ...)"
            )
        plugin_name, slash, method = name.partition("/")
        if slash:
            return self._exact(plugin_name, method)
        if any(status.name == name for status in self._statuses):
            return self._exact(name, name)
        offers = [status for status, offered in self._methods() if offered == name]
        if len(offers) > 1:
            raise PluginConflict(_ambiguous(name, offers))
        if offers:
            raise PluginNotFound(
                f"{name!r} is a method of the plugin {offers[0].name!r}; write '{offers[0].name}/{name}'"
            )
        raise PluginNotFound(f"no installed plugin offers the method {name!r}; {self._hint(name)}")

    def method_class(self, name: str) -> type:
        """The validated class of a method.

        Raises PluginNotFound, PluginConflict, PluginIncompatible, or PluginBroken when the class cannot be imported
        or does not keep the contract of :mod:`paperhooks.plugins.methods`.
        """
        status, method = self.resolve(name)
        address = f"{status.name}/{method}"
        if address not in self._classes:
            self._classes[address] = _import_method(status, method)
        return self._classes[address]

    def create_method(self, name: str, /, **options: Any) -> Any:
        """An instance of a method with the given options; unknown options raise PluginError with a did-you-mean."""
        return build_method(self.method_class(name), name, options)

    def register(self, info: PluginInfo) -> Callable[[], None]:
        """Add a plugin of this process, without packaging; returns a callable that removes it again.

        Raises PluginConflict when the name is taken, PluginIncompatible for another hook API, PluginBroken for what is
        no PluginInfo.
        """
        target = f"PluginInfo(name={shown(getattr(info, 'name', None))})"
        status = check_info(PluginStatus(getattr(info, "name", ""), "healthy", IN_PROCESS, target=target), info)
        if not status.healthy:
            raise as_error(status)
        for other in self._statuses:
            if other.name == info.name:
                raise PluginConflict(f"a plugin called {info.name!r} is there already, from {other.origin}")
        self._statuses.append(status)
        self._hooks = None
        return lambda: self._remove(status)

    @property
    def process_hooks(self) -> ProcessHooks:
        """Process-wide hook implementations of the healthy plugins (``PluginInfo.hooks``), loaded on first use."""
        if self._hooks is None:
            self._hooks = ProcessHooks.load(self.healthy)
            if self._hooks.failures and _strict():
                raise next(iter(self._hooks.failures.values()))
        return self._hooks

    def conflicts(self) -> tuple[str, ...]:
        """Sentences on installed plugins that exclude each other because they share a name."""
        return tuple(dict.fromkeys(status.error for status in self.plugins if status.state == "duplicate"))

    def deep_check(self) -> dict[str, PluginError]:
        """Import every method of every healthy plugin and its process-wide hooks; address to error of what fails."""
        failures: dict[str, PluginError] = {}
        for status, method in self._methods():
            address = f"{status.name}/{method}"
            try:
                self._classes[address] = _import_method(status, method)
            except PluginError as error:
                failures[address] = error
        failures.update({f"{name} (hooks)": error for name, error in self.process_hooks.failures.items()})
        return failures

    def _methods(self) -> list[tuple[PluginStatus, str]]:
        return [(s, method) for s in self.healthy if s.info for method in s.info.methods]

    def _exact(self, plugin_name: str, method: str) -> tuple[PluginStatus, str]:
        status = self.plugin(plugin_name)  # raises for an unhealthy one
        offered = tuple(status.info.methods) if status.info else ()
        if method in offered:
            return status, method
        if method == plugin_name:
            choices = ", ".join(f"{plugin_name}/{each}" for each in offered)
            what = f"write one of: {choices}" if offered else "it offers no methods"
            raise PluginNotFound(f"plugin {plugin_name!r} has no method of its own name; {what}")
        hint = did_you_mean(method, offered)
        raise PluginNotFound(f"plugin {plugin_name!r} has no method {method!r}; {hint}")

    def _hint(self, name: str) -> str:
        from paperhooks.plugins.registry import install_hint  # the registry is read only when something is missing

        hint = install_hint(name)
        if hint or not self._statuses:
            return hint or "no plugin is installed; see: paperhooks plugins --available"
        return did_you_mean(
            name, {*self.method_names(), *(s.name for s in self._statuses if not s.info or s.info.methods)}
        )

    def _remove(self, status: PluginStatus) -> None:
        self._statuses = [other for other in self._statuses if other is not status]
        self._classes = {key: cls for key, cls in self._classes.items() if not key.startswith(f"{status.name}/")}
        self._hooks = None


def _import_method(status: PluginStatus, method: str) -> type:
    info = status.info
    if info is None:
        raise as_error(status)
    target = info.methods[method]
    where = f"method {_address(status.name, method)!r} of {status.origin} ({target})"
    try:
        found = import_target(target)
    except Exception as error:
        text = f"{where} cannot be imported: {error_text(error)}; {fix_for(status, error)}"
        raise PluginBroken(text) from error
    return validate_method(found, where)


def _address(plugin: str, method: str) -> str:
    return plugin if method == plugin else f"{plugin}/{method}"


def _ambiguous(name: str, offers: list[PluginStatus]) -> str:
    places = " and ".join(f"{s.origin} ({s.file or s.target})" for s in offers)
    choices = " or ".join(repr(f"{s.name}/{name}") for s in offers)
    return f"several plugins offer a method called {name!r}: {places}; write {choices}"


def _warning_fields(status: PluginStatus) -> tuple[str, ...]:
    return status.name, status.origin, status.state, status.error, status.fix


def _strict() -> bool:
    return os.environ.get("PAPERHOOKS_STRICT", "").strip().lower() not in ("", "0", "false", "no")


def _blocked_names() -> tuple[str, ...]:
    return tuple(part.strip() for part in os.environ.get("PAPERHOOKS_BLOCK", "").split(",") if part.strip())


_lock = threading.Lock()
_current: Catalog | None = None


def catalog() -> Catalog:
    """The process-wide catalogue, discovered on first use."""
    global _current
    with _lock:
        if _current is None:
            _current = Catalog.discover()
        return _current


def refresh() -> Catalog:
    """Discover again, for example after installing a plugin into the running process."""
    global _current
    with _lock:
        _current = Catalog.discover()
        return _current
