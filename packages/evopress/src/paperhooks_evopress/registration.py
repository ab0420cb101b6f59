"""The process-wide hooks."""

from typing import Any

from paperhooks import hookimpl

__all__ = ["register_commands"]


@hookimpl
def register_commands(app: Any) -> None:
    """Add ``paperhooks evopress ...``; the command line's libraries are imported only here."""
    from paperhooks_evopress.commands import add_commands

    add_commands(app)
