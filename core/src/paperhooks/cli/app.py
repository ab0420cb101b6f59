"""The commands of ``paperhooks``, one module a theme; needs typer and rich."""

from __future__ import annotations

import logging

import typer

from paperhooks.cli import author, inspect, work
from paperhooks.plugins.installed import catalog

__all__ = ["build_app"]


def build_app() -> typer.Typer:
    """The typer application with core's commands and one command group a plugin (hook ``register_commands``)."""
    app = typer.Typer(
        name="paperhooks",
        help="Research papers as plugins for Hugging Face transformers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    for module in (inspect, work, author):
        module.add_commands(app)
    catalog().process_hooks.collect("register_commands", app=app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        import paperhooks

        typer.echo(paperhooks.__version__)
        raise typer.Exit


def _root(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show log lines, and tracebacks of errors."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    if verbose:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
