"""Stores whose own libraries raise what they like: told as any other fault, with the address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from paperhooks import DataError
from paperhooks_miniplm import Parts, write_parts
from paperhooks_miniplm.corpus.storage import Storage


class NoKeysError(Exception):
    """As the libraries of stores have them: no OSError."""


class Keyless(AbstractFileSystem):
    """A store that lets nobody in."""

    protocol = "keyless"

    def _refused(self, *_: Any, **__: Any) -> Any:
        raise NoKeysError("Unable to locate credentials\nsecond line")

    ls = info = _open = cat_file = put_file = _refused


@pytest.fixture(autouse=True)
def _registered() -> None:
    fsspec.register_implementation("keyless", Keyless, clobber=True)


@pytest.mark.parametrize(
    "asked",
    [
        lambda storage: storage.names(".parquet"),
        lambda storage: storage.size("a.parquet"),
        lambda storage: storage.open("a.parquet"),
        lambda storage: storage.read_json("a.json", "index"),
    ],
)
def test_a_store_that_cannot_be_asked_is_named(asked: Callable[[Storage], object]) -> None:
    said = (
        r"keyless://bucket/parts cannot be reached: NoKeysError: Unable to locate credentials; keys and endpoints come "
        "from the environment$"
    )
    with pytest.raises(DataError, match=said):
        asked(Storage("keyless://bucket/parts"))


def test_what_cannot_be_written_is_named() -> None:
    with pytest.raises(DataError, match=r"keyless://bucket/a.json cannot be written: NoKeysError: Unable to locate"):
        Storage("keyless://bucket").write_json("a.json", {})


def test_parts_in_such_a_store_are_told_of() -> None:
    with pytest.raises(DataError, match="keyless://bucket/parts cannot be reached"):
        Parts("keyless://bucket/parts")
    with pytest.raises(DataError, match="keyless://bucket/parts cannot be reached"):
        write_parts([[1, 2, 3]], "keyless://bucket/parts")


def test_a_folder_that_is_a_file_is_named_without_keys(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be reached: NotADirectoryError: [^;]*$"):
        Storage(tmp_path / "file").size("a.parquet")
