"""A plugin's commands, run inside the test process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typer.testing import Result

    from paperhooks.info import PluginInfo

__all__ = ["commands_of"]


@contextmanager
def commands_of(plugin: PluginInfo) -> Iterator[Callable[..., Result]]:
    """``with commands_of(PLUGIN) as invoke: invoke("score", folder)`` runs ``paperhooks <plugin> score <folder>``.

    Words may be anything that has a text. The result has ``exit_code``, ``output`` and ``exception``. A plugin that is
    not installed is registered for as long as the block runs. Skips the test where the command line's libraries are
    missing.
    """
    import pytest

    pytest.importorskip("typer")
    from typer.testing import CliRunner

    from paperhooks.cli.app import build_app
    from paperhooks.plugins.installed import catalog

    known = any(each.name == plugin.name for each in catalog().healthy)
    undo = None if known else catalog().register(plugin)
    try:
        app = build_app()
        yield lambda *words: CliRunner().invoke(app, [plugin.name, *map(str, words)])
    finally:
        if undo is not None:
            undo()
