"""Processes of tests: groups that are left in order, errors that come first, limits, and nothing that stays behind."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from paperhooks.testing import ChildError, Processes, RankPool, run_python, run_ranks
from paperhooks.testing.failures import failure_of, report
from torch import distributed

ON_LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who belongs to whom")
SLEEP = "import time; time.sleep(600)"


def gone(pid: int, seconds: float = 20.0) -> bool:
    """Whether a process ends within some seconds; what only waits to be reaped has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def hurry(monkeypatch: pytest.MonkeyPatch, *notes: Path) -> None:
    """Let time pass at once when all notes are there: a limit may be long, and no test waits for it."""
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 1000 * all(note.exists() for note in notes))


# -- groups ------------------------------------------------------------------------------------------------------------


def meeting(folder: str, word: str) -> list[str]:
    """What all ranks say; when the interpreter ends, each notes whether the group still stands."""
    rank = os.environ["RANK"]
    atexit.register(lambda: Path(folder, rank).write_text(str(distributed.is_initialized())))
    told: list[str] = [""] * distributed.get_world_size()
    distributed.all_gather_object(told, word + rank)
    return told


def breaking(row: int) -> None:
    """The last rank does not know the row; the others wait for it."""
    if distributed.get_rank() == distributed.get_world_size() - 1:
        raise KeyError(f"no row {row}")
    distributed.barrier()


def where() -> list[int]:
    """The process, and a sum that all ranks have made."""
    total = torch.ones(1)
    distributed.all_reduce(total)
    return [os.getpid(), int(total)]


def waiting(notes: str) -> None:
    """Each rank says that it is here; the first one sleeps, and the others wait for it."""
    Path(notes, str(distributed.get_rank())).touch()
    if distributed.get_rank() == 0:
        time.sleep(600)
    distributed.barrier()


def oversleeping(note: str) -> str:
    """The first rank returns; the second one knows that, says so, and sleeps."""
    if distributed.get_rank() == 0:
        return "done"
    while not Path(sys.argv[1], "rank-0.value").exists():
        time.sleep(0.05)
    Path(note).touch()
    time.sleep(600)
    return "late"


def test_every_rank_returns_its_value_and_the_group_is_gone_before_the_interpreter(tmp_path: Path) -> None:
    assert run_ranks(meeting, tmp_path, "r", count=3) == [["r0", "r1", "r2"]] * 3
    assert [(tmp_path / str(rank)).read_text() for rank in range(3)] == ["False"] * 3


def test_a_script_runs_in_a_group_too(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, torch.distributed as d\n"
        "if __name__ == '__main__':\n"
        "    pathlib.Path(__file__).with_name(f'{sys.argv[1]}{d.get_rank()}').write_text(str(d.get_world_size()))\n"
    )
    assert run_ranks(script, "rank", count=2) == [None, None]
    assert [(tmp_path / f"rank{rank}").read_text() for rank in range(2)] == ["2", "2"]


def test_the_rank_that_failed_comes_first_with_its_own_error() -> None:
    with pytest.raises(ChildError, match=r"^rank 1 of 2 failed: KeyError: 'no row 7'\n\nTraceback") as caught:
        run_ranks(breaking, 7)
    text = str(caught.value)
    assert 'raise KeyError(f"no row {row}")' in text
    assert "by peer" not in text.partition("rank 0 of 2")[0]
    assert "by peer" in text.partition("rank 0 of 2 failed: ")[2]


def test_the_rank_that_hangs_is_named_and_shows_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asleep = tmp_path / "asleep"
    hurry(monkeypatch, asleep)
    with pytest.raises(ChildError, match=r"^rank 1 of 2 had not ended after 200 s\n") as caught:
        run_ranks(oversleeping, asleep, limit=200)
    assert "in oversleeping" in str(caught.value).partition("rank 1 of 2 said:")[2]


def test_what_cannot_be_sent_to_a_process_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a function at the top of a module"):
        run_ranks(lambda: None)
    with pytest.raises(ValueError, match=r"arguments are \(<object .*; expected what JSON can say"):
        run_ranks(breaking, object())


# -- any process -------------------------------------------------------------------------------------------------------


def test_output_status_variables_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAVOUR", "sweet")
    code = "import os, sys; print(os.environ.get('FLAVOUR'), os.getcwd(), *sys.argv[1:]); sys.exit(3)"
    for flavour in ("sour", None):
        done = run_python("-c", code, tmp_path, check=False, cwd=tmp_path, environment={"FLAVOUR": flavour})
        assert (done.returncode, done.stderr) == (3, "")
        assert done.stdout == f"{flavour} {tmp_path} {tmp_path}\n"
    assert run_python("-c", "print('x' * 10**6)").stdout == "x" * 10**6 + "\n"


def test_a_process_that_fails_shows_its_error_and_what_it_printed() -> None:
    with pytest.raises(ChildError, match=r"^python -c .* ended with status 1: ValueError: nothing there\n") as caught:
        run_python("-c", "print('before'); raise ValueError('nothing there')")
    assert "standard output:\nbefore" in str(caught.value)


def test_a_crash_is_named_by_its_signal_and_shows_where() -> None:
    code = "import os\ndef crash():\n    os.abort()\ncrash()"
    with pytest.raises(ChildError, match=r"^python -c \.\.\. was ended by SIGABRT: Fatal Python error") as caught:
        run_python("-c", code)
    assert "in crash" in str(caught.value)


def test_a_process_that_is_late_is_ended_and_shows_where_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"import pathlib, sys\ndef dream():\n    pathlib.Path(sys.argv[1]).touch()\n    {SLEEP}\ndream()"
    with Processes(limit=200) as processes:
        quick = processes.start("-c", "pass", name="quick")
        slow = processes.start("-c", code, tmp_path / "asleep", name="slow")
        quick.process.wait()
        hurry(monkeypatch, tmp_path / "asleep")
        with pytest.raises(ChildError, match=r"^slow had not ended after 200 s\n\nslow said:") as caught:
            processes.wait()
    assert "in dream" in str(caught.value)
    assert slow.status == -signal.SIGABRT


@ON_LINUX
def test_nothing_outlives_the_block_not_even_what_a_launcher_put_into_a_session_of_its_own(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import pathlib, subprocess, sys, time\n"
        f"inner = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)\n"
        "part = pathlib.Path(sys.argv[1] + '.part')\npart.write_text(str(inner.pid))\npart.rename(sys.argv[1])\n"
        "time.sleep(600)"
    )
    with Processes() as processes:
        child = processes.start("-c", code, note)
        while not note.exists() and child.status is None:
            time.sleep(0.05)
    assert child.status == -signal.SIGTERM
    assert gone(int(note.read_text()))
    assert not processes.folder.exists()
    processes.close()


@ON_LINUX
def test_a_process_dies_with_the_one_that_started_it_even_if_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom paperhooks.testing import Processes\n"
        f"print(Processes().start('-c', {SLEEP!r}).process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = run_python("-c", code, check=False, environment={"TMPDIR": str(tmp_path)})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert gone(int(done.stdout))


# -- what is said ------------------------------------------------------------------------------------------------------


BEGIN = "Traceback (most recent call last):\n  File"
DIRECT = "The above exception was the direct cause of the following exception:"
ENDED = "terminate called without an active exception"


@pytest.mark.parametrize(
    ("said", "headline"),
    [
        (f"a warning\n{BEGIN}\nOSError: no\n{BEGIN}\nLaunchError: 1 failed", "OSError: no"),
        (f"{BEGIN}\nKeyError: 1\n\n{DIRECT}\n\n{BEGIN}\nDataError: row 1\n", "DataError: row 1"),
        ("".join(f"[rank0]: {line}\n" for line in [*BEGIN.splitlines(), "KeyError: 1"]) + "failed", "KeyError: 1"),
        (f"{ENDED}\nFatal Python error: Aborted", ENDED),
        ("one\nlast", "last"),
        ("", "it said nothing"),
    ],
)
def test_the_headline_is_the_first_error_of_all_that_was_said(said: str, headline: str) -> None:
    assert failure_of("worker", -6, "", said, 0.0).headline == f"worker was ended by SIGABRT: {headline}"


def test_what_followed_from_another_failure_comes_behind_it() -> None:
    echo = failure_of("rank 0", 1, "", "RuntimeError: Connection closed by peer [127.0.0.1]:1", when=1.0)
    own = failure_of("rank 1", 1, "", "ValueError: mine", when=2.0)
    launcher = failure_of("torchrun", 1, "", "ChildFailedError", when=0.0, depth=2)
    lines = [line for line in report([launcher, echo, own]).splitlines() if " ended with " in line]
    assert [line.partition(" ended")[0] for line in lines] == ["rank 1", "rank 0", "torchrun"]


# -- pools -------------------------------------------------------------------------------------------------------------


def test_a_pool_keeps_its_processes_until_a_call_fails() -> None:
    with RankPool(count=2) as pool:
        first = pool.run(where)
        assert [total for _, total in first] == [2, 2]
        assert pool.run(where) == first
        with pytest.raises(ChildError, match=r"rank 1 of 2 failed: KeyError: 'no row 3'"):
            pool.run(breaking, 3)
        again = pool.run(where)
        assert {pid for pid, _ in again}.isdisjoint(pid for pid, _ in first)
    assert all(gone(pid) for pid, _ in again)


def test_a_pool_that_hangs_says_where_its_ranks_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RankPool(count=2) as pool:
        pid = pool.run(where)[0][0]
        hurry(monkeypatch, tmp_path / "0", tmp_path / "1")
        with pytest.raises(ChildError, match=r"^rank 0 of 2, rank 1 of 2 had not ended after 200 s\n") as caught:
            pool.run(waiting, tmp_path, limit=200)
    first, _, second = str(caught.value).partition("rank 1 of 2 said:")
    assert "in waiting" in first
    assert "in waiting" in second
    assert gone(pid)
