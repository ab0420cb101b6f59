"""The task mme: reading the published forms, faults listed together, figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hallucination_data import metric, parquet, png_files, records, write_image
from paperhooks.errors import DataError
from paperhooks_evaluation import Document
from paperhooks_hallucination import Mme
from paperhooks_hallucination.mme import metrics as mme
from paperhooks_hallucination.pope import SUFFIX


def test_mme_reads_the_release(mme_folder: Path):
    """Both layouts, in MME's order of categories, also one folder further up; the prompt is LLaVA's."""
    task = Mme()
    documents = task.documents(str(mme_folder))
    assert list(dict.fromkeys(one.groups["category"] for one in documents)) == [
        *("existence", "count", "position", "color", "OCR")
    ]
    assert [one.id for one in documents[-2:]] == ["OCR/a.png/1", "OCR/a.png/2"]
    assert len(documents) == 26
    assert [one.id for one in task.documents(str(mme_folder.parent))] == [one.id for one in documents]
    request = task.request(documents[0])
    assert request.messages[0]["content"][1]["text"] == f"Is it 0?{SUFFIX}"
    own = Mme(instruction="").request(documents[0])
    assert own.messages[0]["content"][1]["text"] == "Is it 0? Please answer yes or no."


def test_mme_lists_all_faults(mme_folder: Path):
    """An unknown category, a line without tab, an answer, an image with one question, a missing image."""
    write_image(mme_folder / "colour" / "a.jpg")
    (mme_folder / "colour" / "a.txt").write_text("Is it?\tYes\nIs it not?\tNo")
    (mme_folder / "count" / "0.txt").write_text("Is it? Yes\nIs it?\tNo")
    (mme_folder / "color" / "1.txt").write_text("Is it?\tPerhaps\nIs it?\tNo")
    (mme_folder / "existence" / "2.jpg").unlink()
    with pytest.raises(DataError) as caught:
        Mme().documents(str(mme_folder))
    message = str(caught.value)
    assert "colour: is no category; did you mean 'color'" in message
    assert "count/0.txt:1: has no tab between question and answer" in message
    assert "color/1.jpg/1: the answer is 'Perhaps'" in message
    assert "existence/2: the image is missing" in message
    assert "count/0.jpg: has 1 readable questions; expected 2" in message
    with pytest.raises(DataError, match="expected folders such as existence/"):
        Mme().documents(str(mme_folder / "count"))


def test_mme_figures_agree_with_the_pure_functions(mme_folder: Path):
    """Categories, the hallucination subset, n, scales and intervals."""
    task, generator = Mme(), np.random.default_rng(1)
    documents = task.documents(str(mme_folder))
    responses = generator.choice(["Yes", "No.", "nothing", "Well, yes"], size=len(documents)).tolist()
    for mode in task.modes:
        summary = task.aggregate(records(task, documents, responses, mode), mode)
        rows = [
            (one.groups["category"], one.data["image"], response, one.data["answer"])
            for one, response in zip(documents, responses, strict=True)
        ]
        scores = mme.mme_scores(rows, mode=mode)
        assert [one.name for one in summary.metrics if not one.group] == ["hallucination"]
        whole = metric(summary, "hallucination")
        assert whole.value == pytest.approx(scores.total(mme.HALLUCINATION), rel=1e-12)
        assert (whole.n, whole.scale, whole.interval) == (12, 800.0, "bootstrap")
        assert whole.low <= whole.value <= whole.high
        for name, known in scores.categories.items():
            found = metric(summary, "score", name)
            assert found.value == pytest.approx(known.score, rel=1e-12)
            assert (found.n, found.scale) == (known.n, 200.0)
            assert metric(summary, "accuracy", name).value == pytest.approx(known.accuracy / 100)
            assert metric(summary, "accuracy_plus", name).value == pytest.approx(known.accuracy_plus / 100)
            assert metric(summary, "unparsable", name).n == 2 * known.n


def test_mme_leaves_out_half_answered_images_and_says_so(mme_folder: Path):
    """Under a limit an image may lack its second answer."""
    task = Mme()
    documents = task.documents(str(mme_folder))[:5]
    responses = [one.data["answer"] for one in documents]
    summary = task.aggregate(records(task, documents, responses, "official"), "official")
    assert metric(summary, "score", "existence").value == 200.0
    assert metric(summary, "score", "existence").n == 2
    assert metric(summary, "total").scale == 200.0
    assert summary.extra["pictures_left_out"] == 1
    assert "only one of their two questions was answered: 1" in summary.tables[0].caption
    half = task.aggregate(records(task, documents[:1], responses[:1], "official"), "official")
    assert (half.metrics[0].value, half.metrics[0].n) == (None, 0)


def test_mme_reads_hub_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The columns of lmms-lab/MME, in which the questions of an image share their id."""
    files = png_files(tmp_path / "png", 4)
    columns = {
        "question_id": ["code_reasoning/0020.png"] * 2 + ["count/1.jpg"] * 2,
        "question": ["Is it a? Please answer yes or no."] * 4,
        "answer": ["Yes", "No", "No", "Yes"],
        "category": ["code_reasoning"] * 2 + ["count"] * 2,
        "image": files,
    }
    parquet(tmp_path / "hub", columns, monkeypatch)
    documents = Mme().documents(str(tmp_path / "hub"))
    names = ["code_reasoning/0020.png/1", "code_reasoning/0020.png/2", "count/1.jpg/1", "count/1.jpg/2"]
    assert [one.id for one in documents] == names
    assert Mme().unit(documents[2]) == "count/1.jpg"
    assert Mme().request(documents[2]).images[0].open().getpixel((0, 0)) == (20, 0, 0)


def test_mme_reports_what_only_looks_like_an_answer():
    """The first four characters of "nothing" and "not sure" hold a no, which is what they count as."""
    document = Document("count/a.jpg/1", data={"answer": "no"})
    for response, fallback in {
        "nothing": True,
        "not sure": True,
        "x": True,
        "n": False,
        "No.": False,
        "No": False,
    }.items():
        found = Mme().parse(document, response, "official")
        assert (found.value, found.fallback) == (mme.read_response(response), fallback), response
