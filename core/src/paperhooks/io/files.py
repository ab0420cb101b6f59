"""Who made a file from what: versions, hashes and atomic writing, shared by everything that leaves files behind."""

from __future__ import annotations

import datetime
import errno
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import DataError

if TYPE_CHECKING:
    pass

__all__ = ["atomic_path", "now", "plain", "versions", "with_ending", "write_json", "write_text"]

_REPORTED: Final = ("paperhooks", "torch", "transformers", "safetensors", "accelerate", "pluggy", "numpy")


def versions() -> dict[str, str]:
    """Python and the installed versions of core, its libraries and every ``paperhooks-*`` distribution."""
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.startswith("paperhooks-"):
            found[name] = distribution.version
    return found


def now() -> str:
    """The present time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """``value`` as what JSON can hold: mappings, lists, numbers, strings; anything else as text."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    item = getattr(value, "item", None)  # a numpy or torch scalar
    if callable(item) and getattr(value, "ndim", None) == 0:
        return plain(item())
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def with_ending(path: str | Path, ending: str) -> Path:
    """``path`` with ``ending`` behind its name, unless it ends so already; other dots belong to the name.

    >>> with_ending("runs/selection-0.05", ".safetensors").name
    'selection-0.05.safetensors'
    """
    path = Path(path)
    return path if path.suffix == ending else path.with_name(path.name + ending)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that replaces ``path`` when the block ends well, and vanishes when not.

    Raises DataError where nothing can be written, such as below a file or in a folder of another user.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror or error}") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; results are to be read by others
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinities are refused with ValueError."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
