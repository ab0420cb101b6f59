"""Token ids of several rows in one array, as columns of Arrow hold them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from paperhooks import DataError

from paperhooks_miniplm.algorithm import Array

__all__ = ["FlatIds"]


@dataclass(frozen=True, slots=True, eq=False)
class FlatIds:
    """Ids of n rows, one row after another.

    values
        Integers, one dimension.
    offsets
        Where each row begins, and where the last one ends: ascending integers [n + 1].

    Raises DataError for arrays that are no such thing.
    """

    values: Array
    offsets: Array

    def __post_init__(self) -> None:
        for name, array in (("values", self.values), ("offsets", self.offsets)):
            if array.ndim != 1 or array.dtype.kind not in "iu":
                raise DataError(f"{name} of ids are {array.dtype} {list(array.shape)}; expected integers [n]")
        ends = self.offsets
        if (
            not len(ends)
            or ends[0] < 0
            or ends[-1] > len(self.values)
            or bool((np.diff(ends.astype(np.int64)) < 0).any())
        ):
            raise DataError(f"offsets of ids do not ascend from 0 to {len(self.values)}, the number of values")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def rows(self) -> list[Array]:
        """The ids of each row, which share the memory of ``values``."""
        ends = self.offsets.tolist()
        return [self.values[start:stop] for start, stop in pairwise(ends)]

    @classmethod
    def joined(cls, rows: Sequence[Array]) -> FlatIds:
        """Rows of ids [n_i] behind one another, int64."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows) if rows else np.empty(0, dtype=np.int64)
        return cls(values, offsets)

    @classmethod
    def from_arrow(cls, column: Any) -> FlatIds:
        """A column of lists of integers of pyarrow, chunked or not, without a copy of one chunk.

        :raises DataError: a column of something else, or with rows or ids that are null.
        """
        whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        if not hasattr(whole, "offsets"):
            raise DataError(f"a column of {column.type} holds no ids; expected lists of integers")
        if whole.null_count or whole.flatten().null_count:
            raise DataError("a column of ids has nulls; leave these rows out")
        return cls(whole.values.to_numpy(zero_copy_only=True), whole.offsets.to_numpy(zero_copy_only=True))
