"""Folders at addresses: files that appear whole or not at all, on this machine and in any store that fsspec reaches."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final

import fsspec
from fsspec.core import has_magic
from fsspec.implementations.local import LocalFileSystem
from paperhooks import DataError
from paperhooks.errors import first_line
from paperhooks.io import atomic_path, hash_json, json_text, parse_json

__all__ = ["Storage"]

#: What stores say of a file that is another one with other content: Amazon's, Google's, the hub's, a disk's, memory's.
_VERSION: Final = ("size", "ETag", "etag", "md5Hash", "blob_id", "mtime", "created")
#: An address of which something is left out.
_MISTYPED: Final = re.compile(r"(\w+)(?::/?|//)")


class Storage:
    """A folder named by a path or by an address such as ``s3://bucket/folder``, ``gs://``, ``hf://`` or ``memory://``.

    Instances can be pickled. Keys and endpoints of a store come from its own environment variables, or from those of
    fsspec (``FSSPEC_S3_ENDPOINT_URL``).

    :raises DataError: an address whose library is missing or that no library knows.
    """

    def __init__(self, address: str | Path) -> None:
        text = str(address)
        if "://" not in text and (odd := _MISTYPED.match(text)) and odd[1] in fsspec.available_protocols():
            raise DataError(f"{text} is neither a path nor an address; write {odd[1]}://..., or ./{text}")
        text = text if "://" in text else os.path.abspath(text)  # processes elsewhere have other working folders
        self.address = text.rstrip("/") or "/"
        try:
            self._files, self._folder = fsspec.core.url_to_fs(self.address)
        except (ImportError, ValueError) as error:
            raise DataError(f"{self.address} cannot be reached: {error}") from error

    def __reduce__(self) -> Any:
        return Storage, (self.address,)

    @staticmethod
    def state(pattern: str) -> str:
        """A digest of which files there are at an address with ``*`` in it, of their sizes, and of what tells their
        versions apart, where the store says so.

        :raises DataError: the store cannot be asked, or has none.
        """
        try:
            files, path = fsspec.core.url_to_fs(pattern)
            files.invalidate_cache()
            found = files.glob(path, detail=True) if has_magic(path) else {path: files.info(path)}
        except Exception as error:  # whatever the library of a store raises
            raise DataError(f"{pattern} cannot be read: {_told(error)}") from error
        if not found:
            raise DataError(f"{pattern} names no file")
        told = [[name, *(str(info[key]) for key in _VERSION if key in info)] for name, info in sorted(found.items())]
        return hash_json(told)

    def where(self, name: str) -> str:
        """The address of a file."""
        return f"{self.address}/{name}"

    def _path(self, name: str) -> str:
        return f"{self._folder.rstrip('/')}/{name}"

    def names(self, ending: str) -> list[str]:
        """Names of the files with an ending, sorted; stores may show new ones late."""
        try:
            self._files.invalidate_cache()
            found = self._files.ls(self._folder or "/", detail=False)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise self._unreached(error) from error
        names = (str(each).rstrip("/").rpartition("/")[2] for each in found)
        return sorted(name for name in names if name.endswith(ending) and not name.startswith("."))

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where it is not there. Raises DataError where the store cannot be asked."""
        try:
            self._files.invalidate_cache(self._folder)
            return int(self._files.info(self._path(name))["size"])
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._unreached(error) from error

    def open(self, name: str) -> IO[bytes]:
        """A file to read at any place, of which nothing but what is asked for is fetched.

        :raises OSError: it is not there, or not to be read. :raises DataError: the store cannot be asked.
        """
        try:
            found: IO[bytes] = self._files.open(self._path(name), "rb", cache_type="none")
        except OSError:  # those who read tell of it with what they know of the file
            raise
        except Exception as error:
            raise self._unreached(error) from error
        return found

    def digest(self, name: str) -> str:
        """SHA-256 of a file, read in pieces. Raises FileNotFoundError where it is not there."""
        digest = hashlib.sha256()
        with self.open(name) as handle:
            while block := handle.read(1 << 22):
                digest.update(block)
        return digest.hexdigest()

    def read_json(self, name: str, what: str) -> dict[str, Any] | None:
        """A JSON object; None where it is not there. Raises DataError for anything else."""
        try:
            found = parse_json(self._files.cat_file(self._path(name)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.where(name)} is no {what}: {error}") from error
        except Exception as error:
            raise self._unreached(error) from error
        if not isinstance(found, dict):
            raise DataError(f"{self.where(name)} is no {what}: it holds {type(found).__name__}")
        return found

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write indented JSON."""
        with self.staged(name) as file:
            file.write_text(json_text(value, indent=2) + "\n", encoding="utf-8")

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local file to fill, which takes its place here when the block ends well.

        :raises DataError: it cannot be written; what stood there stays.
        """
        if isinstance(self._files, LocalFileSystem):
            with atomic_path(Path(self._path(name))) as file:
                yield file
            return
        with TemporaryDirectory(prefix="paperhooks-") as folder:
            file = Path(folder, "staged")
            yield file
            try:
                self._files.put_file(str(file), self._path(name))
            except Exception as error:  # whatever the library of a store raises
                raise DataError(f"{self.where(name)} cannot be written: {_told(error)}") from error

    def _unreached(self, error: Exception) -> DataError:
        """What to tell of an error that the library of a store raised, of which each has its own."""
        hint = "; keys and endpoints come from the environment" if "://" in self.address else ""
        return DataError(f"{self.address} cannot be reached: {_told(error)}{hint}")


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
