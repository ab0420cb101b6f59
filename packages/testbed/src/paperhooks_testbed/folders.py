"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder"]


@contextmanager
def new_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary folder to fill, which is renamed to ``folder`` at the end, so that nobody finds half a model.

    :param replace: take the place of what is there. Otherwise another process that was faster is as good: its folder
        stays, if it holds a ``config.json``.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield partial
        if replace and folder.exists():
            shutil.rmtree(folder)
        try:
            os.rename(partial, folder)
        except OSError:
            if replace or not (folder / "config.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
