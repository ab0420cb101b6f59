"""Process-wide hooks: what plugins offer that is bound to no model.

``evaluation_tasks`` and ``register_commands`` are declared in :class:`paperhooks.hooks.specs.CatalogHooks`. Every
plugin's object is imported, registered and called on its own: one that fails is logged by name, the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import pluggy

from paperhooks.errors import PluginBroken, did_you_mean
from paperhooks.hooks.specs import PROJECT
from paperhooks.info import TaskInfo
from paperhooks.io.harmless import error_text
from paperhooks.io.options import shown
from paperhooks.plugins.containment import contained
from paperhooks.plugins.discovery import PluginStatus, fix_for, trace_text
from paperhooks.plugins.methods import implemented_hooks, import_target, known_hooks

__all__ = ["ProcessHooks"]

logger = logging.getLogger(__name__)


class ProcessHooks:
    """A pluggy manager with the process-wide hook objects of the plugins.

    manager
        The ``pluggy.PluginManager``.
    failures
        Plugin name to the PluginBroken of what could not be registered.
    """

    def __init__(self) -> None:
        from paperhooks.hooks import specs

        self.manager = pluggy.PluginManager(PROJECT)
        self.manager.add_hookspecs(specs.CatalogHooks)
        self.failures: dict[str, PluginBroken] = {}

    @classmethod
    def load(cls, plugins: Iterable[PluginStatus]) -> ProcessHooks:
        """Register the hook objects of all plugins that have one; failures are logged and kept."""
        hooks = cls()
        for status in plugins:
            if status.info is None or status.info.hooks is None:
                continue
            try:
                hooks._register(status.name, status.info.hooks)
            except Exception as error:
                hooks._fail(status, status.info.hooks, error)
        return hooks

    def offering(self, hook: str) -> list[str]:
        """Names of the plugins that implement ``hook``, sorted."""
        return sorted(name for name, plugin in self.manager.list_name_plugin() if hook in implemented_hooks(plugin))

    def ask(self, hook: str, name: str, **arguments: Any) -> list[Any]:
        """What one plugin returns for ``hook``; nothing, and a line of the log, where it raises."""
        others = [plugin for other, plugin in self.manager.list_name_plugin() if other != name]
        try:
            with contained(f"the hook {hook} of plugin {name!r}"):
                return list(self.manager.subset_hook_caller(hook, others)(**arguments))
        except Exception as error:
            self.leave_out(hook, name, error_text(error))
            logger.info("%s", trace_text(error))
            return []

    def collect(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        """``(plugin name, result)`` of every plugin that implements ``hook``, by name; one that raises is logged."""
        return [(name, result) for name in self.offering(hook) for result in self.ask(hook, name, **arguments)]

    def tasks(self) -> dict[str, dict[str, TaskInfo]]:
        """Evaluation tasks by name, each with the plugins that offer it; what is no TaskInfo is left out and logged."""
        found: dict[str, dict[str, TaskInfo]] = {}
        for plugin, offered in self.collect("evaluation_tasks"):
            for info in offered if isinstance(offered, list | tuple) else [offered]:
                if isinstance(info, TaskInfo):
                    found.setdefault(info.name, {})[plugin] = info
                else:
                    self.leave_out("evaluation_tasks", plugin, f"{shown(info)} is no paperhooks.info.TaskInfo")
        return dict(sorted(found.items()))

    @staticmethod
    def leave_out(hook: str, name: str, reason: str) -> None:
        """Log why something that a plugin offers by ``hook`` is not used."""
        logger.warning("plugin %r: %s is left out: %s", name, hook, reason)

    def _register(self, name: str, target: str) -> None:
        plugin = import_target(target)
        known = known_hooks("CatalogHooks")
        with contained(f"the hooks of plugin {name!r}"):
            plugin = plugin() if isinstance(plugin, type) else plugin
            unknown = [hook for hook in implemented_hooks(plugin) if hook not in known]
            if unknown:
                raise PluginBroken(
                    f"{target} implements {unknown[0]!r}, no process-wide hook; {did_you_mean(unknown[0], known)}"
                )
            try:
                self.manager.register(plugin, name=name)
            except BaseException:
                self.manager.unregister(name=name)  # pluggy keeps what it has begun to register
                raise

    def _fail(self, status: PluginStatus, target: str, error: BaseException) -> None:
        reason = f"{error_text(error)}; {fix_for(status, error)}"
        message = f"process-wide hooks of plugin {status.name!r} ({target}) cannot be used: {reason}"
        logger.warning("%s", message)
        failure = PluginBroken(message)
        failure.__cause__ = error
        self.failures[status.name] = failure
