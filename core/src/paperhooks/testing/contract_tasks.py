"""The contract every evaluation task keeps, as a test class to subclass.

    class TestQuiz(TaskContract):
        def make(self):
            return Quiz()

        def source(self, folder):
            (folder / "questions.json").write_text(QUESTIONS)
            return folder

The checks need the evaluation toolkit (``paperhooks[evaluation]``), and no model: replies come from a list.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from paperhooks.io import read_json
from paperhooks.testing.contract_task_documents import DocumentChecks
from paperhooks.testing.contract_task_material import ById
from paperhooks.testing.contract_task_scores import ScoreChecks

__all__ = ["TaskContract"]


class TaskContract(DocumentChecks, ScoreChecks):
    """Subclass it, define :meth:`make` and :meth:`source`, and set what the checks cannot know.

    others
        Another value for each option that is no whole number and no flag, by the option's name.
    places
        Names of options that only say where something lies, such as a folder of images: they change neither replies nor
        scores.
    replies
        Replies as models give them to this task. Odd ones (empty, of 30,000 characters, with NUL, halves of surrogate
        pairs, in other scripts) are tried in any case.
    """

    def test_scoring_again_gives_the_same(self, tmp_path: Path) -> None:
        """``rescore`` writes what ``evaluate`` wrote, without the data."""
        from paperhooks import rescore

        data, out = tmp_path / "data", tmp_path / "run"
        self.run(self.make(), self.written(data), out)
        before = _written(out)
        shutil.rmtree(data)
        for file in ("results.json", "scores.csv"):
            (out / file).unlink()
        rescore(out, self.make(), report=False)
        _assert_same_files(_written(out), before, "scoring again")

    def test_a_run_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        """Half of the documents, then all, at another batch size: the same files as in one go, and none asked twice."""
        source, parts = self.written(tmp_path / "data"), ById(self.every_reply())
        whole = self.run(self.make(), source, tmp_path / "whole")
        half = max(1, whole.documents // 2)
        self.run(self.make(), source, tmp_path / "parts", parts, limit=half, batch_size=1)
        for _ in range(2):
            self.run(self.make(), source, tmp_path / "parts", parts, batch_size=3)
        twice = sorted({one for one in parts.asked if parts.asked.count(one) > 1})
        assert twice == [], f"asked again, although they had their replies: {twice}"
        _assert_same_files(_written(tmp_path / "parts"), _written(tmp_path / "whole"), "a run in parts")


def _written(out: Path) -> dict[str, Any]:
    """What a run has written, without its times."""
    results = read_json(out / "results.json")
    timeless = {key: value for key, value in results.items() if key not in ("date", "total_evaluation_time_seconds")}
    return {"results.json": timeless, "scores.csv": (out / "scores.csv").read_text(encoding="utf-8")}


def _assert_same_files(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    for name, content in expected.items():
        assert found[name] == content, f"{what} gives another {name}"
