"""Rows that stand in a corpus more than once, or in another corpus too, found by hashes of their ids."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from paperhooks import DataError
from paperhooks.io import hash_json, read_tensors, write_tensors

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.rows import RowSource, count_rows

__all__ = ["duplicates_of", "kept_duplicates", "stand_in"]


def duplicates_of(source: RowSource, *, known: RowSource | None = None, batch: int = 8192) -> Array:
    """Rows whose ids stand in an earlier row already, or in any row of ``known``: bool [N]. Keeps 16 bytes a row.

    Repeated text is likely for the teacher and preferred (section 2.6), and a reference must not score its own texts:
    give the result to ``select(drop=...)``.
    """
    parts = [_digests(each, batch) for each in (known, source) if each is not None]
    digests = np.concatenate(parts)
    _, first = np.unique(digests, axis=0, return_index=True)
    repeated = np.ones(len(digests), dtype=bool)
    repeated[first] = False
    return repeated[len(digests) - len(parts[-1]) :]


def stand_in(source: RowSource, known: RowSource, *, batch: int = 8192) -> Array:
    """Rows whose ids stand in any row of ``known``, bool [N]; repeated ones each."""
    pairs = np.dtype([("high", np.uint64), ("low", np.uint64)])
    own, theirs = (_digests(each, batch).view(pairs)[:, 0] for each in (source, known))
    return np.isin(own, theirs)


def kept_duplicates(source: RowSource, file: Path) -> Array:
    """:func:`duplicates_of` a corpus, kept in a file: other selections from it need not read it again.

    A file of another corpus or a damaged one is made anew; that none can be written is no error.
    """
    corpus = hash_json(source.fingerprint())
    with contextlib.suppress(DataError):
        header, tensors = read_tensors(file)
        if header.get("corpus") == corpus:
            return np.unpackbits(tensors["bitmap"].numpy(), count=count_rows(source)).astype(bool)
    found = duplicates_of(source)
    with contextlib.suppress(DataError):
        write_tensors(file, {"bitmap": np.packbits(found)}, {"corpus": corpus})
    return found


def _digests(source: RowSource, batch: int) -> Array:
    """128 bits of each row's ids, uint64 [N, 2]."""
    size = count_rows(source)
    found = np.zeros((size, 2), dtype=np.uint64)
    for start in range(0, size, batch):
        for row, read in enumerate(source.read(range(start, min(start + batch, size))), start):
            digest = hashlib.blake2b(read.ids.astype(np.int64).tobytes(), digest_size=16).digest()
            found[row] = np.frombuffer(digest, dtype=np.uint64)
    return found
