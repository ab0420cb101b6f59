"""Scores of a corpus under one model, and the files of a scoring folder that hold them.

A folder is a store of units (``paperhooks.io.UnitStore``), columns of some consecutive rows each, with
``scores.safetensors`` beside them when all are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from paperhooks import DataError
from paperhooks.io import UnitStore, read_result

from paperhooks_miniplm.algorithm import Array, per_unit

__all__ = [
    "DTYPES",
    "FILE",
    "KIND",
    "MOST_BAD",
    "RUN",
    "Columns",
    "Normalize",
    "Scores",
    "columns_of",
    "incomparable",
    "merged",
    "read_unit",
    "stop_if_bad",
    "unit_name",
]

#: Mean per counted token (the official code), sum over a row, or mean per byte of text.
Normalize: TypeAlias = Literal["mean", "sum", "per_byte"]
Columns: TypeAlias = dict[str, Array]

#: A larger share of rows that are NaN or infinite means that something is wrong.
MOST_BAD: Final = 0.001
#: The columns of scores.
DTYPES: Final = {"nll": np.dtype("f8"), "count": np.dtype("i8"), "n_bytes": np.dtype("i8"), "cut": np.dtype("?")}
#: What the units of a scoring folder are, and the file that holds them together.
KIND: Final = "likelihoods"
FILE: Final = "scores.safetensors"
#: In a folder of scores in parts, which says of what run they are.
RUN: Final = "run.json"


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of all rows of a corpus under one model, in the corpus' order.

    nll, count
        Summed negative log-likelihood float64 [N] (NaN: not scored) and counted tokens int64 [N].
    n_bytes
        Bytes of each row's text, int64 [N]; -1 where unknown.
    manifest
        What they were made with.
    cut
        Rows that were cut to the longest length, bool [N]; none where it is None.
    """

    nll: Array
    count: Array
    n_bytes: Array
    manifest: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cut: Array | None = None

    def __len__(self) -> int:
        return len(self.nll)

    @property
    def usable(self) -> Array:
        """Rows with something to predict and a finite score, bool [N]."""
        return np.isfinite(self.nll) & (self.count > 0)

    def values(self, normalize: Normalize = "mean") -> Array:
        """Negative log-likelihood of each row, float64 [N]; NaN for rows that are not usable.

        With "per_byte" also for rows without text and for rows that were cut, of which only a part was scored. Raises
        DataError for an unknown word, and for "per_byte" where byte counts are missing.
        """
        if normalize not in get_args(Normalize):
            raise DataError(f"normalize is {normalize!r}; expected one of {', '.join(get_args(Normalize))}")
        rows, units = self.usable, {"mean": self.count, "sum": np.ones(len(self)), "per_byte": self.n_bytes}[normalize]
        if normalize == "per_byte":
            unknown = np.flatnonzero(rows & (self.n_bytes < 0))
            if len(unknown):
                raise DataError(f"row {unknown[0]} has no byte count; score text, or a corpus packed with byte counts")
            rows = rows & (True if self.cut is None else ~self.cut)
        return per_unit(self.nll, np.where(rows, units, 0))

    @classmethod
    def load(cls, path: str | Path) -> Scores:
        """The merged scores of a scoring folder, mapped into memory.

        :raises DataError: there are none, or they were cut or changed since they were written.
        """
        if Path(path, RUN).is_file() and not Path(path, FILE).exists():
            raise DataError(
                f"{path} holds scores in parts; put them together with: paperhooks miniplm merge {path} --parts PARTS "
                "-o FOLDER"
            )
        manifest, tensors = read_result(path, KIND, FILE, "merged scores; score the corpus to its end")
        return cls(**columns_of(tensors), manifest=manifest)


def merged(store: UnitStore, total: int) -> Columns | None:
    """The columns [N] of a store's units together; None where units are missing."""
    size = store.manifest["unit_rows"]
    found = {name: np.zeros(total, dtype) for name, dtype in DTYPES.items()}
    for number in range(-(-total // size)):
        rows = slice(number * size, min((number + 1) * size, total))
        part = read_unit(store, number)
        if part is None or len(part["nll"]) != rows.stop - rows.start:
            return None
        for name, column in found.items():
            column[rows] = part[name]
    return found


def read_unit(store: UnitStore, number: int) -> Columns | None:
    """The columns of a unit, or None where it is not there."""
    found = store.read(unit_name(number))
    return None if found is None else columns_of(found[1])


def unit_name(number: int) -> str:
    """What a unit is called."""
    return f"unit-{number:06d}"


def columns_of(tensors: Mapping[str, Any]) -> Columns:
    """Stored tensors as arrays, which share their memory."""
    return {name: tensors[name].numpy() for name in DTYPES}


def stop_if_bad(bad: int, rows: int, most_bad: float) -> None:
    """Raise DataError for more NaN or infinite rows than a share of ``rows``, and than one."""
    if bad > max(1.0, most_bad * rows):
        raise DataError(
            f"{bad} rows gave NaN or infinity, more than {most_bad:.1%} of the corpus: load the model in bfloat16 or "
            "float32, look at those rows, or allow more with most_bad="
        )


#: What must agree for the difference of two scores to mean something.
_COMPARABLE: Final = ("rows", "corpus", "tokenizer", "end", "max_length", "over_long")
#: The same for scores per byte of text, where tokenizers may differ.
_COMPARABLE_TEXT: Final = ("rows", "over_long")


def incomparable(one: Mapping[str, Any], other: Mapping[str, Any], *, text: bool = False) -> str | None:
    """The first field for which the scores of two folders must not be subtracted; ``text`` for scores per byte."""
    return _first(one, other, _COMPARABLE_TEXT if text else _COMPARABLE)


def _first(one: Mapping[str, Any], other: Mapping[str, Any], keys: Sequence[str]) -> str | None:
    return next((key for key in keys if one.get(key) != other.get(key)), None)
