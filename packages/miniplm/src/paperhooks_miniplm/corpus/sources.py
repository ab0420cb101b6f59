"""Sources of rows: what a user names - files, folders, datasets, lists - as rows of token ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paperhooks.io import open_records

from paperhooks_miniplm.corpus.documents import Fields, columns_of
from paperhooks_miniplm.corpus.parts import Parts, holds_parts
from paperhooks_miniplm.corpus.record_rows import RecordRows, RowMaker, StreamRows, has_ids
from paperhooks_miniplm.corpus.rows import MemoryRows, RowSource
from paperhooks_miniplm.corpus.shard_files import holds_shards
from paperhooks_miniplm.corpus.shards import Shards

__all__ = ["open_rows"]


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

    :param source: a folder of shards; a folder of :class:`Parts`, or its address; a file of JSON Lines or Parquet, a
        folder of these, a ``datasets.Dataset`` or a list of texts and objects, one row a record, with ``input_ids``
        (and ``n_bytes`` where known) or a text; a list of ids or :class:`Row`. Of a ``hub:`` name, an
        ``IterableDataset``, a generator, and of files in other forms (see :func:`read_documents`) or compressed:
        :class:`StreamRows`. A :class:`RowSource` is returned as it is. Shards are the fastest at any place; of Parquet
        the whole row group of a row is read.
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
    if isinstance(source, str | Path) and holds_shards(source):
        return Shards(source)
    if isinstance(source, str | Path) and holds_parts(source):
        return Parts(source)
    if _holds_ids(source):
        return MemoryRows(source)
    records = open_records(source, columns=columns_of(fields))
    if records is not None:
        return RecordRows(records, maker, str(source) if isinstance(source, str | Path) else "in memory")
    options: dict[str, Any] = {"name": name, "text_field": text_field, "domain_field": domain_field}
    return StreamRows(source, tokenizer, add_bos=add_bos, add_eos=add_eos, **options)


def _holds_ids(source: Any) -> bool:
    """Whether ``source`` is a sequence of rows of ids, or of nothing."""
    if isinstance(source, str | Path | Mapping) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return False
    return not len(source) or (not isinstance(source[0], Mapping) and has_ids(source[0]))
