"""The task contract: sound tasks pass, and every fault that is planted in one is found by the check that it breaks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import planted_tasks as planted
import pytest
from paperhooks.testing import TaskContract
from quiz_task import Quiz, write_quiz


class TestQuiz(TaskContract):
    def make(self) -> Any:
        return Quiz()

    def source(self, folder: Path) -> Path:
        return write_quiz(folder / "quiz")


def fails(task: Any, check: str, match: str, *args: Any) -> None:
    """The check fails, with a text that says why."""
    contract = type("Contract", (TestQuiz,), {"make": lambda self: task()})()
    with pytest.raises((AssertionError, pytest.fail.Exception), match=match):
        getattr(contract, f"test_{check}")(*args)


OPTIONS = "options_that_change_replies_are_told_from_those_that_change_scores"
FAULTS = [
    (planted.Shuffled, "documents_are_the_same_at_every_call", "other documents"),
    (planted.NoDocuments, "documents_are_the_same_at_every_call", "there are no documents"),
    (planted.SameIds, "ids_are_unique_texts", "several documents share"),
    (planted.NumberAsId, "ids_are_unique_texts", "no text for a file"),
    (planted.SpaceInGrouping, "groups_are_texts_by_grouping", "sub ject"),
    (planted.NumberAsGroup, "groups_are_texts_by_grouping", "no texts"),
    (planted.PathInData, "data_are_plain_json", "are no JSON"),
    (planted.NumbersAsKeys, "data_are_plain_json", "come back from JSON otherwise"),
    (planted.PlaceInData, "data_know_no_place", "outside of Document.place"),
    (planted.PlaceInData, "data_may_be_moved", "other documents"),
    (planted.RequestsDiffer, "data_may_be_moved", "other requests"),
    (planted.RequestsDiffer, "requests_are_the_same_at_every_call", "the second request"),
    (planted.NamesAsImages, "requests_hold_pictures", "the kind str"),
    (planted.SeedInFingerprint, OPTIONS, "seed changes no"),
    (planted.LimitNotInFingerprint, OPTIONS, "limit"),
    (planted.LimitThatChangesScoresOnly, OPTIONS, "limit changes the request"),
    (planted.Unknown, OPTIONS, "'language'"),
    (planted.NoPickle, "a_task_goes_to_another_process", "cannot be pickled"),
    (planted.ForgetsOptions, "a_task_goes_to_another_process", "recorded options"),
    (planted.LoadsTorch, "reading_documents_and_replies_loads_no_torch", "load torch"),
    (planted.FailsOnSurrogates, "replies_are_read_and_scored", "UnicodeEncodeError"),
    (planted.MatchAsValue, "replies_are_read_and_scored", "is no JSON"),
    (planted.InfiniteScore, "replies_are_read_and_scored", "the score is inf"),
    (planted.GuessesInParse, "replies_are_read_alike_at_every_call", "by another task as"),
    (planted.WritesIntoData, "replies_are_read_alike_at_every_call", "changes its document"),
    (planted.LeavesOut, "settling_keeps_records", "changes their order or their replies"),
    (planted.DrawsAnew, "settling_keeps_records", "draws anew"),
    (planted.DividesByNone, "figures_are_sound", "1 records do not add up"),
    (planted.NotANumber, "figures_are_sound", "nan"),
    (planted.SameFigures, "figures_are_sound", "several figures"),
    (planted.NotANumberBeside, "figures_are_sound", "extra is no JSON"),
    (planted.FirstCounts, "figures_do_not_depend_on_the_order", "another order"),
    (planted.ReadsPlaceToScore, "scoring_again_gives_the_same", "scoring again gives another"),
    (planted.CountsCalls, "a_run_goes_on_where_it_stopped", "a run in parts gives another"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "check", "match"), FAULTS, ids=[f"{task.__name__}-{check}" for task, check, _ in FAULTS]
)
def test_faults_are_found(task: Any, check: str, match: str, tmp_path: Path) -> None:
    fails(task, check, match, *([] if check == "a_task_goes_to_another_process" else [tmp_path]))


@pytest.mark.parametrize(
    ("task", "layout", "match"),
    [
        (planted.NoPartForImages, "prepend", "own layout 'prepend' does not work"),
        (planted.LayoutThatFails, "joined", "'joined' fails with TypeError"),
    ],
)
def test_layouts_that_do_not_work_are_found(task: Any, layout: str, match: str, tmp_path: Path) -> None:
    fails(task, "layouts", match, layout, tmp_path)


def test_documents_that_are_asked_again_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paperhooks_evaluation import evaluator

    monkeypatch.setattr(evaluator.SampleFile, "answered", lambda self, document: False)
    fails(Quiz, "a_run_goes_on_where_it_stopped", "asked again", tmp_path)


def test_every_check_has_a_fault_that_it_finds() -> None:
    checks = {name.removeprefix("test_") for name in dir(TaskContract) if name.startswith("test_")}
    assert checks - {"layouts"} == {check for _, check, _ in FAULTS}
