"""Replies to another revision of the data are refused; those to the same data go on, wherever these lie."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, ReplayBackend
from paperhooks_evaluation import Document, evaluate, export_task
from paperhooks_evaluation.harness import lmms_eval
from quiz_task import Quiz, write_quiz

quick = partial(evaluate, report=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_quiz(tmp_path / "data")


def revised(data: Path, **changes: Any) -> Path:
    """The data again, with another first question."""
    copy = Path(shutil.copytree(data, data.with_name("revised")))
    rows = json.loads((copy / "questions.json").read_text("utf-8"))
    rows[0] |= changes
    (copy / "questions.json").write_text(json.dumps(rows))
    return copy


def stored(file: Path, data: Path, **changes: Any) -> Path:
    """Rows as lmms-eval writes them: no pictures, no file names, options as text; ``changes`` are to all of them."""
    rows = []
    for number, row in enumerate(json.loads((data / "questions.json").read_text("utf-8"))):
        told = {"id": row["id"], "question": row["question"], "answer": row["answer"], "options": "['a', 'b']"}
        whole = {"doc_id": number, "doc": told, "target": row["answer"], "doc_hash": "0" * 64, "resps": [["A"]]}
        rows.append({**whole, **changes, "doc": told | changes.get("doc", {})})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("changes", [{"question": "Which one?"}, {"answer": "D"}, {"pictures": []}])
def test_a_run_on_other_data_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    quick(CallableBackend(lambda request: "A"), None, Quiz(), data=data, out=tmp_path / "run")
    backend, other = ReplayBackend(tmp_path / "run"), revised(data, **changes)
    with pytest.raises(DataError, match="1 of 14 replies in") as error:
        quick(backend, None, Quiz(), data=other, out=tmp_path / "again")
    assert str(tmp_path / "run" / "samples.jsonl") in str(error.value)
    assert f"reads from {other}" in str(error.value)
    assert str(error.value).endswith(":\n  'Art-0': its doc_hash is another one")
    assert not (tmp_path / "again").exists()
    moved = shutil.move(data, tmp_path / "moved")
    assert quick(backend, None, Quiz(), data=moved, out=tmp_path / "again").answered == 14


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"doc": {"question": "Why?"}}, r"its question is 'Why\?' there, and '0. Which color"),
        ({"doc": {"answer": "z"}}, "its answer is 'z' there, and 'A' here"),
        ({"doc": {"answer": None}, "target": "z"}, "its answer is 'z' there, and 'A' here"),
    ],
)
def test_rows_of_a_harness_on_other_data_are_refused(
    data: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    file = stored(tmp_path / "samples.jsonl", data, **changes)
    with pytest.raises(DataError, match=f"14 of 14 replies in .*\n  'Art-0': {said}(.*\n){{3}}  ... and 11 more$"):
        quick(ReplayBackend(file), None, Quiz(), data=data, out=tmp_path / "run")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"doc": {"pictures": "<PIL.Image>", "subject": " ART. "}},
        {"doc": {"question": None, "answer": 3, "number": 2, "groups": {"subject": "Art"}}},
        {"target": ["A", "B"]},
        {"doc": {"doc_hash": "of a column"}, "arguments": {"doc_hash": "of a request"}},
    ],
)
def test_rows_of_a_harness_on_the_same_data_go_on(data: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    if "subject" in changes.get("doc", {}):
        rows = json.loads((data / "questions.json").read_text("utf-8"))
        (data / "questions.json").write_text(json.dumps([row for row in rows if row["subject"] == "Art"]))
    file = stored(tmp_path / "samples.jsonl", data, **changes)
    result = quick(ReplayBackend(file), None, Quiz(), data=data, out=tmp_path / "run")
    assert result.first.failures == {}


@pytest.mark.parametrize(
    ("stored_options", "refused"),
    [("['red', 'blue']", False), ('["Red", "blue."]', False), (["red", "blue"], False), ("red, blue", False),
     ("['blue', 'red']", True), (["red"], True), (["<PIL.Image>", "blue"], False)],
)  # fmt: skip
def test_options_are_compared_as_lists(data: Path, tmp_path: Path, stored_options: Any, refused: bool) -> None:
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    (data / "questions.json").write_text(json.dumps([row | {"options": ["red", "blue"]} for row in rows]))
    backend = ReplayBackend(stored(tmp_path / "samples.jsonl", data, doc={"options": stored_options}))
    with pytest.raises(DataError, match="its options is ") if refused else nullcontext():
        assert quick(backend, None, OptionQuiz(), data=data, out=tmp_path / "run").answered == 14


class OptionQuiz(Quiz):
    """Its documents hold options."""

    def documents(self, source: str) -> Sequence[Document]:
        options = ["red", "blue"]
        return [replace(one, data={**one.data, "options": options}) for one in super().documents(source)]


def test_forms_of_unicode_and_kinds_of_questions_are_no_other_document(data: Path, tmp_path: Path) -> None:
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    composed = [row | {"question": f"Ｃafé が {number}"} for number, row in enumerate(rows)]
    (data / "questions.json").write_text(json.dumps(composed))
    file = stored(tmp_path / "samples.jsonl", data, doc={"question_type": "open", "kind": "another"})
    text = file.read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        line["doc"]["question"] = unicodedata.normalize("NFD", line["doc"]["question"])
    file.write_text("\n".join(json.dumps(line) for line in lines))
    assert quick(ReplayBackend(file), None, Quiz(), data=data, out=tmp_path / "run").answered == 14


def test_further_replies_are_left_out_where_none_is_missing(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = stored(tmp_path / "samples.jsonl", data)
    rows = json.loads((data / "questions.json").read_text("utf-8"))
    (data / "questions.json").write_text(json.dumps(rows[2:]))
    result = quick(ReplayBackend(file), None, Quiz(), data=data, out=tmp_path / "run")
    assert (result.answered, dict(result.first.failures)) == (12, {})
    assert "2 replies are to documents that the data do not have, such as" in caplog.text
    file.write_text("\n".join(file.read_text("utf-8").splitlines()[:-1]))
    with pytest.raises(DataError, match="holds responses to 2 documents that the data do not have"):
        quick(ReplayBackend(file), None, Quiz(), data=data, out=tmp_path / "other")


def test_replies_given_under_other_options_are_refused(data: Path, tmp_path: Path) -> None:
    quick(CallableBackend(lambda request: "A"), None, Quiz(limit=5), data=data, out=tmp_path / "run")
    for source in (tmp_path / "run", tmp_path / "run" / "samples.jsonl"):
        with pytest.raises(DataError, match="were given with limit = 5; give the task these options"):
            quick(ReplayBackend(source), None, Quiz(), data=data, out=tmp_path / "again")
    assert quick(ReplayBackend(tmp_path / "run"), None, Quiz(limit=5), data=data, out=tmp_path / "again").answered == 14


def test_what_an_exported_folder_says_of_a_document_is_compared(data: Path, tmp_path: Path) -> None:
    export_task(Quiz(), data=data, to="lmms-eval", out=tmp_path / "folder", mode="wrong")
    process = lmms_eval.functions(tmp_path / "folder")[lmms_eval.FUNCTIONS.index("process_results")]
    row = {"doc_id": 0, "target": "Art-0", "filtered_resps": "A", **process({"id": "Art-0"}, ["A"])}
    (tmp_path / "samples.jsonl").write_text(json.dumps(row))
    backend = ReplayBackend(tmp_path / "samples.jsonl")
    assert quick(backend, None, Quiz(), data=data, out=tmp_path / "same").answered == 1
    with pytest.raises(DataError, match="1 of 1 reply in"):
        quick(backend, None, Quiz(), data=revised(data, question="?"), out=tmp_path / "run")


def test_two_replies_that_agree_have_to_be_to_one_document(data: Path, tmp_path: Path) -> None:
    files = stored(tmp_path / "a.jsonl", data), stored(tmp_path / "b.jsonl", data, doc={"question": "Why?"})
    with pytest.raises(DataError, match=r"14 of 14 replies in .*b\.jsonl answer other documents"):
        quick(ReplayBackend(*files), None, Quiz(), data=data, out=tmp_path / "run")
