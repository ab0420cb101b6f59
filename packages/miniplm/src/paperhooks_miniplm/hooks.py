"""Process-wide hooks of the plugin: its command group."""

from __future__ import annotations

from typing import Any

from paperhooks import hookimpl

__all__ = ["HOOKS", "Hooks"]


class Hooks:
    """What is not bound to a model."""

    @hookimpl
    def register_commands(self, app: Any) -> None:
        """Add ``paperhooks miniplm ...``; the command line's libraries are imported only here."""
        from paperhooks_miniplm.commands import add_commands

        add_commands(app)


HOOKS = Hooks()
