"""Records of files, of datasets of the hub and of objects in memory, read in order or at any place as they are needed.

A record is a text, or an object with a text or ``input_ids`` and whatever else. Records of a file keep their numbers:
blank lines apart, one is a row of a corpus also where it is empty.
"""

from __future__ import annotations

import bisect
import gzip
import hashlib
import json
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any, Final, Protocol, TypeAlias

import numpy as np
from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import hash_json

__all__ = [
    "Fields",
    "Joined",
    "Record",
    "RecordItems",
    "Records",
    "TextRecord",
    "file_digest",
    "from_hub",
    "has_order",
    "read_records",
    "record_files",
]

_HUB: Final = "hub:"
_INDEXED: Final = (".jsonl", ".parquet")
_SUFFIXES: Final = (*_INDEXED, ".jsonl.gz", ".txt")
_BATCH: Final = 256
_SAMPLES: Final = 256
_SAMPLE_BYTES: Final = 1 << 18

#: What to call a record in messages, and the record.
Record: TypeAlias = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A text, where it comes from ("" where nobody said), and its place in the source."""

    text: str
    domain: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the text and the domain of a record are; dots lead into objects."""

    text: str = "text"
    domain: str = "domain"

    def value(self, record: Any, name: str) -> Any:
        """What stands under a name, or None."""
        if isinstance(record, Mapping) and name not in record and "." in name:
            first, rest = name.split(".", 1)
            return self.value(record.get(first), rest)
        return record.get(name) if isinstance(record, Mapping) else None

    def text_of(self, where: str, record: Any) -> str:
        """The text of a record. Raises DataError where there is none, or none that is Unicode."""
        if isinstance(record, TextRecord):
            return record.text
        text = record if isinstance(record, str) else self.value(record, self.text)
        if not isinstance(text, str):
            found = f"the keys {sorted(map(str, record))}" if isinstance(record, Mapping) else type(record).__name__
            raise DataError(f"{where}: has no text in {self.text!r}, but {found}; name the field with text_field")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: character {error.start} is half of a surrogate pair; write it anew") from error
        return text

    def domain_of(self, record: Any) -> str:
        """The domain of a record, or ""."""
        domain = record.domain if isinstance(record, TextRecord) else self.value(record, self.domain)
        return "" if domain is None else str(domain)


def file_digest(path: Path, *, whole: bool = False) -> str:
    """SHA-256 of a file's size and bytes; of 256 pieces of 256 KiB spread over it where it is larger than those.

    :param whole: read all of it whatever its size.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    with path.open("rb") as handle:
        if whole or size <= _SAMPLES * _SAMPLE_BYTES:
            while block := handle.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
        for number in range(_SAMPLES):
            handle.seek((size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
            digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def read_records(source: Any, columns: Sequence[str] = (), first: int = 0) -> Iterator[Record]:
    """The records of a source in order; see :func:`paperhooks_miniplm.read_documents` for what it may be.

    :param columns: all that is wanted of a Parquet file where it has one of them.
    :param first: number of the first record of an iterable, for messages.
    """
    if isinstance(source, str) and source.startswith(_HUB):
        source = from_hub(source)
    if isinstance(source, str | Path):
        for file in record_files(Path(source)):
            yield from _of_file(file, columns)
    elif isinstance(source, Mapping):
        raise DataError(f"this is a mapping of {sorted(map(str, source))}; choose one of its datasets")
    else:
        yield from ((f"record {number}", record) for number, record in enumerate(source, first))


def from_hub(name: str) -> Any:
    """The dataset ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT``, streamed."""
    datasets = require("datasets", "paperhooks-miniplm[data]", "to read datasets of the hub")
    parts = name.removeprefix(_HUB).split(":")
    if len(parts) not in (2, 3):
        raise DataError(f"{name} names no split; write hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    dataset, *config, split = parts
    try:
        return datasets.load_dataset(dataset, *config, split=split, streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"the dataset {name} cannot be loaded: {error}") from error


def record_files(path: Path) -> list[Path]:
    """A file, or the files of a folder in the order of their names. Raises DataError where none can be read."""
    if not path.exists():
        raise DataError(f"{path} does not exist; name a file, a folder, or hub:NAME:SPLIT")
    inside = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [file for file in inside if file.name.endswith(_SUFFIXES) and file.is_file()]
    if not found:
        raise DataError(f"{path} holds no text that can be read; expected files in {', '.join(_SUFFIXES)}")
    return found


def has_order(files: Sequence[Path]) -> bool:
    """Whether the records of all files can be read at any place."""
    return all(file.suffix in _INDEXED for file in files)


def _of_file(file: Path, columns: Sequence[str]) -> Iterator[Record]:
    try:
        if file.suffix == ".parquet":
            yield from _Table(file, columns).all()
        elif file.suffix == ".txt":
            yield str(file), _decoded(file.read_bytes(), str(file), 1)
        else:
            with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
                for number, line in enumerate(handle, 1):
                    if line.strip():
                        yield f"{file}:{number}", _parsed(line, str(file), number)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file} cannot be read: {error}; copy it again") from error


def _decoded(raw: bytes, file: str, line: int) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += raw.count(b"\n", 0, error.start)
        raise DataError(f"{file}:{line}: is not UTF-8: {error.reason} at byte {error.start}") from error


def _parsed(raw: bytes, file: str, line: int) -> Any:
    text = _decoded(raw, file, line)
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(f"{file}:{line}: is not JSON: {error}") from error


class Records(Protocol):
    """Records that can be read in any order."""

    def __len__(self) -> int:
        """How many there are."""

    def get(self, rows: Sequence[int]) -> list[Record]:
        """The given ones, in the given order."""

    def fingerprint(self) -> Any:
        """Plain data that changes when they change."""


class _Lines:
    """A JSON Lines file; offsets and numbers of its lines are kept, 16 bytes a row."""

    def __init__(self, file: Path) -> None:
        self.file, self._offsets, self._numbers = file, array("Q"), array("Q")
        position, digest = 0, hashlib.sha256()
        with file.open("rb") as handle:
            for number, line in enumerate(handle, 1):
                digest.update(line)
                if line.strip():
                    self._offsets.append(position)
                    self._numbers.append(number)
                position += len(line)
        self._digest = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, rows: Sequence[int]) -> list[Record]:
        with self.file.open("rb") as handle:
            return [self._record(handle, row) for row in rows]

    def _record(self, handle: IO[bytes], row: int) -> Record:
        handle.seek(self._offsets[row])
        number = self._numbers[row]
        return f"{self.file}:{number}", _parsed(handle.readline(), str(self.file), number)

    def fingerprint(self) -> Any:
        return self._digest


class _Table:
    """A Parquet file; at any place it is read by row groups, of which the last one is kept."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        pyarrow = require("pyarrow", "paperhooks-miniplm[data]", "to read Parquet files")
        parquet = require("pyarrow.parquet", "paperhooks-miniplm[data]", "to read Parquet files")
        self.file, self._wanted = file, tuple(columns)
        try:
            self._parquet = parquet.ParquetFile(file)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read: {error}; copy it again") from error
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts: list[int] = [0, *np.cumsum(sizes, dtype=np.int64).tolist()]
        self._columns = [name for name in self._parquet.schema_arrow.names if name in columns] or None
        self._group = -1
        self._table: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self._wanted)

    def __len__(self) -> int:
        return self._starts[-1]

    def all(self) -> Iterator[Record]:
        """Every record in order, of which some are in memory."""
        row = 0
        for batch in self._parquet.iter_batches(_BATCH, columns=self._columns):
            for record in batch.to_pylist():
                yield f"{self.file}, row {row}", record
                row += 1

    def get(self, rows: Sequence[int]) -> list[Record]:
        return [(f"{self.file}, row {row}", self._record(row)) for row in rows]

    def _record(self, row: int) -> Any:
        group = bisect.bisect_right(self._starts, row) - 1
        if group != self._group:
            self._table, self._group = self._parquet.read_row_group(group, columns=self._columns), group
        return self._table.slice(row - self._starts[group], 1).to_pylist()[0]

    def fingerprint(self) -> Any:
        return file_digest(self.file)


class RecordItems:
    """A sequence of records, such as a dataset of the library datasets; see :class:`Records`."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def get(self, rows: Sequence[int]) -> list[Record]:
        """See :class:`Records`."""
        return [(f"record {row}", self.items[row]) for row in rows]

    def fingerprint(self) -> Any:
        """See :class:`Records`."""
        return getattr(self.items, "_fingerprint", None) or hash_json([_plain(item) for item in self.items])


def _plain(item: Any) -> Any:
    return [item.text, item.domain] if isinstance(item, TextRecord) else item


class Joined:
    """The records of JSON Lines and Parquet files, one file after another; see :class:`Records`."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str] = ()) -> None:
        self._parts: list[_Lines | _Table] = []
        for file in files:
            try:
                self._parts.append(_Table(file, columns) if file.suffix == ".parquet" else _Lines(file))
            except OSError as error:
                raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
        self._starts: list[int] = [0, *np.cumsum([len(part) for part in self._parts], dtype=np.int64).tolist()]

    def __len__(self) -> int:
        return self._starts[-1]

    def get(self, rows: Sequence[int]) -> list[Record]:
        """See :class:`Records`. Rows that follow each other in one file are read together."""
        places = [bisect.bisect_right(self._starts, row) - 1 for row in rows]
        found: list[Record] = []
        for place, run in groupby(zip(places, rows, strict=True), key=lambda one: one[0]):
            found += self._parts[place].get([row - self._starts[place] for _, row in run])
        return found

    def fingerprint(self) -> Any:
        """See :class:`Records`."""
        return [part.fingerprint() for part in self._parts]
