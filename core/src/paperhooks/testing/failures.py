"""What a process that failed is said to have done: its own error first, then what followed from it."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Failure", "failure_of", "is_echo", "report", "tail", "without_noise"]

_MOST: Final = 8000  # characters of the first failure; the others get fewer
_ECHO: Final = re.compile(r"Connection (closed|reset) by peer|Broken pipe")
_PREFIX: Final = re.compile(r"^\[[a-z]+\d+\]: ?")  # what torch and its launcher put before what a rank says
_TRACEBACK: Final = "Traceback (most recent call last)"
_CRASHES: Final = ("terminate called", "Fatal Python error")
_CHAINED: Final = ("The above exception was", "During handling of the above")


@dataclass(frozen=True)
class Failure:
    """How one process failed, and when (seconds since the epoch).

    depth
        0 for an error of its own, 1 for one that only says that another process has gone, 2 for a launcher's.
    """

    headline: str
    text: str
    when: float
    depth: int = 0


def is_echo(error: str) -> bool:
    """Whether an error only says that another process has gone."""
    return bool(_ECHO.search(error))


def failure_of(name: str, status: int, stdout: str, stderr: str, when: float, depth: int = 0) -> Failure:
    """The failure of a process of which there is no more than what it printed."""
    how = f"was ended by {_signal_name(-status)}" if status < 0 else f"ended with status {status}"
    lines = stderr.splitlines() or stdout.splitlines()
    start, headline = _first_error([_PREFIX.sub("", line) for line in lines])
    said = "\n".join(stderr.splitlines()[start:])
    parts = [_head(said), f"standard output:\n{tail(stdout.strip(), _MOST // 4)}" if stdout.strip() else ""]
    text = "\n".join(part for part in parts if part)
    return Failure(f"{name} {how}: {headline}", text, when, depth or int(is_echo(headline)))


def report(failures: Sequence[Failure]) -> str:
    """The first that failed in full, then the others in brief."""
    first, *others = sorted(failures, key=lambda each: (each.depth, each.when))
    brief = [f"{each.headline}\n{tail(without_noise(each.text), _MOST // 6)}" for each in others]
    return "\n\n".join(part.rstrip() for part in [f"{first.headline}\n\n{_head(first.text)}", *brief])


def without_noise(text: str) -> str:
    """Without the lists of libraries that Python prints when it crashes."""
    return "\n".join(line for line in text.strip().splitlines() if not line.startswith("Extension modules:"))


def tail(text: str, most: int) -> str:
    """The end of a text."""
    return text if len(text) <= most else f"[...]{text[-most:]}"


def _head(text: str) -> str:
    kept = without_noise(text)
    return kept if len(kept) <= _MOST else f"{kept[:_MOST]}[...]"


def _signal_name(number: int) -> str:
    names = {each.value: each.name for each in signal.Signals}
    return names.get(number, f"signal {number}")


def _first_error(lines: Sequence[str]) -> tuple[int, str]:
    """Where the first traceback or crash begins and which error it tells; else the last lines."""
    for number, line in enumerate(lines):
        if line.startswith(_TRACEBACK):
            return number, _error_of(lines[number + 1 :])
        if line.startswith(_CRASHES):
            return number, line
    return max(0, len(lines) - 40), lines[-1] if lines else "it said nothing"


def _error_of(lines: Sequence[str]) -> str:
    """The line of a traceback that names the error; of chained ones that of the last."""
    ends = (number for number, line in enumerate(lines) if line and not line[0].isspace())
    end = next(ends, len(lines) - 1)
    after = [line for line in lines[end + 1 :] if line]
    if after and after[0].startswith(_CHAINED):
        return _error_of(after[2:])
    return lines[end] if lines else ""
