"""Sources of text and of rows: what a user names - files, folders, datasets, lists - as documents or as rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from paperhooks import DataError

from paperhooks_miniplm.corpus.record_rows import RecordRows, RowMaker, StreamRows, columns_of, has_ids
from paperhooks_miniplm.corpus.records import (
    Fields,
    Joined,
    RecordItems,
    TextRecord,
    has_order,
    read_records,
    record_files,
)
from paperhooks_miniplm.corpus.rows import MemoryRows, RowSource
from paperhooks_miniplm.corpus.shard_files import holds_shards
from paperhooks_miniplm.corpus.shards import Shards

__all__ = ["Documents", "open_rows", "read_documents"]


class Documents(Iterator[TextRecord]):
    """The documents of a source, one after another; see :func:`read_documents`.

    empty
        How many had nothing but white space in them, so far, and were left out.
    """

    def __init__(self, source: Any, fields: Fields) -> None:
        self.empty = 0
        self._fields, self._records = fields, read_records(source, columns_of(fields))

    def __next__(self) -> TextRecord:
        for where, record in self._records:
            found = record if isinstance(record, TextRecord) else self._document(where, record)
            if found.text.strip():
                return found
            self.empty += 1
        raise StopIteration

    def _document(self, where: str, record: Any) -> TextRecord:
        return TextRecord(self._fields.text_of(where, record), self._fields.domain_of(record), where)


def read_documents(source: Any, *, text_field: str = "text", domain_field: str = "domain") -> Documents:
    """Documents of a file, folder, dataset or iterable, read as they are asked for.

    :param source: a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file, a ``.txt`` file (one document), a folder of these
        (in the order of their names), ``hub:NAME:SPLIT`` or ``hub:NAME:CONFIG:SPLIT`` (streamed), a dataset of the
        library datasets, or any iterable of texts, objects and :class:`TextRecord`.
    :param text_field, domain_field: where these are in a record; ``meta.pile_set_name`` reads inside an object.
    :raises DataError: something that cannot be read, naming file and line. :raises MissingExtra: without the library.
    """
    if isinstance(source, Documents):
        return source
    if isinstance(source, str | Path) and holds_shards(source):
        raise DataError(f"{source} holds token ids in shards and no text; name the texts it was packed from")
    return Documents(source, Fields(text_field, domain_field))


def open_rows(
    source: Any,
    tokenizer: Any = None,
    *,
    text_field: str = "text",
    domain_field: str = "domain",
    add_bos: bool = False,
    add_eos: bool | None = None,
    name: str | None = None,
) -> RowSource:
    """Rows of whatever holds them, without a copy in memory.

    :param source: a folder of shards; a ``.jsonl`` or ``.parquet`` file, a folder of these, a ``datasets.Dataset`` or a
        list of texts and objects, one row a record, with ``input_ids`` (and ``n_bytes`` where known) or a text; a list
        of ids or :class:`Row`. Of a ``hub:`` name, an ``IterableDataset``, a generator, a ``.jsonl.gz`` or ``.txt``
        file: :class:`StreamRows`. A :class:`RowSource` is returned as it is. Shards are the fastest at any place; of
        Parquet the whole row group of a row is read.
    :param tokenizer: for texts, which become rows of their tokens.
    :param add_bos, add_eos: special tokens at the beginning or the end of a text; not of ``input_ids``. None for the
        end adds it where the tokenizer has one, for packed rows hold the ends of documents too.
    :param text_field, domain_field: where these are in a record; ``meta.pile_set_name`` reads inside an object.
    :param name: what to call a stream that has no name of its own: a scoring folder knows it by that and its beginning.
    :raises DataError: a source that cannot be read. :raises MissingExtra: without the library it needs.
    """
    if isinstance(source, RowSource):
        return source
    fields = Fields(text_field, domain_field)
    maker = RowMaker(tokenizer, fields, add_bos, add_eos)
    if isinstance(source, str | Path) and not str(source).startswith("hub:"):
        if holds_shards(source):
            return Shards(source)
        files = record_files(Path(source))
        if has_order(files):
            return RecordRows(Joined(files, columns_of(fields)), maker, str(source))
    elif isinstance(source, Mapping):
        raise DataError(f"this is a mapping of {sorted(map(str, source))}; choose one of its datasets")
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__") and not isinstance(source, str):
        if not len(source) or _are_ids(source[0]):
            return MemoryRows(source)
        return RecordRows(RecordItems(source), maker, "in memory")
    options: dict[str, Any] = {"name": name, "text_field": text_field, "domain_field": domain_field}
    return StreamRows(source, tokenizer, add_bos=add_bos, add_eos=add_eos, **options)


def _are_ids(record: Any) -> bool:
    return not isinstance(record, Mapping) and has_ids(record)
