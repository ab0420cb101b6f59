"""Rows of records: texts are tokenized as they are read. Records at any place, and streams that are read in order."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import Record, Records, file_digest, from_hub, list_cell, plain
from paperhooks.models import tokenizer_digest, vocabulary_digest

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.documents import Fields, TextRecord, named_files, records_of
from paperhooks_miniplm.corpus.rows import Fingerprinted, Row, token_ids

__all__ = [
    "RecordRows",
    "RowMaker",
    "StreamRows",
    "described",
    "encode",
    "has_ids",
    "vocabulary_size",
]

_BATCH: Final = 256
#: Records that tell one stream from another.
_PEEKED: Final = 16


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without special tokens, also of a tokenizer that adds them although told not to."""
    found = tokenizer(["", *texts], add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    stubborn = set(found[0])
    return [_stripped(list(ids), stubborn) if stubborn else list(ids) for ids in found[1:]]


def _stripped(ids: list[int], added: set[int]) -> list[int]:
    start = 1 if ids and ids[0] in added else 0
    return ids[start : len(ids) - 1 if len(ids) > start and ids[-1] in added else len(ids)]


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer, which may leave numbers out."""
    known: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
    return max(len(tokenizer), 1 + max(known.values(), default=-1))


def described(tokenizer: Any) -> dict[str, Any]:
    """What ``corpus.json`` says of the tokenizer that made the ids; nothing of one that cannot be told from others."""
    digest = vocabulary_digest(tokenizer)
    name = str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)
    return {} if digest is None else {"tokenizer": {"digest": digest, "name": name}}


class RowMaker:
    """Makes rows of records: ids as they are, texts tokenized."""

    def __init__(self, tokenizer: Any, fields: Fields, add_bos: bool, add_eos: bool | None) -> None:
        self.tokenizer, self.fields = tokenizer, fields
        if add_eos is None:
            add_eos = getattr(tokenizer, "eos_token_id", None) is not None
        self._first = [_special(tokenizer, "bos")] if add_bos else []
        self._last = [_special(tokenizer, "eos")] if add_eos else []

    def rows(self, records: Sequence[Record]) -> list[Row]:
        """Rows of records, in their order; the texts among them are tokenized together."""
        texts = {n: self._text(*one) for n, one in enumerate(records) if not has_ids(one[1])}
        encoded = dict(zip(texts, encode(self.tokenizer, list(texts.values())), strict=True)) if texts else {}
        return [self._row(*one, texts.get(n), encoded.get(n)) for n, one in enumerate(records)]

    def _text(self, where: str, record: Any) -> str:
        text = self.fields.text_of(where, record)
        if self.tokenizer is None:
            raise DataError(f"{where}: is text; pass tokenizer=, or token ids as input_ids")
        return text

    def domain(self, where: str, record: Any) -> str:
        """The domain of a record, or ""."""
        return record.domain if isinstance(record, Row) else self.fields.domain_of(where, record)

    def _row(self, where: str, record: Any, text: str | None, encoded: list[int] | None) -> Row:
        if isinstance(record, Row):
            return record
        domain = self.domain(where, record)
        if text is not None and encoded is not None:
            ids = [*self._first, *encoded, *self._last]
            return Row(np.array(ids, dtype=np.int64), domain, len(text.encode()))
        given: Any = record
        n_bytes = None
        if isinstance(record, Mapping):
            given, n_bytes = record["input_ids"], _bytes(where, record.get("n_bytes"))
            if isinstance(given, str) and (cell := list_cell(given)) is not None:  # of a table
                given = cell
            text = self.fields.text_beside(record)
        if n_bytes is None and text is not None:
            n_bytes = len(text.encode("utf-8", "surrogatepass"))
        return Row(token_ids(where, given), domain, n_bytes)

    def describe(self, ids: bool) -> dict[str, Any]:
        """What makes rows of records; a tokenizer has no part in it where the records hold ``ids``."""
        found: dict[str, Any] = {"text": self.fields.text, "domain": self.fields.domain}
        if ids:
            return found | {"first": [], "last": [], "tokenizer": None}
        digest = None if self.tokenizer is None else tokenizer_digest(self.tokenizer)
        return found | {"first": self._first, "last": self._last, "tokenizer": digest}


def _bytes(where: str, value: Any) -> int | None:
    """A count of bytes; tables hold it as text, and nothing where it is not known."""
    if value is None or value == "":
        return None
    found = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(found, int) or isinstance(found, bool) or found < 0:
        raise DataError(f"{where}: 'n_bytes' is {value!r}; expected a number of bytes")
    return found


def _special(tokenizer: Any, which: str) -> int:
    token = getattr(tokenizer, f"{which}_token_id", None)
    if token is None:
        raise DataError(f"add_{which} needs a tokenizer with a token {which}, which this one has not")
    return int(token)


def has_ids(record: Any) -> bool:
    """Whether a record holds token ids and no text to tokenize."""
    if isinstance(record, Mapping):
        return record.get("input_ids") is not None
    return not isinstance(record, str | TextRecord)


class _Made(Fingerprinted):
    """Rows that are made of records."""

    _maker: RowMaker

    @property
    def made_with(self) -> dict[str, Any]:
        """See :func:`described`; nothing of records that hold ids."""
        return described(self._maker.tokenizer) if self.fingerprint()["tokenizer"] else {}


class RecordRows(_Made):
    """Rows of records that can be read at any place, one a record; see :class:`paperhooks_miniplm.RowSource`.

    Texts are tokenized when they are read; nothing is kept of them but, once asked for, lengths and domains.
    """

    def __init__(self, records: Records, maker: RowMaker, name: str) -> None:
        self.name = name
        self._records, self._maker = records, maker
        self._lengths: Array | None = None

    def __len__(self) -> int:
        return len(self._records)

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The given rows, in the given order. Raises DataError for one that does not exist or cannot be used."""
        wanted = [int(row) for row in rows]
        wrong = next((row for row in wanted if not 0 <= row < len(self)), None)
        if wrong is not None:
            raise DataError(f"{self.name} has no row {wrong}; its rows are 0 to {len(self) - 1}")
        return self._maker.rows(self._records.get(wanted))

    @property
    def counted(self) -> bool:
        """Whether :meth:`lengths` is known without reading all records."""
        return self._lengths is not None

    def lengths(self) -> Array:
        """Ids of each row, int64 [N]; of texts they are counted once, which takes tokenizing all of them."""
        if self._lengths is None:
            found = [len(row.ids) for part in self._parts() for row in self.read(part)]
            self._lengths = np.array(found, dtype=np.int64)
        return self._lengths

    def domains(self) -> Array | None:
        """Domain of each row, str objects [N], or None where no record says; all records are read for it, once."""
        return self._domains

    @cached_property
    def _domains(self) -> Array | None:
        names: dict[str, str] = {}
        found = np.empty(len(self), dtype=object)
        for part in self._parts():
            said = (self._maker.domain(*one) for one in self._records.get(part))
            found[part.start : part.stop] = [names.setdefault(name, name) for name in said]
        return found if any(names) else None

    def _parts(self) -> Iterator[range]:
        return (range(start, min(start + _BATCH, len(self))) for start in range(0, len(self), _BATCH))

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Hashes that change when the records or the tokenizer change."""
        first: list[Record] = self._records.get([0]) if len(self) else []
        ids = bool(first) and has_ids(first[0][1])
        return {"rows": len(self), "records": self._records.fingerprint(), **self._maker.describe(ids)}


class StreamRows(_Made):
    """Rows of a source that can only be read in order, one a record; a :class:`~paperhooks_miniplm.RowSource`.

    What lies before the wanted rows is read over and not tokenized, and a dataset of the library datasets is asked to
    skip it. Going back begins anew, so that rows are cheap to :meth:`read` in ascending order only. ``len`` raises
    TypeError until the end was reached; :meth:`lengths` and :meth:`domains` read to the end once and keep what they
    found.

    :param source: as for :func:`read_documents`; also iterables of ids and :class:`Row`. One that can be read only
        once, as a generator, cannot go back.
    :param name: what to call it; with its first records what a scoring folder knows it by, unless it is a local file,
        which is known by its content. :param decides: what else it is known by, as plain data.
    :param tokenizer, text_field, domain_field, add_bos, add_eos: as for :func:`open_rows`.
    """

    def __init__(
        self,
        source: Any,
        tokenizer: Any = None,
        *,
        name: str | None = None,
        decides: Any = None,
        text_field: str = "text",
        domain_field: str = "domain",
        add_bos: bool = False,
        add_eos: bool | None = None,
    ) -> None:
        self._decides = {} if decides is None else {"of": plain(decides)}
        self.name = name or (str(source) if isinstance(source, str | Path) else f"a stream ({type(source).__name__})")
        self._files = named_files(source)
        self._source = from_hub(source) if isinstance(source, str) and self._files is None else source
        self._maker = RowMaker(tokenizer, Fields(text_field, domain_field), add_bos, add_eos)
        self._cursor: Iterator[Record] | None = None
        self._position, self._sure = 0, True
        self._length: int | None = None
        self._facts: tuple[Array, Array | None] | None = None

    def __len__(self) -> int:
        if self._length is None:
            raise TypeError(f"{self.name} has no length before it was read to its end")
        return self._length

    def __iter__(self) -> Iterator[Row]:
        return self.iterate()

    def iterate(self, start: int = 0, stop: int | None = None) -> Iterator[Row]:
        """Rows ``start`` to ``stop``, or to the end; fewer where it ends before. Raises DataError as reading does."""
        if start < 0 or (stop is not None and stop < start):
            raise DataError(f"rows {start} to {stop} of {self.name} do not exist; expected 0 <= start <= stop")
        while stop is None or start < stop:
            self._move(start)  # another reader may have moved it between two parts
            records = self._take(_BATCH if stop is None else min(_BATCH, stop - start))
            if not records:
                return
            start += len(records)
            yield from self._maker.rows(records)

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The given rows, in the given order. Raises DataError for one that does not exist, or as reading does."""
        wanted = sorted({int(row) for row in rows})
        found: dict[int, Row] = {}
        for first, last in _runs(wanted):
            found.update(zip(range(first, last + 1), self.iterate(first, last + 1), strict=False))
        missing = next((row for row in wanted if row not in found), None)
        if missing is not None:
            raise DataError(f"{self.name} has no row {missing}")
        return [found[int(row)] for row in rows]

    def lengths(self) -> Array:
        """Ids of each row, int64 [N]."""
        return self._measured()[0]

    def domains(self) -> Array | None:
        """Domain of each row, str objects [N], or None where no record says."""
        return self._measured()[1]

    def _measured(self) -> tuple[Array, Array | None]:
        if self._facts is None:
            names: dict[str, str] = {}
            lengths, domains = array("q"), []
            for row in self.iterate():
                lengths.append(len(row.ids))
                domains.append(names.setdefault(row.domain, row.domain))
            said = np.array(domains, dtype=object) if any(names) else None
            self._facts = np.array(lengths, dtype=np.int64), said
        return self._facts

    def _move(self, start: int) -> None:
        if self._cursor is None or self._position > start:
            self._begin(start)
        while self._position < start and self._take(min(_BATCH, start - self._position)):
            pass

    def _begin(self, start: int) -> None:
        source, self._position, self._sure = self._source, 0, True
        if self._cursor is not None and isinstance(source, Iterator):
            raise DataError(f"{self.name} can be read only once; give a file, a dataset or a list to read it again")
        if start and hasattr(source, "skip"):
            # It may end before, and then there is nothing that tells where.
            source, self._position, self._sure = source.skip(start), start, False
        self._cursor = records_of(source, self._files, self._maker.fields, self._position)

    def _take(self, count: int) -> list[Record]:
        found = list(islice(self._cursor or (), count))
        self._position += len(found)
        self._sure = self._sure or bool(found)
        if len(found) < count and self._sure:
            self._length = self._position
        return found

    def __getstate__(self) -> dict[str, Any]:
        if isinstance(self._source, Iterator):
            raise TypeError(f"{self.name} can be read only once, so it cannot be copied; give a file or a dataset")
        return {**self.__dict__, "_cursor": None, "_position": 0, "_sure": True}

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """What makes its rows, and what is known of it: a local file's content, else its name and its beginning."""
        first = self._peeked()
        digest = hashlib.sha256("\n".join(_as_text(record) for _, record in first).encode("utf-8", "replace"))
        known = {"begins": digest.hexdigest(), **self._maker.describe(bool(first) and has_ids(first[0][1]))}
        if self._files is not None:
            return {"files": [file_digest(file) for file in self._files.files], **known}
        return {"stream": self.name, **self._decides, **known}

    def _peeked(self) -> list[Record]:
        """The first records; of what can be read only once they stay to be read."""
        if not isinstance(self._source, Iterator):
            return list(islice(records_of(self._source, self._files, self._maker.fields), _PEEKED))
        if self._cursor is not None:
            raise DataError(f"{self.name} was read from already; score it before anything else, or give a file")
        self._begin(0)
        first: list[Record] = list(islice(self._cursor or (), _PEEKED))
        self._cursor = chain(first, self._cursor or ())
        return first


def _as_text(record: Any) -> str:
    if isinstance(record, Row):
        return f"{record.ids.tolist()} {record.domain}"
    # Escaped, for a record may hold halves of characters in fields that are not used.
    return json.dumps(plain(record), sort_keys=True)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    for _, run in groupby(enumerate(rows), lambda pair: pair[1] - pair[0]):
        numbers = [row for _, row in run]
        yield numbers[0], numbers[-1]
