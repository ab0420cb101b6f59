"""A search that is killed at random moments and called again: ``python killed_search.py KILLS SEED FOLDER``.

Everything is imported and made once; each run is a fork of this process. So many kills come while levels are prepared,
and as many while generations follow one another. Prints a line of JSON for each kill: in which of the two it was to
come, how the run ended, where it stood, and in what the folder differs from that of an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import paperhooks
import torch
from paperhooks.testing import tiny_llama
from paperhooks_evopress import GPTQ, EvoPress

#: Entries of JSON that say when and where a run took place.
PASSING: Final = {"started", "finished", "timings", "seconds", "host", "pid", "sha256"}
LAYERS: Final = 3
PHASES: Final = ("database", "search")


def work(out: Path) -> None:
    """The command that is killed, and then given again."""
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(0)
    data = [torch.randint(3, 90, (24 + i,), generator=generator).tolist() for i in range(12)]
    method = EvoPress(schedule="quick", generations=12, offspring=6, check_model=False)
    paperhooks.compress(
        tiny_llama(layers=LAYERS), method, data=data, target="bits=2.5", levels_from=[GPTQ(group=16)], out=out,
        progress=False,
    )  # fmt: skip


def forked(out: Path, kill: Callable[[Callable[[], bool]], None] | None = None) -> int:
    """Exit status of the work in a fork; ``kill`` waits for the moment to kill it, given whether it still runs."""
    child = os.fork()
    if not child:
        try:
            work(out)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    ended: list[int] = []

    def runs() -> bool:
        pid, status = (0, 0) if ended else os.waitpid(child, os.WNOHANG)
        ended.extend([status] * bool(pid))
        return not ended

    if kill is not None:
        kill(runs)
        if runs():
            os.kill(child, signal.SIGKILL)
    status = ended[0] if ended else os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status)


def phase_of(out: Path) -> str:
    """How far a run has come, by what lies in its folder."""
    if (out / "search.json").exists():
        return "search"
    return "database" if (out / "database").exists() else "begin"


def await_phase(out: Path, phase: str, runs: Callable[[], bool]) -> float:
    """Wait until a run has come to a phase; seconds that this took."""
    begin = time.monotonic()
    while runs() and phase_of(out) != phase:
        time.sleep(0.0005)
    return time.monotonic() - begin


def products(folder: Path) -> dict[str, Any]:
    """What lies in a folder, by name, without what says when and where, as the figure of the time does."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.stem != "time"]
    return {str(file.relative_to(folder)): _content(file) for file in files}


def _content(file: Path) -> Any:
    raw = file.read_bytes()
    if file.name in ("result.json", "manifest.json"):
        return _lasting(json.loads(raw))
    if file.suffix in (".html", ".md"):
        text = raw.decode().replace(str(file.parent), "")
        return re.sub(
            r"\d{4}-\d\d-\d\dT[\d:+]+|\b\d+(\.\d+)?(e-?\d+)? ?s\b|\"?(seconds|started|finished)\"?.*", "", text
        )
    return raw


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in PASSING}
    return [_lasting(item) for item in value] if isinstance(value, list) else value


def main(kills: int, seed: int, folder: Path) -> None:
    torch.set_num_threads(1)
    draw = random.Random(seed)
    assert forked(folder / "warm") == 0
    shutil.rmtree(folder / "warm")
    spans: dict[str, float] = {}

    def measure(runs: Callable[[], bool]) -> None:
        await_phase(folder / "whole", "database", runs)
        spans["database"] = await_phase(folder / "whole", "search", runs)
        begin = time.monotonic()
        while runs():
            time.sleep(0.0005)
        spans["search"] = time.monotonic() - begin

    assert forked(folder / "whole", measure) == 0
    wanted = products(folder / "whole")
    for number in range(len(PHASES) * kills):
        out, share, phase = folder / str(number), draw.random(), PHASES[number % len(PHASES)]

        def kill(runs: Callable[[], bool], out: Path = out, share: float = share, phase: str = phase) -> None:
            await_phase(out, phase, runs)
            end = time.monotonic() + share * spans[phase]
            while runs() and time.monotonic() < end:
                time.sleep(0.0005)

        killed = forked(out, kill)
        there = phase_of(out)
        status = forked(out)
        found = products(out)
        differ = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
        told = {"phase": phase, "killed": killed, "there": there, "status": status, "differ": differ}
        print(json.dumps(told), flush=True)
        shutil.rmtree(out)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
