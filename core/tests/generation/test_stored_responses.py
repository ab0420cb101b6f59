"""Responses of runs and of other harnesses, replayed from files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import Prompt, ReplayBackend, Request


def write(file: Path, *rows: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def texts(backend: ReplayBackend) -> dict[str, str]:
    return {key: response.text for key, response in backend.responses.items()}


@pytest.mark.parametrize(
    "row",
    [
        {"id": "q1", "reply": "A"},
        {"id": "q1", "doc_id": 7, "reply": "A", "resps": [["B"]]},
        {"doc_id": 0, "doc": {"id": "q1", "question": "?"}, "target": "A", "resps": [["A"]], "filtered_resps": ["B"]},
        {"doc_id": 0, "doc": {"id": "q1"}, "filtered_resps": "A"},
        {"doc_id": 0, "doc": {"id": "q1"}, "resps": ["A"], "filtered_resps": "B"},
        {"doc_id": "q1", "doc": {"question": "?"}, "filtered_resps": ["A"]},
        {"doc_id": "q1", "doc": "?", "resps": [["A", "second"]]},
        {"doc_id": 0, "target": "B", "filtered_resps": "\n A ", "acc": 0.0, "some_acc": {"id": "q1", "parsed": "A"}},
    ],
)
def test_records_of_every_form_are_read(tmp_path: Path, row: dict[str, Any]) -> None:
    assert texts(ReplayBackend(write(tmp_path / "r.jsonl", row))) == {"q1": "A"}


def test_what_lmms_eval_stores_for_a_failed_request_is_no_response(tmp_path: Path) -> None:
    text = "[LMMS_EVAL_REQUEST_FAILED after 3 retries] Connection error."
    file = write(tmp_path / "r.jsonl", {"doc_id": 0, "filtered_resps": text, "acc": {"id": "q1"}})
    assert ReplayBackend(file).responses["q1"].error == text
    assert texts(ReplayBackend(write(tmp_path / "own.jsonl", {"id": "q1", "reply": text}))) == {"q1": text}


def test_files_that_count_from_0_are_told_apart_by_their_documents(tmp_path: Path) -> None:
    files = [
        write(
            tmp_path / f"2026_samples_{subject}.jsonl",
            *({"doc_id": i, "doc": {"id": f"{subject}_{i}"}, "resps": [[f"{subject}{i}"]]} for i in range(3)),
        )
        for subject in ("art", "music")
    ]
    write(tmp_path / "documents.jsonl", {"id": "art_0", "data": {}})
    expected = {f"{subject}_{i}": f"{subject}{i}" for subject in ("art", "music") for i in range(3)}
    backend, folder = ReplayBackend(*files), ReplayBackend(tmp_path, model="some-model")
    assert texts(backend) == texts(folder) == expected
    assert backend.describe() == folder.describe() == ReplayBackend(*reversed(files)).describe()
    assert folder.about()["name"] == "some-model"
    assert backend.about()["name"] == f"{files[0]} and 1 more"
    assert ReplayBackend(files[0]).describe() != backend.describe()
    found = backend.answer([Prompt(key, "", Request()) for key in ("music_2", "none")])
    assert (found[0].text, found[1].error) == ("music2", f"{files[0]} and 1 more has no response to this document")


def test_a_folder_is_searched_to_the_first_level_that_has_files(tmp_path: Path) -> None:
    write(tmp_path / "run" / "samples.jsonl", {"id": "a", "reply": "new"})
    write(tmp_path / "run" / "previous-1" / "samples.jsonl", {"id": "a", "reply": "old"})
    write(tmp_path / "run" / "documents.jsonl", {"id": "a", "data": {}})
    assert texts(ReplayBackend(tmp_path)) == texts(ReplayBackend(tmp_path / "run")) == {"a": "new"}
    write(tmp_path / "own" / "mine.jsonl", {"id": "a", "reply": "mine"})
    assert texts(ReplayBackend(tmp_path / "own")) == {"a": "mine"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no \.jsonl files"):
        ReplayBackend(tmp_path / "empty")
    with pytest.raises(DataError, match="no files of responses"):
        ReplayBackend()


def test_two_responses_that_differ_are_named(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", {"id": "q1", "reply": "A"}, {"id": "q2", "reply": "A"}, {"id": "q3", "reply": ""})
    b = write(tmp_path / "b.jsonl", {"id": "q1", "reply": "A"}, {"id": "q2", "reply": "B"}, {"id": "q3", "reply": "B"})
    with pytest.raises(DataError, match=r"2 ids have two responses that differ, such as 'q2' \(.*a\.jsonl:2; .*b") as e:
        ReplayBackend(a, b)
    assert "'q1'" not in str(e.value)
    assert texts(ReplayBackend(a, a)) == {"q1": "A", "q2": "A", "q3": ""}


def test_an_error_gives_way_to_a_response(tmp_path: Path) -> None:
    failed, asked = {"id": "q1", "reply": "", "error": "down"}, {"id": "q1", "reply": "A"}
    for rows in ([failed, asked], [asked, failed]):
        assert texts(ReplayBackend(write(tmp_path / "r.jsonl", *rows))) == {"q1": "A"}
    assert ReplayBackend(write(tmp_path / "r.jsonl", failed)).responses["q1"].error == "down"


def test_responses_to_unknown_documents_are_named(tmp_path: Path) -> None:
    backend = ReplayBackend(write(tmp_path / "r.jsonl", *({"id": f"q{i}", "reply": "A"} for i in range(6))))
    backend.check([f"q{i}" for i in range(9)])
    with pytest.raises(DataError, match=r"r\.jsonl holds responses to 4 documents .* such as 'q2', 'q3', 'q4': it is"):
        backend.check(["q0", "q1"])


def test_what_is_known_of_a_response_is_taken_over(tmp_path: Path) -> None:
    row = {"id": "q", "reply": "A", "tokens": 5, "prompt_tokens": 90, "finish": "length", "reasoning": "hm"}
    response = ReplayBackend(write(tmp_path / "r.jsonl", row)).responses["q"]
    assert (response.new_tokens, response.prompt_tokens, response.finish, response.reasoning) == (5, 90, "length", "hm")
