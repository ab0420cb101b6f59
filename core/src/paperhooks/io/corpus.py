"""Corpora of examples: records of files or in memory, and rows of token ids of whatever gives access to them.

A record is a string, or an object with ``text`` (a string) or ``input_ids`` (a list of token ids), and whatever else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast, runtime_checkable

from paperhooks.errors import DataError
from paperhooks.io.files import plain
from paperhooks.io.records import HeldRecords, Record, Records, open_records, read_records

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Corpus", "CorpusSource", "Example", "TokenRows"]


@runtime_checkable
class TokenRows(Protocol):
    """Rows of token ids that can be read at any place, without ``text``."""

    @property
    def name(self) -> str:
        """What to call it in messages."""

    def __len__(self) -> int:
        """Number of rows; TypeError of what can only be read in order."""

    def read(self, rows: Sequence[int]) -> Sequence[Any]:
        """The given rows, in the given order: objects with ``ids`` (int64 [n], numpy), ``domain`` and ``n_bytes``."""

    def fingerprint(self) -> Any:
        """Plain data that changes when the rows change."""


#: A file or folder of records, records in memory, or rows of token ids.
CorpusSource: TypeAlias = "str | Path | Sequence[str | Mapping[str, Any]] | TokenRows"


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One record of a corpus as a method receives it.

    row, record
        Position in the corpus, and the whole record.
    text
        Its text, or None.
    input_ids
        Token ids [n] int64: the record's own, else the tokenized text, else None without a tokenizer.
    """

    row: int
    record: Mapping[str, Any]
    text: str | None
    input_ids: Tensor | None


class Corpus:
    """Random access to the examples of a corpus; of JSON Lines and Parquet files only places are kept in memory.

    :raises DataError: a source that cannot be read, is empty, or can only be read in order.
    """

    def __init__(self, source: CorpusSource) -> None:
        self.source: Records | TokenRows
        if isinstance(source, TokenRows):
            self.source, self.name = source, source.name
        else:
            self.name = str(source) if isinstance(source, str | Path) else "in memory"
            # What cannot be read at any place is held in memory.
            self.source = open_records(source) or HeldRecords(list(read_records(source)))
        try:
            self._size = len(self.source)
        except TypeError as error:
            raise DataError(f"{self.name} can only be read in order; pack it, or write it to a file first") from error
        if not self._size:
            raise DataError(f"the corpus {self.name} is empty; there is nothing to score")

    def __len__(self) -> int:
        return self._size

    def fingerprint(self) -> Any:
        """Plain data that changes when the records change; taken once, since all of them may have to be read."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> Any:
        return self.source.fingerprint()

    def records(self, rows: Sequence[int]) -> list[Record]:
        """The records of the given rows as they are, each with what to call it in messages."""
        if isinstance(self.source, TokenRows):
            return [(f"{self.name}, row {one.row}", one.record) for one in self.examples(rows)]
        return self.source.get(rows)

    def lines(self, rows: Sequence[int]) -> Iterator[str]:
        """The records of the given rows as JSON, without line ends."""
        for where, record in self.records(rows):
            try:
                yield json.dumps(record, ensure_ascii=False, default=_plain)
            except (TypeError, ValueError, RecursionError) as error:
                raise DataError(f"{where}: cannot be written as JSON: {error}") from error

    def examples(self, rows: Sequence[int], tokenizer: Any = None) -> list[Example]:
        """The examples of the given rows; raises DataError naming the place of a malformed one."""
        if isinstance(self.source, TokenRows):
            found = self.source.read(rows)
            return [_of_ids(number, row) for number, row in zip(rows, found, strict=True)]
        records = self.source.get(rows)
        return [_of_record(row, where, record, tokenizer) for row, (where, record) in zip(rows, records, strict=True)]


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        raise TypeError("it holds bytes, such as those of an image")
    return plain(value)


def _of_ids(number: int, row: Any) -> Example:
    import torch

    known = {"domain": row.domain or None, "n_bytes": row.n_bytes}
    record = {"input_ids": row.ids.tolist()} | {name: value for name, value in known.items() if value is not None}
    return Example(number, record, None, torch.from_numpy(row.ids))


def _of_record(row: int, where: str, value: Any, tokenizer: Any) -> Example:
    import torch

    record = {"text": value} if isinstance(value, str) else value
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: expected a string or an object, got {type(value).__name__}")
    text, ids = record.get("text"), record.get("input_ids")
    _check_record(where, text, ids)
    if ids is None and tokenizer is not None:
        ids = tokenizer(cast("str", text), add_special_tokens=False)["input_ids"]
    return Example(row, record, text, None if ids is None else torch.tensor(ids, dtype=torch.int64))


def _check_record(where: str, text: object, ids: object) -> None:
    if text is None and ids is None:
        raise DataError(f"{where}: has neither 'text' nor 'input_ids'")
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: 'text' is {type(text).__name__}, not a string")
    if isinstance(text, str):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: character {error.start} is half of a surrogate pair; write it anew") from error
    integers = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if ids is not None and not integers:
        raise DataError(f"{where}: 'input_ids' must be a list of non-negative integers")
