"""Which files hold records, in which form, and their bytes: endings, compression, folders."""

from __future__ import annotations

import codecs
import gzip
import io
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast

from paperhooks.errors import DataError, counted, require
from paperhooks.io.files import local_path

__all__ = ["ENDINGS", "Form", "decoded", "form_of", "opened", "record_files"]

logger = logging.getLogger(__name__)

Form: TypeAlias = Literal["lines", "json", "csv", "tsv", "parquet", "text"]
_FORMS: Final[dict[str, Form]] = {
    ".jsonl": "lines",
    ".ndjson": "lines",
    ".jsonlines": "lines",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED: Final = (".gz", ".zst")
_BLOCK: Final = 1 << 17
#: The endings that are read; all but Parquet also with .gz or .zst behind them. Capitals make no difference.
ENDINGS: Final = f"{', '.join(_FORMS)}, and these with {' or '.join(_COMPRESSED)} behind them"


@dataclass(frozen=True, slots=True)
class FileList:
    """The files of a source in the order of their names, and how many others a folder holds, by their endings."""

    files: tuple[Path, ...]
    skipped: tuple[tuple[str, int], ...] = ()


def form_of(file: Path) -> Form | None:
    """The form that the name of a file says, or None."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes and suffixes[-1] in _COMPRESSED:
        suffixes.pop()
    if not suffixes:
        return None
    form = _FORMS.get(suffixes[-1])
    inner = _FORMS.get(suffixes[-2]) if len(suffixes) > 1 else None
    # Downloads are sometimes called data.jsonl.txt; braces and all are not taken for a text.
    return inner if form == "text" and inner not in (None, "text", "parquet") else form


def record_files(source: str | Path) -> FileList:
    """A file, or the files of a folder and the folders in it, without hidden ones.

    What a folder holds beside them is counted, and said in the log.

    :raises DataError: nothing is there, or nothing that can be read; the known endings are named.
    """
    path = local_path(source)
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file, a folder, or hub:NAME:SPLIT")
    if not path.is_dir():
        if form_of(path) is None:
            raise DataError(f"{path} has no ending that is known; expected {ENDINGS}")
        return FileList((path,))
    inside = [file for file in sorted(path.rglob("*")) if file.is_file() and not _hidden(file.relative_to(path))]
    found = tuple(file for file in inside if form_of(file) is not None)
    skipped = Counter(file.suffix.lower() or "no ending" for file in inside if form_of(file) is None)
    if not found:
        raise DataError(f"{path} holds {_by_ending(skipped)} and no file that can be read; expected {ENDINGS}")
    if skipped:
        read = counted(len(found), "file is", "files are")
        logger.warning("%s: %s read; left out are %s", path, read, _by_ending(skipped))
    return FileList(found, tuple(sorted(skipped.items())))


def _hidden(file: Path) -> bool:
    """Whether an editor or the system keeps a file for itself (``.ipynb_checkpoints``, ``._copy``)."""
    return any(part.startswith(".") for part in file.parts)


def _by_ending(skipped: Counter[str]) -> str:
    return ", ".join(f"{count} {ending}" for ending, count in skipped.most_common()) or "nothing"


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """The content of a file, uncompressed.

    :raises DataError: it cannot be read, or its compression is damaged. :raises MissingExtra: .zst without zstandard.
    """
    make = _OPENERS.get(file.suffix.lower(), _plain)
    try:
        with make(file) as handle:
            yield cast("IO[bytes]", handle)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}; copy it again") from error


def _plain(file: Path) -> IO[bytes]:
    return file.open("rb")


def _zstandard(file: Path) -> IO[bytes]:
    return io.BufferedReader(_Frames(file.open("rb")), _BLOCK)


class _Frames(io.RawIOBase):
    """The frames of a .zst file, one after another. The library's own reader takes a cut file for one that ends."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._library: Any = require("zstandard", "paperhooks[data]", "to read .zst files")
        self._raw, self._ready = raw, b""
        self._frame: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            block = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            block = block or self._raw.read(_BLOCK)
            if not block:
                if self._frame is not None and not self._frame.eof:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            if self._frame is None or self._frame.eof:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(block)
            except self._library.ZstdError as error:
                raise OSError(str(error)) from error
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


_OPENERS: Final[dict[str, Callable[[Path], Any]]] = {".gz": gzip.open, ".zst": _zstandard}


def decoded(raw: bytes, file: Path, line: int) -> str:
    """Bytes of a file as text, without a byte order mark.

    :param line: the number of their first line, for messages.
    :raises DataError: they are not UTF-8, or hold a NUL.
    """
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wide = line == 1 and raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        hint = "it looks like UTF-16; save it as UTF-8" if wide else f"{error.reason} at byte {error.start}"
        line += raw.count(b"\n", 0, error.start)
        raise DataError(f"{file}:{line}: is not UTF-8: {hint}") from error
    if "\0" in text:
        line += text.count("\n", 0, text.index("\0"))
        raise DataError(f"{file}:{line}: holds a NUL character; it is no text, or was damaged")
    return text
