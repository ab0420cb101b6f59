"""Runs that are killed, moved, or scored again: nothing is asked twice, and the end is the same."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from exam_ranks import evaluated
from exam_runs import backend, canned, quick, untimed
from paperhooks.errors import DataError
from paperhooks.testing import run_python, run_ranks
from paperhooks_evaluation import compare, rescore
from paperhooks_jmmmu import Jmmmu, JmmmuPro, make_sample
from paperhooks_jmmmu.data import JAPANESE, read_questions

HERE = Path(__file__).parent
#: `nox -s faults` asks for 20.
KILLS = int(os.environ.get("PAPERHOOKS_KILLS", "2"))


@pytest.mark.timeout(900)
def test_a_killed_run_ends_as_an_undisturbed_one(japanese: Path, tmp_path: Path) -> None:
    done = run_python(HERE / "kill_exam.py", KILLS, 7, japanese, tmp_path / "work", limit=900, cwd=HERE)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == KILLS
    assert [one["status"] for one in found] == [[0, 0]] * KILLS
    assert all(one["killed"] == -9 for one in found)
    assert all(one["asked_the_rest_once"] for one in found), found
    assert all(one["same"] for one in found), found
    assert any(one["kept"] > 0 for one in found), "no kill came in the middle of the work"
    assert any(one["cut"] for one in found), "no kill came in the middle of a line"


def test_two_processes_share_the_questions(japanese: Path, tmp_path: Path) -> None:
    """They know nothing of one another but their group; the files are those of one process."""
    replies = canned(read_questions(str(japanese), JAPANESE).documents)
    file = tmp_path / "replies.json"
    file.write_text(json.dumps(replies, ensure_ascii=False), encoding="utf-8")
    first, second = run_ranks(evaluated, japanese, tmp_path / "shared", file)
    assert not {*first} & {*second}
    assert sorted(first + second) == sorted(replies)
    assert min(len(first), len(second)) > 10
    quick(backend(replies), None, Jmmmu(), data=japanese, out=tmp_path / "alone")
    assert untimed(tmp_path / "shared") == untimed(tmp_path / "alone")
    assert (tmp_path / "shared" / "scores.csv").read_bytes() == (tmp_path / "alone" / "scores.csv").read_bytes()


def moved(data: Path, tmp_path: Path) -> Path:
    there = tmp_path / "elsewhere" / "data"
    shutil.copytree(data, there)
    return there


@pytest.mark.parametrize("kind", [Jmmmu, JmmmuPro])
def test_data_may_be_moved_between_two_calls(
    japanese: Path, pro: Path, tmp_path: Path, kind: Callable[[], Jmmmu | JmmmuPro]
) -> None:
    task, data = kind(), japanese if kind is Jmmmu else pro
    replies, asked = canned(task.documents(str(data))), []
    quick(backend(replies), None, task, data=data, out=tmp_path / "whole")
    quick(backend(replies, asked), None, task, data=data, out=tmp_path / "run", limit=20)
    there = moved(data, tmp_path)
    quick(backend(replies, asked), None, task, data=there, out=tmp_path / "run")
    assert sorted(asked) == sorted(replies), "none was asked twice"
    found, expected = untimed(tmp_path / "run"), untimed(tmp_path / "whole")
    assert found["paperhooks"]["modes"] == expected["paperhooks"]["modes"]
    assert found["paperhooks"]["data"]["fingerprint"] == expected["paperhooks"]["data"]["fingerprint"]
    text = (tmp_path / "run" / "documents.jsonl").read_text(encoding="utf-8")
    assert str(data) not in text
    assert str(there) not in text


def test_a_picture_that_changed_is_another_question(tmp_path: Path) -> None:
    """Though texts and ids are the same: the pictures' bytes count."""
    for name, seed in (("a", 0), ("b", 1)):
        make_sample(tmp_path / name, 1, seed=seed, kind="pro")
    first, second = ({one.id: one for one in JmmmuPro().documents(str(tmp_path / name))} for name in "ab")
    assert first.keys() == second.keys()
    assert any(first[name].data["pictures"] != second[name].data["pictures"] for name in first)
    quick(backend(canned([*first.values()])), None, JmmmuPro(), data=tmp_path / "a", out=tmp_path / "run", limit=28)
    with pytest.raises(DataError, match="changed"):
        quick(backend(canned([*second.values()])), None, JmmmuPro(), data=tmp_path / "b", out=tmp_path / "run")


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
def test_a_folder_needs_no_network(
    socket_disabled, japanese: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where the hub is not told to be off."""
    with pytest.raises(RuntimeError, match="socket"):
        socket.socket()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    replies = canned(read_questions(str(japanese), JAPANESE).documents)
    quick(backend(replies), None, Jmmmu(), data=japanese, out=tmp_path / "a", limit=12)
    rescore(tmp_path / "a", Jmmmu(parser="robust"), report=False)
    assert compare(tmp_path / "a", tmp_path / "a", resamples=5).overall.n == 12


HEAVY = ("torch", "transformers", "datasets", "matplotlib")
PROBE = "import sys\n{code}\nprint('loaded:', *[name for name in {heavy!r} if name in sys.modules])"


def loaded_after(code: str, *words: object) -> set[str]:
    done = run_python("-c", PROBE.format(code=code, heavy=HEAVY), *words)
    return set(done.stdout.rpartition("loaded:")[2].split())


@pytest.fixture(scope="module")
def run(japanese: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    replies = canned(read_questions(str(japanese), JAPANESE).documents)
    quick(backend(replies), None, Jmmmu(), data=japanese, out=out, limit=12)
    return out


COMMAND = (
    "from paperhooks.cli import main\ntry:\n    main({words})\nexcept SystemExit as end:\n    assert not end.code\n"
)
CALLS = (
    "from paperhooks_evaluation import compare, rescore\nrescore(sys.argv[1], report=False)\n"
    "assert compare(sys.argv[1], sys.argv[1], resamples=5).overall.n == 12"
)
COMMANDS = COMMAND.format(words="['tasks']") + COMMAND.format(words="['jmmmu', 'controls', sys.argv[2]]")


@pytest.mark.parametrize(
    ("code", "needs"),
    [(CALLS, set()), (COMMANDS, set()), (COMMAND.format(words="['rescore', sys.argv[1]]"), {"matplotlib"})],
    ids=["rescore and compare", "commands", "rescore with a report"],
)
def test_what_asks_no_model_loads_none(run: Path, japanese: Path, code: str, needs: set[str]) -> None:
    assert loaded_after(code, run, japanese) == needs


def test_the_probe_sees_what_is_loaded() -> None:
    assert loaded_after("import matplotlib") == {"matplotlib"}
