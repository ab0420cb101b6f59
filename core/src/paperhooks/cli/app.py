"""The commands of ``paperhooks``, one module a theme; needs typer and rich."""

from __future__ import annotations

import logging
from typing import Any

import typer
from typer.core import TyperGroup

from paperhooks.cli import author, inspect, work
from paperhooks.io.harmless import error_text
from paperhooks.plugins.containment import contained
from paperhooks.plugins.installed import catalog

__all__ = ["build_app"]


class _Interruptible(TyperGroup):
    """Hands on Ctrl-C with what was said about it; typer ends the program without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            stopped = Stopped()
            stopped.__notes__ = list(getattr(error, "__notes__", ()))
            raise stopped from error


class Stopped(BaseException):
    """A command was stopped by Ctrl-C; the notes say what is done."""


def build_app() -> typer.Typer:
    """The typer application with core's commands and those of plugins (hook ``register_commands``).

    A plugin whose commands cannot be built, or would take the place of others, is left out and logged.
    """
    app = typer.Typer(
        name="paperhooks",
        cls=_Interruptible,
        help="Research papers as plugins for Hugging Face transformers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    for module in (inspect, work, author):
        module.add_commands(app)
    taken = dict.fromkeys(typer.main.get_group(app).commands, "paperhooks itself")
    for name in catalog().process_hooks.offering("register_commands"):
        _add_commands_of(name, app, taken)
    return app


def _add_commands_of(name: str, app: typer.Typer, taken: dict[str, str]) -> None:
    """Add the commands of a plugin; ``taken`` are those that are there, with who they are of."""
    hooks, own = catalog().process_hooks, typer.Typer()
    hooks.ask("register_commands", name, app=own)
    try:
        with contained(f"building the commands of plugin {name!r}"):
            commands = list(typer.main.get_group(own).commands)
    except Exception as error:
        hooks.leave_out("register_commands", name, error_text(error))
        return
    for command in commands:
        if command in taken:
            hooks.leave_out("register_commands", name, f"the command {command!r} is one of {taken[command]}")
            return
    taken |= dict.fromkeys(commands, f"plugin {name!r}")
    app.registered_commands += own.registered_commands
    app.registered_groups += own.registered_groups


def _version(wanted: bool) -> None:
    if wanted:
        import paperhooks

        typer.echo(paperhooks.__version__)
        raise typer.Exit


def _root(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show log lines, and tracebacks of errors."),
    traceback: bool = typer.Option(False, "--traceback", help="Show the tracebacks of errors."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
