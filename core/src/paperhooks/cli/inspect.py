"""Commands that look and change nothing: plugins, doctor, describe, claims."""

from __future__ import annotations

import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from paperhooks.authoring.doctor import Check, examine
from paperhooks.cli.options import build_methods, empty_model
from paperhooks.cli.output import say, say_json, shown
from paperhooks.errors import PaperhooksError
from paperhooks.plugins.discovery import PluginStatus
from paperhooks.plugins.installed import catalog
from paperhooks.plugins.methods import implemented_hooks
from paperhooks.plugins.registry import RegistryEntry, load_registry

__all__ = ["add_commands"]

_COLOURS = {"healthy": "green", "blocked": "yellow"}
_MARKS = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "problem": "[red]problem[/]"}

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    for command in (plugins, doctor, describe, claims):
        app.command()(command)


def plugins(
    available: Annotated[bool, typer.Option("--available", help="List what could be installed.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the installed plugins: healthy, or broken and why."""
    if available:
        _show_available(as_json)
        return
    found = catalog().plugins
    if as_json:
        say_json([status.as_dict() for status in found])
    else:
        _show_plugins(found, verbose)
    if any(status.state not in ("healthy", "blocked") for status in found):
        raise typer.Exit(1)


def _show_plugins(found: tuple[PluginStatus, ...], verbose: bool) -> None:
    console = Console()
    if not found:
        console.print("No plugin is installed. See what there is: paperhooks plugins --available")
        return
    table = Table("plugin", "version", "state", "methods", "what it does", box=None, pad_edge=False)
    for status in found:
        methods = shown(", ".join(status.info.methods) if status.info else "")
        state = f"[{_COLOURS.get(status.state, 'red')}]{status.state}[/]"
        summary = status.info.summary if status.info else ""
        table.add_row(shown(status.name), shown(status.version), state, methods, shown(summary))
    console.print(table)
    for status in found:
        _show_trouble(console, status, verbose)
    for sentence in catalog().conflicts():
        console.print(f"[red]conflict:[/] {shown(sentence)}")


def _show_trouble(console: Console, status: PluginStatus, verbose: bool) -> None:
    if verbose and status.healthy and status.info:
        for method in status.info.methods:
            console.print(shown(f"{status.name}/{method}: ") + _hooks(f"{status.name}/{method}"))
    if not status.error:
        return
    console.print(f"\n[red]{shown(status.name)}[/] of {shown(status.origin)} is {status.state}: {shown(status.error)}")
    console.print(f"  to fix it: {shown(status.fix)}")
    if verbose and status.traceback:
        console.print(shown(status.traceback), highlight=False)


def _hooks(address: str) -> str:
    try:
        return shown(", ".join(implemented_hooks(catalog().method_class(address))))
    except PaperhooksError as error:
        return f"[red]{shown(error)}[/]"


def _show_available(as_json: bool) -> None:
    registry = load_registry()
    if as_json:
        say_json([dict(entry.data) for entry in registry.entries])
        return
    installed = {status.name for status in catalog().plugins}
    console = Console()
    for entry in registry.entries:
        _show_entry(console, entry, entry.name in installed)


def _show_entry(console: Console, entry: RegistryEntry, installed: bool) -> None:
    paper = entry.data.get("paper")
    get = "[green]installed[/]" if installed else shown(entry.pip_command)
    console.print(f"[bold]{entry.name}[/] ({entry.data['status']}): {shown(entry.data['summary'])}", highlight=False)
    about = entry.kind if paper is None else f"{shown(paper['title'])}, arXiv {paper['arxiv']}"
    console.print(f"    {about}", highlight=False)
    console.print(f"    {get}", highlight=False, soft_wrap=True)


def doctor(as_json: Json = False, verbose: Verbose = False) -> None:
    """Check versions, devices, threads, plugins and conflicts; exit code 1 when there is a problem."""
    checks = examine()
    if as_json:
        fields = ("subject", "verdict", "found", "fix")
        say_json([{key: getattr(check, key) for key in fields} for check in checks])
    else:
        _show_checks(checks, verbose)
    if any(check.verdict == "problem" for check in checks):
        raise typer.Exit(1)


def _show_checks(checks: list[Check], verbose: bool) -> None:
    console = Console()
    table = Table("", "subject", "found", "what to do", box=None, pad_edge=False)
    for check in checks:
        table.add_row(_MARKS[check.verdict], shown(check.subject), shown(check.found), shown(check.fix))
    console.print(table)
    for check in checks:
        if verbose and check.traceback:
            console.print(f"\n[red]{shown(check.subject)}[/]\n{shown(check.traceback)}", highlight=False)


def describe(
    model: Annotated[str, typer.Argument(help="Folder or hub name; only its config is read.")],
    method: Annotated[list[str], typer.Option("--plugin", "-p", help="METHOD or METHOD:k=v,k=v; may be repeated.")],
) -> None:
    """Show which layers of a model the given methods would act on, without loading weights."""
    from paperhooks.sessions.session import attach

    methods = build_methods(method)
    session = attach(empty_model(model), *methods)
    say(session.describe())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no hook ran is no news here: the model was only looked at
        session.close()


def claims(
    name: Annotated[str, typer.Argument(help="Plugin name.")],
    summary: Annotated[bool, typer.Option("--summary", help="Print the short table of the README.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the whole table as Markdown.")] = False,
) -> None:
    """Print what a plugin's paper claims, what was reproduced here, and what was not and why."""
    from paperhooks.authoring.claims import plugin_claims

    found = plugin_claims(name)
    say(found.as_summary() if summary else found.as_markdown() if markdown else found.as_text())
