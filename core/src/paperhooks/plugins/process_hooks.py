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
from paperhooks.plugins.discovery import PluginStatus
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
            except (Exception, SystemExit) as error:
                hooks._fail(status, status.info.hooks, error)
        return hooks

    def collect(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        """``(plugin name, result)`` of every plugin that implements ``hook``, by name; one that raises is logged."""
        results = []
        for name, plugin in sorted(self.manager.list_name_plugin()):
            if hook not in implemented_hooks(plugin):
                continue
            others = [other for other in self.manager.get_plugins() if other is not plugin]
            call = self.manager.subset_hook_caller(hook, others)
            try:
                results += [(name, result) for result in call(**arguments)]
            except Exception:
                logger.exception("hook %s of plugin %r failed and is left out", hook, name)
        return results

    def _register(self, name: str, target: str) -> None:
        plugin = import_target(target)
        if isinstance(plugin, type):
            plugin = plugin()
        known = known_hooks("CatalogHooks")
        unknown = [hook for hook in implemented_hooks(plugin) if hook not in known]
        if unknown:
            raise PluginBroken(
                f"{target} implements {unknown[0]!r}, no process-wide hook; {did_you_mean(unknown[0], known)}"
            )
        self.manager.register(plugin, name=name)

    def _fail(self, status: PluginStatus, target: str, error: BaseException) -> None:
        fix = f"pip install --upgrade {status.distribution}, or PAPERHOOKS_BLOCK={status.name}"
        message = f"process-wide hooks of plugin {status.name!r} ({target}) cannot be used: {error}; {fix}"
        logger.warning("%s", message)
        failure = PluginBroken(message)
        failure.__cause__ = error
        self.failures[status.name] = failure
