"""POPE as pure functions: reference values, hand-made cases."""

from __future__ import annotations

import random

import pytest
from hallucination_data import METRICS
from paperhooks.errors import DataError
from paperhooks_hallucination.pope import metrics as pope


def test_pope_official_matches_the_published_script():
    """Every response, every count and every ratio of the reference."""
    known, official = METRICS["pope"], METRICS["pope"]["official"]
    answers = [int(pope.parse_official(response) == "yes") for response in known["answers"]]
    assert answers == known["per_answer"]
    scores = pope.pope_scores(known["answers"], known["labels"])
    assert scores.counts == (official["TP"], official["FP"], official["TN"], official["FN"], 0)
    for name in ("accuracy", "precision", "recall", "f1", "yes_ratio"):
        assert getattr(scores, name) == pytest.approx(official[name], rel=1e-12)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("", "yes"),
        ("NO", "yes"),
        ("Nope", "yes"),
        ("No\nbecause", "yes"),
        ("No,because", "yes"),
        ("no, it does not", "no"),
        ("It is not. Yes", "no"),
        ("Yes. No.", "yes"),
        ("  No", "no"),
        ("\tNo", "yes"),
    ],
)
def test_pope_official_keeps_the_quirks(response: str, answer: str):
    """What a reader would read otherwise, the published script reads like this."""
    assert pope.parse_official(response) == answer


def test_pope_strict_counts_what_it_cannot_read():
    """Only the two words count; the rest is wrong for the accuracy and outside precision and recall."""
    responses = [" Yes ", "no\n", "No.", "yes it is", "NO", "yes"]
    labels = ["yes", "yes", "no", "yes", "no", "no"]
    scores = pope.pope_scores(responses, labels, mode="strict")
    assert scores.counts == (1, 1, 1, 1, 2)
    assert scores.accuracy == pytest.approx(2 / 6)
    assert (scores.precision, scores.recall, scores.f1) == (0.5, 0.5, 0.5)
    assert scores.yes_ratio == pytest.approx(2 / 6)


def test_pope_divides_by_zero_as_zero():
    """No yes at all, and no question at all."""
    scores = pope.pope_scores(["No", "No"], ["yes", "no"])
    assert (scores.precision, scores.recall, scores.f1, scores.yes_ratio) == (0.0, 0.0, 0.0, 0.0)
    empty = pope.pope_scores([], [])
    assert (empty.n, empty.accuracy, empty.f1) == (0, 0.0, 0.0)


def test_pope_refuses_what_does_not_belong_together():
    """Lengths, ids, labels, modes."""
    with pytest.raises(DataError, match="2 responses but 1 labels"):
        pope.pope_scores(["yes", "no"], ["yes"])
    with pytest.raises(DataError, match="place 1: the id is 7 there and 2 here"):
        pope.pope_scores(["yes"] * 3, ["yes"] * 3, response_ids=[1, 7, 8], label_ids=[1, 2, 3])
    with pytest.raises(DataError, match="only the ids of the responses"):
        pope.pope_scores(["yes"], ["yes"], response_ids=[1])
    with pytest.raises(DataError, match="2 ids but 1 responses"):
        pope.pope_scores(["yes"], ["yes"], response_ids=[1, 2], label_ids=[1, 2])
    with pytest.raises(DataError, match="'maybe' is neither"):
        pope.pope_scores(["yes"], ["maybe"])
    with pytest.raises(DataError, match="did you mean 'strict'"):
        pope.pope_scores(["yes"], ["yes"], mode="strickt")
    assert pope.pope_scores(["yes"], ["Yes "], response_ids=[3], label_ids=[3]).tp == 1


def test_pope_scores_add_up():
    """Parts taken together give the scores of the whole."""
    rng = random.Random(0)
    responses = [rng.choice(["yes", "no", "No, sir", "hm"]) for _ in range(40)]
    labels = [rng.choice(["yes", "no"]) for _ in range(40)]
    whole = pope.pope_scores(responses, labels, mode="strict")
    assert (
        pope.pope_scores(responses[:15], labels[:15], mode="strict")
        + pope.pope_scores(responses[15:], labels[15:], mode="strict")
        == whole
    )
    assert whole.unparsable == sum(response not in ("yes", "no") for response in responses)


PLAIN = {
    "yes": ["Yes", "yes.", "Yes, there is.", "**Yes**", "Yes there is one"],
    "no": ["No", "no, not one", "No\n", "'No'"],
}
NEITHER = [
    "maybe", "", "NO DATA", "I am not sure.", "no idea", "There is no way to tell", "Not enough light", "No-one knows",
    "yes/no", "yes or no", "Nope", "yesterday", "there is no dog", "Yes?",
]  # fmt: skip


def test_a_plain_answer_is_a_word_of_its_own():
    """At the beginning, with a mark, a line break or its verb behind it."""
    for answer, responses in PLAIN.items():
        assert {pope.plain_answer(response) for response in responses} == {answer}
    assert {pope.plain_answer(response) for response in NEITHER} == {None}
