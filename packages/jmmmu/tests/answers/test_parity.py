"""The published parsers: every reference case, and a second plain writing of their rules on random strings."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from paperhooks.errors import DataError
from paperhooks_jmmmu.answers import (
    extract_numbers,
    extract_numbers_mmmu,
    is_number,
    judge_open,
    letters_of,
    normalize,
    parse_choice,
    parse_choice_lmms_mmmu,
    parse_choice_mmmu,
    parse_choice_pro,
    parse_open,
    parse_open_mmmu,
)

REFERENCE = Path(__file__).parents[1] / "reference"
CHOICES = json.loads((REFERENCE / "mc_cases.json").read_text(encoding="utf-8"))
OPENS = json.loads((REFERENCE / "open_cases.json").read_text(encoding="utf-8"))
NUMBERS = json.loads((REFERENCE / "normalize_cases.json").read_text(encoding="utf-8"))["cases"]
DOCS = {name: doc["options"] for name, doc in CHOICES["docs"].items()}

#: Pieces that the rules part on, put together at random.
PIECES = [
    *"ABCDEIZXabi ,.、。：:;!?'\"()（）[]【】*_-/=＝+e\n\t\u3000０１2345Ａｂ々ーアあ亜3%つ個円ıſ",
    *[
        "答え",
        "答えは",
        "正解は",
        "解答は",
        "解答は、",
        "回答は、",
        "回答は",
        "よって",
        "よって、",
        "最終的に、",
        "です",
        "は",
    ],
    *["final", "correct", "ans", "answer ", "is ", "so ", "result ", " B ", " C.", "(A)", "浮世絵", "Photosynthesis"],
    *["1,000", "1e5", "1.5", "-3", "10.25e-3", "24/7", "MgS", "the"],
]
strings = st.lists(st.sampled_from(PIECES), max_size=24).map("".join)
fuzz = settings(max_examples=400, deadline=None, database=None, derandomize=False)


def encoded(answers: Sequence[str | float]) -> list[list[str]]:
    return sorted(["s", each] if isinstance(each, str) else ["f", repr(each)] for each in answers)


def test_every_choice_is_the_published_one() -> None:
    assert len(CHOICES["cases"]) == 636
    for case in CHOICES["cases"]:
        reply, options = case["response"], DOCS[case["doc"]]
        assert parse_choice(reply, options) == (case["jmmmu"], case["rule"]), reply
        assert (parse_choice_pro(reply, options).letter or "X") == case["jmmmu_pro"], reply
        assert parse_choice_mmmu(reply, options).letter == case["mmmu"], reply
        assert parse_choice_lmms_mmmu(reply, options).letter == case["lmms_mmmu"], reply


def test_every_open_answer_and_verdict_is_the_published_one() -> None:
    assert (len(OPENS["cases"]), len(OPENS["golds"])) == (153, 30)
    for case in OPENS["cases"]:
        for column, parse in (("jmmmu", parse_open), ("mmmu", parse_open_mmmu)):
            answers = parse(case["response"])
            assert encoded(answers) == sorted(case[column]), case["response"]
            verdicts = "".join("01"[judge_open(answers, gold)] for gold in OPENS["golds"])
            assert verdicts == case[f"{column}_correct"], case["response"]


def test_every_number_is_the_published_one() -> None:
    assert len(NUMBERS) == 324
    for case in NUMBERS:
        text = case["s"]
        assert is_number(text) == case["is_number"], text
        assert encoded(normalize(text)) == sorted(case["normalize"]), text
        assert extract_numbers(text) == case["extract_numbers"], text
        assert extract_numbers_mmmu(text) == case["extract_numbers_mmmu"], text


def test_more_options_than_letters_are_refused() -> None:
    assert letters_of(["x"] * 26)[-1] == "Z"
    with pytest.raises(DataError, match="27 options"):
        parse_choice("A", ["x"] * 27)


# -- the rules once more, as plainly as they can be written ------------------------------------------------------------


def plain_choice(reply: str, options: Sequence[str]) -> tuple[str | None, str]:
    for mark in [",", ".", "!", "?", ";", ":", "'", "、", "。", "！", "？", "；", "："]:
        while reply.startswith(mark):
            reply = reply[1:]
        while reply.endswith(mark):
            reply = reply[:-1]
    text = " " + reply + " "
    letters = [chr(ord("A") + n) for n in range(len(options))]

    def japanese(character: str) -> bool:
        return "\u3040" <= character <= "\u30ff" or "\u4e00" <= character <= "\u9fff"

    def between(letter: str) -> bool:
        return any(
            text[i] == letter and japanese(text[i - 1]) and japanese(text[i + 1]) for i in range(1, len(text) - 1)
        )

    rules = [
        ("bracket", lambda x: f"({x})" in text, lambda x: text.rfind(f"({x})")),
        ("space", lambda x: x + " " in text, lambda x: text.rfind(f" {x} ")),
        ("between_japanese", between, lambda x: text.rfind(f" {x} ")),
        ("dot", lambda x: x + "." in text, lambda x: text.rfind(f" {x} ")),
    ]
    if len(text.split()) > 5:
        word = dict(zip(letters, options))
        low = text.lower()
        rules.append(("option_text", lambda x: word[x].lower() in low, lambda x: low.rfind(word[x].lower())))
    for name, has, place in rules:
        found = [x for x in letters if has(x)]
        if len(found) == 1:
            return found[0], name
        if found:
            furthest = max(place(x) for x in found)
            return next(x for x in found if place(x) == furthest), name + "+last"
    return None, "fallback"


def plain_keys(reply: str) -> list[str]:
    reply = reply.strip().strip("。")
    cues = [
        "よって",
        "よって、",
        "答えは",
        "答えは、",
        "最終的に",
        "最終的に、",
        "解答は",
        "解答は、回答は",
        "回答は、",
    ]
    parts = re.split(r"[。！？.]\s*|\n", reply)
    keys = []
    for part in parts:
        best = ""
        for cue in cues + (["＝", "="] if part is parts[-1] else []):
            if cue in part:
                tail = part.split(cue)[-1].strip()
                if best == "" or len(tail) < len(best):
                    best = tail
        if best and best not in list(",.!?;:'、。！？；："):
            keys.append(best)
    return keys or [reply]


def plain_numbers(text: str) -> list[str]:
    return (
        re.findall(r"-?\b\d{1,3}(?:,\d{3})+\b", text)
        + re.findall(r"-?\d+(?:\.\d+)?[eE][+-]?\d+", text)
        + re.findall(r"-?(?:\d+\.\d+|\.\d+|\d+)(?![eE][+-]?\d+)(?![,\d])", text)
        + re.findall(r"(\d+)(?:つ|個|度|円|人|年|匹|台|%)", text)
    )


@seed(0)
@fuzz
@given(strings, st.sampled_from(sorted(DOCS)))
def test_choices_follow_the_rules_on_any_string(reply: str, doc: str) -> None:
    assert parse_choice(reply, DOCS[doc]) == plain_choice(reply, DOCS[doc])


@seed(1)
@fuzz
@given(strings)
def test_open_answers_follow_the_rules_on_any_string(reply: str) -> None:
    keys = plain_keys(reply)
    expected = {each for key in keys for text in (key, *plain_numbers(key)) for each in normalize(text)}
    assert encoded(parse_open(reply)) == encoded(list(expected))


@seed(2)
@fuzz
@given(st.text(alphabet="0123456789.,-eE+つ%x １", max_size=30))
def test_numbers_follow_the_patterns_on_any_string(text: str) -> None:
    assert extract_numbers(text) == plain_numbers(text)
