"""Selections as files: an index or a bitmap beside the corpus, or a copy of the chosen rows in another format."""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from paperhooks import DataError
from paperhooks.data import Selection
from paperhooks.errors import require
from paperhooks.io import atomic_path, local_path, with_ending
from paperhooks.models import check_ids

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.converter import text_of
from paperhooks_miniplm.corpus.record_rows import RecordRows, StreamRows, vocabulary_size
from paperhooks_miniplm.corpus.row_numbers import rows_digest
from paperhooks_miniplm.corpus.rows import Row, RowSource, check_corpus, count_rows, same_rows
from paperhooks_miniplm.corpus.shard_files import of_corpus, write_shards
from paperhooks_miniplm.corpus.shards import Shards

__all__ = ["Format", "export", "load_selection", "read_index"]

#: What a selection can be written as.
Format: TypeAlias = Literal["index", "bitmap", "shards", "parquet", "jsonl"]

_BATCH: Final = 4096


def export(
    selection: Selection,
    source: RowSource,
    out: str | Path,
    format: Format = "index",
    *,
    tokenizer: Any = None,
    vocabulary: int | None = None,
    rows_per_shard: int = 1_000_000,
) -> Path:
    """Write a selection and return the file or folder; rows stand in corpus order.

    :param out: a file for "index" and "bitmap" (``.safetensors``), "parquet" and "jsonl"; a folder for "shards".
    :param format: "index" keeps row numbers and scores (12 bytes a kept row), "bitmap" one bit a row, "shards" copies
        rows in the official format, "parquet" and "jsonl" copy ids, domains, byte counts, scores and, with a
        ``tokenizer``, text, in which the end token's own text stands between documents.
    :param vocabulary: of the tokenizer, for the width of ids in shards; that of a corpus of shards without.
    :raises DataError: an unknown format, a selection of another corpus, ids that are not in the vocabulary, or an
        output that exists already with other content. The same content is left as it is, so that a run that was killed
        may be started again.
    """
    if format not in get_args(Format):
        raise DataError(f"format is {format!r}; expected one of {', '.join(get_args(Format))}")
    check_corpus(selection.about, source)
    if selection.total != (size := count_rows(source)):
        raise DataError(f"the selection is of {selection.total} rows, {source.name} has {size}: another corpus")
    path = local_path(out)
    if format in ("index", "bitmap"):
        return _write_index(selection, source, path, format)
    if format == "shards":
        _write_shards(selection, source, path, vocabulary, rows_per_shard)
        return path
    if path.exists() and not path.is_file():
        raise DataError(f"{path} exists already; choose another output, or delete it")
    records = _records(selection, source, tokenizer)
    return _write_jsonl(records, path) if format == "jsonl" else _write_parquet(records, path)


def read_index(path: str | Path, source: RowSource | None = None) -> Array:
    """The rows of an index or bitmap, int64 ascending.

    :param source: the corpus it must belong to, checked by fingerprint.
    :raises DataError: a file of another kind, a damaged one, or one of another corpus.
    """
    return _loaded(Path(path), source).rows


def load_selection(path: str | Path, source: RowSource) -> Selection:
    """An index or bitmap, of :func:`export` or ``paperhooks.select``, as a selection of ``source`` again.

    Raises what :func:`read_index` raises.
    """
    return _loaded(Path(path), source)


def _loaded(file: Path, source: RowSource | None) -> Selection:
    found = Selection.load(file)
    known = found.about.get("corpus")
    if source is not None and (not known or not same_rows(known, source.fingerprint())):
        raise DataError(f"{file} selects from another corpus than {source.name}")
    return found


def _write_index(selection: Selection, source: RowSource, path: Path, format: Literal["index", "bitmap"]) -> Path:
    path = with_ending(path, ".safetensors")
    if path.exists():
        if not np.array_equal(read_index(path, source), selection.rows):
            raise DataError(f"{path} exists already with other rows; choose another output, or delete it")
        return path
    known = replace(selection, about={**selection.about, "corpus": source.fingerprint()})
    return known.save(path, format)


def _write_shards(
    selection: Selection, source: RowSource, folder: Path, vocabulary: int | None, rows_per_shard: int
) -> None:
    if folder.is_dir() and any(not of_corpus(file.name) for file in folder.iterdir()):
        raise DataError(f"{folder} exists already with other files; choose another output, or delete it")
    dtype = source.dtype if vocabulary is None and isinstance(source, Shards) else None
    made: dict[str, Any] = {"made_by": "export", "corpus": source.fingerprint(), "rows": rows_digest(selection.rows)}
    made |= {"vocabulary": vocabulary, "dtype": dtype and str(dtype), "rows_per_shard": rows_per_shard}
    rows = (row for _, row in _rows(selection, source, vocabulary))
    write_shards(
        rows, folder, vocabulary=vocabulary, dtype=dtype, rows_per_shard=rows_per_shard,
        identity=None if isinstance(source, StreamRows) else made, about=_tokenizer(source),
    )  # fmt: skip


def _tokenizer(source: RowSource) -> dict[str, Any]:
    """What is known of the tokenizer that made the ids."""
    if isinstance(source, RecordRows | StreamRows):
        return source.made_with
    known = getattr(source, "packed_with", None)
    return {} if known is None else {"tokenizer": {"digest": known[0], "name": known[1]}}


def _rows(selection: Selection, source: RowSource, vocabulary: int | None) -> Iterator[tuple[int, Row]]:
    """Numbers of the chosen rows, and these; raises DataError for ids that are not in the vocabulary."""
    for start in range(0, len(selection), _BATCH):
        numbers = selection.rows[start : start + _BATCH].tolist()
        for number, row in zip(numbers, source.read(numbers), strict=True):
            check_ids(f"row {number} of {source.name}", row.ids, vocabulary, "the tokenizer")
            yield number, row


def _records(selection: Selection, source: RowSource, tokenizer: Any) -> Iterator[dict[str, Any]]:
    scores = None if selection.scores is None else selection.scores.tolist()
    vocabulary = None if tokenizer is None else vocabulary_size(tokenizer)
    for place, (number, row) in enumerate(_rows(selection, source, vocabulary)):
        record: dict[str, Any] = {"row": number, "input_ids": row.ids.tolist()}
        if tokenizer is not None:
            record["text"] = text_of(row.ids, tokenizer)
        if row.n_bytes is not None:
            record["n_bytes"] = row.n_bytes
        if row.domain:
            record["domain"] = row.domain
        if scores is not None:
            record["score"] = scores[place]
        yield record


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary file for ``path``; one that is there already may only be the same, as of a run that goes on."""
    with atomic_path(path) as temporary:
        yield temporary
        if path.exists() and not filecmp.cmp(temporary, path, shallow=False):
            raise DataError(f"{path} exists already with other content; choose another output, or delete it")


def _write_jsonl(records: Iterator[Mapping[str, Any]], path: Path) -> Path:
    with _new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return path


def _write_parquet(records: Iterator[dict[str, Any]], path: Path) -> Path:
    parquet = require("pyarrow.parquet", "paperhooks-miniplm[data]", "to write Parquet files")
    pyarrow = require("pyarrow", "paperhooks-miniplm[data]", "to write Parquet files")
    fields = [("row", pyarrow.int64()), ("input_ids", pyarrow.list_(pyarrow.int32()))]
    fields += [("text", pyarrow.string()), ("n_bytes", pyarrow.int64())]
    fields += [("domain", pyarrow.string()), ("score", pyarrow.float32())]
    first = next(records, None)
    names = {"row", "input_ids"} if first is None else set(first)
    # What is known of a row may be missing in the first one and there in a later one.
    schema = pyarrow.schema([field for field in fields if field[0] in names | {"domain", "n_bytes"}])
    with _new_file(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        batch = [] if first is None else [first]
        for record in records:
            batch.append(record)
            if len(batch) == _BATCH:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pyarrow.Table.from_pylist(batch, schema))
    return path
