"""Fixtures around a fake site-packages; test modules load them with ``pytest_plugins``."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.fake_site import FakeSite


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty FakeSite on ``sys.path``, no plugin settings in the environment, a fresh process-wide catalogue."""
    from paperhooks import catalog as module

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
def own_catalog(monkeypatch: pytest.MonkeyPatch):
    """An empty process-wide catalogue for one test."""
    from paperhooks import catalog as module

    fresh = module.Catalog()
    monkeypatch.setattr(module, "_current", fresh)
    return fresh
