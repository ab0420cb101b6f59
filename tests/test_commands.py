"""The command line of all plugins together: what can be said of every command without running it."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator

import pytest

typer = pytest.importorskip("typer")


def commands(app: typer.Typer, before: str = "") -> Iterator[tuple[str, typing.Any]]:
    """Names and functions of an application's commands, those of its groups included."""
    for info in app.registered_commands:
        yield f"{before}{info.name or info.callback.__name__}", info.callback
    for group in app.registered_groups:
        inner = group.typer_instance
        yield from commands(inner, f"{before}{group.name or inner.info.name} ")


def numbers() -> Iterator[tuple[str, typing.Any]]:
    """What is typed for whole numbers, with its description."""
    from paperhooks.cli import build_app

    for name, function in commands(build_app()):
        hints = typing.get_type_hints(inspect.unwrap(function), include_extras=True)
        for parameter, hint in hints.items():
            inside = typing.get_args(hint)
            if typing.get_origin(hint) is typing.Annotated and int in (inside[0], *typing.get_args(inside[0])):
                yield f"{name}: {parameter}", inside[1]


def test_negative_counts_are_refused_by_every_command() -> None:
    found = dict(numbers())
    assert len(found) > 40
    assert [name for name, info in found.items() if info.min is None or info.min < 0] == []
