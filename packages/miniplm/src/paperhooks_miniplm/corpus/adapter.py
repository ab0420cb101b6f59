"""Rows of any source as a corpus for ``paperhooks.select`` and ``paperhooks.score``, which read only JSON Lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from paperhooks import DataError
from paperhooks.io import Corpus, Example, hash_json

from paperhooks_miniplm.corpus.record_rows import StreamRows
from paperhooks_miniplm.corpus.rows import RowSource
from paperhooks_miniplm.corpus.sources import open_rows

__all__ = ["RowCorpus", "open_corpus"]


class RowCorpus(Corpus):
    """The rows of a source as examples with ``input_ids``; nothing of them is kept in memory.

    Raises DataError for a source without rows, and for one that can only be read in order.
    """

    def __init__(self, rows: RowSource) -> None:
        if isinstance(rows, StreamRows):
            raise DataError(f"{rows.name} can only be read in order; pack it, or use paperhooks_miniplm.score")
        if not len(rows):
            raise DataError(f"the corpus {rows.name} is empty; there is nothing to score")
        self.rows = rows
        self.file = None
        self.digest = hash_json(rows.fingerprint())

    @property
    def name(self) -> str:
        """What the source is called."""
        return self.rows.name

    def __len__(self) -> int:
        return len(self.rows)

    def lines(self, rows: Sequence[int]) -> Iterator[str]:
        """The given rows as JSON objects with ``input_ids``, and ``domain`` and ``n_bytes`` where known."""
        for example in self.examples(rows):
            yield json.dumps(dict(example.record), ensure_ascii=False)

    def examples(self, rows: Sequence[int], tokenizer: Any = None) -> list[Example]:
        """The examples of the given rows; they are tokens already, so that a tokenizer changes nothing."""
        found = []
        for number, row in zip(rows, self.rows.read(rows), strict=True):
            record: dict[str, Any] = {"input_ids": row.ids.tolist()}
            record |= {"domain": row.domain} if row.domain else {}
            record |= {} if row.n_bytes is None else {"n_bytes": row.n_bytes}
            found.append(Example(number, record, None, torch.from_numpy(row.ids)))
        return found


def open_corpus(source: Any, tokenizer: Any = None, **options: Any) -> RowCorpus:
    """A corpus for ``paperhooks.select``: official shards, Parquet and whatever else can be read at any place.

    What is selected from it is written as ids, with domains and byte counts; texts and other fields are left out.

    >>> paperhooks.select("miniplm", corpus=open_corpus("packed/"), teacher=large, ...)  # doctest: +SKIP

    :param source, tokenizer, options: as for :func:`paperhooks_miniplm.open_rows`.
    """
    return RowCorpus(open_rows(source, tokenizer, **options))
