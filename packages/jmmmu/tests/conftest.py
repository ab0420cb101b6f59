"""Synthetic data sets, written once."""

from __future__ import annotations

from pathlib import Path

import pytest
from paperhooks_jmmmu.data import make_sample


@pytest.fixture(scope="session")
def japanese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """56 questions of JMMMU's form, of all kinds."""
    return written(tmp_path_factory, "japanese")


@pytest.fixture(scope="session")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The English twins of 48 of these."""
    return written(tmp_path_factory, "english")


@pytest.fixture(scope="session")
def pro(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JMMMU-Pro's two settings."""
    return written(tmp_path_factory, "pro")


def written(factory: pytest.TempPathFactory, kind: str) -> Path:
    folder = factory.mktemp(kind) / "data"
    make_sample(folder, 2, kind=kind)
    return folder
