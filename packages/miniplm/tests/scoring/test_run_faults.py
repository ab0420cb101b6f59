"""What goes wrong in a run over parts, whatever the engine: cut files, late stores, other runs, rows, dead workers."""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from paperhooks import DataError
from paperhooks.testing import run_python, tiny_llama
from paperhooks_miniplm import (
    FlatIds,
    LogLikelihood,
    Parts,
    ScoringRun,
    ScoringSpec,
    merge_parts,
    score_rows,
    write_parts,
)
from paperhooks_miniplm.corpus.storage import Storage
from paperhooks_miniplm.scoring.worker_pool import done_by_workers

UNIT_ROWS = 8


def made_rows(count: int = 61) -> list[np.ndarray]:
    draw = np.random.default_rng(1)
    return [draw.integers(3, 60, draw.integers(2, 30)) for _ in range(count)]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    return folder


def run_of(model_folder: Path, tmp_path: Path, rows: Sequence = (), **options: object) -> ScoringRun:
    write_parts(list(rows) or made_rows(), tmp_path / "parts", unit_rows=UNIT_ROWS, part_units=3)
    spec = ScoringSpec(str(model_folder), **{"end": 2, "max_length": 32, **options})
    return ScoringRun.begin(spec, tmp_path / "parts", tmp_path / "scores")


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.glob("*.parquet")}


def test_folders_by_relative_paths_are_found_from_another_folder(model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_parts(made_rows(), "parts", unit_rows=UNIT_ROWS)
    Path("model").symlink_to(model_folder)
    run = ScoringRun.begin(ScoringSpec("model", end=2, max_length=32), "parts", "scores")
    monkeypatch.chdir("/")
    assert run.score(0)
    assert len(contents(tmp_path / "scores")) == 1
    assert Path(run.spec.model) == tmp_path / "model"


@pytest.mark.parametrize("opened", [False, True], ids=["new worker", "worker of the run before"])
def test_other_parts_at_the_address_of_a_run_are_not_scored(model_folder: Path, tmp_path: Path, opened: bool) -> None:
    run = run_of(model_folder, tmp_path)
    if opened:
        run.score(1)
    shutil.rmtree(tmp_path / "parts")
    write_parts(made_rows(69)[8:], tmp_path / "parts", unit_rows=UNIT_ROWS, part_units=3)
    new = ScoringRun.begin(run.spec, tmp_path / "parts", tmp_path / "new")
    [new.score(number) for number in new.missing()]
    found = merge_parts(tmp_path / "new", tmp_path / "parts", tmp_path / "merged").scores
    wanted = score_rows(run.spec.open(), FlatIds.joined(made_rows(69)[8:16]))
    assert found.nll[:8].tolist() == wanted["nll"].tolist()
    with pytest.raises(DataError, match=r"another corpus here than where the run began: corpus\.sha256 = "):
        run.score(0)


def test_an_older_runs_worker_that_wakes_up_is_refused(model_folder: Path, tmp_path: Path) -> None:
    old = run_of(model_folder, tmp_path)
    (tmp_path / "scores" / "run.json").unlink()
    new = run_of(model_folder, tmp_path, max_length=16)
    with pytest.raises(DataError, match="belongs to another run by now"):
        old.score(0)
    assert new.missing() == list(range(8))
    assert contents(tmp_path / "scores") == {}


def test_an_older_worker_that_wakes_up_before_it_writes_is_refused(model_folder, tmp_path, monkeypatch) -> None:
    old = run_of(model_folder, tmp_path)
    plain = LogLikelihood.score

    def slept(self, rows, **options):
        found = plain(self, rows, **options)
        (tmp_path / "scores" / "run.json").unlink()
        run_of(model_folder, tmp_path, max_length=16)
        return found

    monkeypatch.setattr(LogLikelihood, "score", slept)
    with pytest.raises(DataError, match="belongs to another run by now"):
        old.score(0)
    assert contents(tmp_path / "scores") == {}


def test_stores_that_list_late_lead_to_no_double_work_and_no_gaps(model_folder, tmp_path, monkeypatch) -> None:
    run = run_of(model_folder, tmp_path)
    assert all(run.score(number) for number in range(run.units))
    monkeypatch.setattr(Storage, "names", lambda self, ending: [])
    assert run.missing() == list(range(run.units))
    assert not any(run.score(number) for number in run.missing())
    report = merge_parts(tmp_path / "scores", tmp_path / "parts", tmp_path / "merged")
    assert (report.rows, report.duplicates) == (61, 0)


@pytest.mark.parametrize("keep", [0, 4, 0.5, -1])
def test_a_part_that_was_cut_is_named_with_its_rows(model_folder: Path, tmp_path: Path, keep: float) -> None:
    run = run_of(model_folder, tmp_path)
    file = tmp_path / "parts" / "part-000001.parquet"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(DataError, match=r"part-000001.parquet \(rows 24 to 47\) has \d+ bytes, not \d+; copy it again"):
        pickle.loads(pickle.dumps(run)).score(4)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.95])
def test_a_byte_of_a_part_that_changed_changes_no_score(model_folder: Path, tmp_path: Path, share: float) -> None:
    run = run_of(model_folder, tmp_path)
    assert all(run.score(number) for number in range(run.units))
    wanted = contents(tmp_path / "scores")
    for name in wanted:
        (tmp_path / "scores" / name).unlink()
    file = tmp_path / "parts" / "part-000001.parquet"
    content = bytearray(file.read_bytes())
    content[int(share * len(content))] ^= 0xFF
    file.write_bytes(content)
    errors = []
    for number in range(run.units):
        try:
            pickle.loads(pickle.dumps(run)).score(number)
        except DataError as error:
            errors.append(str(error))
    found = contents(tmp_path / "scores")
    assert found == {name: wanted[name] for name in found}
    assert all(re.search(r"part-000001.parquet \(rows \d+ to \d+\)", error) for error in errors)
    assert len(found) + len(errors) == run.units
    with pytest.raises(DataError, match=r"part-000001.parquet \(rows 24 to 47\) was changed or damaged"):
        Parts(tmp_path / "parts").check()


def test_scores_that_were_cut_are_named_and_made_again(model_folder: Path, tmp_path: Path) -> None:
    run = run_of(model_folder, tmp_path)
    assert all(run.score(number) for number in range(run.units))
    wanted = contents(tmp_path / "scores")
    file = sorted((tmp_path / "scores").glob("*.parquet"))[2]
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=rf"{file.name} cannot be read \(rows 16 to 23\): .*; delete it, score again"):
        merge_parts(tmp_path / "scores", tmp_path / "parts", tmp_path / "merged")
    assert not (tmp_path / "merged" / "scores.safetensors").exists()
    assert run.score(2)
    assert contents(tmp_path / "scores") == wanted


def test_a_gpu_out_of_memory_goes_on_with_smaller_batches(model_folder, tmp_path, monkeypatch) -> None:
    run = run_of(model_folder, tmp_path)
    assert all(run.score(number) for number in range(run.units))
    plain = merge_parts(tmp_path / "scores", tmp_path / "parts", tmp_path / "plain").scores
    for file in (tmp_path / "scores").glob("*.parquet"):
        file.unlink()
    batch, sizes = LogLikelihood._batch, []

    def small(self, rows):
        if len(rows) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(rows))
        return batch(self, rows)

    monkeypatch.setattr(LogLikelihood, "_batch", small)
    assert all(run.score(number) for number in range(run.units))
    assert sizes
    found = merge_parts(tmp_path / "scores", tmp_path / "parts", tmp_path / "merged").scores
    np.testing.assert_allclose(found.nll, plain.nll, rtol=1e-5)
    assert (found.count == plain.count).all()


# -- workers of this machine -------------------------------------------------------------------------------------------

POOL = """
import os, signal, sys
from functools import partial
from pathlib import Path
from paperhooks_miniplm.scoring.worker_pool import done_by_workers

def work(fault, number):
    mark = Path(sys.argv[1], f"{fault}-{number}")
    if number == 3 and (fault == "always" or fault == "once" and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 5 and fault == "error":
        raise ValueError("no number 5")
    mark.touch()

if __name__ == "__main__":
    for fault in ("once", "always", "error"):
        try:
            print(fault, sorted(done_by_workers(partial(work, fault), range(8), 2)))
        except Exception as error:
            print(fault, f"{type(error).__name__}: {error}")
"""


def test_workers_that_are_killed_and_tasks_that_fail(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(POOL)
    (tmp_path / "marks").mkdir()
    once, always, error = run_python(tmp_path / "program.py", tmp_path / "marks").stdout.splitlines()
    assert once == f"once {list(range(8))}", "others do the tasks of one that was killed"
    assert {f"once-{number}" for number in range(8)} <= {file.name for file in (tmp_path / "marks").iterdir()}
    assert always.startswith("always DataError: workers were killed twice without having done anything, with unit 3")
    assert error == "error ValueError: no number 5"


LONG = """
import sys, time
from pathlib import Path
from paperhooks_miniplm.scoring.worker_pool import done_by_workers

def work(number):
    Path(sys.argv[1], f"begun-{number}").touch()
    if number == 2:
        raise ValueError("no number 2")
    time.sleep(0 if number < 2 else 600)

if __name__ == "__main__":
    try:
        list(done_by_workers(work, range(9), 2))
    except ValueError as error:
        print(error)
"""


def test_an_error_ends_workers_in_the_middle_of_theirs(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LONG)
    assert run_python(tmp_path / "program.py", tmp_path, limit=120).stdout == "no number 2\n"


def test_one_worker_is_this_process() -> None:
    seen: list[int] = []
    assert list(done_by_workers(lambda number: seen.append(os.getpid()), range(3), 1)) == [0, 1, 2]
    assert seen == [os.getpid()] * 3
