"""Calibration data: what a user may give, as batches of model inputs, and as a hash for resuming."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError
from paperhooks.io.corpus import Corpus
from paperhooks.io.hashing import hash_json, tensor_digest

__all__ = ["data_digest", "has_text", "length_batches", "token_batches"]

logger = logging.getLogger(__name__)


def length_batches(
    numbers: Iterable[int],
    lengths: Sequence[int] | Mapping[int, int],
    batch_tokens: int,
    batch_rows: int | None = None,
) -> Iterator[list[int]]:
    """Numbers of rows in batches, in their order; of similar length where they come sorted, so that little is padding.

    :param lengths: of the rows, by number.
    :param batch_tokens, batch_rows: most tokens with padding, and most rows, of a batch; one row always fits.

    >>> list(length_batches([1, 0, 2], [3, 2, 4], 6))
    [[1, 0], [2]]
    """
    batch: list[int] = []
    longest = 0
    for number in numbers:
        longest = max(longest, lengths[number])
        full = batch_rows is not None and len(batch) >= batch_rows
        if batch and (full or longest * (len(batch) + 1) > batch_tokens):
            yield batch
            batch, longest = [], lengths[number]
        batch.append(number)
    if batch:
        yield batch


def token_batches(
    data: Iterable[Any] | str | Path | Corpus, *, tokenizer: Any = None, max_length: int = 2048, batch_size: int = 1
) -> list[dict[str, Any]]:
    """Calibration data as batches of model inputs, padded on the right.

    :param data: a file (see :mod:`paperhooks.io.corpus`); or texts (with a ``tokenizer``), token ids (lists or int64
        [T]), records with ``input_ids`` or ``text``; or finished batches (mappings with ``input_ids`` [B, T]), which
        are passed on unchanged.
    :param max_length: longer sequences are cut to it; how many is logged.
    :raises DataError: nothing there, an empty sequence, a text without a tokenizer, or a record of another kind.
    """
    if isinstance(data, Mapping):
        raise DataError(f"the calibration data has the parts {', '.join(map(repr, data))}; choose one of them")
    records = _records(data)
    if not records:
        raise DataError("the calibration data is empty")
    if all(_finished(record) for record in records):
        return [dict(record) for record in records]
    rows = [_ids(record, number, tokenizer) for number, record in enumerate(records)]
    cut = sum(len(row) > max_length for row in rows)
    if cut:
        logger.info("%d of %d calibration sequences were cut to %d tokens", cut, len(rows), max_length)
    rows = [row[:max_length] for row in rows]
    return [_padded(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def _records(data: Iterable[Any] | str | Path | Corpus) -> list[Any]:
    if not isinstance(data, str | Path | Corpus):
        return list(data)
    corpus = data if isinstance(data, Corpus) else Corpus(data)
    return [example.record for example in corpus.examples(range(len(corpus)))]


def _finished(record: Any) -> bool:
    ids = record.get("input_ids") if isinstance(record, Mapping) else None
    return isinstance(ids, Tensor) and ids.ndim == 2


def _ids(record: Any, number: int, tokenizer: Any) -> Tensor:
    value = record
    if isinstance(record, Mapping):
        value = record.get("text") if record.get("input_ids") is None else record["input_ids"]
    if isinstance(value, str):
        if tokenizer is None:
            raise DataError(f"calibration record {number} is text; pass tokenizer=..., or token ids")
        value = tokenizer(value)["input_ids"]
    integers = isinstance(value, Sequence) and all(isinstance(i, int) for i in value)
    if not integers and not (isinstance(value, Tensor) and value.ndim == 1 and not value.is_floating_point()):
        raise DataError(
            f"calibration record {number} is {type(record).__name__}; expected a text, token ids [T], or a mapping "
            "with 'text' or 'input_ids'"
        )
    if not len(value):
        raise DataError(f"calibration record {number} has no tokens; leave it out")
    return torch.as_tensor(value, dtype=torch.int64)


def _padded(rows: Sequence[Tensor]) -> dict[str, Any]:
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()}


def data_digest(data: Any) -> Any:
    """Digests of calibration data, by part if it has parts; a file's is that of its bytes."""
    if isinstance(data, Mapping):
        return {str(part): data_digest(value) for part, value in data.items()}
    if isinstance(data, str | Path):
        return Corpus(data).fingerprint()
    return data.fingerprint() if isinstance(data, Corpus) else _digest(data)


def _digest(data: Any) -> str | None:
    """SHA-256 of calibration data that is held in memory."""
    if data is None or isinstance(data, str | int | float):
        return None if data is None else hash_json(data)
    if isinstance(data, Tensor):
        return tensor_digest(data)
    if isinstance(data, Mapping):
        return hash_json({str(key): _digest(value) for key, value in data.items()})
    if isinstance(data, Sequence):
        digest = hashlib.sha256()
        for item in data:
            digest.update((_digest(item) or "").encode())
        return digest.hexdigest()
    raise DataError(f"calibration data is {type(data).__name__}; pass a list, so that the run can be resumed")


def has_text(data: Any) -> bool:
    """Whether calibration data, or a part of it, is text and so needs a tokenizer."""
    if isinstance(data, Mapping):
        return any(has_text(part) for part in data.values())
    if isinstance(data, str | Path | Corpus):
        corpus = data if isinstance(data, Corpus) else Corpus(data)
        ((_, first),) = corpus.records([0])
        return isinstance(first, str) or (isinstance(first, Mapping) and first.get("input_ids") is None)
    first = data[0] if isinstance(data, Sequence) and len(data) else None
    return isinstance(first, str) or (isinstance(first, Mapping) and isinstance(first.get("text"), str))
