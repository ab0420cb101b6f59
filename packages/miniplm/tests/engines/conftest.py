"""The place that the tests of the engines share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_place import Place, make_place
from paperhooks.testing import tiny_llama


@pytest.fixture(scope="session")
def ray_folder() -> Iterator[Path]:
    """A short path: those of Ray's sockets must not be long."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def _place(tmp_path_factory: pytest.TempPathFactory, ray_folder: Path) -> Place:
    return make_place(tmp_path_factory.mktemp("engines"), ray_folder, tiny_llama())


@pytest.fixture
def place(_place: Place) -> Place:
    """A model, parts and their scores; no unit was begun by the program yet."""
    _place.forget()
    return _place
