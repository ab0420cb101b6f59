"""Writing a corpus as parts; see :mod:`paperhooks_miniplm.corpus.parts`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import ahead, hash_file, hash_json, now, plain, versions, whole

from paperhooks_miniplm.corpus.flat_ids import FlatIds
from paperhooks_miniplm.corpus.parquet_files import about_of, arrow, metadata, parquet
from paperhooks_miniplm.corpus.parts import INDEX, KIND, SCHEMA, Parts, part_name
from paperhooks_miniplm.corpus.record_rows import StreamRows
from paperhooks_miniplm.corpus.rows import Row, RowSource, check_tokenizer
from paperhooks_miniplm.corpus.sources import open_rows
from paperhooks_miniplm.corpus.storage import Storage

__all__ = ["write_parts"]

#: Ids are kept in 32 bits.
_LARGEST: Final = 2**31 - 1


def write_parts(
    source: Any,
    address: str | Path,
    *,
    tokenizer: Any = None,
    unit_rows: int = 8192,
    part_units: int = 64,
    text_field: str = "text",
    domain_field: str = "domain",
    progress: Callable[[int], None] | None = None,
) -> Parts:
    """Write a corpus as parts: row groups of ``unit_rows`` rows, ``part_units`` of them a file.

    Killed and started again it goes on behind the parts that are there; of a corpus that is whole, parts that were lost
    or cut are written again with those behind them. Memory holds two units, and the disk one part.

    :param source: as for :func:`open_rows`: shards, a file of any size, texts, a dataset, a stream.
    :param address: folder, or address that fsspec knows; one that holds parts of another corpus is refused.
    :param tokenizer: for texts. :param progress: is told how many rows are written.
    :raises DataError: data that cannot be read or written. :raises MissingExtra: without pyarrow.
    """
    unit_rows, part_units = whole("unit_rows", unit_rows, at_least=1), whole("part_units", part_units, at_least=1)
    rows = open_rows(source, tokenizer, text_field=text_field, domain_field=domain_field)
    check_tokenizer(rows, tokenizer)
    writer = _Writer(Storage(address), rows, unit_rows, part_units)
    index = writer.storage.read_json(INDEX, "index of parts")
    if index is not None and index.get("identity") != writer.identity:
        raise writer.other()
    known = () if index is None else index["parts"]
    if index is None or any(map(writer.is_lost, known)):
        writer.run(progress or (lambda rows: None), known)
    return Parts(address)


class _Writer:
    """Writes what is missing of the parts of a corpus, and at last the index."""

    def __init__(self, storage: Storage, rows: RowSource, unit_rows: int, part_units: int) -> None:
        self.storage, self.rows = storage, rows
        self.unit_rows, self.part_units = unit_rows, part_units
        self.corpus = plain(rows.fingerprint())
        self.identity = hash_json({"corpus": self.corpus, "unit_rows": unit_rows, "part_units": part_units})
        self.parts: list[dict[str, Any]] = []

    @property
    def done(self) -> int:
        """Rows in the parts so far."""
        return sum(part["rows"] for part in self.parts)

    @property
    def ended(self) -> bool:
        """Whether the last part was the end of the corpus."""
        return bool(self.parts) and self.parts[-1]["rows"] < self.unit_rows * self.part_units

    def run(self, progress: Callable[[int], None], known: Sequence[Mapping[str, Any]]) -> None:
        """Take over what a killed run left, write the rest and the index. :param known: what an index says is there."""
        while (found := self._known(len(self.parts), known)) is not None:
            self.parts.append(found)
        progress(self.done)
        units = ahead(self._units(self.done))
        while not self.ended and (part := self._write(units, progress)) is not None:
            self.parts.append(part)
        about = {"tokenizer": self._tokenizer(), "source": self.rows.name, "versions": versions(), "created": now()}
        sizes = {"rows": self.done, "unit_rows": self.unit_rows, "part_units": self.part_units}
        head = {"schema": SCHEMA, "kind": KIND, "identity": self.identity, "corpus": self.corpus}
        self.storage.write_json(INDEX, {**head, **sizes, "parts": self.parts, **about})

    def other(self) -> DataError:
        """The folder holds something else."""
        return DataError(
            f"{self.storage.address} holds parts of another corpus, or of other sizes, than {self.rows.name} in units "
            f"of {self.unit_rows} rows; use another folder, or the same source and sizes to go on"
        )

    def is_lost(self, part: Mapping[str, Any]) -> bool:
        """Whether a part is not as long as it was when the index was written, or not there."""
        return self.storage.size(part["name"]) != part["bytes"]

    def _known(self, number: int, known: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """The entry of a part that is there, and as the index says where there is one; None where it is not."""
        if number < len(known) and self.is_lost(known[number]):
            return None
        name = part_name(number)
        size = self.storage.size(name)
        if size is None:
            return None
        try:
            with self.storage.open(name) as handle:
                file = parquet().ParquetFile(handle)
                about = about_of(file)
                count = file.metadata.num_rows
            digest = self.storage.digest(name)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{self.storage.where(name)} cannot be read: {error}; delete it to write it again"
            ) from error
        if about.get("identity") != self.identity:
            raise self.other()
        return {"name": name, "first": self.done, "rows": count, "bytes": size, "sha256": digest}

    def _units(self, start: int) -> Iterator[list[Row]]:
        """Rows of the corpus from ``start`` on, a unit at a time."""
        if isinstance(self.rows, StreamRows):
            while unit := list(self.rows.iterate(start, start + self.unit_rows)):
                yield unit
                start += len(unit)
        else:
            for first in range(start, len(self.rows), self.unit_rows):
                yield self.rows.read(range(first, min(first + self.unit_rows, len(self.rows))))

    def _write(self, units: Iterator[list[Row]], progress: Callable[[int], None]) -> dict[str, Any] | None:
        """Write the next part; None where no rows are left for it."""
        unit = next(units, None)
        if unit is None:
            return None
        name, first, count, written = part_name(len(self.parts)), self.done, 0, 0
        schema = _schema({"identity": self.identity, "first": first})
        with self.storage.staged(name) as file:
            with parquet().ParquetWriter(
                file, schema, compression="zstd", use_dictionary=["domain"], write_statistics=False,
                write_page_checksum=True,
            ) as writer:  # fmt: skip
                while unit is not None:
                    writer.write_table(_table(unit, first + count, schema), row_group_size=self.unit_rows)
                    count, written = count + len(unit), written + 1
                    progress(first + count)
                    unit = next(units, None) if written < self.part_units else None
            entry = {"rows": count, "bytes": file.stat().st_size, "sha256": hash_file(file)}
        return {"name": name, "first": first, **entry}

    def _tokenizer(self) -> dict[str, Any] | None:
        packed = getattr(self.rows, "packed_with", None)
        made: dict[str, Any] = getattr(self.rows, "made_with", {})
        return {"digest": packed[0], "name": packed[1]} if packed else made.get("tokenizer")


def _schema(about: dict[str, Any]) -> Any:
    library = arrow()
    fields = [
        ("row", library.int64()),
        ("input_ids", library.large_list(library.int32())),
        ("length", library.int32()),
        ("domain", library.string()),
        ("n_bytes", library.int64()),
    ]
    return library.schema(fields, metadata=metadata(about))


def _table(rows: list[Row], first: int, schema: Any) -> Any:
    """Rows as a table; raises DataError for an id that 32 bits do not hold."""
    library = arrow()
    ids = FlatIds.joined([row.ids for row in rows])
    if len(ids.values) and not 0 <= int(ids.values.min()) <= int(ids.values.max()) <= _LARGEST:
        wrong = next(n for n, row in enumerate(ids.rows) if len(row) and not 0 <= row.min() <= row.max() <= _LARGEST)
        raise DataError(f"row {first + wrong} has an id below 0 or above {_LARGEST}; no tokenizer makes such ids")
    lists = library.LargeListArray.from_arrays(ids.offsets, library.array(ids.values.astype(np.int32)))
    columns = [
        library.array(np.arange(first, first + len(rows))),
        lists,
        library.array(np.diff(ids.offsets).astype(np.int32)),
        library.array([row.domain for row in rows], library.string()),
        library.array([row.n_bytes for row in rows], library.int64()),
    ]
    return library.Table.from_arrays(columns, schema=schema)
