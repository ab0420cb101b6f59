"""Tensors with a header in one safetensors file, written so that equal content gives equal bytes and damage shows.

The header is plain data, kept as JSON with sorted keys; in it stands a SHA-256 of the whole file, taken with zeros in
the place of the digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError
from paperhooks.io.files import atomic_path, plain

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

__all__ = ["Column", "read_header", "read_tensors", "tensor_columns", "write_tensors"]

_KEY: Final = "paperhooks"
_DIGEST: Final = "sha256"
_NONE: Final = "0" * 64
#: No header is longer; safetensors has the same limit.
_LONGEST: Final = 100_000_000
#: Types of columns, as numpy and as safetensors call them.
_TYPES: Final = {"f8": "F64", "i8": "I64", "b1": "BOOL"}


def write_tensors(path: Path, tensors: Mapping[str, Tensor | np.ndarray[Any, Any]], header: Mapping[str, Any]) -> None:
    """Write a file atomically.

    Tensors that lie on the CPU in row-major order, each in memory of its own, are written from there; of all others
    there is a copy until the file is written.

    :param tensors: torch tensors or numpy arrays of any shape, by name.
    :param header: plain data; the key ``sha256`` is taken.
    :raises DataError: it cannot be written; what stood there stays.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    stored, seen = {}, set()
    for name, tensor in tensors.items():
        own = torch.as_tensor(tensor).detach().cpu().contiguous()
        memory = own.untyped_storage().data_ptr()
        stored[name] = own.clone() if memory in seen else own  # the library refuses memory that is shared
        seen.add(memory)
    text = json.dumps(plain(dict(header)) | {_DIGEST: _NONE}, sort_keys=True)
    with atomic_path(path) as temporary:
        try:
            # One key: safetensors keeps several in no order.
            save_file(stored, temporary, {_KEY: text})
        except SafetensorError as error:
            raise DataError(f"{path} cannot be written: {error}") from error
        _seal(temporary)


@contextmanager
def tensor_columns(
    path: Path, columns: Mapping[str, np.dtype[Any]], rows: int, header: Mapping[str, Any]
) -> Iterator[dict[str, Column]]:
    """Write a file of columns [N] atomically, a piece at a time, in memory of such a piece.

    What is not written is zeros. Equal content gives the bytes of :func:`write_tensors`.

    :param columns: types by name: float64, int64 or bool. :param rows: N. :param header: as :func:`write_tensors`.
    :raises DataError: it cannot be written; what stood there stays.
    """
    text = json.dumps(plain(dict(header)) | {_DIGEST: _NONE}, sort_keys=True)
    layout: dict[str, Any] = {"__metadata__": {_KEY: text}}
    end = 0
    for name in sorted(columns, key=lambda name: (-columns[name].itemsize, name)):  # the order of safetensors
        start, end = end, end + rows * columns[name].itemsize
        layout[name] = {"dtype": _TYPES[columns[name].str[1:]], "shape": [rows], "data_offsets": [start, end]}
    head = json.dumps(layout, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with atomic_path(path) as temporary:
        with temporary.open("r+b", buffering=0) as handle:
            handle.write(len(head).to_bytes(8, "little") + head)
            handle.truncate(8 + len(head) + end)
            places = {name: 8 + len(head) + layout[name]["data_offsets"][0] for name in columns}
            yield {name: Column(handle, places[name], dtype, rows) for name, dtype in columns.items()}
        _seal(temporary)


class Column:
    """A column [N] of a file that is being written; see :func:`tensor_columns`."""

    def __init__(self, handle: FileIO, place: int, dtype: np.dtype[Any], rows: int) -> None:
        self.dtype, self.rows = dtype, rows
        self._handle, self._place = handle, place

    def write(self, start: int, values: np.ndarray[Any, Any]) -> None:
        """Put values [n] of the column's type at the rows from ``start`` on."""
        if values.dtype != self.dtype or values.ndim != 1 or not 0 <= start <= self.rows - len(values):
            raise ValueError(f"{values.dtype} {list(values.shape)} at {start} is no part of {self.dtype} [{self.rows}]")
        self._handle.seek(self._place + start * self.dtype.itemsize)
        data = memoryview(values.tobytes())
        while data:  # an unbuffered file may take a part
            data = data[self._handle.write(data) :]

    def read(self, start: int, stop: int) -> np.ndarray[Any, Any]:
        """The values [n] that stand at rows ``start`` to before ``stop``."""
        import numpy as np

        found = np.empty(stop - start, self.dtype)
        self._handle.seek(self._place + start * self.dtype.itemsize)
        self._handle.readinto(found.view(np.uint8).data)
        return found


def _seal(path: Path) -> None:
    """Put the digest of a file into its header."""
    with path.open("r+b") as handle:
        head = _head(handle)
        digest = _digest(head, handle)
        handle.seek(_place(head, _NONE))
        handle.write(digest.encode())


def read_tensors(path: Path, what: str = "tensors") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file of :func:`write_tensors`; the tensors are mapped, and may be written to.

    :param what: what the file should hold, for messages.
    :raises DataError: it is missing, no such file, cut, or changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    header = read_header(path, what)
    try:
        with safe_open(path, framework="pt") as handle:  # the one framework with which the file is mapped, not copied
            return header, {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; expected {what}") from error


def read_header(path: Path, what: str = "tensors") -> dict[str, Any]:
    """The header of a file of :func:`write_tensors`, once the whole file has been found to be as it was written.

    :raises DataError: as :func:`read_tensors`.
    """
    try:
        with path.open("rb") as handle:
            head = _head(handle)
            text = json.loads(head[8:])["__metadata__"][_KEY]
            header = json.loads(text)
            known = header.pop(_DIGEST)
            place = _place(head, known)
            found = _digest(head[:place] + _NONE.encode() + head[place + len(known) :], handle)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; expected {what}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} was not written by paperhooks, or is damaged; expected {what}") from error
    if found != known:
        raise DataError(f"{path} was changed or damaged after it was written: its checksum does not match")
    return dict(header)


def _place(head: bytes, digest: str) -> int:
    """Where the digest stands: behind its key, whose quotes are escaped since JSON stands inside of JSON."""
    key = f'\\"{_DIGEST}\\": \\"'.encode()
    return head.index(key + digest.encode()) + len(key)


def _head(handle: IO[bytes]) -> bytes:
    """The length and the JSON that a safetensors file begins with."""
    size = handle.read(8)
    length = int.from_bytes(size, "little")
    if length > _LONGEST:
        raise ValueError("no header is as long as this")
    return size + handle.read(length)


def _digest(head: bytes, handle: IO[bytes]) -> str:
    handle.seek(len(head))
    digest = hashlib.sha256(head)
    # Read and not mapped, so that a large file does not count as memory.
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
