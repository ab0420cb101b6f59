"""Rows of a corpus: token ids with what a selection needs to know about them, and what gives access to rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from paperhooks import DataError
from paperhooks.models import vocabulary_digest

from paperhooks_miniplm.algorithm import Array

__all__ = [
    "Fingerprinted",
    "MemoryRows",
    "Row",
    "RowSource",
    "check_corpus",
    "check_tokenizer",
    "count_rows",
    "same_rows",
    "token_ids",
]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One sequence of a corpus.

    ids
        Token ids, int64 [n].
    domain
        Where it comes from, for quotas and reports; "" where nobody said.
    n_bytes
        Length of its text in UTF-8, for scores per byte; None where unknown.
    """

    ids: Array
    domain: str = ""
    n_bytes: int | None = None


@runtime_checkable
class RowSource(Protocol):
    """Random access to the rows of a corpus. Instances can be pickled, for workers of a data loader."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    def __len__(self) -> int:
        """Number of rows N; TypeError where that is not known yet, see :func:`count_rows`."""

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The given rows, in the given order."""

    def lengths(self) -> Array:
        """Ids of each row, int64 [N]."""

    def domains(self) -> Array | None:
        """Domain of each row, str [N], or None where nobody said."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain data that changes when the rows change; of an object it is taken once."""


class Fingerprinted:
    """Takes ``_fingerprint`` of an object once; see :class:`RowSource`."""

    def fingerprint(self) -> dict[str, Any]:
        """Plain data that changes when the rows change."""
        return dict(self._fingerprint)

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        raise NotImplementedError


def same_rows(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two fingerprints are of the same records, whatever tokenizer makes rows of them."""
    ignored = ("tokenizer", "first", "last", "domain")
    return all(one.get(key) == other.get(key) for key in {**one, **other} if key not in ignored)


def check_corpus(about: Mapping[str, Any], source: RowSource) -> None:
    """Raise DataError where ``about`` a difference or a selection says that it is of other rows than ``source``."""
    known = about.get("corpus")
    if known and not same_rows(known, source.fingerprint()):
        raise DataError(f"the scores are of another corpus than {source.name}; name the one that was scored")


def check_tokenizer(source: RowSource, tokenizer: Any) -> None:
    """Raise DataError where ``source`` knows that its ids were made with another tokenizer than this one."""
    packed, given = getattr(source, "packed_with", None), vocabulary_digest(tokenizer)
    if packed and given and packed[0] != given:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise DataError(
            f"{source.name} was packed with the tokenizer {packed[1] or packed[0][:12]}, whose ids mean other texts to "
            f"{name}; use the tokenizer it was packed with, or convert the corpus"
        )


def count_rows(source: RowSource) -> int:
    """Number of rows; a stream whose end is not known is read to it."""
    try:
        return len(source)
    except TypeError:
        return len(source.lengths())


@dataclass(eq=False)
class MemoryRows(Fingerprinted):
    """Rows held in memory: arrays or lists of ids, or :class:`Row` objects.

    Raises DataError for a row that is not a list of integers, naming it.
    """

    rows: Sequence[Any]
    name: str = "in memory"
    _rows: list[Row] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        named = ((f"row {number}", row) for number, row in enumerate(self.rows))
        self._rows = [row if isinstance(row, Row) else Row(token_ids(where, row)) for where, row in named]

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int]) -> list[Row]:
        """See :class:`RowSource`."""
        return [self._rows[row] for row in rows]

    def lengths(self) -> Array:
        """See :class:`RowSource`."""
        return np.array([len(row.ids) for row in self._rows], dtype=np.int64)

    def domains(self) -> Array | None:
        """See :class:`RowSource`."""
        found = np.array([row.domain for row in self._rows], dtype=str)
        return found if any(found) else None

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(len(row.ids).to_bytes(8, "little"))
            digest.update(row.ids.tobytes())
            if row.domain or row.n_bytes is not None:
                digest.update(f"{row.domain} {row.n_bytes}".encode())
        return {"rows": len(self._rows), "sha256": digest.hexdigest()}


def token_ids(where: str, value: Any) -> Array:
    """Any list of integers as int64 [n]. Raises DataError for other things, saying ``where`` it stands."""
    try:
        found = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{where}: holds no list of token ids but lists of several lengths") from error
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise DataError(f"{where}: holds {found.dtype} {list(found.shape)}; expected a list of token ids")
    return found.astype(np.int64)
