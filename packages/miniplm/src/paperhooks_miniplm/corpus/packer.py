"""Packing documents into rows of a corpus, cut at the ends of sentences, with every token accounted for.

Documents of a domain, each with an end-of-sequence token behind it, make one stream; rows are cut from its head, at
most ``max_length`` + 1 ids long, back to the last end of a document, line or sentence (section 2.1).
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.models import tokenizer_digest

from paperhooks_miniplm.corpus.documents import TextRecord, read_documents
from paperhooks_miniplm.corpus.record_rows import described, encode, vocabulary_size
from paperhooks_miniplm.corpus.rows import Row
from paperhooks_miniplm.corpus.shard_files import ShardWriter

__all__ = [
    "EndTokens",
    "PackReport",
    "Packer",
    "end_tokens",
    "eos_of",
    "pack",
    "pack_rows",
    "packer_of",
    "starts_with_bos",
    "text_bytes",
]

_ENDS: Final = ".!?;\n"
# The last pair is a slip of the official code, which wrote a backslash before its braces: a token with a backslash and
# no opening brace ends no sentence, and one with an opening brace may.
_PAIRS: Final = ("()", "[]", "<>", "\\{")
_BATCH: Final = 256
_BATCH_CHARACTERS: Final = 1 << 20
_PAIRS_KEPT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class EndTokens:
    """Tokens at which a row may end.

    sentence
        Those that end a sentence when a space follows; with ``eos``.
    newline
        Those of them with a line end, which end it in any case.
    eos
        The end of a document.
    """

    sentence: frozenset[int]
    newline: frozenset[int]
    eos: int


def end_tokens(tokenizer: Any) -> EndTokens:
    """The end tokens of a tokenizer by the official rule. Raises DataError without an end-of-sequence token.

    They are the tokens whose text holds one of ``. ! ? ;`` or a line end, unless it opens a bracket ``( [ <`` that it
    does not close, or holds a backslash without ``{``.
    """
    eos = eos_of(tokenizer)
    texts = {number: tokenizer.decode([number]) for number in range(len(tokenizer))}
    sentence = {number for number, text in texts.items() if _ends_sentence(text)}
    return EndTokens(frozenset({*sentence, eos}), frozenset(n for n in sentence if "\n" in texts[n]), eos)


def _ends_sentence(text: str) -> bool:
    closed = all(close in text for opening, close in _PAIRS if opening in text)
    return closed and any(end in text for end in _ENDS)


def eos_of(tokenizer: Any) -> int:
    """The end-of-sequence token. Raises DataError for a tokenizer that has none."""
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None:
        name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
        raise DataError(
            f"the tokenizer {name} has no end-of-sequence token, which must stand between documents; set one"
        )
    return int(eos)


def starts_with_bos(tokenizer: Any, bos: bool | None) -> int | None:
    """The token every row begins with, or None: as asked, or as the tokenizer does by itself where ``bos`` is None."""
    token = getattr(tokenizer, "bos_token_id", None)
    if bos and token is None:
        raise DataError("rows cannot begin with a beginning-of-sequence token: the tokenizer has none; pass bos=False")
    if bos is None:
        bos = token is not None and list(tokenizer("a")["input_ids"])[:1] == [token]
    return int(token) if bos and token is not None else None


def text_bytes(tokenizer: Any, ids: Sequence[int]) -> int:
    """Bytes of the text of ids in UTF-8, without special tokens."""
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8", "surrogatepass"))


class Packer:
    """Cuts streams of tokens, one a domain, into rows.

    :param ends: where rows may end. :param decode: text of token ids, to see whether a space follows.
    :param max_length: inputs of the model; a row has one id more.
    :param bos: the token every row begins with, if any.
    :param keep_all: lose no token: a row of a single id is not cut off (the official code drops it) and ``flush``
        gives the remainders. The rows are otherwise those of the official code.
    """

    def __init__(
        self,
        ends: EndTokens,
        decode: Callable[[list[int]], str],
        *,
        max_length: int = 1024,
        bos: int | None = None,
        keep_all: bool = True,
    ) -> None:
        self.bos, self._prefix = bos, [] if bos is None else [bos]
        self.room = max_length + 1 - len(self._prefix)
        if max_length < 1 or self.room < 1:
            raise DataError(f"max_length is {max_length}; a row needs at least one input behind its first token")
        self.ends, self.max_length, self.keep_all = ends, max_length, keep_all
        self._decode = decode
        self._pairs: dict[tuple[int, int], bool] = {}
        self._buffers: dict[str, list[int]] = {}
        #: By domain: ids thrown away, and by how much rows fall short of ``max_length`` + 1.
        self.lost: Counter[str] = Counter()
        self.cut_back: Counter[str] = Counter()

    @property
    def leftovers(self) -> dict[str, list[int]]:
        """What waits in each domain, fewer ids than a row takes."""
        return {domain: list(buffer) for domain, buffer in self._buffers.items()}

    def add(self, ids: Sequence[int], domain: str = "") -> list[list[int]]:
        """Take a document, with its end-of-sequence token; returns the rows that are full now."""
        buffer = self._buffers.setdefault(domain, [])
        buffer.extend(ids)
        self.cut_back[domain] += 0
        rows: list[list[int]] = []
        at = 0
        while len(buffer) - at >= self.room:
            size = self._cut(buffer, at)
            rows.extend(self._row(buffer[at : at + size], domain))
            at += size
        del buffer[:at]
        return rows

    def flush(self) -> list[tuple[str, list[int]]]:
        """Domain and row of every remainder; with ``keep_all=False`` none, and the remainders count as lost."""
        rows = []
        for domain, buffer in self._buffers.items():
            if buffer and self.keep_all:
                rows.append((domain, self._prefix + buffer))
            else:
                self.lost[domain] += len(buffer)
        self._buffers = {}
        return rows

    def _row(self, ids: list[int], domain: str) -> Iterator[list[int]]:
        row = self._prefix + ids
        self.cut_back[domain] += self.max_length + 1 - len(row)
        if len(row) > 1:
            yield row
        else:
            self.lost[domain] += len(ids)

    def _cut(self, buffer: list[int], at: int) -> int:
        """How many ids of ``buffer`` from ``at`` on make the next row."""
        first = 1 if self.keep_all and not self._prefix else 0
        for size in range(self.room, first, -1):
            token = buffer[at + size - 1]
            if token in self.ends.sentence and self._ends(token, buffer, at + size):
                return size
        return self.room

    def _ends(self, token: int, buffer: list[int], following: int) -> bool:
        if token == self.ends.eos or token in self.ends.newline or following >= len(buffer):
            return True
        pair = (token, buffer[following])
        if pair not in self._pairs:
            if len(self._pairs) >= _PAIRS_KEPT:
                self._pairs.clear()
            self._pairs[pair] = " " in self._decode(list(pair))
        return self._pairs[pair]


@dataclass(slots=True)
class PackReport:
    """What became of the documents; numbers count tokens unless they say otherwise.

    documents, empty_documents
        Documents packed, and those without any text.
    rows, duplicates
        Rows written, and rows left out because the same ids were there before.
    tokens_in
        Of the documents, with an end-of-sequence token each.
    tokens_kept
        In rows, without beginning-of-sequence tokens.
    tokens_lost, tokens_duplicate
        Thrown away as remainders and single ids, and with duplicate rows. ``tokens_in`` is the sum of all three.
    cut_back
        By how much rows that were cut at an end fall short of the longest.
    by_domain
        Rows, tokens (kept) and bytes of every domain.
    files, skipped
        Files that were read, and by their endings how many others the folder holds.
    """

    documents: int = 0
    empty_documents: int = 0
    rows: int = 0
    duplicates: int = 0
    tokens_in: int = 0
    tokens_kept: int = 0
    tokens_lost: int = 0
    tokens_duplicate: int = 0
    cut_back: int = 0
    by_domain: dict[str, dict[str, int]] = field(default_factory=dict)
    files: int = 0
    skipped: dict[str, int] = field(default_factory=dict)

    def count(self, row: Row, own: int) -> None:
        """Add a row that was kept, ``own`` of whose ids come from documents."""
        self.rows += 1
        self.tokens_kept += own
        entry = self.by_domain.setdefault(row.domain, {"rows": 0, "tokens": 0, "bytes": 0})
        entry["rows"] += 1
        entry["tokens"] += own
        entry["bytes"] += row.n_bytes or 0


def pack(
    documents: Any,
    tokenizer: Any,
    out: str | Path,
    *,
    max_length: int = 1024,
    bos: bool | None = None,
    flush_tail: bool = True,
    drop_duplicates: bool = False,
    shuffle: bool = False,
    seed: int = 233,
    rows_per_shard: int = 1_000_000,
    progress: Callable[[PackReport], None] | None = None,
) -> PackReport:
    """Pack documents into a folder of shards with domains and byte counts, and a report in ``corpus.json``.

    Killed and started again it ends well: a folder that holds the same documents packed in the same way is left as it
    is, and its report returned. Only files, datasets and lists can be known again.

    :param documents: of :func:`paperhooks_miniplm.read_documents`, or what it reads. Those without text are left out.
    :param max_length: inputs of the model; rows have one id more.
    :param bos: whether rows begin with the tokenizer's beginning-of-sequence token; None as it does by itself.
    :param flush_tail: write what is left of each domain as a last, shorter row, and lose no token; the official code
        loses these tokens, and single ids cut off on the way.
    :param drop_duplicates: leave out rows with the ids of an earlier row (about 100 bytes of memory a row).
    :param shuffle, seed: shuffle the rows of each shard; the official code does, with another generator.
    :param progress: called with the report so far, about once a second.
    :return: the report. The folder holds nothing that can be opened before all is written.
    :raises DataError: a tokenizer without an end-of-sequence token, or a folder that holds another corpus already or is
        used by another run.
    """
    packer = packer_of(tokenizer, max_length=max_length, bos=bos, keep_all=flush_tail)
    opened, vocabulary = read_documents(documents), vocabulary_size(tokenizer)
    shuffle_seed = seed if shuffle else None
    settings = {"max_length": max_length, "flush_tail": flush_tail, "bos": packer.bos, "eos": packer.ends.eos}
    settings |= {"drop_duplicates": drop_duplicates, "shuffle_seed": shuffle_seed, "vocabulary": vocabulary}
    settings |= {"rows_per_shard": rows_per_shard}
    digest, source = tokenizer_digest(tokenizer), opened.fingerprint()
    identity = {"made_by": "pack", "documents": source, "tokenizer": digest, "settings": settings}
    with ShardWriter(
        out, vocabulary=vocabulary, rows_per_shard=rows_per_shard, shuffle_seed=shuffle_seed,
        identity=identity if source and digest else None,
    ) as writer:  # fmt: skip
        if writer.known is not None:
            return PackReport(**writer.known["report"])
        report, last = PackReport(files=opened.files, skipped=opened.skipped), time.monotonic()
        for row in pack_rows(opened, tokenizer, packer, report, drop_duplicates):
            writer.add(row.ids, row.domain, row.n_bytes)
            if progress is not None and time.monotonic() - last >= 1:
                progress(report)
                last = time.monotonic()
        if not report.documents:
            raise DataError("there is no text to pack: the documents are none, or empty")
        writer.about = {"settings": settings, "report": asdict(report), **described(tokenizer)}
        # Without the rows left out, or in another order, a row goes on elsewhere than where the one before it stopped.
        writer.about["in_packing_order"] = not shuffle and not report.duplicates
    return report


def packer_of(tokenizer: Any, *, max_length: int = 1024, bos: bool | None = None, keep_all: bool = True) -> Packer:
    """A packer with the end tokens of a tokenizer; see :func:`pack`."""
    first = starts_with_bos(tokenizer, bos)
    return Packer(end_tokens(tokenizer), tokenizer.decode, max_length=max_length, bos=first, keep_all=keep_all)


def pack_rows(
    documents: Iterable[TextRecord],
    tokenizer: Any,
    packer: Packer,
    report: PackReport | None = None,
    drop_duplicates: bool = False,
) -> Iterator[Row]:
    """The rows of documents as they become full, then the remainders; ``report`` is kept up to date."""
    report = PackReport() if report is None else report
    seen: set[bytes] | None = set() if drop_duplicates else None
    for domain, ids in _cut_rows(documents, tokenizer, packer, report):
        own = len(ids) - (packer.bos is not None)
        if seen is not None and not _is_new(ids, seen):
            report.duplicates += 1
            report.tokens_duplicate += own
            continue
        row = Row(np.array(ids, dtype=np.int64), domain, text_bytes(tokenizer, ids))
        report.count(row, own)
        yield row
    report.tokens_lost, report.cut_back = packer.lost.total(), packer.cut_back.total()
    report.empty_documents += getattr(documents, "empty", 0)


def _cut_rows(
    documents: Iterable[TextRecord], tokenizer: Any, packer: Packer, report: PackReport
) -> Iterator[tuple[str, list[int]]]:
    for batch in _batches(documents):
        for document, ids in zip(batch, encode(tokenizer, [one.text for one in batch]), strict=True):
            report.documents += 1
            report.tokens_in += len(ids) + 1
            for row in packer.add([*ids, packer.ends.eos], document.domain):
                yield document.domain, row
    yield from packer.flush()


def _batches(documents: Iterable[TextRecord]) -> Iterator[list[TextRecord]]:
    """Documents in runs of some, or of one that is long: tokenizers are fastest on several and keep all of them."""
    batch: list[TextRecord] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document.text)
        if len(batch) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _is_new(ids: Sequence[int], seen: set[bytes]) -> bool:
    digest = hashlib.blake2b(np.array(ids, dtype=np.int64).tobytes(), digest_size=16).digest()
    new = digest not in seen
    seen.add(digest)
    return new
