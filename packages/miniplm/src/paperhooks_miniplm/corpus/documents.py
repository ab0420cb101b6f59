"""Documents: texts with their domains, of whatever a user names, one after another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import Record, file_digest, hash_json, open_records, read_records, record_files

from paperhooks_miniplm.corpus.shard_files import holds_shards

__all__ = ["Documents", "Fields", "TextRecord", "columns_of", "named_files", "read_documents", "records_of"]

_HUB: Final = "hub:"


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A text, where it comes from ("" where nobody said), and its place in the source."""

    text: str
    domain: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Where the text and the domain of a record are; dots lead into objects."""

    text: str = "text"
    domain: str = "domain"

    def text_of(self, where: str, record: Any) -> str:
        """The text of a record. Raises DataError where there is none, or none that is Unicode."""
        if isinstance(record, TextRecord):
            return _text(where, "text", record.text)
        there, text = (True, record) if isinstance(record, str) else self._found(where, record, self.text)
        if not there:
            found = f"the keys {sorted(map(str, record))}" if isinstance(record, Mapping) else _kind(record)
            raise DataError(f"{where}: has no text in {self.text!r}, but {found}; name the field with text_field")
        return _text(where, self.text, text)

    def domain_of(self, where: str, record: Any) -> str:
        """The domain of a record, or "" where it says none (a table says null). Raises DataError for one that is no
        text."""
        if isinstance(record, TextRecord):
            return record.domain
        _, domain = self._found(where, record, self.domain)
        return "" if domain is None else _text(where, self.domain, domain)

    def text_beside(self, record: Any) -> str | None:
        """The text in a record that need not have one."""
        try:
            _, text = self._found("", record, self.text)
        except DataError:
            return None
        return text if isinstance(text, str) else None

    def _found(self, where: str, record: Any, name: str) -> tuple[bool, Any]:
        """Whether something stands under a name, and what."""
        if not isinstance(record, Mapping):
            return False, None
        if name in record or "." not in name:
            return name in record, record.get(name)
        first, rest = name.split(".", 1)
        inside = record.get(first)
        if inside is not None and not isinstance(inside, Mapping):
            raise DataError(f"{where}: {first!r} is {_kind(inside)}; expected an object with {rest!r} in it")
        return self._found(where, inside, rest)


def _text(where: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {_kind(value)}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: character {error.start} is half of a surrogate pair; write it anew") from error
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def columns_of(fields: Fields) -> list[str]:
    """All columns of a table that may hold what rows need."""
    return [fields.text, fields.domain, fields.text.split(".")[0], fields.domain.split(".")[0], "input_ids", "n_bytes"]


def named_files(source: Any) -> Any:
    """The files that a path names, see :func:`paperhooks.io.record_files`; None for other sources."""
    if isinstance(source, Path) or (isinstance(source, str) and not source.startswith(_HUB)):
        return record_files(source)
    return None


def records_of(source: Any, files: Any, fields: Fields, first: int = 0) -> Iterator[Record]:
    """The records of a source in order, or of the ``files`` that it names."""
    if files is None:
        return read_records(source, columns=columns_of(fields), first=first)
    return chain.from_iterable(read_records(file, columns=columns_of(fields)) for file in files.files)


class Documents(Iterator[TextRecord]):
    """The documents of a source, one after another; see :func:`read_documents`.

    empty
        How many had nothing but white space in them, so far, and were left out.
    files, skipped
        How many files a folder holds that are read, and by their endings how many others.
    """

    def __init__(self, source: Any, fields: Fields) -> None:
        self.empty, self._begun = 0, False
        self._source, self._fields, self._files = source, fields, named_files(source)
        self._records = records_of(source, self._files, fields)
        self.files = 0 if self._files is None else len(self._files.files)
        self.skipped: dict[str, int] = {} if self._files is None else dict(self._files.skipped)

    def fingerprint(self) -> Any:
        """Plain data that changes when the documents change; None of what can be read only once, or was begun."""
        if self._begun:
            return None
        if self._files is not None:
            top, files = Path(self._source), self._files.files
            names = [str(file.relative_to(top)) if file != top else file.name for file in files]
            found: Any = {name: file_digest(file, whole=True) for name, file in zip(names, files, strict=True)}
        elif isinstance(self._source, list | tuple):
            found = _digest(self._source)
        else:
            opened = open_records(self._source)
            found = None if opened is None else opened.fingerprint()
        return found and {"records": found, "text": self._fields.text, "domain": self._fields.domain}

    def __next__(self) -> TextRecord:
        self._begun = True
        for where, record in self._records:
            text = self._fields.text_of(where, record)
            if text.strip():
                return TextRecord(text, self._fields.domain_of(where, record), where)
            self.empty += 1
        raise StopIteration


def _digest(records: Iterable[Any]) -> str:
    """SHA-256 of records in memory, one at a time."""
    digest = hashlib.sha256()
    for record in records:
        known = [record.text, record.domain] if isinstance(record, TextRecord) else record
        digest.update(hash_json(known).encode())
    return digest.hexdigest()


def read_documents(source: Any, *, text_field: str = "text", domain_field: str = "domain") -> Documents:
    """Documents of a file, folder, dataset or iterable, read as they are asked for.

    :param source: what :func:`paperhooks.io.read_records` reads: JSON Lines, JSON, tables, Parquet, texts (one document
        a file), also compressed, a folder of these in the order of their names, ``hub:NAME:SPLIT`` or
        ``hub:NAME:CONFIG:SPLIT`` (streamed), a dataset of the library datasets, or any iterable of texts, objects and
        :class:`TextRecord`.
    :param text_field, domain_field: where these are in a record; ``meta.pile_set_name`` reads inside an object.
    :raises DataError: something that cannot be read, naming file and line. :raises MissingExtra: without the library.
    """
    if isinstance(source, Documents):
        return source
    if isinstance(source, str | Path) and holds_shards(source):
        raise DataError(f"{source} holds token ids in shards and no text; name the texts it was packed from")
    return Documents(source, Fields(text_field, domain_field))
