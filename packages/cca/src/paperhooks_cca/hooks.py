"""Process-wide hooks of the plugin: its evaluation tasks and its command group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paperhooks import TaskInfo, hookimpl

__all__ = ["HOOKS", "Hooks"]


class Hooks:
    """What is not bound to a model."""

    @hookimpl
    def evaluation_tasks(self) -> Sequence[TaskInfo]:
        """The tasks ``pope``, ``chair`` and ``mme``."""
        from paperhooks_cca.hallucination_tasks import TASKS

        return TASKS

    @hookimpl
    def register_commands(self, app: Any) -> None:
        """Add ``paperhooks cca ...``; the command line's libraries are imported only here."""
        from paperhooks_cca.commands import add_commands

        add_commands(app)


HOOKS = Hooks()
