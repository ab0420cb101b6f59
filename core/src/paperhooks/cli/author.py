"""Commands for authors of plugins: new, registry check, registry update, registry table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from paperhooks.cli.output import say
from paperhooks.plugins.registry import (
    find_registry,
    load_registry,
    plugin_table_markdown,
    replace_between_markers,
    spread_table_markdown,
)

__all__ = ["add_commands"]

Registry = Annotated[Path | None, typer.Argument(help="registry.toml or its folder; default: found upwards from here.")]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    app.command()(new)
    registry = typer.Typer(help="Work on registry.toml.", no_args_is_help=True)
    registry.command()(check)
    registry.command()(update)
    registry.command()(table)
    app.add_typer(registry, name="registry")


def new(
    name: Annotated[str, typer.Argument(help="Plugin name in kebab-case, such as my-method.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to put the project in.")] = Path(),
) -> None:
    """Write a plugin project that installs, passes its tests and can be changed from there."""
    from paperhooks.authoring.template import create_project

    folder = create_project(name, out)
    say(f"{folder}\nnext: pip install -e '{folder}[test]' && pytest {folder}")


def check(path: Registry = None) -> None:
    """Prove that registry, package metadata, PluginInfo and Traits agree; exit code 1 when they do not."""
    from paperhooks.authoring.registry_check import check_registry

    file = path if path is not None else find_registry(Path.cwd())
    problems = check_registry(file)
    for problem in problems:
        say(str(problem), err=True)
    if problems:
        raise typer.Exit(1)
    say(f"{file}: no problem")


def update(path: Registry = None) -> None:
    """Write into registry.toml what PluginInfo and Traits of the packages say; comments and other keys stay."""
    from paperhooks.authoring.registry_entry import update_registry

    file = path if path is not None else find_registry(Path.cwd())
    changed = update_registry(file / "registry.toml" if file.is_dir() else file)
    say(f"{file}: {', '.join(changed) or 'nothing to change'}")


def table(
    path: Registry = None,
    write: Annotated[Path | None, typer.Option("--write", help="Put it between the markers of this file.")] = None,
) -> None:
    """Print the table of plugins, or write it between the markers of a file: paperhooks-plugins:start and :end.

    Markers paperhooks-spreads get the table of the ways to spread a model.
    """
    from paperhooks.io.files import write_text

    file = path if path is not None else find_registry(Path.cwd())
    found = load_registry(file / "registry.toml" if file.is_dir() else file)
    if write is None:
        say(plugin_table_markdown(found))
        return
    text = write.read_text(encoding="utf-8")
    if "paperhooks-spreads:start" in text:
        text = replace_between_markers(text, "paperhooks-spreads", spread_table_markdown(found))
    if "paperhooks-plugins:start" in text or "paperhooks-spreads:start" not in text:
        text = replace_between_markers(text, "paperhooks-plugins", plugin_table_markdown(found))
    write_text(write, text)
