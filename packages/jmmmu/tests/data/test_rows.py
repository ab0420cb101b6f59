"""Rows as documents: groups, contents, faults, and the forms that sources have."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks_jmmmu.data import (
    DOMAINS,
    ENGLISH,
    JAPANESE,
    SUBJECTS,
    VERIFIED,
    VISION,
    make_sample,
    parse_answer,
    parse_options,
    read_questions,
    subject_of,
)
from prompt_data import CASES, REFERENCE, write_rows

GOOD: dict[str, Any] = {
    "id": "validation_Design_1", "question": "<image 1>は何か。", "options": "['能面', '皿']", "answer": "B",
    "question_type": "multiple-choice", "topic_difficulty": "Easy", "image_1": "1.png",
}  # fmt: skip
OPEN = {
    **GOOD,
    "id": "validation_Math_2",
    "question": "いくつか。",
    "options": "[]",
    "question_type": "open",
    "answer": "3",
}


# -- subjects ----------------------------------------------------------------------------------------------------------


def test_the_structure_is_that_of_the_whole_set() -> None:
    known = json.loads((REFERENCE / "structure.json").read_text())
    assert {name: [*names] for name, names in DOMAINS.items()} | {"Culture-specific": [*SUBJECTS][24:]} == known[
        "domains"
    ]
    for name, subject in SUBJECTS.items():
        options = {str(count): n for count, n in subject.options.items()}
        told = {"subset": subject.subset, "n": subject.n, "n_open": subject.opens, "option_counts": options}
        assert told == known["subjects"][name], name
    assert [*SUBJECTS] == sorted([*SUBJECTS][:24]) + sorted([*SUBJECTS][24:])
    chance = {"CA": 0.0, "CS": 0.0}
    for one in SUBJECTS.values():
        chance[one.subset] += sum(n / count for count, n in one.options.items())
    assert chance["CA"] / 7.2 == pytest.approx(known["expected_random_accuracy_percent"]["CA"], abs=1e-9)
    assert sum(chance.values()) / 13.2 == pytest.approx(known["expected_random_accuracy_percent"]["Overall"], abs=1e-9)


@pytest.mark.parametrize(("question_id", "expected"), CASES["subset_names"])
def test_subjects_are_in_ids(question_id: str, expected: str) -> None:
    if expected.startswith("EXC:"):
        with pytest.raises(DataError, match="names no subject; expected one such as"):
            subject_of(question_id)
    else:
        assert subject_of(question_id) == expected


# -- options and answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("['a', 'b']", ["a", "b"]), ('["a", null, true]', ["a", "None", "True"]), (["a", 1], ["a", "1"]),
        (("a", "b"), ["a", "b"]), ("('組', 'タプル')", ["組", "タプル"]), ("[1, 2.5, None]", ["1", "2.5", "None"]),
        ("[]", []), ("  ['a']\n", ["a"]), (r'''["a'b", "c\"d", "改\n行"]''', ["a'b", 'c"d', "改\n行"]),
    ],
)  # fmt: skip
def test_options_are_lists_in_any_form(value: Any, expected: list[str]) -> None:
    assert parse_options(value) == expected


@pytest.mark.parametrize(
    "value",
    ["['x', 'y'", "['x', <image 2>]", "", "x", "{'a': 1}", "{'a'}", None, 3, "__import__('os').getcwd()",
     "[open('/etc/passwd').read()]", "[" * 10_000, "1+1", b"ab", "['a' 'b'"],
)  # fmt: skip
def test_what_is_no_list_is_refused_and_never_run(value: Any) -> None:
    with pytest.raises(DataError, match=r"the options are .*expected a list"):
        parse_options(value)


def test_more_options_than_letters_are_refused() -> None:
    assert len(parse_options([*range(26)])) == 26
    with pytest.raises(DataError, match="there are 27 options; expected 26 at most"):
        parse_options([*range(27)])


def test_answers() -> None:
    assert parse_answer("B", letters=True) == "B"
    assert parse_answer("['A', 'B']", letters=True) == ["A", "B"]
    assert parse_answer('["24/7","3.429"]', letters=False) == '["24/7","3.429"]', "published code takes it for a text"
    assert parse_answer(["24/7", 3.429], letters=False) == ["24/7", "3.429"]
    assert parse_answer(2.5, letters=False) == "2.5"
    for value in (None, "", " ", [], [""], True, {}):
        with pytest.raises(DataError, match="the answer is"):
            parse_answer(value, letters=False)


# -- documents ---------------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_document(tmp_path: Path) -> None:
    rows = [
        {**GOOD, "id": "test_Japanese_Art_1", "image_7": "7.png"},
        {**GOOD, "image_1_use_original_mmmu": True, "image_2": "2.png", "image_2_use_original_mmmu": False},
        {**GOOD, "id": "validation_Design_2", "question": "<image 2><image 1>", "image_2": "2.png",
         "image_1_use_original_mmmu": True, "image_2_use_original_mmmu": False},
        OPEN,
    ]  # fmt: skip
    found = read_questions(str(write_rows(tmp_path, rows)))
    assert [one.id for one in found.documents] == [
        *("validation_Design_1", "validation_Design_2", "validation_Math_2", "test_Japanese_Art_1")
    ], "in the order of the subjects"
    first, second, third, last = found.documents
    assert dict(first.groups) == {
        "subject": "Design", "domain": "Art and Psychology", "subset": "CA", "question_type": "multiple-choice",
        "pictures": "1", "difficulty": "Easy", "translated": "original",
    }  # fmt: skip
    digest = {f"image_{n}": hashlib.sha256((tmp_path / f"{n}.png").read_bytes()).hexdigest() for n in (1, 2)}
    assert dict(first.data) == {
        "question": "<image 1>は何か。", "options": ["能面", "皿"], "answer": "B", "question_type": "multiple-choice",
        "pictures": digest,
    }  # fmt: skip
    assert first.place["image_2"] == {"picture": str(tmp_path / "2.png")}
    assert (second.groups["pictures"], second.groups["translated"]) == ("2", "translated")
    assert (third.groups["question_type"], third.groups["pictures"], third.data["answer"]) == ("open", "0", "3")
    assert (last.groups["subset"], last.groups["domain"], last.groups["translated"]) == ("CS", "", "")
    assert found.missing["Design"] == 28
    assert found.missing["Japanese_Art"] == 149
    assert len(found.missing) == 28


def test_all_faults_are_told_at_once_with_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Each row of bad input; and leaving them out counts them."""
    changes: list[tuple[dict[str, Any], str]] = [
        ({"options": "['x', 'y'"}, r'the options are "\[\'x\', \'y\'"; expected a list'),
        ({"options": "[open('x')]"}, "the options are"),
        ({"options": [str(n) for n in range(27)]}, "there are 27 options; expected 26 at most"),
        ({"options": ["x"], "answer": "A"}, "the number of options is 1; expected 2 at least"),
        ({"options": ["x", "x"]}, "has the option 'x' several times"),
        ({"answer": "C"}, "the answer is 'C'; expected a letter of its 2 options, AB"),
        ({"answer": ["A", "AB"]}, "the answer is 'AB'; expected a letter"),
        ({"answer": None}, "the answer is None; expected a letter"),
        ({"question": "<image 2>"}, "shows image_2, which the row does not have; it has image_1"),
        ({"question": "<image 8>"}, "shows image_8, which the row does not have; it has image_1"),
        ({"options": ["<image 3>", "y"]}, "shows image_3, which"),
        ({"image_1": "gone.png"}, "the file gone.png of image_1 is not there"),
        ({"image_1": "../1.png"}, "the file ../1.png of image_1 is not there"),
        ({"question": None}, "the question is None; expected a text"),
        (
            {"question_type": "multiple choice"},
            "the question_type is 'multiple choice'; did you mean 'multiple-choice'",
        ),
        ({"id": "validation_Desing_1"}, "there is no subject 'Desing'; did you mean 'Design'"),
        ({"id": "validation_Design"}, "the id 'validation_Design' names no subject"),
        ({"id": None}, r"test\.jsonl:18: the id is None"),
    ]
    rows = [{**GOOD, "id": f"validation_Design_{n}"} | change for n, (change, _) in enumerate(changes, 1)]
    rows += [GOOD | {"id": "validation_Design_20"}, GOOD | {"id": "validation_Design_20"}]
    rows += [OPEN | {"answer": ""}]
    folder = write_rows(tmp_path, rows)
    with pytest.raises(DataError) as caught:
        read_questions(str(folder))
    head, *lines = str(caught.value).split("\n  ")
    assert "it has 20 faults:" in head
    for number, ((change, said), line) in enumerate(zip(changes, lines, strict=False), 1):
        name = rows[number - 1]["id"] or f"{folder}/test.jsonl:{number}"
        assert line.startswith(f"{name}: "), line
        assert re.search(said, line), (change, line)
    assert lines[18].startswith("validation_Design_20: occurs twice, in ")
    assert lines[19].startswith("validation_Math_2: the answer is ''")
    with caplog.at_level(logging.WARNING):
        found = read_questions(str(folder), skip_bad=True)
    assert [one.id for one in found.documents] == ["validation_Design_20"]
    assert len(found.dropped) == 20
    assert found.left_out == 20
    assert "rows with faults left out: 20; validation_Design_1: the options" in caplog.text
    (note,) = found.notes()
    assert note.startswith("Rows with faults that were left out: 20. validation_Design_1: the options")
    assert note.endswith("; and 10 more.")
    write_rows(tmp_path, rows[:2])
    with pytest.raises(DataError, match="has no question of JMMMU/JMMMU: all rows have faults, the first validation_"):
        read_questions(str(folder), skip_bad=True)


@pytest.mark.parametrize(
    ("rows", "edition", "said"),
    [
        ([{**GOOD, "question": None}], JAPANESE, r"like those of JMMMU-Pro's config vision \(task jmmmu-pro\)"),
        ([GOOD], VISION, r"no picture in the column image: they look like those of JMMMU \(task jmmmu\)"),
        ([GOOD, OPEN], ENGLISH, r"its questions are in Japanese: they look like those of JMMMU \(task jmmmu\)"),
    ],
)
def test_data_of_another_edition_are_told(tmp_path: Path, rows: list[Any], edition: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_questions(str(write_rows(tmp_path, rows)), edition)


@pytest.mark.parametrize(
    ("question", "edition"),
    [("<image 1>の作者", JAPANESE), ("能面", JAPANESE), ("ｱｲｳ?", JAPANESE), ("Is CH3・H2O a ビタミン?", ENGLISH)],
)
def test_what_may_be_of_the_edition_is_not_doubted(tmp_path: Path, question: str, edition: Any) -> None:
    rows = [GOOD | {"id": f"validation_Design_{number}", "question": question} for number in (1, 2)]
    assert read_questions(str(write_rows(tmp_path, rows)), edition).notes() == []


def test_open_questions_of_an_edition_without_any(tmp_path: Path) -> None:
    """Those that were given options are multiple choice, whatever their type says; others are doubted."""
    given = GOOD | {"question_type": "open"}
    found = read_questions(str(write_rows(tmp_path, [given])), VERIFIED)
    assert (found.documents[0].groups["question_type"], found.notes()) == ("multiple-choice", [])
    assert read_questions(str(tmp_path)).documents[0].groups["question_type"] == "open"
    found = read_questions(str(write_rows(tmp_path, [given, OPEN])), VERIFIED)
    assert found.notes() == [
        "Of the data: 1 of its questions are open, and it has none: they look like those of JMMMU (task jmmmu)."
    ]


def test_english_questions_of_a_japanese_edition_are_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    english = {**GOOD, "question": "What is <image 1>?"}
    found = read_questions(str(write_rows(tmp_path, [english])))
    said = "no question of it is in Japanese: they look like those of MMMU (task mmmu-paired)"
    assert found.notes() == [f"Of the data: {said}."]
    assert said in caplog.text
    assert read_questions(str(write_rows(tmp_path, [english, GOOD | {"id": "validation_Math_4"}]))).notes() == []
    pytest.importorskip("pyarrow")
    make_sample(tmp_path / "en", per_subject=1, kind="english")
    with pytest.raises(DataError, match=r"has no split 'test' but 'validation', as MMMU has \(task mmmu-paired\)"):
        read_questions(str(tmp_path / "en"))


def test_what_a_table_lacks_is_no_text(tmp_path: Path) -> None:
    """NaN, and half of a surrogate pair."""
    rows: list[dict[str, Any]] = [OPEN | {"answer": float("nan")}, GOOD | {"question": "\ud83dは何か。"}]
    (write_rows(tmp_path, []) / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match="validation_Math_2: the answer is nan; expected a text") as told:
        read_questions(str(tmp_path))
    assert "validation_Design_1: question or options have half of a surrogate pair" in str(told.value)
    (found,) = read_questions(str(write_rows(tmp_path, [GOOD | {"topic_difficulty": float("nan")}]))).documents
    assert found.groups["difficulty"] == ""


def test_an_odd_placeholder_without_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    read_questions(str(write_rows(tmp_path, [{**GOOD, "question": "<image3>と<image 1>"}])))
    assert "the row has no such picture, and none is shown: validation_Design_1" in caplog.text


def test_odd_placeholders_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    odd = {**GOOD, "question": "<image2>と<Image 1>", "image_2": "2.png"}
    with caplog.at_level(logging.WARNING):
        (document,) = read_questions(str(write_rows(tmp_path, [odd]))).documents
    assert document.groups["pictures"] == "0"
    assert "1 questions name a picture in another form than <image 1>" in caplog.text
    assert "validation_Design_1" in caplog.text


def test_the_picture_is_part_of_what_is_asked(tmp_path: Path) -> None:
    """And where it lies is not; nothing is decoded."""
    (first,) = read_questions(str(write_rows(tmp_path / "a", [GOOD]))).documents
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (moved,) = read_questions(str(tmp_path / "b")).documents
    assert (moved.data, moved.place == first.place) == (first.data, False)
    (tmp_path / "b" / "1.png").write_bytes(b"no picture at all")
    (other,) = read_questions(str(tmp_path / "b")).documents
    assert other.data["pictures"] != first.data["pictures"]


# -- sources -----------------------------------------------------------------------------------------------------------


def same(one: Any, other: Any) -> bool:
    return [(d.id, d.groups, d.data) for d in one.documents] == [(d.id, d.groups, d.data) for d in other.documents]


def test_a_local_copy_in_any_layout(tmp_path: Path) -> None:
    """With README, without, flat, one file of JSON Lines: the same documents."""
    pytest.importorskip("pyarrow")
    make_sample(tmp_path / "hub", per_subject=2)
    whole = read_questions(str(tmp_path / "hub"))
    assert len(whole.documents) == 56
    (tmp_path / "hub" / "README.md").unlink()
    assert same(whole, read_questions(str(tmp_path / "hub")))
    (tmp_path / "flat").mkdir()
    for file in (tmp_path / "hub").glob("*/*.parquet"):
        shutil.copy(file, tmp_path / "flat" / f"{file.parent.name}-{file.name}")
    assert same(whole, read_questions(str(tmp_path / "flat")))
    shutil.rmtree(tmp_path / "hub" / "Japanese_Art")
    part = read_questions(str(tmp_path / "hub"))
    assert (len(part.documents), part.missing["Japanese_Art"]) == (54, 150)


def test_other_editions(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    make_sample(tmp_path / "ja", per_subject=2)
    make_sample(tmp_path / "en", per_subject=2, kind="english")
    make_sample(tmp_path / "pro", per_subject=2, kind="pro")
    japanese, english = (
        read_questions(str(tmp_path / name), edition) for name, edition in (("ja", JAPANESE), ("en", ENGLISH))
    )
    assert [one.id for one in english.documents] == [one.id for one in japanese.documents][:48]
    assert {one.groups["translated"] for one in english.documents} == {""}
    verified = read_questions(str(tmp_path / "pro"), VERIFIED)
    vision = read_questions(str(tmp_path / "pro"), VISION)
    for found in (verified, vision):
        assert [one.id for one in found.documents] == [one.id for one in japanese.documents]
        assert {one.groups["question_type"] for one in found.documents} == {"multiple-choice"}
    assert all(list(one.place) == ["image"] and one.groups["pictures"] == "1" for one in vision.documents)


def test_english_rows_of_other_subjects_are_left_out(tmp_path: Path) -> None:
    english = {**GOOD, "question": "What is it?"}
    rows = [english | {"id": f"{name}_1"} for name in ("validation_Art", "validation_Design", "test_Japanese_Art")]
    folder = write_rows(tmp_path, rows)
    assert [one.id for one in read_questions(str(folder), ENGLISH).documents] == ["validation_Design_1"]
    with pytest.raises(DataError, match=r"has 1 fault:\n  validation_Art_1: there is no subject 'Art'"):
        read_questions(str(folder))


def test_rows_of_a_download_with_a_pinned_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's name, with the network off: the cache of an earlier download."""
    pytest.importorskip("pyarrow")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    commit = "a" * 40
    make_sample(tmp_path / "datasets--JMMMU--JMMMU" / "snapshots" / commit, per_subject=1)
    by_name = read_questions("JMMMU/JMMMU", revision=commit)
    assert len(by_name.documents) == 28
    assert same(by_name, read_questions(f"JMMMU/JMMMU@{commit}"))
    assert (by_name.revision, read_questions(str(tmp_path / "datasets--JMMMU--JMMMU")).revision) == (commit, "")
    with pytest.raises(DataError, match="JMMMU/JMMMU is no folder here and its split 'test' cannot be loaded"):
        read_questions("JMMMU/JMMMU", revision="b" * 40)


@pytest.mark.parametrize("fields", [("image_1_license",), ("topic_difficulty", "question_type")])
def test_rows_may_lack_what_is_not_needed(tmp_path: Path, fields: tuple[str, ...]) -> None:
    row: Mapping[str, Any] = {name: value for name, value in GOOD.items() if name not in fields}
    (document,) = read_questions(str(write_rows(tmp_path, [row]))).documents
    assert document.groups["question_type"] == "multiple-choice"
