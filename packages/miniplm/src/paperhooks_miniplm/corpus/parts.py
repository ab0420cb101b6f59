"""Parts: a corpus as Parquet files with row numbers, in row groups of equal size that any machine reads by itself.

A folder holds ``part-K.parquet`` and ``parts.json``, which says of every part its first row, its rows, its bytes and
their SHA-256. A row group is a unit of work: whoever scores it reads it and nothing else. See :func:`write_parts`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.flat_ids import FlatIds
from paperhooks_miniplm.corpus.parquet_files import about_of, parquet
from paperhooks_miniplm.corpus.rows import Row
from paperhooks_miniplm.corpus.storage import Storage

__all__ = ["INDEX", "KIND", "SCHEMA", "PartUnit", "Parts", "holds_parts", "part_name"]

INDEX: Final = "parts.json"
KIND: Final = "parts of a corpus"
SCHEMA: Final = 1


@dataclass(frozen=True, slots=True, eq=False)
class PartUnit:
    """Consecutive rows of a corpus: a row group of a part.

    first
        Number of the first row.
    ids
        Token ids of the rows.
    n_bytes
        Bytes of each row's text, int64 [n]; -1 where unknown.
    """

    first: int
    ids: FlatIds
    n_bytes: Array


class Parts:
    """A corpus in parts; a :class:`~paperhooks_miniplm.RowSource` whose fingerprint is that of what it was made from.

    Opening it reads the index, and a unit its row group. Instances can be pickled.

    :param address: folder, or address that fsspec knows. :raises DataError: it holds no parts, or damaged ones.
    :raises MissingExtra: without pyarrow.
    """

    def __init__(self, address: str | Path) -> None:
        self.storage = Storage(address)
        found = self.storage.read_json(INDEX, "index of parts")
        if found is None:
            raise DataError(
                f"{self.name} holds no {INDEX}; write parts with: paperhooks miniplm parts SOURCE -o FOLDER"
            )
        lacking = {"rows", "unit_rows", "part_units", "corpus", "identity", "parts"}.difference(found)
        if found.get("kind") != KIND or found.get("schema") != SCHEMA or lacking:
            raise DataError(
                f"{self.storage.where(INDEX)} is no index of parts; name the folder that miniplm parts wrote"
            )
        self._index = found
        self._opened: tuple[int, Any] | None = None
        self._cached: tuple[int, list[Row]] | None = None

    def __reduce__(self) -> Any:
        return Parts, (self.name,)

    @property
    def name(self) -> str:
        """The address."""
        return self.storage.address

    @property
    def unit_rows(self) -> int:
        """Rows of a unit; the last one may have fewer."""
        return int(self._index["unit_rows"])

    @property
    def units(self) -> int:
        """How many units there are."""
        return -(-len(self) // self.unit_rows)

    @property
    def packed_with(self) -> tuple[str, str] | None:
        """Digest and name of the tokenizer that the ids are of, where the source said it."""
        known = self._index.get("tokenizer")
        return None if known is None else (known["digest"], known["name"])

    def __len__(self) -> int:
        return int(self._index["rows"])

    def fingerprint(self) -> dict[str, Any]:
        """That of the rows which the parts were made from."""
        return dict(self._index["corpus"])

    def unit(self, number: int) -> PartUnit:
        """The rows of a unit. Raises DataError for a part that is missing or damaged, naming it and its rows."""
        table = self._table(number, ["row", "input_ids", "n_bytes"])
        rows = table["row"].to_numpy()
        first = number * self.unit_rows
        if not np.array_equal(rows, np.arange(first, first + self._rows_of(number))):
            raise DataError(f"{self._where(number)}: the row numbers in it are not these; write the parts again")
        n_bytes = table["n_bytes"].fill_null(-1).to_numpy().astype(np.int64)
        return PartUnit(first, FlatIds.from_arrow(table["input_ids"]), n_bytes)

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The given rows, in the given order. Raises DataError for one that does not exist."""
        wanted = [int(row) for row in rows]
        wrong = next((row for row in wanted if not 0 <= row < len(self)), None)
        if wrong is not None:
            raise DataError(f"{self.name} has no row {wrong}; its rows are 0 to {len(self) - 1}")
        found: list[Row] = []
        for number, some in groupby(wanted, lambda row: row // self.unit_rows):
            unit = self._rows(number)
            found += [unit[row - number * self.unit_rows] for row in some]
        return found

    def lengths(self) -> Array:
        """Ids of each row, int64 [N]; only that column is read."""
        found = [self._table(number, ["length"])["length"].to_numpy() for number in range(self.units)]
        return np.concatenate([np.empty(0, dtype=np.int64), *found]).astype(np.int64)

    def domains(self) -> Array | None:
        """Domain of each row, str objects [N], or None where no row has one; only that column is read."""
        found = [name for number in range(self.units) for name in self._domains(number)]
        return np.array(found, dtype=object) if any(found) else None

    def check(self, progress: Callable[[str], None] | None = None) -> None:
        """Read every part once and compare it with its checksum.

        :param progress: is told the name of each part that is found right.
        :raises DataError: one is not what the index says, naming it and its rows.
        """
        for part in self._parts:
            self._check_size(part)
            if self.storage.digest(part["name"]) != part["sha256"]:
                raise DataError(
                    f"{self._named(part)} was changed or damaged: its checksum does not match; copy it again"
                )
            if progress is not None:
                progress(part["name"])

    @property
    def _parts(self) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = self._index["parts"]
        return found

    @property
    def _part_units(self) -> int:
        return int(self._index["part_units"])

    def _rows_of(self, number: int) -> int:
        if not 0 <= number < self.units:
            raise DataError(f"{self.name} has no unit {number}; its units are 0 to {self.units - 1}")
        return min(self.unit_rows, len(self) - number * self.unit_rows)

    def _named(self, part: Mapping[str, Any]) -> str:
        return f"{self.storage.where(part['name'])} (rows {part['first']} to {part['first'] + part['rows'] - 1})"

    def _where(self, number: int) -> str:
        part = self._parts[number // self._part_units]
        first = number * self.unit_rows
        return f"{self.storage.where(part['name'])} (rows {first} to {first + self._rows_of(number) - 1})"

    def _check_size(self, part: Mapping[str, Any]) -> None:
        size = self.storage.size(part["name"])
        if size != part["bytes"]:
            what = "is missing" if size is None else f"has {size} bytes, not {part['bytes']}"
            raise DataError(f"{self._named(part)} {what}; copy it again, or start miniplm parts again")

    def _table(self, number: int, columns: Sequence[str]) -> Any:
        """Columns of a unit, with their checksums compared."""
        self._rows_of(number)
        which, group = divmod(number, self._part_units)
        library = parquet()
        try:
            return self._file(which, library).read_row_group(group, columns=list(columns))
        except DataError:
            raise
        except (OSError, ValueError, KeyError) as error:  # what pyarrow raises is one of these
            self._opened = None
            raise DataError(f"{self._where(number)} cannot be read: {error}; copy it again") from error

    def _file(self, which: int, library: Any) -> Any:
        if self._opened is None or self._opened[0] != which:
            part = self._parts[which]
            self._check_size(part)
            handle = self.storage.open(part["name"])
            file = library.ParquetFile(handle, page_checksum_verification=True, pre_buffer=True)
            if about_of(file).get("identity") != self._index["identity"]:
                raise DataError(f"{self._named(part)} is a part of another corpus; write the parts again")
            self._opened = which, file
        return self._opened[1]

    def _domains(self, number: int) -> list[str]:
        column = self._table(number, ["domain"])["domain"]
        found: list[str] = column.cast("string").fill_null("").to_pylist()
        return found

    def _rows(self, number: int) -> list[Row]:
        if self._cached is None or self._cached[0] != number:
            unit, domains = self.unit(number), self._domains(number)
            ids = FlatIds(unit.ids.values.astype(np.int64), unit.ids.offsets).rows
            each = zip(ids, domains, unit.n_bytes.tolist(), strict=True)
            made = [Row(ids, domain, None if size < 0 else size) for ids, domain, size in each]
            self._cached = number, made
        return self._cached[1]


def part_name(number: int) -> str:
    """What a part is called."""
    return f"part-{number:06d}.parquet"


def holds_parts(source: str | Path) -> bool:
    """Whether a folder holds parts, also one at an address, which is asked."""
    text = str(source)
    if "://" not in text:
        return Path(text, INDEX).is_file()
    return Storage(text).read_json(INDEX, "index of parts") is not None
