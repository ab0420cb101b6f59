"""Sources of text and of rows: what a user names - files, folders, datasets, lists - as documents or as rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.provenance import hash_json

from paperhooks_miniplm.records import (
    Document,
    Fields,
    Items,
    Joined,
    Record,
    Records,
    from_hub,
    has_order,
    read_records,
    record_files,
)
from paperhooks_miniplm.rows import MemoryRows, Row, RowSource
from paperhooks_miniplm.shards import Shards, holds_shards

__all__ = [
    "Document",
    "Documents",
    "RecordRows",
    "StreamRows",
    "encode",
    "open_rows",
    "read_documents",
    "tokenizer_digest",
]

_BATCH: Final = 256


class Documents(Iterator[Document]):
    """The documents of a source, one after another; see :func:`read_documents`.

    empty
        How many had nothing but white space in them, so far, and were left out.
    """

    def __init__(self, source: Any, fields: Fields) -> None:
        self.empty = 0
        self._fields, self._records = fields, read_records(source, _columns(fields))

    def __next__(self) -> Document:
        for where, record in self._records:
            found = record if isinstance(record, Document) else self._document(where, record)
            if found.text.strip():
                return found
            self.empty += 1
        raise StopIteration

    def _document(self, where: str, record: Any) -> Document:
        return Document(self._fields.text_of(where, record), self._fields.domain_of(record), where)


def read_documents(source: Any, *, text_field: str = "text", domain_field: str = "domain") -> Documents:
    """Documents of a file, folder, dataset or iterable, read as they are asked for.

    :param source: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, a ``.txt`` file (one document), a folder of these
        (in the order of their names), ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT`` (streamed), a dataset of the
        library datasets, or any iterable of texts, objects and :class:`Document`.
    :param text_field, domain_field: where these are in a record; ``meta.pile_set_name`` reads inside an object.
    :raises DataError: something that cannot be read, naming file and line. :raises MissingExtra: without the library.
    """
    if isinstance(source, Documents):
        return source
    if isinstance(source, str | Path) and holds_shards(source):
        raise DataError(f"{source} holds token ids in shards and no text; name the texts it was packed from")
    return Documents(source, Fields(text_field, domain_field))


def _columns(fields: Fields) -> list[str]:
    return [fields.text, fields.domain, fields.text.split(".")[0], fields.domain.split(".")[0], "input_ids", "n_bytes"]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without special tokens, also of a tokenizer that adds them although told not to."""
    found = tokenizer(["", *texts], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    stubborn = set(found[0])
    return [_stripped(list(ids), stubborn) if stubborn else list(ids) for ids in found[1:]]


def _stripped(ids: list[int], added: set[int]) -> list[int]:
    start = 1 if ids and ids[0] in added else 0
    return ids[start : len(ids) - 1 if len(ids) > start and ids[-1] in added else len(ids)]


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 of how a tokenizer cuts texts: all its rules where it can tell them, its vocabulary otherwise."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hash_json(tokenizer.get_vocab())
    rules = json.loads(backend.to_str())
    # These two change with every call that pads or cuts.
    return hash_json({name: rule for name, rule in rules.items() if name not in ("padding", "truncation")})


class _RowMaker:
    """Makes rows of records: ids as they are, texts tokenized."""

    def __init__(self, tokenizer: Any, fields: Fields, add_bos: bool, add_eos: bool) -> None:
        self.tokenizer, self.fields = tokenizer, fields
        self._first = [_special(tokenizer, "bos")] if add_bos else []
        self._last = [_special(tokenizer, "eos")] if add_eos else []

    def rows(self, records: Sequence[Record]) -> list[Row]:
        texts = {n: self._text(*one) for n, one in enumerate(records) if not _has_ids(one[1])}
        encoded = dict(zip(texts, encode(self.tokenizer, list(texts.values())), strict=True)) if texts else {}
        return [self._row(*one, texts.get(n), encoded.get(n)) for n, one in enumerate(records)]

    def _text(self, where: str, record: Any) -> str:
        text = self.fields.text_of(where, record)
        if self.tokenizer is None:
            raise DataError(f"{where}: is text; pass tokenizer=, or token ids as input_ids")
        return text

    def domain(self, record: Any) -> str:
        return record.domain if isinstance(record, Row) else self.fields.domain_of(record)

    def _row(self, where: str, record: Any, text: str | None, encoded: list[int] | None) -> Row:
        if isinstance(record, Row):
            return record
        domain = self.domain(record)
        if text is not None and encoded is not None:
            ids = [*self._first, *encoded, *self._last]
            return Row(np.array(ids, dtype=np.int64), domain, len(text.encode()))
        given: Any = record
        n_bytes = None
        if isinstance(record, Mapping):
            given, n_bytes, text = (
                record["input_ids"],
                record.get("n_bytes"),
                self.fields.value(record, self.fields.text),
            )
        if n_bytes is None and isinstance(text, str):
            n_bytes = len(text.encode("utf-8", "surrogatepass"))
        return Row(_ids(where, given), domain, n_bytes)

    def describe(self) -> dict[str, Any]:
        found: dict[str, Any] = {"text": self.fields.text, "domain": self.fields.domain}
        digest = None if self.tokenizer is None else tokenizer_digest(self.tokenizer)
        return found | {"first": self._first, "last": self._last, "tokenizer": digest}


def _special(tokenizer: Any, which: str) -> int:
    token = getattr(tokenizer, f"{which}_token_id", None)
    if token is None:
        raise DataError(f"add_{which} needs a tokenizer with a token {which}, which this one has not")
    return int(token)


def _has_ids(record: Any) -> bool:
    if isinstance(record, Mapping):
        return record.get("input_ids") is not None
    return not isinstance(record, str | Document)


def _ids(where: str, value: Any) -> np.ndarray[Any, Any]:
    found = np.asarray(value)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iu"):
        raise DataError(f"{where}: holds {found.dtype} {list(found.shape)}; expected a list of token ids")
    return found.astype(np.int64)


class RecordRows:
    """Rows of records that can be read at any place, one a record; see :class:`paperhooks_miniplm.RowSource`.

    Texts are tokenized when they are read; nothing is kept of them but, once asked for, lengths and domains.
    """

    def __init__(self, records: Records, maker: _RowMaker, name: str) -> None:
        self.name = name
        self._records, self._maker = records, maker
        self._lengths: np.ndarray[Any, Any] | None = None

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The given rows, in the given order. Raises DataError for one that does not exist or cannot be used."""
        wanted = [int(row) for row in rows]
        wrong = next((row for row in wanted if not 0 <= row < len(self)), None)
        if wrong is not None:
            raise DataError(f"{self.name} has no row {wrong}; its rows are 0 to {len(self) - 1}")
        return self._maker.rows(self._records.get(wanted))

    def lengths(self) -> np.ndarray[Any, Any]:
        """Ids of each row, int64 [N]; of texts they are counted once, which takes tokenizing all of them."""
        if self._lengths is None:
            found = [len(row.ids) for part in self._parts() for row in self.read(part)]
            self._lengths = np.array(found, dtype=np.int64)
        return self._lengths

    def domains(self) -> np.ndarray[Any, Any] | None:
        """Domain of each row, str objects [N], or None where no record says."""
        names: dict[str, str] = {}
        found = np.empty(len(self), dtype=object)
        for part in self._parts():
            said = (self._maker.domain(record) for _, record in self._records.get(part))
            found[part.start : part.stop] = [names.setdefault(name, name) for name in said]
        return found if any(names) else None

    def _parts(self) -> Iterator[range]:
        return (range(start, min(start + _BATCH, len(self))) for start in range(0, len(self), _BATCH))

    def fingerprint(self) -> dict[str, Any]:
        """Hashes that change when the records or the tokenizer change."""
        return {"rows": len(self), "records": self._records.fingerprint(), **self._maker.describe()}


class StreamRows:
    """Rows of a source that can only be read in order, one a record.

    Workers that take every n-th run of rows each read on from where they are: what lies between is read over and not
    tokenized, and a dataset of the library datasets is asked to skip what comes before the first. Going back begins
    anew. ``len`` raises TypeError until the end was reached.

    :param source: as for :func:`read_documents`; also iterables of ids and :class:`Row`. One that can be read only
        once, as a generator, cannot go back.
    :param tokenizer, text_field, domain_field, add_bos, add_eos: as for :func:`open_rows`.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        text_field: str = "text",
        domain_field: str = "domain",
        add_bos: bool = False,
        add_eos: bool = False,
    ) -> None:
        self.name = name or (str(source) if isinstance(source, str | Path) else f"a stream ({type(source).__name__})")
        self._source = from_hub(source) if isinstance(source, str) and source.startswith("hub:") else source
        self._maker = _RowMaker(tokenizer, Fields(text_field, domain_field), add_bos, add_eos)
        self._cursor: Iterator[Record] | None = None
        self._position, self._sure = 0, True
        self._length: int | None = None

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(f"{self.name} has no length before it was read to its end")
        return self._length

    def __iter__(self) -> Iterator[Row]:
        return self.iterate()

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows ``start`` to ``stop``, or to the end; fewer where it ends before. Raises DataError as reading does."""
        if start < 0 or (stop is not None and stop < start):
            raise DataError(f"rows {start} to {stop} of {self.name} do not exist; expected 0 <= start <= stop")
        while stop is None or start < stop:
            self._move(start)  # another reader may have moved it between two parts
            records = self._take(_BATCH if stop is None else min(_BATCH, stop - start))
            if not records:
                return
            start += len(records)
            yield from self._maker.rows(records)

    def _move(self, start: int) -> None:
        if self._cursor is None or self._position > start:
            self._begin(start)
        while self._position < start and self._take(min(_BATCH, start - self._position)):
            pass

    def _begin(self, start: int) -> None:
        source, self._position, self._sure = self._source, 0, True
        if self._cursor is not None and isinstance(source, Iterator):
            raise DataError(f"{self.name} can be read only once; give a file, a dataset or a list to read it again")
        if start and hasattr(source, "skip"):
            # It may end before, and then there is nothing that tells where.
            source, self._position, self._sure = source.skip(start), start, False
        self._cursor = read_records(source, _columns(self._maker.fields), self._position)

    def _take(self, count: int) -> list[Record]:
        found = list(islice(self._cursor or (), count))
        self._position += len(found)
        self._sure = self._sure or bool(found)
        if len(found) < count and self._sure:
            self._length = self._position
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cursor": None, "_position": 0, "_sure": True}

    def fingerprint(self) -> dict[str, Any]:
        """What it is called and how its records are read; what they are is not known."""
        return {"stream": self.name, **self._maker.describe()}


def open_rows(
    source: Any,
    tokenizer: Any = None,
    *,
    text_field: str = "text",
    domain_field: str = "domain",
    add_bos: bool = False,
    add_eos: bool = False,
) -> RowSource | StreamRows:
    """Rows of whatever holds them, without a copy in memory.

    :param source: a folder of shards; a ``.jsonl`` or ``.parquet`` file, a folder of these, a ``datasets.Dataset`` or a
        list of texts and objects, one row a record, with ``input_ids`` (and ``n_bytes`` where known) or a text; a list
        of ids or :class:`Row`. Of a ``hub:`` name, an ``IterableDataset``, a generator, a ``.jsonl.gz`` or ``.txt``
        file: :class:`StreamRows`. A :class:`RowSource` is returned as it is.
    :param tokenizer: for texts, which are rows without special tokens unless
    :param add_bos, add_eos: ask for them at the beginning or the end of a text; not of ``input_ids``.
    :param text_field, domain_field: where these are in a record; ``meta.pile_set_name`` reads inside an object.
    :raises DataError: a source that cannot be read. :raises MissingExtra: without the library it needs.
    """
    if isinstance(source, StreamRows | RowSource):
        return source
    fields = Fields(text_field, domain_field)
    maker = _RowMaker(tokenizer, fields, add_bos, add_eos)
    if isinstance(source, str | Path) and not str(source).startswith("hub:"):
        if holds_shards(source):
            return Shards(source)
        files = record_files(Path(source))
        if has_order(files):
            return RecordRows(Joined(files, _columns(fields)), maker, str(source))
    elif isinstance(source, Mapping):
        raise DataError(f"this is a mapping of {sorted(map(str, source))}; choose one of its datasets")
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, str):
        if not len(source) or _are_ids(source[0]):
            return MemoryRows(source)
        return RecordRows(Items(source), maker, "in memory")
    options: dict[str, Any] = {"text_field": text_field, "domain_field": domain_field}
    return StreamRows(source, tokenizer, add_bos=add_bos, add_eos=add_eos, **options)


def _are_ids(record: Any) -> bool:
    return not isinstance(record, Mapping) and _has_ids(record)
