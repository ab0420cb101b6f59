"""Which versions of other libraries the tests have seen. The one place that says so; imports nothing heavy.

The table is written by the repository's session ``compat``, which runs the tests on each of the versions.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.resources
import json
import warnings
from functools import cache

from packaging.version import InvalidVersion, Version

__all__ = ["tested", "tested_range", "untested", "varied"]


@cache
def _table() -> dict[str, list[str]]:
    text = importlib.resources.files("paperhooks").joinpath("sessions/tested_versions.json").read_text("utf-8")
    table: dict[str, list[str]] = json.loads(text)
    return table


def varied() -> tuple[str, ...]:
    """The distributions that are tested in several versions."""
    return tuple(_table())


def tested(distribution: str) -> tuple[str, ...]:
    """The versions of ``distribution`` that the tests passed on, oldest first; empty for one that is not varied."""
    return tuple(sorted(_table().get(distribution, ()), key=Version))


def tested_range(distribution: str) -> str:
    """Oldest and newest tested version, for messages: ``"5.20.2 to 5.24.0"``."""
    versions = tested(distribution)
    return f"{versions[0]} to {versions[-1]}" if len(versions) > 1 else "".join(versions)


def untested(distribution: str = "transformers") -> str:
    """What is to be said about the installed version of ``distribution``; empty when it is inside what was tested.

    Later patches of a tested minor version count as tested.
    """
    versions, installed = tested(distribution), importlib.metadata.version(distribution)
    if not versions or _within(installed, versions):
        return ""
    return (
        f"paperhooks is tested with {distribution} {tested_range(distribution)}, this is {installed}. What it hands to "
        "hooks is checked when attaching and in the first forward, but the tests have not seen this version: compare a "
        "few outputs"
    )


def _within(installed: str, versions: tuple[str, ...]) -> bool:
    try:
        found = Version(installed)
    except InvalidVersion:
        return False
    oldest, newest = Version(versions[0]), Version(versions[-1])
    return oldest <= found and found.release[:2] <= newest.release[:2]


@functools.cache
def warn_untested() -> None:
    """Once a process: what hooks rely on is held by tests for these versions only."""
    if message := untested():
        warnings.warn(message, stacklevel=3)
