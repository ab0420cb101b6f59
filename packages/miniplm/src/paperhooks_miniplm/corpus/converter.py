"""The rows of a corpus for another tokenizer: packed anew, or one for one as the official code converts them.

The official way (section 2.8) keeps the number of rows. Where the new tokenizer needs more ids the
end of a row is cut off, and a character that was cut in two at the end of a row is lost. ``repack`` puts the rows of a
domain that follow each other together again before it decodes them, and loses neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks.models import check_ids, tokenizer_digest

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.documents import TextRecord
from paperhooks_miniplm.corpus.packer import eos_of, pack_rows, packer_of, starts_with_bos, text_bytes
from paperhooks_miniplm.corpus.record_rows import StreamRows, described, encode, vocabulary_size
from paperhooks_miniplm.corpus.row_numbers import row_numbers, rows_digest
from paperhooks_miniplm.corpus.rows import Row, RowSource, check_tokenizer
from paperhooks_miniplm.corpus.shard_files import ShardWriter
from paperhooks_miniplm.corpus.shards import Shards
from paperhooks_miniplm.corpus.sources import open_rows

__all__ = ["Conversion", "ConversionReport", "convert", "split_documents", "text_of"]

_BATCH: Final = 256
_LOST: Final = "\ufffd"


@dataclass(slots=True)
class ConversionReport:
    """What became of the rows so far.

    rows_in, tokens_in, rows_out, tokens_out
        Rows and their ids, before and after.
    damaged
        Texts with U+FFFD in them: a character was cut in two, or the text holds this sign.
    cut, tokens_cut
        Rows cut to the longest length, and the ids cut off; none with ``repack``.
    unfinished
        With ``repack``, documents whose end is not among the rows; they end where the rows do.
    """

    rows_in: int = 0
    tokens_in: int = 0
    rows_out: int = 0
    tokens_out: int = 0
    damaged: int = 0
    cut: int = 0
    tokens_cut: int = 0
    unfinished: int = 0


class Conversion(Iterator[Row]):
    """Converted rows, made as they are asked for. See :func:`convert`.

    report
        Counts what was done so far.
    """

    def __init__(
        self,
        rows: Iterator[Row],
        report: ConversionReport,
        tokenizer: Any,
        identity: Callable[[], dict[str, Any] | None],
    ) -> None:
        self.report = report
        self._rows, self._tokenizer, self._identity = rows, tokenizer, identity

    def write(
        self,
        out: str | Path,
        *,
        rows_per_shard: int = 1_000_000,
        progress: Callable[[ConversionReport], None] | None = None,
    ) -> ConversionReport:
        """Write the rows as shards, with the report in ``corpus.json``; returns it.

        Killed and started again it ends well: a folder that holds the same rows converted in the same way is left as it
        is. A stream, of which only the beginning is known, cannot be known again.

        :param progress: called with the report so far after every row.
        :raises DataError: a folder that holds another corpus or is used by another run, or as reading does.
        """
        made = self._identity()
        identity = None if made is None else {**made, "rows_per_shard": rows_per_shard}
        size = vocabulary_size(self._tokenizer)
        with ShardWriter(out, vocabulary=size, rows_per_shard=rows_per_shard, identity=identity) as writer:
            if writer.known is not None:
                return ConversionReport(**writer.known["report"])
            for row in self:
                writer.add(row.ids, row.domain, row.n_bytes)
                if progress is not None:
                    progress(self.report)
            writer.about = {"report": asdict(self.report), **described(self._tokenizer)}
        return self.report

    def __next__(self) -> Row:
        row = next(self._rows)
        self.report.rows_out += 1
        self.report.tokens_out += len(row.ids)
        return row


def convert(
    source: Any,
    old_tokenizer: Any,
    new_tokenizer: Any,
    *,
    rows: Any = None,
    max_length: int = 1024,
    bos: bool | None = None,
    repack: bool = True,
    join: bool | None = None,
) -> Conversion:
    """Rows for a student with another tokenizer, with domains and the bytes of their text.

    :param source: rows with ids of ``old_tokenizer``; see :func:`paperhooks_miniplm.open_rows`.
    :param rows: those to convert: ascending row numbers [K], a bool mask [N] or a
        :class:`~paperhooks.data.Selection`; all by default.
    :param max_length: inputs of the student; rows have at most one id more.
    :param bos: begin rows with the new tokenizer's beginning-of-sequence token; None as it does by itself.
    :param repack: pack the text anew, into rows that are as full as can be; their number is another one. False makes
        one row of one, as the official code, and cuts those that become too long.
    :param join: with ``repack``, a row goes on where the row before it in its domain stopped. None where the corpus
        says that its rows are in the order in which they were packed, as one of :func:`~paperhooks_miniplm.pack` does;
        the official ones are shuffled within shards.
    :raises DataError: a tokenizer without an end-of-sequence token, another old tokenizer than the one that the corpus
        was packed with, or rows that cannot be read, or hold ids that it does not have.
    """
    for tokenizer in (old_tokenizer, new_tokenizer):
        eos_of(tokenizer)
    opened, report = open_rows(source), ConversionReport()
    check_tokenizer(opened, old_tokenizer)
    rows = row_numbers(opened, rows)
    if join is None:
        join = isinstance(opened, Shards) and opened.in_packing_order
    read = _read(opened, rows, report, vocabulary_size(old_tokenizer))
    first = starts_with_bos(new_tokenizer, bos)
    settings = {"max_length": max_length, "bos": first, "repack": repack, "join": join if repack else None}
    identity = partial(_identity, opened, rows, old_tokenizer, new_tokenizer, settings)
    if repack:
        texts = _Joiner(old_tokenizer, report, join).documents(read, _ranks(opened, rows, join))
        packer = packer_of(new_tokenizer, max_length=max_length, bos=bos)
        return Conversion(pack_rows(texts, new_tokenizer, packer), report, new_tokenizer, identity)
    official = _Official(old_tokenizer, new_tokenizer, max_length + 1, first, report)
    return Conversion(official.converted(read), report, new_tokenizer, identity)


def _identity(source: RowSource, rows: Any, old: Any, new: Any, settings: dict[str, Any]) -> dict[str, Any] | None:
    if isinstance(source, StreamRows):
        return None
    made = {"made_by": "convert", "corpus": source.fingerprint(), "rows": rows_digest(rows), "settings": settings}
    digests = {"from": tokenizer_digest(old), "to": tokenizer_digest(new)}
    return None if None in digests.values() else made | digests


def _read(source: RowSource, rows: Any, report: ConversionReport, vocabulary: int) -> Iterator[list[Row]]:
    """The rows in batches, counted and checked."""
    for numbers, batch in _batches(source, rows):
        for number, row in zip(numbers, batch, strict=True):
            check_ids(f"row {number} of {source.name}", row.ids, vocabulary, "the tokenizer")
        report.rows_in += len(batch)
        report.tokens_in += sum(len(row.ids) for row in batch)
        yield batch


def _batches(source: RowSource, rows: Any) -> Iterator[tuple[Sequence[int], list[Row]]]:
    """Numbers of rows, and these."""
    if rows is None and isinstance(source, StreamRows):
        start = 0
        while batch := list(source.iterate(start, start + _BATCH)):
            yield range(start, start + len(batch)), batch
            start += len(batch)
        return
    wanted = range(len(source)) if rows is None else rows
    for start in range(0, len(wanted), _BATCH):
        numbers = [int(row) for row in wanted[start : start + _BATCH]]
        yield numbers, source.read(numbers)


@dataclass(slots=True)
class _Official:
    """One row for one row."""

    old: Any
    new: Any
    longest: int
    bos: int | None
    report: ConversionReport

    def converted(self, batches: Iterator[list[Row]]) -> Iterator[Row]:
        old_eos, eos = eos_of(self.old), eos_of(self.new)
        for batch in batches:
            parts = [split_documents(row.ids, old_eos) for row in batch]
            texts = [self.old.decode(part, skip_special_tokens=True) for row in parts for part in row]
            self.report.damaged += sum(_LOST in text for text in texts)
            encoded = iter(encode(self.new, texts))
            for row, own in zip(batch, parts, strict=True):
                ids = self._row([next(encoded) for _ in own], eos)
                yield Row(np.array(ids, dtype=np.int64), row.domain, text_bytes(self.new, ids))

    def _row(self, parts: list[list[int]], eos: int) -> list[int]:
        ids = [] if self.bos is None else [self.bos]
        for number, part in enumerate(parts):
            ids += [eos, *part] if number else part
        if len(ids) > self.longest:
            self.report.cut += 1
            self.report.tokens_cut += len(ids) - self.longest
            ids = ids[: self.longest]
        # A row without anything to predict would stop the official trainer.
        return [*ids, eos] if self.bos is None and len(ids) < 2 else ids


@dataclass(slots=True)
class _Text:
    """Old ids of a document that has not ended, and whether its beginning is unknown."""

    ids: list[int] = field(default_factory=list)
    headless: bool = False


class _Joiner:
    """Texts of documents from rows that hold pieces of them."""

    def __init__(self, tokenizer: Any, report: ConversionReport, join: bool) -> None:
        self._tokenizer, self._report, self._join = tokenizer, report, join
        self._eos = eos_of(tokenizer)
        self._open: dict[str, _Text] = {}
        self._last: dict[str, int] = {}

    def documents(self, batches: Iterator[list[Row]], ranks: Iterator[int] | None) -> Iterator[TextRecord]:
        for batch in batches:
            for row in batch:
                rank = self._last.get(row.domain, -1) + 1 if ranks is None else next(ranks)
                yield from self._of_row(row, rank)
        for domain in list(self._open):
            yield from self._ended(domain, finished=False)

    def _of_row(self, row: Row, rank: int) -> Iterator[TextRecord]:
        follows = self._join and rank == self._last.get(row.domain, -1) + 1
        if not follows:
            yield from self._ended(row.domain, finished=False)
            self._open[row.domain] = _Text(headless=True)
        self._last[row.domain] = rank
        for number, part in enumerate(split_documents(row.ids, self._eos)):
            if number:
                yield from self._ended(row.domain, finished=True)
            self._open.setdefault(row.domain, _Text()).ids += part

    def _ended(self, domain: str, finished: bool) -> Iterator[TextRecord]:
        found = self._open.pop(domain, None)
        if found is None or not found.ids:
            return
        text = self._tokenizer.decode(found.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self._report.damaged += _LOST in text
        self._report.unfinished += bool(text) and not finished
        text = text.lstrip(_LOST) if found.headless else text
        text = text if finished else text.rstrip(_LOST)
        if text:
            yield TextRecord(text, domain)


def _ranks(source: RowSource, rows: Any, join: bool) -> Iterator[int] | None:
    """For each chosen row, how many rows of its domain are before it in the corpus; None where all are chosen."""
    if rows is None or not join:
        return None
    domains = source.domains()
    if domains is None:
        return (int(row) for row in rows)
    _, codes = np.unique(domains, return_inverse=True)
    order, counts = np.argsort(codes, kind="stable"), np.bincount(codes)
    ranks = np.empty(len(codes), dtype=np.int64)
    ranks[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return (int(rank) for rank in ranks[np.asarray(rows, dtype=np.int64)])


def split_documents(ids: Array, eos: int) -> list[list[int]]:
    """The parts of a row between end-of-sequence tokens, one more than there are of these."""
    parts = np.split(ids, np.flatnonzero(ids == eos))
    return [part[min(number, 1) :].tolist() for number, part in enumerate(parts)]


def text_of(ids: Array, tokenizer: Any) -> str:
    """The text of a row, with the end token's own text between documents."""
    if tokenizer.eos_token_id is None:
        return str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
    parts = split_documents(ids, tokenizer.eos_token_id)
    return str(tokenizer.eos_token).join(tokenizer.decode(part, skip_special_tokens=True) for part in parts)
