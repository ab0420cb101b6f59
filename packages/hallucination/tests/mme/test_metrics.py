"""MME as pure functions: reference values, hand-made cases."""

from __future__ import annotations

import pytest
from hallucination_data import METRICS
from paperhooks.errors import DataError
from paperhooks_hallucination.mme import metrics as mme


def test_mme_official_matches_the_published_script():
    """Parsing, category scores and the total of the reference."""
    known = METRICS["mme"]
    assert [mme.parse_official(response) for _, _, response, _ in known["rows"]] == known["parsed"]
    scores = mme.mme_scores([tuple(row) for row in known["rows"]])
    assert {name: one.score for name, one in scores.categories.items()} == known["per_category"]
    assert scores.total() == pytest.approx(known["total"], rel=1e-12)
    assert scores.total(mme.HALLUCINATION) == pytest.approx(known["total"], rel=1e-12)
    assert scores.total(["count", "color", "OCR"]) == 100.0


@pytest.mark.parametrize(
    ("response", "answer"),
    [("", "other"), ("y", "yes"), ("N.", "no"), ("x", "other"), ("y.e.s", "yes"), ("nothing", "no")],
)
def test_mme_official_reads_the_first_four_characters(response: str, answer: str):
    """Full stops vanish first, single letters count."""
    assert mme.parse_official(response) == answer


def test_mme_counts_by_image():
    """Accuracy is by question, accuracy+ by image; strict refuses "Yes."."""
    rows = [
        ("count", "a", "Yes.", "Yes"),
        ("count", "a", "no", "No."),
        ("count", "b", "no", "Yes"),
        ("count", "b", "no", "No"),
    ]
    one = mme.mme_scores(rows).categories["count"]
    assert (one.n, one.accuracy, one.accuracy_plus, one.score, one.unparsable) == (2, 75.0, 50.0, 125.0, 0)
    strict = mme.mme_scores(rows, mode="strict").categories["count"]
    assert (strict.accuracy, strict.accuracy_plus, strict.unparsable) == (50.0, 0.0, 1)
    assert mme.CategoryScore(()).score == 0.0


def test_mme_refuses_images_without_two_answers():
    """All of them are named, of every category."""
    rows = [("count", "a", "yes", "Yes"), ("color", "a", "yes", "Yes"), *[("color", "b", "no", "No")] * 3]
    with pytest.raises(DataError, match="count/a has 1, color/a has 1, color/b has 3"):
        mme.mme_scores(rows)
    with pytest.raises(DataError, match="'2' is neither"):
        mme.mme_scores([("count", "a", "2", "2")] * 2)
