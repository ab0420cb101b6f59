"""Interrupts at chosen moments: KeyboardInterrupt or SystemExit raised at the k-th line that some source files run."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

__all__ = ["LineTracer", "count_lines", "interrupted", "moments"]


class LineTracer:
    """A trace function that counts the lines run in ``files`` and raises ``error`` at number ``at`` (from 1).

    The end of a ``with`` block counts no line: an interrupt there would keep its ``__exit__`` from being called, which
    Python itself does not let happen.

    lines
        How many were run so far. ``at=0`` never raises.
    """

    def __init__(self, files: Iterable[str], at: int = 0, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.files = frozenset(files)
        self.at = at
        self.error = error
        self.lines = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        """What ``sys.settrace`` is given: follows frames of the files only."""
        return _FrameTracer(self) if frame.f_code.co_filename in self.files else None

    def count(self, place: str) -> None:
        """A line is about to run; raises at the chosen one."""
        self.lines += 1
        if self.lines == self.at:
            raise self.error(place)

    def run(self, work: Callable[[], object]) -> None:
        """Run ``work`` under this trace function; a debugger's or a coverage tool's own is put back afterwards."""
        before = sys.gettrace()
        sys.settrace(self)
        try:
            work()
        finally:
            sys.settrace(before)


class _FrameTracer:
    """Follows one frame."""

    def __init__(self, tracer: LineTracer) -> None:
        self.tracer = tracer
        self.before = 0

    def __call__(self, frame: FrameType, event: str, arg: Any) -> _FrameTracer:
        if event == "line":
            file, line, before = frame.f_code.co_filename, frame.f_lineno, self.before
            self.before = line
            leaves = before > line and linecache.getline(file, line).lstrip().startswith("with ")
            if not leaves:
                self.tracer.count(f"{file}:{line}")
        return self


def count_lines(work: Callable[[], object], files: Iterable[str]) -> int:
    """How many lines of ``files`` a piece of work runs."""
    tracer = LineTracer(files)
    tracer.run(work)
    return tracer.lines


def interrupted(
    work: Callable[[], object], files: Iterable[str], at: int, error: type[BaseException] = KeyboardInterrupt
) -> str:
    """Run ``work`` and interrupt it with ``error`` at line number ``at`` of ``files``.

    :return: the place, as ``file:line``; empty when the work came to its end first.
    """
    tracer = LineTracer(files, at, error)
    try:
        tracer.run(work)
    except error as exc:
        if tracer.lines != at:  # somebody pressed the keys
            raise
        return str(exc)
    return ""


def moments(lines: int, count: int) -> list[int]:
    """``count`` line numbers spread evenly over 1 to ``lines``, both ends among them; all where there are fewer."""
    if lines <= count:
        return list(range(1, lines + 1))
    return sorted({1 + round(i * (lines - 1) / (count - 1)) for i in range(count)})
