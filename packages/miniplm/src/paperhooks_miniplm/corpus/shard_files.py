"""Files of shards and their writer: pairs ``data_K.bin`` and ``data_K.idx``, as of the official code and Megatron-LM.

``.bin`` holds the ids of all rows one after another, ``.idx`` says how long each row is and where it begins (section
2.2). The format has no place for what a row is about, so ``rows_K.safetensors`` may lie beside a pair: ``domain``,
int32 [n], numbers of the names in its header, and ``n_bytes``, int64 [n], -1 where unknown.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import uuid
from array import array
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import FolderLock, differences, local_path, plain, write_tensors

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.corpus_file import (
    CORPUS_FILE,
    check_complete,
    check_files,
    file_digests,
    read_corpus_file,
    write_corpus_file,
)
from paperhooks_miniplm.corpus.rows import Row, token_ids
from paperhooks_miniplm.corpus.stage import Stage

__all__ = ["SHARD_FILE", "ShardWriter", "best_dtype", "holds_shards", "of_corpus", "read_header", "write_shards"]

_MAGIC: Final = b"MMIDIDX\x00\x00"
_HEADER: Final = struct.Struct("<9sQBQQ")  # magic, version, code of the dtype, rows, documents
_VERSION: Final = 1
_DTYPES: Final = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
_CODES: Final = {np.dtype(name): code for code, name in _DTYPES.items()}
SHARD_FILE: Final = re.compile(r"data_(0|[1-9]\d*)\.(bin|idx)")
ROWS_FILE: Final = re.compile(r"rows_\d+\.safetensors")
#: From this vocabulary on ids take four bytes.
_WIDE: Final = 65_500


def best_dtype(vocabulary: int | None) -> np.dtype[Any]:
    """uint16 where all ids of a vocabulary of this size fit with room to spare, int32 otherwise or where unknown."""
    return np.dtype("<u2" if vocabulary is not None and vocabulary < _WIDE else "<i4")


def holds_shards(folder: str | Path) -> bool:
    """Whether ``folder`` holds a file of a shard."""
    return Path(folder).is_dir() and any(SHARD_FILE.fullmatch(file.name) for file in Path(folder).iterdir())


def of_corpus(name: str) -> bool:
    """Whether a file in a folder of shards belongs to these; hidden ones may be anybody's."""
    pair = SHARD_FILE.fullmatch(name) or ROWS_FILE.fullmatch(name)
    return pair is not None or name in (CORPUS_FILE, "run.lock") or name.startswith(".")


def read_header(file: Path) -> tuple[np.dtype[Any], int, int, int]:
    """Of an ``.idx`` file: dtype of the ids, rows, documents and the length of its header. Raises DataError."""
    with file.open("rb") as handle:
        head = handle.read(_HEADER.size)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        raise DataError(f"{file} does not begin with MMIDIDX; it is no index of a shard, or was cut")
    _, version, code, rows, documents = _HEADER.unpack(head)
    if version != _VERSION:
        raise DataError(f"{file} has version {version}; expected {_VERSION}, write it again with a tool of that format")
    if code not in _DTYPES:
        raise DataError(f"{file} says dtype {code}, which is no integer; expected one of {sorted(_DTYPES)}")
    return np.dtype(_DTYPES[code]), rows, documents, _HEADER.size


class ShardWriter:
    """Writes shards row by row; the files appear when all is written, so that half a corpus never looks finished.

    Only what the index says of the shard being written is in memory. To be used in a ``with`` block: an error in it
    leaves the folder as it was. Files are byte for byte those of the official code, but for its empty last ``.bin``.
    Killed at any moment and started again, it puts in place what was complete, or begins anew.

    :param folder: made when missing, and held while it is written; must not hold shards, unless of the same identity.
    :param vocabulary: ids must be below it; decides between uint16 and int32 (:func:`best_dtype`).
    :param dtype: another integer type of the files.
    :param shuffle_seed: shuffle the rows of each shard, by its index alone.
    :param identity: what the corpus is made from, as plain data; kept in ``corpus.json`` with :attr:`about`.
    :raises DataError: a folder that holds another corpus, is used by another process or cannot be written, or another
        dtype.

    about
        What else ``corpus.json`` is to say; None and no identity make no such file.
    known
        What ``corpus.json`` says where the folder holds the corpus already; then there is nothing to add.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        vocabulary: int | None = None,
        dtype: Any = None,
        rows_per_shard: int = 1_000_000,
        shuffle_seed: int | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder = local_path(folder)
        self.dtype = best_dtype(vocabulary) if dtype is None else np.dtype(dtype).newbyteorder("<")
        if self.dtype not in _CODES:
            raise DataError(f"ids cannot be stored as {self.dtype}; expected one of {', '.join(map(str, _CODES))}")
        if rows_per_shard < 1:
            raise DataError(f"rows_per_shard is {rows_per_shard}; it must be at least 1")
        self.largest = min(int(np.iinfo(self.dtype).max), (vocabulary or 1 << 63) - 1)
        self.rows_per_shard, self.shuffle_seed = rows_per_shard, shuffle_seed
        self.identity = None if identity is None else plain(identity)
        self.about: dict[str, Any] | None = None
        self.known: dict[str, Any] | None = None
        self.rows = self._finished = 0
        self._names: dict[str, int] = {}
        self._bin: IO[bytes] | None = None
        self._reset()
        self._stage = Stage(self.folder, "data_0.idx")
        # A name of its own: the processes of a launch cannot share one corpus.
        self._lock = FolderLock(self.folder, launch=uuid.uuid4().hex)
        self._lock.acquire()
        try:
            self._begin()
        except BaseException as error:
            self._lock.release()
            if isinstance(error, OSError):
                raise self._unwritable(error) from error
            raise

    def _begin(self) -> None:
        self._stage.settle()
        self.known = self._same_corpus()
        if self.known is None:
            self._stage.begin()
        else:
            self._finished = sum(name.endswith(".bin") for name in self.known["files"])

    def _same_corpus(self) -> dict[str, Any] | None:
        """What is known of a corpus of the same identity that is there, None where there is none."""
        known = read_corpus_file(self.folder)
        if known is None and not _corpus_files(self.folder):
            return None
        if known is None or known["identity"] is None or self.identity is None:
            raise self._refused("")
        if odd := differences(known["identity"], self.identity):
            raise self._refused(f" that was made otherwise ({'; '.join(odd)})")
        check_complete(self.folder, known)
        check_files(self.folder, known, file_digests(_corpus_files(self.folder)))
        return known

    def _refused(self, how: str) -> DataError:
        return DataError(
            f"{self.folder} holds a corpus already{how}; name a new folder, or delete its files data_*, rows_* and "
            f"{CORPUS_FILE}"
        )

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.folder} cannot be written: {error.strerror or error}")

    def _reset(self) -> None:
        self._lengths, self._codes, self._n_bytes, self._said = array("i"), array("i"), array("q"), False

    def add(self, ids: Any, domain: str = "", n_bytes: int | None = None) -> None:
        """Append a row: integers [n]. Raises DataError for other things, and for ids that do not fit, with the row."""
        found = token_ids(f"row {self.rows}", ids)
        if len(found) and not 0 <= int(found.min()) <= int(found.max()) <= self.largest:
            wrong = found[(found < 0) | (found > self.largest)][0]
            raise DataError(f"row {self.rows} holds the id {wrong}; expected 0 to {self.largest}")
        try:
            if self._bin is None:  # not before there is a row, which would leave an empty file
                self._bin = (self._stage.path / f"data_{self._finished}.bin").open("wb")
            self._bin.write(found.astype(self.dtype).tobytes())
            self._note(len(found), domain, n_bytes)
        except OSError as error:
            raise self._unwritable(error) from error

    def _note(self, length: int, domain: str, n_bytes: int | None) -> None:
        self._lengths.append(length)
        self._codes.append(self._names.setdefault(domain, len(self._names)))
        self._n_bytes.append(-1 if n_bytes is None else n_bytes)
        self._said |= domain != "" or n_bytes is not None
        self.rows += 1
        if len(self._lengths) == self.rows_per_shard:
            self._finish()

    def _finish(self) -> None:
        if self._bin is not None:
            _sync(self._bin)
        self._bin, number = None, self._finished
        order = np.arange(len(self._lengths))
        if self.shuffle_seed is not None:
            order = np.random.default_rng([self.shuffle_seed, number]).permutation(order)
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        ends = np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
        offsets = ends - lengths * np.int64(self.dtype.itemsize)
        with (self._stage.path / f"data_{number}.idx").open("wb") as handle:
            handle.write(_HEADER.pack(_MAGIC, _VERSION, _CODES[self.dtype], len(lengths), 1))
            handle.write(lengths[order].astype("<i4").tobytes() + offsets[order].astype("<i8").tobytes() + bytes(8))
            _sync(handle)
        if self._said:
            self._write_about(number, order)
        self._finished += 1
        self._reset()

    def _write_about(self, number: int, order: Array) -> None:
        codes, n_bytes = np.frombuffer(self._codes, dtype=np.int32), np.frombuffer(self._n_bytes, dtype=np.int64)
        tensors: dict[str, Array] = {"domain": codes[order], "n_bytes": n_bytes[order]}
        write_tensors(self._stage.path / f"rows_{number}.safetensors", tensors, {"domains": list(self._names)})

    def close(self) -> list[Path]:
        """Finish the last shard and put all files in place; returns the ``.bin`` files, none without a row."""
        if self._lock.held and self.known is None:
            try:
                self._commit()
            except OSError as error:
                raise self._unwritable(error) from error
        self._lock.release()
        return [self.folder / f"data_{number}.bin" for number in range(self._finished)]

    def _commit(self) -> None:
        if self._bin is not None:
            self._finish()
        if self.identity is not None or self.about is not None:
            write_corpus_file(self._stage.path, self.identity, self.about or {})
        self._lock.confirm()
        if _corpus_files(self.folder):
            raise self._refused("")
        self._stage.commit()

    def abort(self) -> None:
        """Throw away what was written, unless it is complete."""
        if self._bin is not None:
            with contextlib.suppress(OSError):
                self._bin.close()
            self._bin = None
        if self._lock.held:
            self._stage.discard()
            self._lock.release()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abort()


def _corpus_files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if SHARD_FILE.fullmatch(file.name) or ROWS_FILE.fullmatch(file.name)]


def _sync(handle: IO[bytes]) -> None:
    handle.flush()
    os.fsync(handle.fileno())
    handle.close()


def write_shards(
    rows: Iterable[Any],
    folder: str | Path,
    *,
    vocabulary: int | None = None,
    rows_per_shard: int = 1_000_000,
    dtype: Any = None,
    identity: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write rows, lists of ids or :class:`Row` objects, as shards; returns the ``.bin`` files. See ShardWriter.

    :param about: what ``corpus.json`` is to say beside the identity.
    """
    options = {"vocabulary": vocabulary, "dtype": dtype, "rows_per_shard": rows_per_shard, "identity": identity}
    with ShardWriter(folder, **options) as writer:
        if writer.known is None:
            for row in rows:
                writer.add(*((row.ids, row.domain, row.n_bytes) if isinstance(row, Row) else (row,)))
            writer.about = None if about is None else dict(about)
    return writer.close()
