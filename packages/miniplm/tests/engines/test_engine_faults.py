"""Processes of the engines that are killed, frozen, late or wrong: the same bytes as one loop makes, or an error."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from engine_place import FULL, KILLS, Place, killed_tree, said
from paperhooks.testing import Processes
from paperhooks_miniplm import merge_parts

pytest.importorskip("datatrove", reason="run with nox -s engines")
pytest.importorskip("ray", reason="run with nox -s engines")
pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(300),
    pytest.mark.parametrize("engine", ["datatrove", "ray"]),
]
FROZEN = 60.0 if FULL else 3.0
#: Seconds in which a kill has to be noticed.
NOTICED = 60.0


def test_one_worker_killed_one_frozen_and_clocks_ahead(place: Place, tmp_path: Path, engine: str) -> None:
    with Processes(limit=280) as processes:
        child = place.start(processes, engine, 2, str(tmp_path / "scores"), "slow", "ahead")
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
        assert [each["missing"] for each in said(child)] == [[]]
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
    (found,) = place.run(engine, 2, str(tmp_path / "scores"))
    assert found["missing"] == []
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
        (found,) = place.run(engine, (1, 2, 5)[number % 3], str(out))
        assert found["missing"] == []
        place.check(out)
        place.forget()
    assert early, "no kill came in the middle of the work"


@pytest.mark.slow
def test_workers_that_run_out_of_memory(place: Place, tmp_path: Path, engine: str) -> None:
    (found,) = place.run(engine, 2, str(tmp_path / "scores"), "memory")
    assert found["missing"] == []
    corpus = place.folder / "parts"
    plain = merge_parts(place.folder / "loop", corpus, tmp_path / "plain").scores
    small = merge_parts(tmp_path / "scores", corpus, tmp_path / "small").scores
    np.testing.assert_allclose(small.nll, plain.nll, rtol=1e-5)  # other batches round otherwise
    assert (small.count == plain.count).all()


def test_a_row_that_the_model_refuses(place: Place, tmp_path: Path, engine: str) -> None:
    corpus = place.with_bad_row(tmp_path / "parts", row=57)
    (found,) = place.run(engine, 2, str(tmp_path / "scores"), CORPUS=str(corpus))
    assert "unit 5 of" in found["error"]
    assert "row 57" in found["error"]


def test_a_unit_that_kills_its_worker_ends_the_run(place: Place, tmp_path: Path, engine: str) -> None:
    (found,) = place.run(engine, 2, str(tmp_path / "scores"), "deadly")
    assert "killed" in found["error"]
