"""The light description that the entry point exposes, and the toolkit's process-wide hooks."""

from __future__ import annotations

from typing import Any, Final

from paperhooks import hookimpl
from paperhooks.info import PluginInfo

__all__ = ["PLUGIN", "register_commands"]

PLUGIN: Final = PluginInfo(
    name="evaluation",
    api=1,
    kind="toolkit",
    summary="Tasks, samples, scores and comparisons: evaluates models, with or without methods attached.",
    hooks="paperhooks_evaluation.plugin",
)


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``evaluate``, ``rescore``, ``compare``, ``export`` and ``tasks`` to ``paperhooks``."""
    from paperhooks_evaluation.commands import add_commands

    add_commands(app)
