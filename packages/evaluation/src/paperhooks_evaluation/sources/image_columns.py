"""Images inside Parquet files: which rows have one, their digests, and their bytes when they are asked for."""

from __future__ import annotations

import bisect
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require

__all__ = ["EXTRA", "StoredImage", "column_names", "image_columns", "stored_bytes"]

#: What brings the libraries that data sets need.
EXTRA: Final = "paperhooks-evaluation[data]"
#: What is held of row groups that were read last. One is held whole, whatever its size: its bytes are one piece.
_HELD_BYTES: Final = 128 << 20
_HASHED_ROWS: Final = 4


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What a row holds of an image.

    :param name: the file that it names, if it has no bytes of its own.
    :param digest: SHA-256 of its bytes, where that was asked for.
    """

    name: str | None = None
    digest: str = ""


def column_names(file: Path) -> tuple[str, ...]:
    """The columns of a Parquet file; raises DataError for a damaged one, MissingExtra without pyarrow."""
    return tuple(_parquet(file).schema_arrow.names)


def image_columns(file: Path, columns: Sequence[str], *, digests: bool) -> Iterator[dict[str, StoredImage | None]]:
    """What each row holds of the images in some columns; None for none. Without digests no bytes are read.

    A column holds objects of ``bytes`` and ``path``, as the library datasets writes them, or bytes, or names of files.

    :raises DataError: a column of another type, or a damaged file.
    """
    parquet = _parquet(file)
    leaves = {name: _leaves(file, parquet.schema_arrow.field(name).type, name, digests) for name in columns}
    wanted = [f"{name}.{leaf}" if leaf else name for name, parts in leaves.items() for leaf in parts]
    options = {"columns": wanted, "use_threads": False, "batch_size": _HASHED_ROWS if digests else 1024}
    if not wanted:
        yield from ({} for _ in range(parquet.metadata.num_rows))
        return
    for batch in _read(file, lambda: parquet.iter_batches(**options)):
        held = {name: _stored(batch.column(name), batch.num_rows) for name in columns}
        yield from ({name: found[row] for name, found in held.items()} for row in range(batch.num_rows))


def stored_bytes(file: str, row: int, column: str) -> tuple[bytes | None, str | None]:
    """The bytes of the image in a row, and the name of a file that stands there; None for what is not there.

    :raises DataError: a damaged file, or a row that it does not have.
    """
    stamp = Path(file).stat() if Path(file).is_file() else None
    if stamp is None:
        raise DataError(f"{file} is not there any more; put the data back, or name their new place")
    found = _groups.value(file, (stamp.st_mtime_ns, stamp.st_size), row, column)
    value = found.as_py() if found.is_valid else None
    if isinstance(value, dict):
        return value.get("bytes"), value.get("path")
    return (value, None) if isinstance(value, bytes) else (None, value)


class _Groups:
    """Columns of row groups that were read last; rows are usually asked for in their order."""

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
        self._lock = threading.Lock()  # images are decoded in several threads

    def value(self, file: str, stamp: tuple[int, int], row: int, column: str) -> Any:
        """What stands in a row of a column."""
        starts = _starts(file, stamp)
        group = bisect.bisect_right(starts, row) - 1
        if not 0 <= group < len(starts) - 1:
            raise DataError(f"{file} has no row {row}; it has {starts[-1]} (counted from 0)")
        with self._lock:
            key = (file, stamp, group, column)
            if key not in self._held:
                path = Path(file)
                options = {"columns": [column], "use_threads": False}
                (self._held[key],) = _read(path, lambda: [_parquet(path).read_row_group(group, **options)])
            self._held.move_to_end(key)
            while len(self._held) > 1 and sum(table.nbytes for table in self._held.values()) > _HELD_BYTES:
                self._held.popitem(last=False)
            return self._held[key].column(0)[row - starts[group]]


_groups: Final = _Groups()


@lru_cache(maxsize=256)
def _starts(file: str, stamp: tuple[int, int]) -> list[int]:
    """The first row of every row group, and the number of rows."""
    metadata = _parquet(Path(file)).metadata
    sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
    return list(accumulate(sizes, initial=0))


def _parquet(file: Path) -> Any:
    parquet = require("pyarrow.parquet", EXTRA, "to read Parquet files")
    (found,) = _read(file, lambda: [parquet.ParquetFile(file)])
    return found


def _read(file: Path, make: Any) -> Iterator[Any]:
    """What pyarrow gives, with its errors as DataError."""
    from pyarrow import ArrowException

    try:
        yield from make()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file} cannot be read: {error}; copy it again") from error


def _leaves(file: Path, kind: Any, name: str, digests: bool) -> list[str]:
    """Which parts of a column are read: all that is needed to see where an image is, and its bytes for a digest."""
    from pyarrow import types

    if types.is_struct(kind):
        parts = [kind.field(number).name for number in range(kind.num_fields)]
        wanted = [part for part in (("bytes", "path") if digests else ("path",)) if part in parts]
        if wanted or "bytes" in parts:
            return wanted or ["bytes"]
    elif any(is_kind(kind) for is_kind in (types.is_binary, types.is_large_binary, types.is_null)) or _is_text(kind):
        return [""]
    raise DataError(f"{file} has in the column {name} values of type {kind}; expected images, or names of their files")


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_string(kind) or types.is_large_string(kind))


def _stored(values: Any, n: int) -> list[StoredImage | None]:
    return [_image(values[row]) for row in range(n)]


def _image(value: Any) -> StoredImage | None:
    if not value.is_valid:
        return None
    if hasattr(value, "keys"):
        parts = {key: value[key] for key in value.keys()}  # noqa: SIM118  # a scalar of pyarrow, no mapping
    else:
        parts = {"path" if _is_text(value.type) else "bytes": value}
    path, data = parts.get("path"), parts.get("bytes")
    name = path.as_py() if path is not None else None
    if data is not None and data.is_valid:
        return StoredImage(name, hashlib.sha256(data.as_buffer()).hexdigest())
    return StoredImage(name) if data is None or name else None
