"""The one reader of records: files, folders, datasets of the hub and objects in memory.

A record is whatever stands there: an object, a text, a list. Records are read in order as they are needed
(:func:`read_records`), or at any place where the file allows it (:func:`open_records`). Lines end at a line feed only,
so that other separators inside strings do no harm; a byte order mark is no part of the first record.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import IO, Any, Final, Literal, Protocol, TypeAlias

from paperhooks.errors import DataError, require
from paperhooks.io.files import parse_json
from paperhooks.io.hashing import hash_json
from paperhooks.io.record_paths import decoded, form_of, opened, record_files
from paperhooks.io.tables import table_rows

__all__ = [
    "HeldRecords",
    "Record",
    "RecordItems",
    "Records",
    "TextUnit",
    "file_digest",
    "from_hub",
    "open_records",
    "read_records",
]

_HUB: Final = "hub:"
_BATCH: Final = 256
_SAMPLES: Final = 256
_SAMPLE_BYTES: Final = 1 << 18

#: What to call a record in messages, and the record.
Record: TypeAlias = tuple[str, Any]
#: Whether a text file is one record, or one a block between blank lines.
TextUnit: TypeAlias = Literal["file", "blocks"]


class Records(Protocol):
    """Records that can be read in any order."""

    def __len__(self) -> int:
        """How many there are."""

    def get(self, rows: Sequence[int]) -> list[Record]:
        """The given ones, in the given order."""

    def fingerprint(self) -> Any:
        """Plain data that changes when they change."""


def read_records(
    source: Any, *, columns: Sequence[str] = (), first: int = 0, text: TextUnit = "file"
) -> Iterator[Record]:
    """The records of a source in order.

    :param source: a file (``.jsonl``, ``.ndjson``, ``.jsonlines``, ``.json`` with a list or with lines, ``.csv`` and
        ``.tsv`` with a header line, ``.parquet``, ``.txt``; also ``.gz`` and ``.zst``), a folder of these in the order
        of their names, ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT`` (streamed), or any iterable.
    :param columns: all that is wanted of a Parquet file where it has one of them.
    :param first: number of the first record of an iterable, for messages.
    :param text: what a record of a text file is.
    :raises DataError: something that cannot be read, naming file and line. :raises MissingExtra: without the library.
    """
    if isinstance(source, str) and source.startswith(_HUB):
        source = from_hub(source)
    if isinstance(source, str | Path):
        for file in record_files(source).files:
            yield from _of_file(file, columns, text)
    elif isinstance(source, Mapping):
        raise DataError(f"this is a mapping of {sorted(map(str, source))}; choose one of its datasets")
    else:
        yield from ((f"record {number}", record) for number, record in enumerate(source, first))


def open_records(source: Any, *, columns: Sequence[str] = ()) -> Records | None:
    """The records of a source at any place, or None where it can only be read in order.

    JSON Lines and Parquet files, folders of these, and sequences can be read at any place. Of files only places are
    kept in memory; of Parquet the whole row group of a record is read.

    :param source, columns: as for :func:`read_records`. :raises DataError: as :func:`read_records` does.
    """
    if isinstance(source, str) and source.startswith(_HUB):
        return None
    if isinstance(source, str | Path):
        files = record_files(source).files
        ordered = all(form_of(file) == "parquet" or _plain_lines(file) for file in files)
        return _Joined(files, columns) if ordered else None
    if isinstance(source, Mapping):
        raise DataError(f"this is a mapping of {sorted(map(str, source))}; choose one of its datasets")
    return RecordItems(source) if hasattr(source, "__getitem__") and hasattr(source, "__len__") else None


def from_hub(name: str, *, streaming: bool = True) -> Any:
    """The dataset ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT``.

    :raises DataError: no split, or it cannot be loaded. :raises MissingExtra: without datasets.
    """
    load_dataset = require("datasets", "paperhooks[data]", "to read datasets of the hub").load_dataset
    parts = name.removeprefix(_HUB).split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise DataError(f"{name} names no split; write hub:NAME:SPLIT or hub:NAME:CONFIG:SPLIT")
    dataset, *config, split = parts
    try:
        return load_dataset(dataset, *config, split=split, streaming=streaming)
    except (OSError, ValueError) as error:
        raise DataError(f"the dataset {name} cannot be loaded: {error}") from error


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


# -- forms -------------------------------------------------------------------------------------------------------------


def _plain_lines(file: Path) -> bool:
    return form_of(file) == "lines" and file.suffix.lower() not in (".gz", ".zst")


def _of_file(file: Path, columns: Sequence[str], text: TextUnit) -> Iterator[Record]:
    form = form_of(file)
    if form == "parquet":
        yield from _Table(file, columns).all()
        return
    with opened(file) as handle:
        if form == "lines":
            yield from _lines(handle, file)
        elif form == "json":
            yield from _json(handle.read(), file)
        elif form in ("csv", "tsv"):
            yield from table_rows(handle.read(), file, "\t" if form == "tsv" else ",")
        else:
            content = decoded(handle.read(), file, 1)
            blocks = [content] if text == "file" else [b.strip() for b in re.split(r"\n\s*\n", content) if b.strip()]
            yield from ((str(file), block) for block in blocks)


def _lines(handle: Iterable[bytes], file: Path) -> Iterator[Record]:
    for number, line in enumerate(handle, 1):
        if line.strip():
            yield f"{file}:{number}", _parsed(line, file, number)


def _parsed(raw: bytes, file: Path, line: int) -> Any:
    text = decoded(raw, file, line)
    try:
        return parse_json(text, strict=False)
    except ValueError as error:
        raise DataError(f"{file}:{line}: is not JSON: {error}") from error


def _json(raw: bytes, file: Path) -> Iterator[Record]:
    """A list of records, JSON lines under another name, or one object."""
    text = decoded(raw, file, 1)
    try:
        found = parse_json(text, strict=False)
    except ValueError as error:
        lines = [line for line in raw.split(b"\n") if line.strip()]
        if len(lines) < 2 or not lines[0].rstrip().endswith((b"}", b"]", b'"')):
            raise DataError(f"{file}: is not JSON: {error}") from error
        yield from _lines(io.BytesIO(raw), file)
        return
    if isinstance(found, list):
        yield from ((f"{file}, record {number}", record) for number, record in enumerate(found))
    elif isinstance(found, dict):
        yield f"{file}, record 0", found
    else:
        raise DataError(f"{file} holds a {type(found).__name__}; expected a list of records, or an object a line")


# -- at any place ------------------------------------------------------------------------------------------------------


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
        return getattr(self.items, "_fingerprint", None) or hash_json(list(self.items))


class HeldRecords:
    """Records that were read in order and are held in memory, with their places; see :class:`Records`."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def get(self, rows: Sequence[int]) -> list[Record]:
        """See :class:`Records`."""
        return [self._records[row] for row in rows]

    def fingerprint(self) -> Any:
        """See :class:`Records`."""
        return hash_json([record for _, record in self._records])


class _Lines:
    """A JSON Lines file; offsets and numbers of its lines are kept, 16 bytes a row."""

    def __init__(self, file: Path) -> None:
        self.file, self._offsets, self._numbers = file, array("Q"), array("Q")
        position = 0
        with opened(file) as handle:
            for number, line in enumerate(handle, 1):
                if line.strip():
                    self._offsets.append(position)
                    self._numbers.append(number)
                position += len(line)

    def __len__(self) -> int:
        return len(self._offsets)

    def get(self, rows: Sequence[int]) -> list[Record]:
        with opened(self.file) as handle:
            return [self._record(handle, row) for row in rows]

    def _record(self, handle: IO[bytes], row: int) -> Record:
        handle.seek(self._offsets[row])
        number = self._numbers[row]
        return f"{self.file}:{number}", _parsed(handle.readline(), self.file, number)

    def fingerprint(self) -> Any:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        return file_digest(self.file, whole=True)


class _Table:
    """A Parquet file; at any place it is read by row groups, of which the last one is kept."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        parquet = require("pyarrow.parquet", "paperhooks[data]", "to read Parquet files")
        from pyarrow import ArrowException

        self.file, self._wanted = file, tuple(columns)
        try:
            self._parquet = parquet.ParquetFile(file)
        except (ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read: {error}; copy it again") from error
        names = self._parquet.schema_arrow.names
        twins = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if twins:
            raise DataError(f"{file} has several columns {twins[0]!r}; give each a name of its own")
        metadata = self._parquet.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self._starts: list[int] = list(accumulate(sizes, initial=0))
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
        for batch in self._read(lambda: self._parquet.iter_batches(_BATCH, columns=self._columns)):
            for record in batch.to_pylist():
                yield f"{self.file}, row {row}", record
                row += 1

    def _read(self, make: Any) -> Iterator[Any]:
        """What pyarrow gives, with its errors as DataError."""
        from pyarrow import ArrowException

        try:
            yield from make()
        except (ArrowException, OSError) as error:
            raise DataError(f"{self.file} cannot be read: {error}; copy it again") from error

    def get(self, rows: Sequence[int]) -> list[Record]:
        return [(f"{self.file}, row {row}", self._record(row)) for row in rows]

    def _record(self, row: int) -> Any:
        group = bisect.bisect_right(self._starts, row) - 1
        if group != self._group:
            (self._table,) = self._read(lambda: [self._parquet.read_row_group(group, columns=self._columns)])
            self._group = group
        return self._table.slice(row - self._starts[group], 1).to_pylist()[0]

    def fingerprint(self) -> Any:
        return file_digest(self.file, whole=True)


class _Joined:
    """The records of JSON Lines and Parquet files, one file after another; see :class:`Records`."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str] = ()) -> None:
        self._parts = [_Table(file, columns) if form_of(file) == "parquet" else _Lines(file) for file in files]
        self._starts = list(accumulate(map(len, self._parts), initial=0))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def get(self, rows: Sequence[int]) -> list[Record]:
        """Rows that follow each other in one file are read together."""
        places = [bisect.bisect_right(self._starts, row) - 1 for row in rows]
        found: list[Record] = []
        for place, run in groupby(zip(places, rows, strict=True), key=lambda one: one[0]):
            found += self._parts[place].get([row - self._starts[place] for _, row in run])
        return found

    def fingerprint(self) -> Any:
        return [part.fingerprint() for part in self._parts]
