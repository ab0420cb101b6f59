"""The one store of resumable work: a folder of units, each a file of tensors that is there whole or not at all.

A folder holds ``manifest.json`` (what decides the results, and a hash of it that every unit carries) and
``units/NAME.safetensors``. It serves one machine: one process, or those of one launch together. Killing them at any
moment loses the units they were at; started again, the run goes on with the others.

>>> store = UnitStore("scores", kind="lengths")  # doctest: +SKIP
>>> with store.begin({"rows": 100}, costly=lambda: {"corpus": digest()}):  # doctest: +SKIP
...     for name in wanted:
...         if store.read(name) is None:
...             store.write(name, {"values": compute(name)})
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, Final, TypeVar

from paperhooks.errors import DataError
from paperhooks.io.files import dotted, local_path, now, plain, read_json, remove_leftovers, versions, write_json
from paperhooks.io.hashing import hash_json
from paperhooks.io.locks import FolderLock
from paperhooks.io.processes import launched
from paperhooks.io.tensors import read_tensors, write_tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UnitStore", "ahead", "differences", "read_manifest", "read_result"]

logger = logging.getLogger(__name__)

_MANIFEST: Final = "manifest.json"
_SCHEMA: Final = 1
#: Entries of a manifest that decide nothing.
_ABOUT: Final = ("about", "run")
_T = TypeVar("_T")


class UnitStore:
    """A folder of units of one run.

    folder
        Where it lies.
    kind
        What the units are, such as ``"scores"``; a folder of another kind is refused.
    manifest
        Once begun: what decides the results, ``run`` (its hash) and ``about`` (what decides nothing).
    """

    def __init__(self, folder: str | Path, kind: str) -> None:
        self.folder, self.kind = local_path(folder), kind
        self.manifest: dict[str, Any] = {}
        self._lock = FolderLock(self.folder)

    @property
    def run(self) -> str:
        """The hash of what decides the results."""
        return str(self.manifest["run"])

    @contextmanager
    def begin(
        self,
        decides: Mapping[str, Any],
        *,
        costly: Callable[[], Mapping[str, Any]] = dict,
        about: Mapping[str, Any] | None = None,
        together: bool = False,
    ) -> Iterator[UnitStore]:
        """Hold the folder for a run, or go on with the one in it; only inside the block units are written.

        :param decides: what decides the results and is cheap to know; every process of a launch must have the same.
        :param costly: gives what takes long to know, as the digest of a corpus; only the first process calls it.
        :param about: what is to be kept beside it.
        :param together: every process calls ``costly``, which needs all of them, as the digest of a sharded model does.
        :raises DataError: the folder holds another run, whose entries that differ are named, or is used by one.
        """
        launched()  # refuses several machines
        wanted = plain({"schema": _SCHEMA, "kind": self.kind, **decides})
        known = plain(costly()) if together else None
        with self._lock:
            made = not (self.folder / _MANIFEST).exists()
            if self._lock.first:
                try:
                    self.manifest = self._prepared(wanted | (plain(costly()) if known is None else known), about or {})
                except Exception as error:
                    self._lock.announce({"error": str(error)})
                    raise
                self._lock.announce({"run": self.run})
            else:
                told = self._lock.announced()
                if "error" in told:
                    raise DataError(f"another process of this launch failed: {told['error']}")
                run = told["run"]
                self.manifest = read_manifest(self.folder, self.kind)
                self._refuse({**self.manifest, **wanted})
                if self.run != run:
                    raise self._taken()
            try:
                yield self
            except BaseException:
                if made and not self.names() and self._lock.first:  # nothing was done: the folder is not claimed
                    (self.folder / _MANIFEST).unlink(missing_ok=True)
                raise

    def names(self) -> list[str]:
        """Names of the units that are there, of whatever run, in order."""
        return sorted(file.stem for file in self._units.glob("*.safetensors") if not file.name.startswith("."))

    def read(self, name: str) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Header and tensors of a unit of this run; None where it is missing, or damaged and to be made again."""
        file = self.file(name)
        if not file.exists():
            return None
        try:
            header, tensors = read_tensors(file, f"a unit of {self.kind}")
        except DataError as error:
            logger.warning("%s; it is made again", error)
            return None
        if header.pop("run", None) != self.run or header.pop("unit", name) != name:
            logger.warning("%s does not belong to this run, or is another unit of it, and is made again", file)
            return None
        return header, tensors

    def write(self, name: str, tensors: Mapping[str, Any], header: Mapping[str, Any] | None = None) -> None:
        """Keep a unit, atomically.

        :param tensors: torch tensors or numpy arrays by name. :param header: plain data.
        :raises DataError: the folder belongs to another run by now, or cannot be written.
        """
        self.confirm()
        write_tensors(self.file(name), tensors, {**(header or {}), "run": self.run, "unit": name})

    def confirm(self) -> None:
        """Raise DataError where the folder is not this run's any more, before something is written beside the units."""
        if not self._lock.held:
            raise DataError(f"{self.folder} is not held by this run; write units inside begin()")
        try:
            there = read_json(self.folder / _MANIFEST, "a manifest")
        except DataError:
            there = None
        if not isinstance(there, dict) or there.get("run") != self.run:
            raise self._taken()

    def file(self, name: str) -> Path:
        """The file of a unit."""
        return self._units / f"{name}.safetensors"

    @property
    def _units(self) -> Path:
        return self.folder / "units"

    def _prepared(self, wanted: dict[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
        for folder in (self.folder, self._units):
            remove_leftovers(folder)
        file = self.folder / _MANIFEST
        if file.exists():
            self.manifest = read_manifest(self.folder, self.kind)
            self._refuse(wanted)
            return self.manifest
        made = {**wanted, "run": hash_json(wanted), "about": plain({**about, "started": now(), "versions": versions()})}
        write_json(file, made)
        return made

    def _refuse(self, wanted: Mapping[str, Any]) -> None:
        odd = differences(self.manifest, wanted)
        if odd:
            raise DataError(
                f"{self.folder} holds {self.kind} of another run: {'; '.join(odd)}; use another folder, or the same "
                "settings to go on with it"
            )

    def _taken(self) -> DataError:
        return DataError(
            f"{self.folder} belongs to another run by now, or is gone; this one began with other settings and stops "
            "without writing"
        )


def read_manifest(folder: str | Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder of units; raises DataError where there is none, or one of another kind."""
    file = Path(folder) / _MANIFEST
    found = read_json(file, f"the manifest of {kind}")
    if not isinstance(found, dict) or found.get("kind") != kind or found.get("schema") != _SCHEMA:
        raise DataError(f"{file} is no manifest of {kind}; use another folder")
    decides = {key: value for key, value in found.items() if key not in _ABOUT}
    if found.get("run") != hash_json(decides):
        raise DataError(f"{file} was changed after it was written; use another folder")
    return found


def read_result(folder: str | Path, kind: str, file: str, what: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The manifest of a folder of units, and the tensors of a file beside them that holds the result of its run.

    :param what: what the file should hold, for messages.
    :raises DataError: there is none, it was cut or changed, or it is of another run.
    """
    manifest = read_manifest(folder, kind)
    header, tensors = read_tensors(Path(folder) / file, what)
    if header.get("run") != manifest["run"]:
        raise DataError(f"{folder} holds scores of another run; score the corpus again in a new folder")
    return manifest, tensors


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs between two manifests, apart from what decides nothing: ``key = found, not wanted``."""
    one, other = (dict(dotted({k: v for k, v in each.items() if k not in _ABOUT})) for each in (found, wanted))
    return [
        f"{key} = {_short(one.get(key))}, not {_short(other.get(key))}"
        for key in {**other, **one}
        if one.get(key) != other.get(key)
    ]


def ahead(items: Iterable[_T], depth: int = 1) -> Iterator[_T]:
    """The items of an iterable, of which up to ``depth`` are made in a thread while the one before is used.

    What the iterable raises is raised here, in its place.
    """
    ready: Queue[tuple[bool, Any]] = Queue(depth)
    stop = Event()

    def fill() -> None:
        try:
            for item in items:
                ready.put((True, item))
                if stop.is_set():
                    return
            ready.put((False, None))
        except BaseException as error:
            ready.put((False, error))

    thread = Thread(target=fill, name="paperhooks-ahead", daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item
            elif item is None:
                return
            else:
                raise item
    finally:
        stop.set()
        while thread.is_alive():
            while not ready.empty():
                ready.get_nowait()
            thread.join(0.01)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
