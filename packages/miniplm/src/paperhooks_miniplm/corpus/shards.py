"""Shards: rows of a corpus read by memory map from pairs ``data_K.bin`` and ``data_K.idx``; see :mod:`shard_files`."""

from __future__ import annotations

import bisect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
from paperhooks import DataError
from paperhooks.io import hash_json, local_path, read_tensors

from paperhooks_miniplm.algorithm import Array
from paperhooks_miniplm.corpus.corpus_file import check_complete, check_files, file_digests, read_corpus_file
from paperhooks_miniplm.corpus.rows import Fingerprinted, Row
from paperhooks_miniplm.corpus.shard_files import SHARD_FILE, read_header
from paperhooks_miniplm.corpus.stage import STAGE

__all__ = ["Shards"]

logger = logging.getLogger(__name__)

#: Shards held open at a time: a map takes a file descriptor, of which a process often has 1,024.
_OPEN: Final = 128


class Shards(Fingerprinted):
    """Rows of a folder of shards, read by memory map; see :class:`paperhooks_miniplm.RowSource`.

    :param min_shard, max_shard: first shard, and the one before which to stop.
    :param min_offset, max_offset: first row, and the one before which to stop, counted within these shards.
    :param min_ratio, max_ratio: the same as parts of all their rows, rounded down; not together with offsets.
    :param allow_gap: let the first missing shard end the corpus, as the official code does, although there are later
        ones. A last ``.bin`` without ``.idx`` is never an error: the official code leaves one.
    :raises DataError: a missing or damaged file, or limits that make no sense.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        min_shard: int = 0,
        max_shard: int | None = None,
        min_offset: int = 0,
        max_offset: int | None = None,
        min_ratio: float | None = None,
        max_ratio: float | None = None,
        allow_gap: bool = False,
    ) -> None:
        self.folder = local_path(folder)
        numbers = _shard_numbers(self.folder, min_shard, max_shard, allow_gap)
        self._known = read_corpus_file(self.folder)
        if self._known is not None:
            to_the_end = max_shard is None and not allow_gap
            check_complete(self.folder, self._known, min_shard, None if to_the_end else numbers[-1] + 1)
        self._shards = [_Shard(self.folder, number) for number in numbers]
        self._opened: dict[int, _Maps] = {}
        self._starts = [0, *np.cumsum([len(shard) for shard in self._shards]).tolist()]
        total = self._starts[-1]
        if min_ratio is not None or max_ratio is not None:
            if min_offset or max_offset is not None:
                raise DataError("give limits as offsets or as ratios, not both")
            min_offset, max_offset = _from_ratios(total, min_ratio, max_ratio)
        if min_offset < 0 or (max_offset is not None and max_offset < 0):
            raise DataError(f"the offsets {min_offset} and {max_offset} must not be negative")
        self._first = min(min_offset, total)
        self._last = max(self._first, total if max_offset is None else min(max_offset, total))

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the ids in the files: of the first one."""
        return self._shards[0].dtype

    @property
    def packed_with(self) -> tuple[str, str] | None:
        """Digest and name of the tokenizer that the ids are of, as ``corpus.json`` says; None where nothing says it."""
        found = (self._known or {}).get("tokenizer")
        return None if found is None else (found["digest"], found["name"])

    @property
    def in_packing_order(self) -> bool:
        """Whether each row goes on where the row before it in its domain stopped, as ``corpus.json`` says."""
        return bool((self._known or {}).get("in_packing_order"))

    def __len__(self) -> int:
        return int(self._last - self._first)

    def read(self, rows: Sequence[int]) -> list[Row]:
        """The given rows, in the given order. Raises DataError for one that does not exist."""
        return [self._row(int(row)) for row in rows]

    def _row(self, row: int) -> Row:
        if not 0 <= row < len(self):
            raise DataError(f"{self.name} has no row {row}; its rows are 0 to {len(self) - 1}")
        number = bisect.bisect_right(self._starts, row + self._first) - 1
        return self._maps(number).row(row + self._first - self._starts[number])

    def _maps(self, number: int) -> _Maps:
        if number not in self._opened:
            if len(self._opened) >= _OPEN:
                del self._opened[next(iter(self._opened))]
            self._opened[number] = self._shards[number].open()
        return self._opened[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": {}}

    def lengths(self) -> Array:
        """Ids of each row, int64 [N]."""
        return self._joined([shard.index()[0].astype(np.int64) for shard in self._shards])

    def domains(self) -> Array | None:
        """Domain of each row, str objects [N], or None where the folder does not say."""
        if not any(shard.about.exists() for shard in self._shards):
            return None
        found = self._joined([shard.open().domains() for shard in self._shards])
        return found if any(found) else None

    def _joined(self, parts: Sequence[Array]) -> Array:
        return np.concatenate(parts)[self._first : self._last]

    @cached_property
    def _fingerprint(self) -> dict[str, Any]:
        """Sizes, and hashes of the bytes; of a ``.bin`` above 64 MiB of pieces that make up as much.

        Raises DataError for a file that is not what ``corpus.json`` says of it.
        """
        files = [file for shard in self._shards for file in (shard.bin, shard.idx, shard.about) if file.exists()]
        digests = file_digests(files)
        if self._known is not None:
            check_files(self.folder, self._known, digests)
        size = sum(shard.bin.stat().st_size for shard in self._shards)
        return {"rows": len(self), "first": int(self._first), "bytes": size, "sha256": hash_json(digests)}


def _from_ratios(total: int, first: float | None, last: float | None) -> tuple[int, int]:
    first, last = 0.0 if first is None else first, 1.0 if last is None else last
    if not 0 <= first <= last <= 1:
        raise DataError(f"the ratios are {first} and {last}; expected 0 <= min_ratio <= max_ratio <= 1")
    return int(total * first), int(total * last)


def _shard_numbers(folder: Path, first: int, last: int | None, allow_gap: bool) -> list[int]:
    """Numbers of the shards to read, which follow each other."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; expected one with data_0.bin, data_0.idx and so on")
    if first < 0 or (last is not None and last <= first):
        raise DataError(f"no shard is from {first} on and before {last}; expected 0 <= min_shard < max_shard")
    found = [match for file in folder.iterdir() if (match := SHARD_FILE.fullmatch(file.name))]
    bins, idxs = ({int(m[1]) for m in found if m[2] == kind} for kind in ("bin", "idx"))
    number = first
    while number in idxs and (last is None or number < last):
        if number not in bins:
            raise DataError(f"{folder}/data_{number}.idx has no data_{number}.bin; copy it too")
        number += 1
    if last is None or number < last:
        later = [k for k in idxs if k > number and (last is None or k < last)]
        _check_end(folder, number, number in bins, min(later, default=None), allow_gap)
    if number == first:
        hint = "; a run that was to write it was stopped, start it again" if (folder / STAGE).exists() else ""
        raise DataError(f"{folder} has no data_{first}.idx; expected data_{first}.bin and data_{first}.idx{hint}")
    return list(range(first, number))


def _check_end(folder: Path, number: int, lone: bool, later: int | None, allow_gap: bool) -> None:
    if later is not None:
        what = f"data_{number}.idx is missing" if lone else f"data_{number}.bin and .idx are missing"
        if not allow_gap:
            raise DataError(f"{folder}: {what}, but there is data_{later}.idx; copy it, or end there by allow_gap=True")
        logger.warning("%s: %s; the corpus ends there, later shards are not read", folder, what)
    elif lone and (size := (folder / f"data_{number}.bin").stat().st_size):
        logger.warning("%s/data_%d.bin has no .idx and is ignored with its %d bytes", folder, number, size)


class _Shard:
    """One pair of files, which was checked."""

    def __init__(self, folder: Path, number: int) -> None:
        self.bin, self.idx = folder / f"data_{number}.bin", folder / f"data_{number}.idx"
        self.about = folder / f"rows_{number}.safetensors"
        self.dtype, self.rows, documents, self._header = read_header(self.idx)
        needed, size = self._header + 12 * self.rows + 8 * documents, self.idx.stat().st_size
        if size != needed:
            raise DataError(f"{self.idx} has {size} bytes, its {self.rows} rows take {needed}; copy it again")
        self._check(self.open())

    def _check(self, maps: _Maps) -> None:
        lengths, offsets, size = maps.lengths, maps.offsets, len(maps.content)
        if self.rows and min(int(lengths.min()), int(offsets.min())) < 0:
            raise DataError(f"{self.idx} holds negative lengths or offsets; copy it again")
        # Offsets on their own too: added to, a damaged one may overflow.
        ends = np.maximum(offsets, offsets + lengths * np.int64(self.dtype.itemsize))
        needed = int(ends.max(initial=0))
        if size < needed:
            raise DataError(f"{self.bin} has {size} bytes, its rows take {needed}; it was cut, copy it again")

    def __len__(self) -> int:
        return self.rows

    def index(self) -> tuple[Array, Array]:
        """Lengths and offsets of the rows."""
        index, middle = _mapped(self.idx), self._header + 4 * self.rows
        lengths, offsets = index[self._header : middle], index[middle : middle + 8 * self.rows]
        return lengths.view("<i4"), offsets.view("<i8")

    def open(self) -> _Maps:
        lengths, offsets = self.index()
        return _Maps(self.dtype, lengths, offsets, _mapped(self.bin), *_read_about(self.about, self.rows))


@dataclass(frozen=True, slots=True, eq=False)
class _Maps:
    """The content of a shard; ids and index are read when they are used."""

    dtype: np.dtype[Any]
    lengths: Array
    offsets: Array
    content: Array
    names: list[str]
    codes: Array | None
    n_bytes: Array | None

    def row(self, row: int) -> Row:
        start = int(self.offsets[row])
        stop = start + int(self.lengths[row]) * self.dtype.itemsize
        ids = self.content[start:stop].view(self.dtype).astype(np.int64)
        if self.codes is None or self.n_bytes is None:
            return Row(ids)
        n_bytes = int(self.n_bytes[row])
        return Row(ids, self.names[self.codes[row]], n_bytes if n_bytes >= 0 else None)

    def domains(self) -> Array:
        codes = np.zeros(len(self.lengths), dtype=np.int32) if self.codes is None else self.codes
        return np.array(self.names or [""], dtype=object)[codes]


def _mapped(file: Path) -> Array:
    # Nothing cannot be mapped.
    return np.asarray(np.memmap(file, mode="r")) if file.stat().st_size else np.empty(0, dtype=np.uint8)


def _read_about(file: Path, rows: int) -> tuple[list[str], Any, Any]:
    """Names of domains, and for each row the number of its name and its bytes; nothing without the file."""
    if not file.exists():
        return [], None, None
    header, tensors = read_tensors(file, "domains and bytes of rows")
    try:
        names, codes, n_bytes = header["domains"], tensors["domain"].numpy(), tensors["n_bytes"].numpy()
    except KeyError as error:
        raise DataError(f"{file} has no {error} of rows; copy it again") from error
    inside = len(codes) == len(n_bytes) == rows and (not rows or 0 <= codes.min() <= codes.max() < len(names))
    if not inside:
        raise DataError(f"{file} does not fit the {rows} rows beside it; copy both again, or delete it to do without")
    return names, codes, n_bytes
