"""Features that a model picks, and principles that it writes: read tolerantly."""

from __future__ import annotations

import json
from random import Random

import pytest
from paperhooks_sso.data import (
    PrincipleBank,
    feature_question,
    picked_features,
    principle_question,
    written_principle,
)

BANK = PrincipleBank.load()
NAMES = BANK.features


def picked(reply: str, number: int = 2, seed: int = 0) -> list[str]:
    return picked_features(reply, NAMES, number, Random(seed))


def test_the_question_shows_worked_examples_and_ends_where_the_answer_begins() -> None:
    text = feature_question("What is\n2 + 2?", NAMES)
    assert text.endswith("Query: What is 2 + 2?\nFeatures:")
    assert text.count("###") == 4
    assert all(name in text for name in NAMES)
    few = feature_question("x", ("Accuracy", "Engagement"))
    assert "Safety" not in few


@pytest.mark.parametrize(
    ("reply", "wanted"),
    [
        (" Safety, Accuracy\n### Query: more, Logicality", {"Safety", "Accuracy"}),
        ("safety , ACCURACY.", {"Safety", "Accuracy"}),
        ("Safety, Safety, Accuracy", {"Safety", "Accuracy"}),
        ("Safety, Depth, Accuracy", {"Safety", "Accuracy"}),
        ("Safety, Accuracy\nLogicality", {"Safety", "Accuracy"}),
    ],
)
def test_named_features_are_taken(reply: str, wanted: set[str]) -> None:
    for seed in range(5):
        assert set(picked(reply, seed=seed)) == wanted


def test_of_too_many_the_order_decides_at_random() -> None:
    found = {tuple(picked("Safety, Accuracy, Logicality", seed=seed)) for seed in range(40)}
    assert len(found) == 6
    assert picked("Safety, Accuracy, Logicality", seed=3) == picked("Safety, Accuracy, Logicality", seed=3)


@pytest.mark.parametrize("reply", ["", "Nothing of these", "Safety"])
def test_missing_features_are_filled_up_with_different_ones(reply: str) -> None:
    drawn = set()
    for seed in range(60):
        found = picked(reply, 3, seed)
        assert len(found) == len(set(found)) == 3
        assert reply != "Safety" or found[0] == "Safety"
        drawn |= set(found)
    assert drawn == set(NAMES)
    assert len(picked(reply, 99)) == len(NAMES)


def test_the_question_for_a_principle_ends_where_the_json_begins() -> None:
    text = principle_question("Why?", BANK["Accuracy"])
    assert text.endswith("Query: Why?\nFeature: Accuracy\nJSON:")
    examples = [line.removeprefix("JSON: ") for line in text.splitlines() if line.startswith("JSON: ")]
    assert len(examples) == 3
    assert all(set(json.loads(example)) == {"good", "bad"} for example in examples)


@pytest.mark.parametrize(
    "reply",
    [
        '{"good": "Be right.", "bad": "Be wrong."}\n###\nQuery: {"good": 1}',
        'Sure! {"Good": ["Be right.", "x"], "BAD": ["Be wrong."]} I hope this helps',
        '{"good": "Be\\nright.", "bad": " Be wrong. ", "more": 3}',
    ],
)
def test_a_written_principle_takes_the_place_of_that_of_the_bank(reply: str) -> None:
    found = written_principle(reply, BANK["Accuracy"])
    assert (found.good, found.bad, found.source) == ("Be right.", "Be wrong.", "generated")
    assert found.feature == "Accuracy"
    assert found.adjectives == BANK["Accuracy"].adjectives


def test_an_escaped_emoji_is_written_out() -> None:
    found = written_principle('{"good": "Cheer \\ud83d\\ude00", "bad": "b"}', BANK["Accuracy"])
    assert found.good == "Cheer \U0001f600"


@pytest.mark.parametrize(
    "reply",
    [
        "", "}{", "{", '{"good": "Be right."}', '{"good": "x", "bad": ""}', '{"good": "x", "bad": []}',
        '{"good": "x", "bad": 3}', '{"good": "x", "bad": "x"}', '["good", "bad"]', '{"good": "x" "bad": "y"}',
        "{" * 5000 + "}" * 5000, '{"good": "Be right \\ud83d", "bad": "y"}', '{"good": "x", "bad": "\\udc00 y"}',
    ],
)  # fmt: skip
def test_what_cannot_be_read_leaves_the_bank(reply: str) -> None:
    assert written_principle(reply, BANK["Accuracy"]) is BANK["Accuracy"]
