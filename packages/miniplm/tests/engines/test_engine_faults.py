"""Processes of the engines that are killed, frozen, late or wrong: the same bytes as one loop makes, or an error."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from engine_place import FULL, KILLS, Place, killed_tree
from paperhooks.testing import Processes

pytest.importorskip("datatrove", reason="run with nox -s engines")
pytest.importorskip("ray", reason="run with nox -s engines")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("engine", ["datatrove", "ray"]),
]
FROZEN = 60.0 if FULL else 5.0
#: Seconds in which a kill has to be noticed.
NOTICED = 60.0


def test_one_worker_killed_and_one_frozen(place: Place, tmp_path: Path, engine: str) -> None:
    with Processes(limit=280) as processes:
        child = place.start(processes, engine, 2, str(tmp_path / "scores"), "slow")
        killed = place.begun()
        os.kill(killed, signal.SIGKILL)
        start = time.monotonic()
        frozen = place.begun(but=killed, since=time.time_ns())
        assert time.monotonic() - start < NOTICED
        os.kill(frozen, signal.SIGSTOP)
        time.sleep(FROZEN)
        assert psutil.Process(frozen).status() == psutil.STATUS_STOPPED
        os.kill(frozen, signal.SIGCONT)
        processes.wait()
        assert json.loads(child.stdout.splitlines()[-1])["missing"] == []
    place.check(tmp_path / "scores")


def test_the_driver_killed(place: Place, tmp_path: Path, engine: str) -> None:
    with Processes(limit=280) as processes:
        child = place.start(processes, engine, 2, str(tmp_path / "scores"), "slow")
        worker = place.begun()
        child.kill()
        end = time.monotonic() + NOTICED
        while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < end, "a worker lives on without its driver"
            time.sleep(0.05)
    assert len(list((tmp_path / "scores").glob("*.parquet"))) < len(place.wanted)
    (said,) = place.run(engine, 2, str(tmp_path / "scores"))
    assert said["missing"] == []
    place.check(tmp_path / "scores")


@pytest.mark.timeout(3600)
def test_the_whole_tree_killed_at_random_moments(place: Place, tmp_path: Path, engine: str) -> None:
    draw, early = random.Random(19), 0
    for number in range(KILLS):
        out = tmp_path / f"scores-{number}"
        with Processes(limit=280) as processes:
            child = place.start(processes, engine, 2, str(out), "slow")
            place.begun()
            time.sleep(draw.uniform(0, 2.4))
            killed_tree(child.process.pid)
        early += len(list(out.glob("*.parquet"))) < len(place.wanted)
        (said,) = place.run(engine, (1, 2, 5)[number % 3], str(out))
        assert said["missing"] == []
        place.check(out)
        place.forget()
    assert early, "no kill came in the middle of the work"


def test_clocks_that_go_ahead_and_memory_that_is_short(place: Place, tmp_path: Path, engine: str) -> None:
    (said,) = place.run(engine, 2, str(tmp_path / "scores"), "ahead")
    assert said["missing"] == []
    place.check(tmp_path / "scores")


def test_a_row_that_the_model_refuses(place: Place, tmp_path: Path, engine: str) -> None:
    corpus = place.with_bad_row(tmp_path / "parts", row=57)
    (said,) = place.run(engine, 2, str(tmp_path / "scores"), CORPUS=str(corpus))
    assert "unit 5 of" in said["error"]
    assert "row 57" in said["error"]


def test_a_unit_that_kills_its_worker_ends_the_run(place: Place, tmp_path: Path, engine: str) -> None:
    (said,) = place.run(engine, 2, str(tmp_path / "scores"), "deadly")
    assert "killed" in said["error"]
