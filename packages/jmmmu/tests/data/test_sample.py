"""The synthetic set: the hub's form, all kinds of questions, the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks_jmmmu.data import ENGLISH, SUBJECTS, VISION, make_sample, read_questions
from PIL import Image

parquet = pytest.importorskip("pyarrow.parquet")
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.parametrize("kind", ["japanese", "english", "pro"])
def test_the_same_arguments_give_the_same_bytes(tmp_path: Path, kind: Any) -> None:
    for name in ("a", "b"):
        make_sample(tmp_path / name, 2, kind=kind)
    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    assert len(first) == {"japanese": 29, "english": 25, "pro": 3}[kind]
    assert sum(file.stat().st_size for file in (tmp_path / "a").rglob("*.parquet")) < 2_000_000
    make_sample(tmp_path / "b", 2, 1, kind=kind)
    assert first != digests(tmp_path / "b")


def test_all_kinds_of_questions_are_there(tmp_path: Path) -> None:
    make_sample(tmp_path)
    found = read_questions(str(tmp_path))
    assert found.dropped == ()
    assert Counter(one.groups["subject"] for one in found.documents) == dict.fromkeys(SUBJECTS, 5)
    for grouping, groups in {
        "question_type": {"open", "multiple-choice"}, "pictures": {"0", "1", "2", "4"}, "subset": {"CA", "CS"},
        "translated": {"original", "translated", ""}, "difficulty": {"Easy", "Medium", "Hard"},
    }.items():  # fmt: skip
        assert {one.groups[grouping] for one in found.documents} == groups, grouping
    assert {len(one.data["options"]) for one in found.documents} == {0, 4, 9}
    questions = [one.data["question"] for one in found.documents]
    assert any(question.count("<image 2>") == 2 for question in questions)
    assert any("<image 1>" in one.data["options"] for one in found.documents)
    assert {one.groups["subset"] for one in found.documents if one.groups["question_type"] == "open"} == {"CA"}


def test_more_rows_change_none(tmp_path: Path) -> None:
    for count in (2, 3):
        make_sample(tmp_path / str(count), count)
    few, more = (read_questions(str(tmp_path / name)).documents for name in "23")
    assert [one.data for one in few] == [one.data for one in more if not one.id.endswith("_3")]


def test_the_english_twin_has_the_same_answers_and_untouched_pictures(tmp_path: Path) -> None:
    make_sample(tmp_path / "ja")
    make_sample(tmp_path / "en", kind="english")
    japanese = {one.id: one for one in read_questions(str(tmp_path / "ja")).documents}
    for english in read_questions(str(tmp_path / "en"), ENGLISH).documents:
        twin = japanese[english.id]
        assert english.data["answer"] == twin.data["answer"]
        assert all(question.isascii() for question in (english.data["question"],))
        assert english.groups["pictures"] == twin.groups["pictures"]
        if twin.groups["translated"] == "original":
            assert english.data["pictures"] == twin.data["pictures"]
        if twin.groups["translated"] == "translated" and twin.groups["question_type"] != "open":
            assert english.data["pictures"] != twin.data["pictures"]


@pytest.mark.parametrize(("kind", "config", "split"), [("japanese", "Japanese_Art", "test"), ("pro", "vision", "test")])
def test_the_library_datasets_reads_it_by_config(
    tmp_path: Path, kind: Any, config: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_sample(tmp_path / "set", 2, kind=kind)
    rows = datasets.load_dataset(str(tmp_path / "set"), config, split=split)
    column = "image" if kind == "pro" else "image_1"
    assert isinstance(rows.features[column], datasets.Image)
    assert any(isinstance(row[column], Image.Image) for row in rows)


def test_without_a_font_pictures_are_without_text_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperhooks_jmmmu.data.sample_pictures.FONTS", ())
    with caplog.at_level(logging.WARNING):
        assert make_sample(tmp_path / "a", 1) is False
    assert "without text; install Debian's fonts-ipafont-gothic" in caplog.text
    pictures = [
        digest for one in read_questions(str(tmp_path / "a")).documents for digest in one.data["pictures"].values()
    ]
    assert len(set(pictures)) > 10, "words are still told apart"
    assert make_sample(tmp_path / "pro", 1, kind="pro") is False
    assert len(read_questions(str(tmp_path / "pro"), VISION).documents) == 28


def test_a_font_may_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if not Path(FONT).is_file():
        pytest.skip(f"{FONT} is not there")
    assert make_sample(tmp_path / "a", 1, font=FONT) is True
    assert "without text" not in caplog.text
    row = parquet.read_table(tmp_path / "a" / "Design" / "test-00000-of-00001.parquet").to_pylist()[0]
    assert Image.open(io.BytesIO(row["image_1"]["bytes"])).size == (160, 120)
    (tmp_path / "x.ttf").write_bytes(b"x")
    with pytest.raises(DataError, match=r"x\.ttf cannot be read as a font"):
        make_sample(tmp_path / "a", font=str(tmp_path / "x.ttf"))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"kind": "englisch"}, "no kind of sample 'englisch'; did you mean 'english'"),
     ({"per_subject": 0}, "per_subject = 0 must be a whole number of at least 1")],
)  # fmt: skip
def test_wrong_arguments_are_named(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_sample(tmp_path / "a", **options)
    assert not (tmp_path / "a").exists()
