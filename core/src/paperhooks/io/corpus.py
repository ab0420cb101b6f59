"""Corpora of examples: JSON Lines files read by offset, or sequences in memory.

A record is a string, or an object with ``text`` (a string) or ``input_ids`` (a list of token ids), and whatever else.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from paperhooks.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Corpus", "CorpusSource", "Example"]

#: A .jsonl file, or records in memory.
CorpusSource: TypeAlias = "str | Path | Sequence[str | Mapping[str, Any]]"


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
    """Random access to the lines of a corpus; of a file only the offsets are kept in memory (8 bytes a row)."""

    def __init__(self, source: CorpusSource) -> None:
        self.file = Path(source) if isinstance(source, str | Path) else None
        if self.file is not None:
            self._offsets, self.digest = _index(self.file)
        else:
            self._lines = [_to_line(record) for record in cast("Sequence[str | Mapping[str, Any]]", source)]
            self.digest = hashlib.sha256("\n".join(self._lines).encode()).hexdigest()
        if not len(self):
            raise DataError(f"the corpus {self.name} is empty; there is nothing to score")

    @property
    def name(self) -> str:
        """The file, or a word for records in memory."""
        return str(self.file) if self.file is not None else "in memory"

    def __len__(self) -> int:
        return len(self._offsets) - 1 if self.file is not None else len(self._lines)

    def lines(self, rows: Sequence[int]) -> Iterator[str]:
        """The lines of the given rows, without line ends."""
        if self.file is None:
            yield from (self._lines[row] for row in rows)
            return
        with self.file.open("rb") as handle:
            for row in rows:
                handle.seek(self._offsets[row])
                try:
                    yield handle.readline().decode("utf-8").rstrip("\r\n")
                except UnicodeDecodeError as error:
                    raise DataError(f"{self.name}, row {row}: is no UTF-8 text; expected a .jsonl file") from error

    def examples(self, rows: Sequence[int], tokenizer: Any = None) -> list[Example]:
        """The examples of the given rows; raises DataError naming the row of a malformed one."""
        return [self._example(row, line, tokenizer) for row, line in zip(rows, self.lines(rows), strict=True)]

    def _example(self, row: int, line: str, tokenizer: Any) -> Example:
        import torch

        where = f"{self.name}, row {row}"
        try:
            value = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where}: is not JSON: {error}") from error
        record = {"text": value} if isinstance(value, str) else value
        if not isinstance(record, dict):
            raise DataError(f"{where}: expected a string or an object, got {type(value).__name__}")
        text, ids = record.get("text"), record.get("input_ids")
        _check_record(where, text, ids)
        if ids is None and tokenizer is not None:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return Example(row, record, text, None if ids is None else torch.tensor(ids, dtype=torch.int64))


def _check_record(where: str, text: object, ids: object) -> None:
    if text is None and ids is None:
        raise DataError(f"{where}: has neither 'text' nor 'input_ids'")
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: 'text' is {type(text).__name__}, not a string")
    integers = isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids)
    if ids is not None and not integers:
        raise DataError(f"{where}: 'input_ids' must be a list of non-negative integers")


def _to_line(record: str | Mapping[str, Any]) -> str:
    try:
        return json.dumps(record, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"a record of the corpus cannot be written as JSON: {error}") from error


def _index(file: Path) -> tuple[array[int], str]:
    """Offsets of all lines that are not blank, with the end of the file, and the SHA-256 of the file."""
    offsets, digest, position = array("Q"), hashlib.sha256(), 0
    try:
        with file.open("rb") as handle:
            for line in handle:
                digest.update(line)
                if line.strip():
                    offsets.append(position)
                position += len(line)
    except OSError as error:
        raise DataError(f"the corpus {file} cannot be read as .jsonl: {error.strerror or error}") from error
    offsets.append(position)
    return offsets, digest.hexdigest()
