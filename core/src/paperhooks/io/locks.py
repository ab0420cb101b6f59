"""One run at a time in a folder: a lock that the system gives up when its holder dies.

``run.lock`` names the holder for readers; what counts is the lock of the operating system on that file, so that a file
left behind by a killed process stops nobody. The processes of one launch (torchrun, accelerate, a script that starts
workers) hold it together. Reading a folder takes no lock.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.io.files import NO_LINKS, is_open_file, now, try_lock
from paperhooks.io.processes import launched

__all__ = ["LOCK_FILE", "FolderLock"]

LOCK_FILE: Final = "run.lock"
_PAUSE: Final = 0.05
#: Seconds in which a process that begins gets from its first lock to the shared one.
_BEGIN: Final = 10.0
#: Seconds that a process of another machine may take to prepare a folder.
_FAR: Final = 600.0


class FolderLock:
    """The right to write into a folder. Not re-entrant: one object for one run.

    :param launch: a name that processes started one by one have in common where they share the folder on purpose, as
        those that do a share of the documents each; by default the launch that torchrun or accelerate set up.
    """

    def __init__(self, folder: str | Path, launch: str = "") -> None:
        self.folder, self.launch = Path(folder), launch
        self._token = uuid.uuid4().hex
        self._descriptor: int | None = None
        self._process = 0
        self.first = False

    @property
    def held(self) -> bool:
        """Whether this object holds the folder."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the folder; True for the first process of its launch, which prepares it for the others.

        :raises DataError: another run holds it, named by host, process and time, or nothing can be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.first, self._process = self._acquire(), os.getpid()
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written: {error.strerror or error}") from error
        return self.first

    def release(self) -> None:
        """Give the folder back; the last process to do so removes the file. A fork of the holder gives nothing back."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        if self._process == os.getpid() and self._owns(descriptor) and try_lock(descriptor):
            with contextlib.suppress(OSError):
                (self.folder / LOCK_FILE).unlink()
        os.close(descriptor)

    def confirm(self) -> None:
        """Raise DataError where the folder was removed or put in another's hands since it was taken."""
        if self._descriptor is not None and not self._owns(self._descriptor):
            raise DataError(f"{self.folder} was removed or replaced while this run was using it; start the run again")

    def announce(self, told: Mapping[str, Any]) -> None:
        """Tell the other processes of the launch that the folder is ready, with what they need to know."""
        self._write({"ready": dict(told)})

    def announced(self) -> dict[str, Any]:
        """Wait for what the first process of the launch announces.

        :raises DataError: it ended before.
        """
        deadline = time.monotonic() + _FAR
        while True:
            holder = self.holder()
            if isinstance(holder.get("ready"), dict):
                return dict(holder["ready"])
            # Of a process of another machine nothing is known but how long it takes.
            here = holder.get("host") == platform.node()
            gone = not _alive(holder.get("pid")) if here else time.monotonic() > deadline
            if gone:
                raise DataError(
                    f"the process that was to prepare {self.folder} ended before it was ready; start all of them again"
                )
            time.sleep(_PAUSE)

    def holder(self) -> dict[str, Any]:
        """What the file says of its holder; empty where nothing readable is there, as while it is being written."""
        try:
            found = json.loads((self.folder / LOCK_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.release()

    def _acquire(self) -> bool:
        deadline = time.monotonic() + _BEGIN
        while True:
            # Not cut by opening it: what it says of its holder is still needed.
            self._descriptor = os.open(self.folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
            try:
                found = self._tried(self._descriptor)
            except BaseException:
                self._close()
                raise
            if found is not None:
                return found
            self._close()
            if time.monotonic() > deadline:
                raise self._refused()
            time.sleep(_PAUSE)

    def _tried(self, descriptor: int) -> bool | None:
        """Whether this is the first process; None where another one has just begun or ended."""
        if try_lock(descriptor):
            if not self._owns(descriptor):  # removed by the one who held it before
                return None
            if os.fstat(descriptor).st_size and "token" not in self.holder():
                raise DataError(f"{self.folder / LOCK_FILE} is no lock of a run; move it away, or use another folder")
            self._write({})
        elif self.holder().get("launch") != self._launch():
            time.sleep(_PAUSE)
            found = self.holder()  # empty: it is about to write its name, and two that come together wait for that
            if found and found.get("launch") != self._launch() and not try_lock(descriptor):
                raise self._refused()
            return None
        # Between the two locks somebody else may have come first: who stands in the file is the one.
        if not try_lock(descriptor, exclusive=False) or not self._owns(descriptor):
            return None
        holder = self.holder()
        if holder.get("launch") != self._launch():
            return None
        return bool(holder.get("token") == self._token)

    def _write(self, more: Mapping[str, Any]) -> None:
        known = {"host": platform.node(), "pid": os.getpid(), "started": now(), "launch": self._launch()}
        content = json.dumps({**known, "token": self._token, **more}).encode()
        assert self._descriptor is not None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, content, 0)

    def _owns(self, descriptor: int) -> bool:
        """Whether the file that is held is still the one in the folder."""
        return is_open_file(descriptor, self.folder / LOCK_FILE)

    def _launch(self) -> str:
        """What the processes of one launch have in common, and nobody else."""
        if self.launch:
            return self.launch
        if launched(one_machine=False)[1] < 2:
            return self._token
        if "MASTER_PORT" in os.environ:
            names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT")
            return ":".join(os.environ.get(name, "") for name in names)
        return f"{platform.node()}:{os.getppid()}"

    def _refused(self) -> DataError:
        holder = self.holder()
        who = "another process"
        if holder:
            who = "process {pid} on {host}, since {started}".format_map(
                {key: holder.get(key, "?") for key in ("pid", "host", "started")}
            )
        return DataError(f"{self.folder} is used by another run ({who}); wait for it, or use another folder")

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _alive(pid: Any) -> bool:
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # of another user
        return True
    return True
