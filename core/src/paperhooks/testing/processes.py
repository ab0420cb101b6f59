"""Processes that tests start: they end in time, leave nothing behind, and show their own error first.

:func:`run_python` runs a command line of Python to its end; :class:`Processes` is for those that a test looks at while
they run, or kills. What they start has one thread unless told otherwise, and dies with the test, however that ends.
Processes that form a group are in :mod:`paperhooks.testing.ranks`.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from paperhooks.testing.failures import Failure, failure_of, report, tail, without_noise

__all__ = ["LIMIT", "Child", "ChildError", "Processes", "run_python"]

#: Seconds for a whole launch: less than a test has, so that what hangs is named before the test is ended.
LIMIT: Final = 240.0
#: Seconds that the others have to end when one has failed, and that any has when it is asked to end.
_GRACE: Final = 10.0
_PAUSE: Final = 0.02
#: Run before the command itself. Linux then ends the process when the one that started it is gone, killed or not; and
#: a process that is aborted for being late leaves no image of its memory.
_TIED: Final = """
import ctypes, os, resource, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a run in the background passes on that it ignores Ctrl-C
resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the process that started this one is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class ChildError(AssertionError):
    """A process failed, or did not end in time. Its own error comes first, then what the others said."""


@dataclass
class Child:
    """A process that :meth:`Processes.start` has started; ``stdout`` and ``stderr`` hold what it has said so far."""

    name: str
    process: subprocess.Popen[bytes]
    folder: Path
    ended: float = 0.0

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal, or None while it runs."""
        found = self.process.poll()
        if found is not None and not self.ended:
            self.ended = time.time()
        return found

    @property
    def stdout(self) -> str:
        """Standard output."""
        return (self.folder / "stdout").read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """Standard error."""
        return (self.folder / "stderr").read_text(encoding="utf-8", errors="replace")

    def line(self, limit: float = 60.0) -> str:
        """The first line of standard output, as soon as it is there; "" where the process ended without one."""
        deadline = time.monotonic() + limit
        while "\n" not in self.stdout and self.status is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.stdout.partition("\n")[0]

    def kill(self) -> None:
        """End it at once, as a machine that fails would, and wait until it is gone."""
        self.process.kill()
        self.process.wait()


class Processes:
    """Python processes that end with the block, whatever ends it.

        with Processes(limit=60) as processes:
            child = processes.start("-c", code)
            processes.wait()

    :param limit: seconds from here until all have ended.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self.limit = limit
        self.folder = Path(tempfile.mkdtemp(prefix="paperhooks-processes-"))
        self.children: list[Child] = []
        self._deadline = time.monotonic() + limit
        self._mark = f"PROCESSES_OF_A_TEST_{uuid.uuid4().hex}"  # inherited by all that comes from these processes

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(
        self,
        *words: object,
        name: str = "",
        environment: Mapping[str, str | None] | None = None,
        cwd: str | Path | None = None,
    ) -> Child:
        """Start ``python WORDS``. On Linux it ends with the thread that calls this, at the latest.

        :param name: what messages call it. :param environment: variables that differ from this process'; None removes.
        """
        command = [sys.executable, *map(str, words)]
        changed = {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1", **(environment or {}), self._mark: "1"}
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _TIED, str(os.getpid()), *command], stdin=subprocess.DEVNULL,
                stdout=out, stderr=err, cwd=cwd, start_new_session=True,
                env={key: value for key, value in {**os.environ, **changed}.items() if value is not None},
            )  # fmt: skip
        child = Child(name or _shortened(command), process, folder)
        self.children.append(child)
        return child

    def wait(self, check: bool = True) -> None:
        """Wait until all have ended; when one fails, the others are given some seconds and then ended.

        Raises ChildError for one that fails (unless ``check`` is False), or that still runs at the limit.
        """
        failed = 0.0
        while running := [child for child in self.children if child.status is None]:
            now = time.monotonic()
            failed = failed or (now if check and any(child.status for child in self.children) else 0.0)
            if failed and now > failed + _GRACE:
                break
            if now > self._deadline:
                raise self._late(running)
            time.sleep(_PAUSE)
        if check and any(child.status != 0 for child in self.children):
            ended = [f"{child.name} had not ended" for child in running]
            raise ChildError("\n".join([report(self.failures()), *ended]))

    def close(self) -> None:
        """End what still runs, what came from it included. Called again, it does nothing."""
        if running := any(child.status is None for child in self.children):
            self._signal(signal.SIGTERM)  # a launcher ends its workers then
        self._pause(_GRACE if running else 1.0)  # helpers of Python's own end shortly after their process
        end = time.monotonic() + _GRACE
        while self._alive() and time.monotonic() < end:
            self._signal(signal.SIGKILL)
            time.sleep(_PAUSE)
        shutil.rmtree(self.folder, ignore_errors=True)

    def failures(self) -> list[Failure]:
        """What is known of those that failed so far."""
        return [failure_of(c.name, c.status, c.stdout, c.stderr, c.ended) for c in self.children if c.status]

    def unfinished(self) -> list[str]:
        """The names of those that are not done."""
        return [child.name for child in self.children if child.status is None]

    def _late(self, running: Sequence[Child]) -> ChildError:
        """Says what failed before, who was not done in time, and where each thread of those stands."""
        failures, names = self.failures(), self.unfinished()
        self._signal(signal.SIGABRT)  # Python then writes where each of its threads is
        self._pause(_GRACE)
        late = f"{', '.join(names)} had not ended after {self.limit:g} s"
        said = [f"{child.name} said:\n{tail(without_noise(child.stderr), 6000)}" for child in running]
        return ChildError("\n\n".join([*([report(failures)] if failures else []), late, *said]))

    def _alive(self) -> list[int]:
        own = {child.process.pid for child in self.children if child.status is None}
        return sorted(own | set(_marked(self._mark)))

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._alive():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pause(self, seconds: float) -> None:
        """Until all are gone, or so long."""
        end = time.monotonic() + seconds
        while self._alive() and time.monotonic() < end:
            time.sleep(_PAUSE)


def _marked(mark: str) -> list[int]:
    """Processes that have inherited a variable; none where the system does not tell.

    A launcher puts its workers into sessions of their own, so that process groups do not reach them.
    """
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is somebody else's
            if mark.encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def _shortened(command: Sequence[str]) -> str:
    words = ["python", *command[1:]]
    return " ".join(word if len(word) < 60 and "\n" not in word else "..." for word in words)


def run_python(
    *words: object,
    limit: float = LIMIT,
    check: bool = True,
    environment: Mapping[str, str | None] | None = None,
    cwd: str | Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python WORDS`` to its end; returns its status, standard output and standard error.

    :param limit: seconds. :param check: raise for a status other than 0.
    :param environment: variables that differ from this process'; None removes one. :param cwd: where it runs.
    :raises ChildError: it failed, or did not end in time.
    """
    with Processes(limit) as processes:
        child = processes.start(*words, environment=environment, cwd=cwd)
        processes.wait(check)
        status = child.process.returncode
        return subprocess.CompletedProcess(list(map(str, words)), status, child.stdout, child.stderr)
