"""A model, a corpus in parts, what one process makes of it, and runs of ``engine_program.py``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from paperhooks.testing import Child, Processes
from paperhooks_miniplm import Parts, Row, ScoringRun, ScoringSpec, write_parts

__all__ = ["FULL", "KILLS", "UNITS", "Place", "killed_tree", "make_place", "said"]

PROGRAM = Path(__file__).parent / "engine_program.py"
UNITS, UNIT_ROWS = 24, 10
#: Kills of the whole tree: ``nox -s engines -- --full`` asks for 20.
KILLS = int(os.environ.get("PAPERHOOKS_KILLS", "2"))
FULL = KILLS > 2


@dataclass
class Place:
    """A folder with a model and parts.

    wanted
        Name to bytes of the score files that one loop in one process makes.
    """

    folder: Path
    environment: dict[str, str | None]
    wanted: dict[str, bytes]

    def start(self, processes: Processes, engine: str, workers: int | str, out: str, *faults: str) -> Child:
        """Start the program."""
        return processes.start(PROGRAM, self.folder, engine, workers, out, *faults, environment=self.environment)

    def run(self, engine: str, workers: int | str, out: str, *faults: str, **environment: str) -> list[dict[str, Any]]:
        """Run the program to its end; returns what it said."""
        with Processes(limit=280) as processes:
            place = Place(self.folder, {**self.environment, **environment}, self.wanted)
            child = place.start(processes, engine, workers, out, *faults)
            processes.wait()
            return said(child)

    def begun(self, limit: float = 120.0, *, but: int = 0, since: int = 0) -> int:
        """A process other than one that has begun a unit since a moment, the last one, as soon as there is one."""
        end = time.monotonic() + limit
        while time.monotonic() < end:
            files = {file: file.stat().st_mtime_ns for file in (self.folder / "begun").glob("*-*")}
            for file in sorted(files, key=files.__getitem__, reverse=True):
                pid = int(file.name.partition("-")[2])
                if pid != but and files[file] > since and psutil.pid_exists(pid):
                    return pid
            time.sleep(0.02)
        raise AssertionError("no unit was begun")

    def forget(self) -> None:
        """Forget which units were begun."""
        shutil.rmtree(self.folder / "begun", ignore_errors=True)

    def with_bad_row(self, folder: Path, row: int) -> Path:
        """Parts of the same rows, of which one has an id that the model does not know."""
        rows = Parts(self.folder / "parts").read(range(len(Parts(self.folder / "parts"))))
        rows[row] = Row(np.full(9, 1_000))
        write_parts(rows, folder, unit_rows=UNIT_ROWS, part_units=7)
        return folder

    def check(self, out: str | Path) -> None:
        """The files are those of the loop, to the last byte."""
        found = {file.name: file.read_bytes() for file in Path(out).glob("*.parquet")}
        assert found == self.wanted


def said(child: Child) -> list[dict[str, Any]]:
    """What the program said, without what an engine did."""
    return [json.loads(line) for line in child.stdout.splitlines() if line.startswith("{")]


def killed_tree(pid: int) -> None:
    """Kill a process and all that came from it, as a machine that fails would."""
    top = psutil.Process(pid)
    for each in [top, *top.children(recursive=True)]:
        try:
            each.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def make_place(folder: Path, ray_folder: Path, model: Any, unit_rows: int = UNIT_ROWS) -> Place:
    """Save a model and a corpus, and score it in a loop."""
    model.save_pretrained(folder / "model")
    draw = np.random.default_rng(0)
    rows = [draw.integers(3, 60, draw.integers(2, 60)) for _ in range(UNITS * unit_rows - 3)]
    parts = write_parts(rows, folder / "parts", unit_rows=unit_rows, part_units=7)
    run = ScoringRun.begin(ScoringSpec(str(folder / "model"), end=2, max_length=48), parts, folder / "loop")
    assert [run.score(number) for number in run.missing()] == [True] * run.units
    wanted = {file.name: file.read_bytes() for file in (folder / "loop").glob("*.parquet")}
    environment = {
        "RAY_TMPDIR": str(ray_folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0",
        "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    return Place(folder, environment, wanted)
