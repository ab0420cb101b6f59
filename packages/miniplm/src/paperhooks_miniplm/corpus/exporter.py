"""Selections as files: an index or a bitmap beside the corpus, or a copy of the chosen rows in another format."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np
from paperhooks import DataError
from paperhooks.errors import require
from paperhooks.io import atomic_path, plain, with_ending
from safetensors import SafetensorError
from safetensors.numpy import save_file

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.converter import text_of
from paperhooks_miniplm.corpus.rows import Row, RowSource, check_corpus, count_rows, same_rows
from paperhooks_miniplm.corpus.shard_files import write_shards
from paperhooks_miniplm.corpus.shards import Shards
from paperhooks_miniplm.scoring.scores import read_arrays
from paperhooks_miniplm.selection import RowSelection

__all__ = ["Format", "export", "load_selection", "read_index"]

#: What a selection can be written as.
Format: TypeAlias = Literal["index", "bitmap", "shards", "parquet", "jsonl"]

_KIND: Final = "miniplm-selection"
_BATCH: Final = 4096


def export(
    selection: RowSelection,
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
    :raises DataError: an unknown format, a selection of another corpus, or an output that exists already; an index or
        bitmap of the same rows is left as it is.
    """
    if format not in get_args(Format):
        raise DataError(f"format is {format!r}; expected one of {', '.join(get_args(Format))}")
    check_corpus(selection.about, source)
    if selection.total != (size := count_rows(source)):
        raise DataError(f"the selection is of {selection.total} rows, {source.name} has {size}: another corpus")
    path = Path(out)
    if format in ("index", "bitmap"):
        return _write_index(selection, source, path, format)
    if path.exists() and (format != "shards" or path.is_file() or any(path.iterdir())):
        raise DataError(f"{path} exists already; choose another output, or delete it")
    if format == "shards":
        dtype = source.dtype if vocabulary is None and isinstance(source, Shards) else None
        write_shards(_rows(selection, source), path, vocabulary=vocabulary, dtype=dtype, rows_per_shard=rows_per_shard)
        return path
    records = _records(selection, source, tokenizer)
    return _write_jsonl(records, path) if format == "jsonl" else _write_parquet(records, path)


def read_index(path: str | Path, source: RowSource | None = None) -> Array:
    """The rows of an index or bitmap, int64 ascending.

    :param source: the corpus it must belong to, checked by fingerprint.
    :raises DataError: a file of another kind, a damaged one, or one of another corpus.
    """
    header, stored = _read(Path(path), source)
    return _rows_in(header, stored)


def load_selection(path: str | Path, source: RowSource) -> RowSelection:
    """An exported index or bitmap as a selection of ``source`` again; raises what :func:`read_index` raises."""
    header, stored = _read(Path(path), source)
    scores = stored.get("scores")
    cut = float("nan") if scores is None or not len(scores) else float(scores.min())
    return RowSelection(_rows_in(header, stored), count_rows(source), cut, json.loads(header["about"]), scores)


def _read(file: Path, source: RowSource | None) -> tuple[dict[str, str], dict[str, Array]]:
    try:
        header, stored = read_arrays(file)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{file} holds no selection: {error}") from error
    if header.get("kind") != _KIND:
        raise DataError(f"{file} is no selection of miniplm; export writes one")
    if source is not None and not same_rows(json.loads(header["corpus"]), source.fingerprint()):
        raise DataError(f"{file} selects from another corpus than {source.name}")
    return header, stored


def _rows_in(header: Mapping[str, str], stored: Mapping[str, Array]) -> Array:
    if "rows" in stored:
        return stored["rows"]
    return np.flatnonzero(np.unpackbits(stored["bitmap"], count=int(header["total"]))).astype(np.int64)


def _write_index(selection: RowSelection, source: RowSource, path: Path, format: str) -> Path:
    path = with_ending(path, ".safetensors")
    if path.exists():
        if not np.array_equal(read_index(path, source), selection.rows):
            raise DataError(f"{path} exists already with other rows; choose another output, or delete it")
        return path
    arrays: dict[str, Array] = {"bitmap": selection.bitmap()} if format == "bitmap" else {"rows": selection.rows}
    if selection.scores is not None and format == "index":
        arrays["scores"] = np.asarray(selection.scores, dtype=np.float32)
    header = {"kind": _KIND, "total": str(selection.total), "corpus": json.dumps(plain(source.fingerprint()))}
    with atomic_path(path) as temporary:
        save_file(arrays, temporary, {**header, "about": json.dumps(dict(selection.about))})
    return path


def _rows(selection: RowSelection, source: RowSource) -> Iterator[Row]:
    for start in range(0, len(selection), _BATCH):
        yield from source.read(selection.rows[start : start + _BATCH].tolist())


def _records(selection: RowSelection, source: RowSource, tokenizer: Any) -> Iterator[dict[str, Any]]:
    scores = None if selection.scores is None else selection.scores.tolist()
    for place, (number, row) in enumerate(zip(selection.rows.tolist(), _rows(selection, source), strict=True)):
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


def _write_jsonl(records: Iterator[Mapping[str, Any]], path: Path) -> Path:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
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
    with atomic_path(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        batch = [] if first is None else [first]
        for record in records:
            batch.append(record)
            if len(batch) == _BATCH:
                writer.write_table(pyarrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(pyarrow.Table.from_pylist(batch, schema))
    return path
