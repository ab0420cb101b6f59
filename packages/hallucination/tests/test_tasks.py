"""What the tasks pope, mme and chair have in common, and runs end to end."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend
from paperhooks.plugins import import_target
from paperhooks_evaluation import Task, evaluate, rescore
from paperhooks_hallucination import Chair, Mme, Pope
from paperhooks_hallucination.plugin import TASKS


def test_the_list_of_tasks_leads_to_the_classes():
    """Names, targets and needs; every task can be pickled and has a fingerprint of its options."""
    assert [info.name for info in TASKS] == ["pope", "chair", "mme"]
    for info in TASKS:
        task = import_target(info.task)()
        assert isinstance(task, Task)
        assert info.needs == ("text", "image")
        assert pickle.loads(pickle.dumps(task)) == task
        assert task.modes == ("official", "strict")
        assert type(task)(max_new_tokens=3).fingerprint() != task.fingerprint()


@pytest.mark.parametrize("value", [0, "64", None])
@pytest.mark.parametrize("kind", [Pope, Mme, Chair])
def test_length_limits_are_checked(kind: Callable[..., Task], value: Any):
    """A whole number of at least 1."""
    with pytest.raises(DataError, match="max_new_tokens is"):
        kind(max_new_tokens=value)


def test_runs_end_to_end_without_a_model(coco_folder: Path, mme_folder: Path, pope_folder: Path, tmp_path: Path):
    """Every task through the engine, with reports; scoring again gives the same figures."""
    sources = {"pope": pope_folder, "chair": coco_folder, "mme": mme_folder}
    for info in TASKS:
        answer = CallableBackend(lambda request: "Yes" if request.metadata["id"].endswith(("1", "2")) else "No")
        out = tmp_path / "runs" / info.name
        result = evaluate(answer, None, info, data=str(sources[info.name]), out=out)
        text = (out / "report.md").read_text()
        assert "POPE" in text
        assert (out / "report.html").exists()
        assert list(out.glob("*.svg"))
        again = rescore(out, info, report=False)
        assert list(again.summary.metrics) == list(result.summary.metrics)
