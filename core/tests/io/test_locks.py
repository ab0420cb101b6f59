"""Folders that one run at a time writes into: other processes, launches, killed holders, removed folders."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from paperhooks.errors import DataError
from paperhooks.io import FolderLock, UnitStore, joined, launched
from paperhooks.testing import Child, Processes

HOLDS = """
import sys, time
from paperhooks.io import FolderLock
lock = FolderLock(sys.argv[1])
print("first" if lock.acquire() else "joined", flush=True)
time.sleep(float(sys.argv[2]))
lock.release()
"""


def holder(processes: Processes, folder: Path, seconds: float, **environment: str) -> tuple[Child, str]:
    """A process that holds a folder, and what it said when it had it."""
    child = processes.start("-c", HOLDS, folder, seconds, environment=environment)
    return child, child.line()


def test_a_folder_is_held_until_it_is_given_back_and_no_file_stays(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    with FolderLock(folder) as lock:
        assert lock.first
        with pytest.raises(DataError, match=rf"used by another run \(process {os.getpid()} on .*, since 20"):
            FolderLock(folder).acquire()
    assert list(folder.iterdir()) == []
    with FolderLock(folder) as again:
        assert again.held


def test_a_killed_holder_stops_nobody(tmp_path: Path) -> None:
    with Processes() as processes:
        child, said = holder(processes, tmp_path, 60)
        assert said == "first"
        with pytest.raises(DataError, match=f"process {child.process.pid} on"):
            FolderLock(tmp_path).acquire()
        child.kill()
        assert (tmp_path / "run.lock").exists()
        with FolderLock(tmp_path) as lock:
            assert lock.first
            assert lock.holder()["pid"] == os.getpid()


def test_the_processes_of_a_launch_share_a_folder_and_one_of_them_is_the_first(tmp_path: Path) -> None:
    with Processes() as processes:
        said = [holder(processes, tmp_path, 60, WORLD_SIZE="3", RANK=str(rank))[1] for rank in range(3)]
        assert said == ["first", "joined", "joined"]
        with pytest.raises(DataError, match="used by another run"):
            FolderLock(tmp_path).acquire()


def test_processes_started_one_by_one_share_a_folder_under_a_name(tmp_path: Path) -> None:
    with FolderLock(tmp_path, "parts of 2") as one, FolderLock(tmp_path, "parts of 2") as two:
        assert (one.first, two.first) == (True, False)
        one.announce({"ready": "yes"})
        assert two.announced() == {"ready": "yes"}
        with pytest.raises(DataError, match="used by another run"):
            FolderLock(tmp_path, "parts of 3").acquire()


def test_who_waits_for_a_first_process_that_died_is_told(tmp_path: Path) -> None:
    with Processes() as processes:
        child, _ = holder(processes, tmp_path, 60, WORLD_SIZE="2", RANK="0", MASTER_PORT="1")
        code = (
            "import sys; from paperhooks.io import FolderLock\n"
            "lock = FolderLock(sys.argv[1]); print(lock.acquire(), flush=True); lock.announced()"
        )
        waits = processes.start("-c", code, tmp_path, environment={"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "1"})
        assert waits.line() == "False"
        child.kill()
        waits.process.wait(timeout=60)
        assert "ended before it was ready" in waits.stderr


def test_a_first_process_of_another_machine_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with FolderLock(tmp_path, "2 shards") as one, FolderLock(tmp_path, "2 shards") as two:
        far = {**one.holder(), "host": "far", "pid": 2**30}
        (tmp_path / "run.lock").write_text(json.dumps(far))  # as a process with that number there writes it
        ready = threading.Timer(0.3, lambda: (tmp_path / "run.lock").write_text(json.dumps({**far, "ready": {"n": 1}})))
        ready.start()
        assert two.announced() == {"n": 1}
        ready.join()
        (tmp_path / "run.lock").write_text(json.dumps(far))
        monkeypatch.setattr("paperhooks.io.locks._FAR", 0.1)
        with pytest.raises(DataError, match="ended before it was ready"):
            two.announced()


def test_a_fork_of_the_holder_gives_nothing_back(tmp_path: Path) -> None:
    with FolderLock(tmp_path) as lock:
        child = os.fork()
        if not child:
            lock.release()
            os._exit(0)
        os.waitpid(child, 0)
        lock.confirm()
        with pytest.raises(DataError, match="used by another run"):
            FolderLock(tmp_path).acquire()


def test_a_folder_that_is_removed_while_it_is_held_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with FolderLock(folder) as lock:
        (folder / "run.lock").unlink()
        with pytest.raises(DataError, match="was removed or replaced while this run was using it"):
            lock.confirm()


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_no_lock_is_left_alone(tmp_path: Path, kind: str) -> None:
    own = tmp_path / ("run.lock" if kind == "file" else "own.txt")
    own.write_text("mine")
    if kind == "link":
        (tmp_path / "run.lock").symlink_to(own)
    elif kind == "folder":
        (tmp_path / "run.lock").mkdir()
    with pytest.raises(DataError):
        FolderLock(tmp_path).acquire()
    assert own.read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file cannot be written"):
        FolderLock(tmp_path / "file").acquire()


def test_the_number_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert launched() == (2, 3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(DataError, match="3 processes were launched, 2 of them on this machine"):
        launched()
    with FolderLock(tmp_path) as lock:
        assert lock.held, "a run folder may serve several machines; a store of units does not"
    with pytest.raises(DataError, match="on this machine"), UnitStore(tmp_path, "x").begin({}):
        pass
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(DataError, match="RANK is 3"):
        launched()


@pytest.mark.parametrize(("port", "said"), [("", "environment variable MASTER_"), ("here", "invalid literal")])
def test_processes_that_cannot_meet_are_told_so(monkeypatch: pytest.MonkeyPatch, port: str, said: str) -> None:
    """As where a scheduler sets the number of processes, and nobody where they meet."""
    there = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1" * bool(port), "MASTER_PORT": port}
    for name, value in there.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(DataError, match=rf"RANK is 0 and WORLD_SIZE 2, .* cannot meet: .*{said}.*torchrun"), joined():
        pass


def test_a_process_that_comes_before_the_first_has_written_its_name_waits(tmp_path: Path, monkeypatch) -> None:
    """Processes that have just met, as for the digest of a sharded model, come at the same moment."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    pwrite, began = os.pwrite, threading.Event()

    def late(*args) -> int:
        began.set()
        time.sleep(0.5)
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", late)
    one, two = FolderLock(tmp_path), FolderLock(tmp_path)
    first = threading.Thread(target=one.acquire)
    first.start()
    assert began.wait(5)
    assert not two.acquire()
    first.join()
    assert one.first
    two.release()
    one.release()
