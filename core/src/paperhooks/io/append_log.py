"""Rows of JSON that are only ever added, each with a checksum, in a file that survives a kill at any moment.

A row counts when its line is complete. What a kill left of the last one is dropped by whoever appends next, but only
from a file that is a log from its first line to its last: nothing is repaired before it is known whose it is.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

from paperhooks.errors import DataError
from paperhooks.io.files import json_text, parse_json, try_lock, unwritable

__all__ = ["AppendLog"]

_KEY: Final = "crc32"
_SUM: Final = f', "{_KEY}": "'.encode()


class AppendLog:
    """A file of rows.

    :param path: the file; it need not be there yet.
    :param keys: what every row has, so that another file is told from a log. The first of them stands first in a row.
    :param passing: keys of what says when a row was made; they stand behind its checksum, which does not cover them.
    """

    def __init__(self, path: Path, keys: Sequence[str], passing: Sequence[str] = ()) -> None:
        self.path, self.keys, self.passing = path, tuple(keys), tuple(passing)
        self._handle: IO[bytes] | None = None

    def read(self) -> list[dict[str, Any]]:
        """All complete rows, in order; nothing is changed on disk.

        :raises DataError: a line that is no row of such a log, or was changed since it was written.
        """
        return self._rows()[0]

    @classmethod
    def holds(cls, file: Path) -> bool:
        """Whether the first line of a file is a row of a log."""
        try:
            with file.open("rb") as handle:
                return _SUM in handle.readline()
        except OSError:
            return False

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and force them to the disk.

        :raises DataError: the file is a link, or no log, or cannot be written; then it was left as it is.
        """
        lines = b"".join(map(self._line, rows))
        try:
            if self._handle is None:
                self._handle = self._opened()
            self._handle.write(lines)
            self._handle.flush()
            os.fsync(self._handle.fileno())
        except OSError as error:
            self.close()
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file; a later :meth:`append` opens it again."""
        if self._handle is not None:
            handle, self._handle = self._handle, None
            try:
                handle.close()
            except OSError:  # a full disk, which the append has told of
                return

    def _opened(self) -> IO[bytes]:
        if self.path.is_symlink():
            raise DataError(f"{self.path} is a link; rows are added to a file of their own only, use another folder")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle = self.path.open("ab")
        try:
            if not try_lock(handle.fileno()):
                raise DataError(f"{self.path} is being written by another process; wait for it")
            _, size = self._rows()
            handle.truncate(size)
        except BaseException:
            handle.close()
            raise
        return handle

    def _rows(self) -> tuple[list[dict[str, Any]], int]:
        """The rows, and how many bytes of the file they take."""
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror or error}") from error
        *lines, tail = raw.split(b"\n")
        rows = [self._row(number, line) for number, line in enumerate(lines, 1) if line]
        start = b'{"' + self.keys[0].encode() + b'"'
        if tail and not tail.startswith(start[: len(tail)]):
            raise DataError(f"{self.path}, line {len(lines) + 1}: is no row of such a file; use another folder")
        return rows, len(raw) - len(tail)

    def _row(self, number: int, line: bytes) -> dict[str, Any]:
        where = f"{self.path}, line {number}"
        body, mark, rest = line.rpartition(_SUM)
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{where}: is damaged or no row ({error}); delete it, or use another folder") from error
        if not isinstance(row, dict) or any(key not in row for key in self.keys):
            raise DataError(f"{where}: is no row with {', '.join(self.keys)}; use another folder")
        if not mark or rest[:8] != _check(body):
            raise DataError(f"{where}: was changed after it was written; delete this line to have it made again")
        del row[_KEY]
        return row

    def _line(self, row: Mapping[str, Any]) -> bytes:
        lasting = {key: value for key, value in row.items() if key not in self.passing}
        body = json_text(lasting).encode()[:-1]
        passing = {key: row[key] for key in self.passing if key in row}
        behind = b", " + json_text(passing).encode()[1:] if passing else b"}"
        return body + _SUM + _check(body) + b'"' + behind + b"\n"


def _check(body: bytes) -> bytes:
    return f"{zlib.crc32(body):08x}".encode()
