"""Scores in parts, put together as one scoring folder: every row once, whatever the engine did."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import Column, UnitStore, tensor_columns

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.parquet_files import about_of, parquet
from paperhooks_miniplm.corpus.parts import Parts
from paperhooks_miniplm.corpus.storage import Storage
from paperhooks_miniplm.scoring.runs import corpus_differences, read_run, unit_file
from paperhooks_miniplm.scoring.scores import DTYPES, FILE, KIND, MOST_BAD, Columns, Scores, stop_if_bad

__all__ = ["MergeReport", "merge_parts"]

logger = logging.getLogger(__name__)

#: By how much the scores of a row that stands twice may differ, nats a counted token.
_ALIKE: Final = 1e-4
#: Rows that are looked at at a time.
_ROWS: Final = 1 << 20
#: Most files or gaps that a message names.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What was put together.

    folder
        The scoring folder.
    rows, duplicates, unscored, cut
        Rows of the corpus; of them those that stood more than once, have no score, were cut.
    """

    folder: Path
    rows: int
    duplicates: int
    unscored: int
    cut: int

    @property
    def scores(self) -> Scores:
        """The scores, mapped into memory."""
        return Scores.load(self.folder)


def merge_parts(
    parts: str | Path, corpus: str | Path | Parts, out: str | Path, *, most_bad: float = MOST_BAD
) -> MergeReport:
    """Put the scores of all parts together as the scoring folder that :func:`score` would have made.

    A row that stands twice with scores that agree to 1e-4 nats a token is taken once, from the file whose name sorts
    first, and counted. Memory holds one byte a row of the corpus and a million rows of scores.

    :param parts: where scores were written to. :param corpus: what was scored. :param out: a folder on this machine.
    :raises DataError: rows that are missing, or stand twice with other scores; files that are damaged or of another
        run; too many rows without a score. Files and rows are named, and ``out`` is as it was.
    """
    storage = Storage(parts)
    run, corpus = read_run(storage), corpus if isinstance(corpus, Parts) else Parts(corpus)
    if odd := corpus_differences(run["identity"], corpus):
        raise DataError(f"{storage.address} holds scores of another corpus than {corpus.name}: {'; '.join(odd)}")
    store = UnitStore(out, KIND)
    with ExitStack() as stack:
        stack.enter_context(store.begin(run["identity"], about={**run["about"], "parts": storage.address}))
        columns = stack.enter_context(tensor_columns(store.folder / FILE, DTYPES, len(corpus), {"run": store.run}))
        merge = _Merge(storage, corpus, run["run"], columns)
        merge.run()
        stop_if_bad(merge.unscored, len(corpus), most_bad)
        store.confirm()
    if merge.duplicates:
        logger.warning("%d rows stood in more than one file; their scores agree", merge.duplicates)
    return MergeReport(store.folder, len(corpus), merge.duplicates, merge.unscored, merge.cut)


class _Merge:
    """Writes every row of some files once."""

    def __init__(self, storage: Storage, corpus: Parts, run: str, columns: dict[str, Column]) -> None:
        self.storage, self.corpus, self.run_hash, self.columns = storage, corpus, run, columns
        self.seen = np.zeros(len(corpus), dtype=bool)
        self.duplicates = self.unscored = self.cut = 0

    def run(self) -> None:
        """Write all; raises DataError as :func:`merge_parts` does."""
        for name in self._names():
            for rows, found in self._read(name):
                self._add(name, rows, found)
        if not self.seen.all():
            raise DataError(self._gaps())

    @cached_property
    def _expected(self) -> set[str]:
        return {unit_file(number, self.run_hash) for number in range(self.corpus.units)}

    def _names(self) -> list[str]:
        """All files, also those that the store does not list yet."""
        listed = self.storage.names(".parquet")
        late = [name for name in self._expected.difference(listed) if self.storage.size(name) is not None]
        return sorted([*listed, *late])

    def _read(self, name: str) -> Iterator[tuple[Array, Columns]]:
        """Row numbers and scores of a file, a piece at a time."""
        try:
            with self.storage.open(name) as handle:
                file = parquet().ParquetFile(handle, page_checksum_verification=True)
                self._check_run(name, about_of(file))
                for batch in file.iter_batches(_ROWS, columns=["row", *DTYPES]):
                    yield _array(batch, "row"), {key: _array(batch, key).astype(kind) for key, kind in DTYPES.items()}
        except DataError:
            raise
        except (OSError, ValueError, KeyError) as error:
            rows = next((self._rows_of(n) for n in range(self.corpus.units) if unit_file(n, self.run_hash) == name), "")
            raise DataError(
                f"{self.storage.where(name)} cannot be read{rows}: {error}; delete it, score again"
            ) from error

    def _check_run(self, name: str, about: Mapping[str, Any]) -> None:
        if about.get("run") != self.run_hash:
            raise DataError(
                f"{self.storage.where(name)}{self._rows_of(about.get('unit', -1))} holds scores of another run, "
                f"{str(about.get('run'))[:12]}, not of {self.run_hash[:12]}; move it away"
            )
        if name != (right := unit_file(int(about.get("unit", -1)), self.run_hash)) and name in self._expected:
            raise DataError(f"{self.storage.where(name)} is {right} under another name; delete it, score again")

    def _rows_of(self, number: int) -> str:
        """The rows of a unit, in brackets; nothing of one that there is not."""
        if not 0 <= number < self.corpus.units:
            return ""
        first = number * self.corpus.unit_rows
        return f" (rows {first} to {min(first + self.corpus.unit_rows, len(self.corpus)) - 1})"

    def _add(self, name: str, rows: Array, found: Columns) -> None:
        outside = rows[(rows < 0) | (rows >= len(self.corpus))]
        if len(outside):
            raise DataError(
                f"{self.storage.where(name)} has row {outside[0]}; {self.corpus.name} has {len(self.corpus)}"
            )
        for start, stop in _runs(rows):
            self._add_run(name, int(rows[start]), {key: column[start:stop] for key, column in found.items()})

    def _add_run(self, name: str, first: int, found: Columns) -> None:
        """Scores of consecutive rows: compared with those that are there, and written where none are."""
        last = first + len(found["nll"])
        twice = self.seen[first:last].copy()
        if twice.any():
            there = {key: column.read(first, last) for key, column in self.columns.items()}
            odd = np.flatnonzero(twice & ~_alike(there, found))
            if len(odd):
                row = first + int(odd[0])
                raise DataError(
                    f"row {row} stands twice with scores that differ by more than {_ALIKE} nats a token: in "
                    f"{self.storage.where(name)} and in {self.storage.where(self._holder(row, name))}; delete one"
                )
            found = {key: np.where(twice, there[key], column) for key, column in found.items()}
        for key, column in self.columns.items():
            column.write(first, found[key])
        self.seen[first:last] = True
        self.duplicates += int(twice.sum())
        self.unscored += int((np.isnan(found["nll"]) & ~twice).sum())
        self.cut += int((found["cut"] & ~twice).sum())

    def _holder(self, row: int, name: str) -> str:
        """The first file that has a row."""
        return next((each for each in self._names() for rows, _ in self._read(each) if (rows == row).any()), name)

    def _gaps(self) -> str:
        """What is missing, with the parts that hold it."""
        units = np.unique(np.flatnonzero(~self.seen) // self.corpus.unit_rows).tolist()
        named = [f"unit {number}{self._rows_of(number)}" for number in units[:_NAMED]]
        more = f" and {len(units) - _NAMED} more units" if len(units) > _NAMED else ""
        return (
            f"{int((~self.seen).sum())} of {len(self.corpus)} rows have no scores in {self.storage.address}: "
            f"{', '.join(named)}{more}; start the run again, it makes these alone"
        )


def _runs(rows: Array) -> Iterator[tuple[int, int]]:
    """Where runs of consecutive rows begin and end."""
    breaks = np.flatnonzero(np.diff(rows) != 1) + 1
    ends = [0, *breaks.tolist(), len(rows)]
    return ((start, stop) for start, stop in pairwise(ends) if stop > start)


def _alike(one: Columns, other: Columns) -> Array:
    """Which rows have the same scores, up to rounding, bool [n]."""
    missing = np.isnan(one["nll"]) & np.isnan(other["nll"])
    close = missing | (np.abs(one["nll"] - other["nll"]) <= _ALIKE * np.maximum(one["count"], 1))
    same: Array = close & (one["count"] == other["count"]) & (one["cut"] == other["cut"])
    return same & (one["n_bytes"] == other["n_bytes"])


def _array(batch: Any, name: str) -> Array:
    """A column. Raises ValueError for one with nulls, which no run writes and which would become numbers."""
    if batch[name].null_count:
        raise ValueError(f"its column {name} has nulls")
    found: Array = batch[name].to_numpy(zero_copy_only=False)
    return found
