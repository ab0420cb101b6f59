"""Fixtures around a fake site-packages; test modules load them with ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from paperhooks.testing.fake_site import FakeSite

if TYPE_CHECKING:
    from paperhooks.plugins.installed import Catalog

__all__ = ["cli", "own_catalog", "site"]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSite]:
    """An empty FakeSite on ``sys.path``, no plugin settings in the environment, a fresh process-wide catalogue."""
    from paperhooks.plugins import installed as module

    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.delenv("PAPERHOOKS_STRICT", raising=False)
    monkeypatch.delenv("PAPERHOOKS_BLOCK", raising=False)
    monkeypatch.setattr(module, "_current", None)
    fake = FakeSite(root)
    yield fake
    fake.forget()


@pytest.fixture
def own_catalog(monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """An empty process-wide catalogue for one test."""
    from paperhooks.plugins import installed as module

    fresh = module.Catalog()
    monkeypatch.setattr(module, "_current", fresh)
    return fresh


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in this process; returns exit code, standard output and standard error."""
    from paperhooks.cli.entry import main

    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return run
