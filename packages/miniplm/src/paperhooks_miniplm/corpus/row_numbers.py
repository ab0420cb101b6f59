"""Which rows a user means: numbers, a mask, or a selection."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from paperhooks import DataError
from paperhooks.data import Selection

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.record_rows import StreamRows
from paperhooks_miniplm.corpus.rows import RowSource, check_corpus, count_rows

__all__ = ["row_numbers", "rows_digest"]


def row_numbers(source: RowSource, rows: Any) -> Array | None:
    """The chosen rows as int64 [K], or None for all.

    :param rows: row numbers [K], a bool mask [N], a :class:`~paperhooks.data.Selection`, or None.
    :raises DataError: numbers that are no integers or outside the corpus, a mask of another length, a selection of
        another corpus; of a corpus that can only be read in order, numbers that do not ascend.
    """
    if rows is None:
        return None
    if isinstance(rows, Selection):
        check_corpus(rows.about, source)
    found = np.asarray(rows.rows if isinstance(rows, Selection) else rows)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iub"):
        raise DataError(
            f"rows are {found.dtype} {list(found.shape)}; expected row numbers [K], a bool mask [N] or a Selection"
        )
    if len(found) and found.dtype.kind != "b" and isinstance(source, StreamRows):
        return _ascending(found, source)  # where it ends need not be known
    size = count_rows(source)
    if isinstance(rows, Selection) and rows.total != size:
        raise DataError(f"the selection is of {rows.total} rows, {source.name} has {size}: another corpus")
    if found.dtype == bool:
        if len(found) != size:
            raise DataError(f"the mask has {len(found)} entries for {size} rows of {source.name}; expected one a row")
        return found.nonzero()[0]
    outside = found[(found < 0) | (found >= size)]
    if len(outside):
        raise DataError(
            f"row {outside[0]} was chosen from {source.name}, which has {size}; use a selection of this corpus"
        )
    return found.astype(np.int64)


def _ascending(rows: Array, source: StreamRows) -> Array:
    if rows[0] < 0 or bool((np.diff(rows) <= 0).any()):
        raise DataError(f"{source.name} can only be read in order; choose rows of it in ascending order, each once")
    return rows.astype(np.int64)


def rows_digest(rows: Array | None) -> str | None:
    """SHA-256 of chosen rows [K]; None for all."""
    return None if rows is None else hashlib.sha256(np.ascontiguousarray(rows, dtype="<i8").tobytes()).hexdigest()
