"""Files that are made out of sight and appear together, also where the process is killed while they appear."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Final

from paperhooks import DataError

__all__ = ["STAGE", "Stage"]

STAGE: Final = ".shards.part"
_MARK: Final = "complete"


class Stage:
    """A hidden folder inside of the one that its files are for.

    Once it is marked as complete its files are moved; whoever comes next moves the rest, and deletes what is not
    marked. To be used only by who alone writes in the folder.

    :param last: the file that is moved last, without which the others are of no use.
    """

    def __init__(self, folder: Path, last: str) -> None:
        self.folder, self.last = folder, last
        self.path = folder / STAGE

    def begin(self) -> None:
        """Make the folder."""
        self.path.mkdir()

    def settle(self) -> None:
        """What a killed process left is put in place where it is marked, and deleted where not."""
        if (self.path / _MARK).exists():
            self._move()
        else:
            self.discard()

    def commit(self) -> None:
        """Mark the files as complete, and put them in place."""
        with (self.path / _MARK).open("wb") as handle:
            os.fsync(handle.fileno())
        self._move()

    def discard(self) -> None:
        """Delete what is there, unless it is marked."""
        if not (self.path / _MARK).exists():
            shutil.rmtree(self.path, ignore_errors=True)

    def _move(self) -> None:
        files = [file for file in sorted(self.path.iterdir()) if file.name != _MARK]
        for file in sorted(files, key=lambda file: file.name == self.last):
            target = self.folder / file.name
            if target.exists():
                raise DataError(f"{target} stands in the way of {file}; move one of them away")
            os.replace(file, target)
        with contextlib.suppress(FileNotFoundError):
            (self.path / _MARK).unlink()
        self.path.rmdir()
