"""Who made a file from what: versions, hashes and atomic writing, shared by everything that leaves files behind."""

from __future__ import annotations

import codecs
import contextlib
import datetime
import errno
import functools
import importlib.metadata
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "NO_LINKS",
    "PART",
    "atomic_path",
    "dotted",
    "is_open_file",
    "json_text",
    "local_path",
    "now",
    "parse_json",
    "plain",
    "read_json",
    "remove_leftovers",
    "try_lock",
    "unwritable",
    "versions",
    "with_ending",
    "write_json",
    "write_text",
]

logger = logging.getLogger(__name__)

_LENIENT: Final = json.JSONDecoder(strict=False)
#: How an address looks once it was taken for a path.
_ADDRESS: Final = re.compile(r"(?:hub:|[a-z][a-z0-9+.-]+:/)")
#: Flag of os.open for files that must not be links.
NO_LINKS: Final = getattr(os, "O_NOFOLLOW", 0)
#: Ending of files that are being written.
PART: Final = ".part"
#: What a full, failing or read-only disk says.
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG)

_REPORTED: Final = ("paperhooks", "torch", "transformers", "safetensors", "accelerate", "pluggy", "numpy")


def versions() -> dict[str, str]:
    """Python and the installed versions of core, its libraries and every ``paperhooks-*`` distribution."""
    found = {"python": platform.python_version()}
    for name in _REPORTED:
        with suppress(Exception):  # it is not installed, or its metadata cannot be read
            found[name] = importlib.metadata.version(name)
    for distribution in importlib.metadata.distributions():
        with suppress(Exception):
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
    listed = getattr(value, "tolist", None)  # of numpy or torch
    if callable(listed) and getattr(value, "ndim", None) is not None:
        return plain(listed())
    return value.isoformat() if isinstance(value, datetime.date) else str(value)


def dotted(value: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a mapping and of those inside it, by dotted names.

    >>> dict(dotted({"a": {"b": 1, "c": {}}}))
    {'a.b': 1, 'a.c': {}}
    """
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from dotted(item, f"{above}{key}.")
        else:
            yield f"{above}{key}", item


def with_ending(path: str | Path, ending: str) -> Path:
    """``path`` with ``ending`` behind its name, unless it ends so already; other dots belong to the name.

    >>> with_ending("runs/selection-0.05", ".safetensors").name
    'selection-0.05.safetensors'
    """
    path = Path(path)
    return path if path.suffix == ending else path.with_name(path.name + ending)


def local_path(path: str | Path) -> Path:
    """A path on this machine; raises DataError for nothing, and for an address such as ``s3://...``, which is none."""
    text = os.fspath(path)
    if not text.strip():
        raise DataError("a path is empty; name a file or folder")
    if "://" in text or _ADDRESS.match(text):
        raise DataError(f"{text} is an address; name a folder or file on this machine, and copy it there afterwards")
    return Path(path)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that replaces ``path`` when the block ends well, and vanishes when not.

    The file of a process that was killed has the same name and is used again by the next one. Raises DataError where
    nothing can be written, such as below a file, in a folder of another user or on a full disk; the old file stays.
    """
    local_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor, temporary = _claimed(path)
    except OSError as error:
        raise unwritable(path, error) from error
    replaced = False
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # temporary files are private; results are to be read by others
        os.replace(temporary, path)
        replaced = True
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise unwritable(path, error) from error
        raise
    finally:
        if not replaced:  # else the name may be another writer's by now
            temporary.unlink(missing_ok=True)
        os.close(descriptor)


def unwritable(path: Path, error: OSError) -> DataError:
    """The error for a file that could not be written."""
    return DataError(f"{path} cannot be written: {error.strerror or error}")


def _claimed(path: Path) -> tuple[int, Path]:
    """A temporary file for ``path`` that no other writer uses, empty and open."""
    usual = path.with_name(f".{path.name}{PART}")
    for _ in range(2):
        try:
            descriptor = os.open(usual, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o600)
        except OSError:  # something else has that name, or nothing can be written: the next line tells
            break
        if try_lock(descriptor) and is_open_file(descriptor, usual):  # else another writer has just moved it
            os.ftruncate(descriptor, 0)
            return descriptor, usual
        os.close(descriptor)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    return descriptor, Path(name)


def try_lock(descriptor: int, *, exclusive: bool = True) -> bool:
    """Take the system's lock on an open file, which ends with the process; False where another one has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        _warn_of_no_locks(str(error))
    return True


@functools.cache
def _warn_of_no_locks(said: str) -> None:
    logger.warning("this file system has no locks (%s); see to it that one run at a time uses a folder", said)


def is_open_file(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one that stands at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left half written in a folder; to be called only by who alone writes there."""
    for left in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            left.unlink()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path, what: str = "JSON") -> Any:
    """The content of a JSON file, with or without a byte order mark.

    :param what: what the file should be, for messages.
    :raises DataError: it cannot be read, or is no JSON in UTF-8, or nests deeper or has longer numbers than is allowed.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}; expected {what}") from error
    except ValueError as error:
        raise DataError(f"{path} is no {what}: {error}") from error


def parse_json(raw: bytes | str, *, strict: bool = True) -> Any:
    """A JSON value; ValueError for whatever is none, also for what is nested too deep or not UTF-8.

    :param strict: refuse control characters inside strings, which other programs write as they are.
    """
    try:
        text = raw.decode("utf-8-sig") if isinstance(raw, bytes) else raw
        return json.loads(text) if strict else _LENIENT.decode(text)
    except UnicodeDecodeError as error:
        hint = "; save it as UTF-8" if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else ""
        raise ValueError(f"it is not UTF-8 ({error.reason} at byte {error.start}){hint}") from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically; halves of surrogate pairs are escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; NaN and infinities are refused with ValueError."""
    write_text(path, json_text(value, indent=2) + "\n")


def json_text(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON that can be written as UTF-8: halves of characters are escaped. ValueError for NaN."""

    def dumped(ascii_only: bool) -> str:
        return json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False, default=plain)

    text = dumped(False)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = dumped(True)
    return text
