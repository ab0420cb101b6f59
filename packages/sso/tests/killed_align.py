"""A loop that is killed in its stages and called again: ``python killed_align.py KILLS SEED FOLDER [STAGE...]``.

Everything is imported once; each run is a fork of this process. So many kills come in every stage, or in those named.
Prints a line of JSON for each: where it was to come, how far the run had come, how it ended when it was called again,
in what the folder differs from that of an undisturbed run, and what was asked twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from loop_models import PROMPTS, CountingBackend, products, quick
from paperhooks_sso import align
from paperhooks_sso.loop.round_folder import STAGES
from sso_models import tiny

ITERATIONS: Final = 2
#: Shortest time in which a kill is placed, in seconds: stages that take less are met at their edges.
SHORTEST: Final = 0.02


def work(out: Path) -> None:
    """The command that is killed, and then given again."""
    warnings.simplefilter("ignore")
    CountingBackend.log = out.with_suffix(".asked")
    options = quick(out.with_suffix(".given"), batch=2, make_backend=CountingBackend, filter=False)
    align(tiny(), PROMPTS[:4], out=out, iterations=ITERATIONS, **options)


def forked(out: Path, kill: Callable[[Callable[[], bool]], None] | None = None) -> int:
    """Exit status of the work in a fork; ``kill`` waits for the moment to kill it, given whether it still runs."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work(out)
            os._exit(0)
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


def finished(folder: Path) -> list[str]:
    """The stages of a round that are done."""
    with suppress(OSError, ValueError):
        results = json.loads((folder / "result.json").read_bytes())["results"]
        return [stage for stage in STAGES if stage in results]
    return []


def spans_of(out: Path) -> dict[str, float]:
    """Seconds of every stage in an undisturbed run."""
    timings = json.loads((out / "iteration-1" / "result.json").read_bytes())["timings"]
    return {stage: max(SHORTEST, timings.get(stage, 0.0)) for stage in STAGES}


def main(kills: int, seed: int, folder: Path, stages: list[str]) -> None:
    torch.set_num_threads(1)
    draw = random.Random(seed)
    assert forked(folder / "whole") == 0
    wanted, spans = products(folder / "whole"), spans_of(folder / "whole")
    for number, stage in enumerate(kills * (stages or list(STAGES))):
        out, share, iteration = folder / str(number), draw.random(), draw.randint(1, ITERATIONS)
        before = list(STAGES)[: list(STAGES).index(stage)]

        def kill(
            runs: Callable[[], bool],
            place: Path = out / f"iteration-{iteration}",
            before: list[str] = before,
            wait: float = share * spans[stage],
        ) -> None:
            while runs() and not (place.exists() and set(before) <= set(finished(place))):
                time.sleep(0.001)
            end = time.monotonic() + wait
            while runs() and time.monotonic() < end:
                time.sleep(0.0005)

        status = forked(out, kill)
        there = {each.name: finished(each) for each in sorted(out.glob("iteration-*"))}
        again = forked(out)
        found: dict[str, Any] = products(out) if again == 0 else {}
        asked = Counter(out.with_suffix(".asked").read_text().splitlines())
        print(json.dumps({
            "stage": stage, "iteration": iteration, "killed": status, "there": there, "again": again,
            "differ": sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name)),
            "twice": sorted(each for each, count in asked.items() if count > 1),
        }), flush=True)  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
