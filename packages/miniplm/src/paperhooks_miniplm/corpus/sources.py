"""Sources of rows: what a user names - files, folders, datasets, lists - as rows of token ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import open_records

from paperhooks_miniplm.corpus.documents import Fields, columns_of
from paperhooks_miniplm.corpus.parts import Parts, holds_parts
from paperhooks_miniplm.corpus.record_rows import RecordRows, RowMaker, StreamRows, has_ids
from paperhooks_miniplm.corpus.rows import MemoryRows, RowSource
from paperhooks_miniplm.corpus.shard_files import holds_shards
from paperhooks_miniplm.corpus.shards import Shards
from paperhooks_miniplm.corpus.storage import Storage

__all__ = ["open_rows"]

#: What the library datasets calls files of records.
_BUILDERS: Final = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


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
        (and ``n_bytes`` where known) or a text; a list of ids or :class:`Row`. Of a ``hub:`` name, files at an address
        (``s3://bucket/*.jsonl.gz``), an ``IterableDataset``, a generator, and of files in other forms (see
        :func:`read_documents`) or compressed: :class:`StreamRows`. A :class:`RowSource` is returned as it is. Shards
        are the fastest at any place; of Parquet the whole row group of a row is read.
    :param tokenizer: for texts, which become rows of their tokens.
    :param add_bos, add_eos: special tokens at the beginning or the end of a text; not of ``input_ids``. None for the
        end adds it where the tokenizer has one, for packed rows hold the ends of documents too.
    :param text_field, domain_field: where these are in a record; ``meta.pile_set_name`` reads inside an object.
    :param name: what to call a stream that has no name of its own: a scoring folder knows it by that and its beginning,
        and files at an address by what their store says of their versions too.
    :raises DataError: a source that cannot be read. :raises MissingExtra: without the library it needs.
    """
    if isinstance(source, RowSource):
        return source
    fields = Fields(text_field, domain_field)
    maker = RowMaker(tokenizer, fields, add_bos, add_eos)
    if isinstance(source, str | Path) and holds_shards(source):
        return Shards(source)
    if isinstance(source, str | Path) and _builder(str(source)) is None and holds_parts(source):
        return Parts(source)
    options: dict[str, Any] = {"name": name, "text_field": text_field, "domain_field": domain_field}
    options |= {"add_bos": add_bos, "add_eos": add_eos}
    if isinstance(source, str) and "://" in source:
        records = _at_address(source)
        return StreamRows(records, tokenizer, **options | {"name": name or source, "decides": Storage.state(source)})
    if _holds_ids(source):
        return MemoryRows(source)
    records = open_records(source, columns=columns_of(fields))
    if records is not None:
        return RecordRows(records, maker, str(source) if isinstance(source, str | Path) else "in memory")
    return StreamRows(source, tokenizer, **options)


def _at_address(address: str) -> Any:
    """Records of files at an address that fsspec knows, also with ``*`` in it, as a stream of the library datasets."""
    load_dataset = require("datasets", "paperhooks[data]", "to read records at addresses").load_dataset
    kind = _builder(address)
    if kind is None:
        known = ", ".join(_BUILDERS)
        raise DataError(
            f"{address} is no folder of parts, and ends in none of {known}, also compressed; name its files"
        )
    try:
        return load_dataset(kind, data_files=address, split="train", streaming=True)
    except (OSError, ValueError, ImportError) as error:
        raise DataError(f"{address} cannot be read: {error}") from error


def _builder(address: str) -> str | None:
    """What reads the files at an address, by how it ends; None of a path, or of what ends otherwise, as folders may."""
    endings = PurePosixPath(address).suffixes if "://" in address else []
    return next((_BUILDERS[each] for each in reversed(endings) if each in _BUILDERS), None)


def _holds_ids(source: Any) -> bool:
    """Whether ``source`` is a sequence of rows of ids, or of nothing."""
    if isinstance(source, str | Path | Mapping) or not (hasattr(source, "__getitem__") and hasattr(source, "__len__")):
        return False
    return not len(source) or (not isinstance(source[0], Mapping) and has_ids(source[0]))
