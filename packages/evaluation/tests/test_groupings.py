"""Documents that belong to several groups at once, and data that are moved between two calls."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from paperhooks.errors import DataError, PluginBroken
from paperhooks.generation import CallableBackend, Request
from paperhooks_evaluation import Document, EvaluationResult, Parsed, Task, compare, evaluate, rescore

SUBJECTS = {"Design": "CA", "Music": "CA", "Art": "CS"}


@dataclass(frozen=True)
class Exam(Task):
    """Three questions a subject; the answer lies in a file beside the data. A guess counts as the options say."""

    guess: float = 0.0

    version: ClassVar[str] = "1"
    scoring_options: ClassVar[tuple[str, ...]] = ("guess",)

    def documents(self, source: str) -> Sequence[Document]:
        return [
            Document(
                f"{subject}-{number}",
                {"subject": subject, "subset": subset, "level": "hard" if number == 2 else ""},
                {"number": number},
                {"file": str(Path(source) / f"{number}.txt")},
            )
            for subject, subset in SUBJECTS.items()
            for number in range(3)
        ]

    def request(self, document: Document) -> Request:
        return Request(prompt=Path(document.place["file"]).read_text())

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(response, fallback=response == "?")

    def score(self, document: Document, parsed: Parsed) -> float:
        return self.guess if parsed.fallback else float(parsed.value == str(document.data["number"]))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.txt").write_text(str(number))
    return folder


def run(answer: Any, source: Path, out: Path, task: Task | None = None, **options: Any) -> EvaluationResult:
    backend = CallableBackend(answer, name="f")
    return evaluate(backend, None, task or Exam(), data=source, out=out, report=False, **options)


def asked(source: Path, out: Path, **options: Any) -> list[str]:
    return [one.document.id for one in run(lambda request: request.prompt, source, out, **options).records]


def test_the_limit_may_count_within_each_group_and_change(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    firsts = ["Design-0", "Music-0", "Art-0"]
    assert asked(source, out, limit=1, limit_per="subject") == firsts
    assert asked(source, out, limit=1, limit_per="subset") == ["Design-0", "Art-0"]
    # those of no level are a group of their own
    assert asked(source, out, limit=2, limit_per="level") == ["Design-0", "Design-1", "Design-2", "Music-2"]
    assert asked(source, out, limit=1, limit_per="subject", groups=["subset=CA"]) == ["Design-0", "Music-0"]
    assert asked(source, out, limit=1) == ["Design-0"]
    assert asked(source, out, limit=99, limit_per="subject") == asked(source, tmp_path / "all")
    for wrong, said in (({"limit": 1, "limit_per": "subjct"}, "did you mean 'subject'"),
                        ({"limit_per": "subject"}, "give limit, such as limit=10")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            asked(source, tmp_path / "none", **wrong)
    assert not (tmp_path / "none").exists()


def test_every_grouping_is_reported(source: Path, tmp_path: Path) -> None:
    result = run(lambda request: "0" if request.prompt == "1" else request.prompt, source, tmp_path / "run")
    parts = {one.part: (one.value, one.n) for one in result.summary.metrics}
    assert list(parts) == [
        *("", "subject=Art", "subject=Design", "subject=Music", "subset=CA", "subset=CS", "level=hard")
    ]
    assert parts["subset=CA"] == (pytest.approx(4 / 6), 6)
    assert parts["level=hard"] == (1.0, 3)
    assert result.metric(group="CA") is result.metric(group="CA", grouping="subset")
    with (tmp_path / "run" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [rows[5][name] for name in ("id", "subject", "subset", "level")] == ["Music-2", "Music", "CA", "hard"]
    harness = json.loads((tmp_path / "run" / "results.json").read_text())
    assert harness["group_subtasks"]["Exam"][3] == "Exam_CA"
    assert harness["results"]["Exam_CA"]["samples"] == 6


@pytest.mark.parametrize(
    ("groups", "ids"),
    [
        (["subset=CS"], ["Art-0", "Art-1", "Art-2"]),
        (["CS"], ["Art-0", "Art-1", "Art-2"]),
        (["hard", "Design", "subject=Art"], ["Design-2", "Art-2"]),
    ],
)
def test_documents_of_some_groups(source: Path, tmp_path: Path, groups: list[str], ids: list[str]) -> None:
    result = run(lambda request: request.prompt, source, tmp_path / "run", groups=groups)
    assert [record.document.id for record in result.records] == ids


class Doubled(Exam):
    """Two groupings have a group of one name."""

    def documents(self, source: str) -> Sequence[Document]:
        return [Document("a", {"one": "x", "other": "x"}, {"number": 0}, {"file": f"{source}/0.txt"})]


def test_a_group_that_two_groupings_have_is_named_in_full(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"several groupings .* have the group 'x'; say one=x or other=x"):
        run(lambda request: "0", source, tmp_path / "run", Doubled(), groups=["x"])
    result = run(lambda request: "0", source, tmp_path / "run", Doubled(), groups=["one=x"])
    with pytest.raises(DataError, match="several groupings have the group 'x': one=x, other=x"):
        result.metric(group="x")
    names = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    assert list(names) == ["Doubled", "Doubled_one_x", "Doubled_other_x"]


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ("x", r"has groups 'x' at 'a'; expected them by grouping, such as \{'subject': 'Design'\}"),
        ({"a b": "x"}, "has the grouping 'a b'; expected a name as of a variable"),
        ({"score": "x"}, "has the grouping 'score'; expected a name as of a variable, other than id, unit, mode,"),
        ({"a": 3}, "has the id or group 3; expected a text"),
    ],
)
def test_groups_of_another_form_are_refused(source: Path, tmp_path: Path, groups: Any, said: str) -> None:
    class Odd(Exam):
        def documents(self, source: str) -> Sequence[Document]:
            return [Document("a", groups)]

    with pytest.raises(DataError, match=said):
        run(lambda request: "0", source, tmp_path / "run", Odd())


def test_runs_are_compared_within_every_grouping(source: Path, tmp_path: Path) -> None:
    run(lambda request: "0", source, tmp_path / "a")
    run(lambda request: request.prompt, source, tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b", resamples=50)
    lines = {one.part: one for one in found.groups}
    assert list(lines) == ["subject=Art", "subject=Design", "subject=Music", "subset=CA", "subset=CS", "level=hard"]
    assert (lines["subset=CA"].better, lines["subset=CA"].p) == (4, 0.125)
    assert lines["subset=CA"].corrected_p == 0.25  # of two
    assert lines["subject=Art"].corrected_p == 1.0
    assert lines["level=hard"].corrected_p == lines["level=hard"].p == 0.25


# -- moved data --------------------------------------------------------------------------------------------------------


def test_a_run_goes_on_where_the_data_were_moved(source: Path, tmp_path: Path) -> None:
    run(lambda request: request.prompt, source, tmp_path / "run", limit=4)
    moved = source.rename(tmp_path / "elsewhere")
    asked: list[str] = []

    def answer(request: Request) -> str:
        asked.append(request.prompt)
        return request.prompt

    result = run(answer, moved, tmp_path / "run", limit=8)
    assert (len(asked), result.headline.value) == (4, 1.0)
    assert str(tmp_path) not in (tmp_path / "run" / "documents.jsonl").read_text()
    assert rescore(tmp_path / "run", Exam(), report=False).headline.value == 1.0
    (moved / "0.txt").write_text("another question")
    with pytest.raises(DataError, match="holds a response to another prompt of"):
        run(answer, moved, tmp_path / "run")


# -- options that change scores only -----------------------------------------------------------------------------------


def test_scoring_options_change_from_call_to_call_and_are_recorded(source: Path, tmp_path: Path) -> None:
    calls: list[str] = []

    def answer(request: Request) -> str:
        calls.append(request.prompt)
        return "?"

    for guess in (0.0, 0.25):
        result = run(answer, source, tmp_path / "run", Exam(guess=guess))
        assert result.headline.value == guess
        block = json.loads((tmp_path / "run" / "results.json").read_text())["paperhooks"]
        assert (block["options"], block["modes"]["official"]["scoring"]) == ({}, {"guess": guess})
    assert len(calls) == 9
    assert rescore(tmp_path / "run", Exam(guess=0.5), report=False).headline.value == 0.5
    run(answer, source, tmp_path / "other", Exam(guess=0.25))
    with pytest.raises(DataError, match=r"guess: 0\.5 in a, 0\.25 in b"):
        compare(tmp_path / "run", tmp_path / "other")
    assert compare(tmp_path / "run", tmp_path / "other", allow=["guess"], resamples=50).overall.delta == -0.25


@dataclass(frozen=True)
class Ways(Exam):
    """Modes that depend on an option."""

    strict: bool = True

    scoring_options: ClassVar[tuple[str, ...]] = ("guess", "strict")

    @property
    def modes(self) -> tuple[str, ...]:  # type: ignore[override]
        return ("strict", "loose") if self.strict else ("loose",)


def test_modes_may_depend_on_options(source: Path, tmp_path: Path) -> None:
    assert list(run(lambda request: "0", source, tmp_path / "run", Ways()).modes) == ["strict", "loose"]
    assert list(run(lambda request: "0", source, tmp_path / "run", Ways(strict=False)).modes) == ["loose"]


def test_scoring_options_that_are_none_are_refused(source: Path, tmp_path: Path) -> None:
    class Wrong(Exam):
        scoring_options: ClassVar[tuple[str, ...]] = ("gues",)

    with pytest.raises(PluginBroken, match="names 'gues', which is no option of it"):
        run(lambda request: "0", source, tmp_path / "run", Wrong())
