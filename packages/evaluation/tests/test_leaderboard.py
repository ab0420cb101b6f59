"""The row of a leaderboard that a task defines."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from evaluation_tasks import Echo
from paperhooks.generation import CallableBackend
from paperhooks_evaluation import Summary, evaluate, rescore

quick = partial(evaluate, report=False)


@dataclass(frozen=True)
class Listed(Echo):
    """Says its row in percent."""

    def leaderboard(self, summary: Summary) -> Mapping[str, Any]:
        return {"=overall": round(100 * (summary.metrics[0].value or 0), 1), "n": summary.metrics[0].n, "empty": None}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": f"q{i}", "prompt": f"q{i}", "answer": "w"} for i in range(3)]))
    return file


def test_a_whole_run_gives_a_row_and_a_part_gives_none(data: Path, tmp_path: Path) -> None:
    backend, out = CallableBackend(lambda request: "w" if request.prompt == "q0" else "no"), tmp_path / "run"
    quick(backend, None, Listed(), data=data, out=out, limit=2)
    assert not list(out.glob("leaderboard*"))
    quick(backend, None, Listed(), data=data, out=out)
    assert json.loads((out / "leaderboard.json").read_text()) == {"=overall": 33.3, "n": 3, "empty": None}
    assert list(csv.reader((out / "leaderboard.csv").open())) == [["'=overall", "n", "empty"], ["33.3", "3", ""]]
    quick(backend, None, Listed(), data=data, out=out, limit=2)
    assert not list(out.glob("leaderboard*"))
    rescore(out, Listed(), report=False)
    assert not list(out.glob("leaderboard*"))


def test_a_task_without_a_table_and_a_document_without_a_score_give_no_row(data: Path, tmp_path: Path) -> None:
    def answer(request: Any) -> str:
        if request.prompt == "q1":
            raise ValueError("no answer")
        return "w"

    quick(CallableBackend(answer), None, Listed(), data=data, out=tmp_path / "failed")
    quick(CallableBackend(lambda request: "w"), None, Echo(), data=data, out=tmp_path / "plain")
    assert not list(tmp_path.rglob("leaderboard*"))
