"""Test processes of the sessions: each prints all it said at once, a few run at a time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ENV", "NOTHING_FOUND", "WANTED", "Job", "counts", "longest", "pytest_arguments", "say"]

ROOT = Path(__file__).resolve().parents[1]
#: Two cores: two processes of one thread each are faster than one process of two threads on models this small.
ENV = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
WANTED = "not slow and not cuda and not engines and not network"
#: pytest's exit code when no test was selected.
NOTHING_FOUND = 5
#: A line of pytest's list of slow tests.
_DURATION = re.compile(r"^(\d+\.\d+)s (?:call|setup|teardown) +(\S.*)$", re.MULTILINE)


@dataclass
class Job:
    """One pytest process; ``summary`` is its closing line, ``durations`` are the seconds of its longest tests."""

    name: str
    python: str
    arguments: Sequence[str]
    folder: Path = ROOT
    summary: str = field(default="", init=False)
    code: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)
    durations: list[tuple[float, str]] = field(default_factory=list, init=False)

    def __call__(self) -> Job:
        """Run it and print all it said at once, so that the output of two processes does not mix."""
        say(f"nox > {self.name}: started")
        begin = time.monotonic()
        command = [self.python, "-m", "pytest", "--color=no", *self.arguments]
        done = subprocess.run(
            command, cwd=self.folder, env={**os.environ, **ENV}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", check=False,
        )  # fmt: skip
        self.code, self.seconds = done.returncode, time.monotonic() - begin
        lines = done.stdout.rstrip().splitlines() or ["no output"]
        self.summary = lines[-1].strip("= ")
        self.durations = [(float(took), test) for took, test in _DURATION.findall(done.stdout)]
        say(f"\nnox > {self.name} ({self.seconds:.0f} s)\n{done.stdout}")
        return self


def say(text: str) -> None:
    """Print in one write, so that two threads do not share a line."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def counts(summary: str) -> Mapping[str, int]:
    """How many tests pytest's closing line names: ``{"passed": 3, "failed": 1}``; errors count as failed."""
    found: dict[str, int] = {}
    for number, word in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", summary):
        word = "failed" if word.startswith("error") else word
        found[word] = found.get(word, 0) + int(number)
    return found


def longest(jobs: Iterable[Job], count: int = 10) -> str:
    """The tests that took longest, a line each; empty when none took long enough for pytest to list it."""
    found = sorted((each for job in jobs for each in job.durations), reverse=True)[:count]
    return "\n".join(f"{took:8.1f} s  {test}" for took, test in found)


def pytest_arguments(posargs: Sequence[str], settings: Path = ROOT / "pyproject.toml") -> list[str]:
    """Arguments of a test process; markers given by the user replace the usual choice."""
    marked = [] if "-m" in posargs else ["-m", WANTED]
    return ["-c", str(settings), *marked, *posargs]
