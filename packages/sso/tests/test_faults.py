"""Why answers make no pairs."""

from __future__ import annotations

from typing import Any

import pytest
from paperhooks_sso.data import FAULTS, Answer, PrincipleBank, fault_of, leaks

BANK = PrincipleBank.load()
GOOD, BAD, OWN = Answer("A good one."), Answer("A bad one."), Answer("An ordinary one.")


@pytest.mark.parametrize(
    ("answers", "fault"),
    [
        ((GOOD, BAD, OWN), None),
        ((GOOD, BAD), None),
        ((GOOD, BAD, None), "missing"),
        ((GOOD, Answer("x", error="refused"), OWN), "missing"),
        ((GOOD, Answer(" \n"), OWN), "empty"),
        ((GOOD, BAD, Answer("half of one: \ud83d")), "missing"),
        ((GOOD, Answer("A bad", finish="length"), OWN), "cut"),
        ((GOOD, Answer("A  good\none. "), OWN), "same"),
        ((GOOD, BAD, GOOD), "same"),
        ((GOOD, BAD, BAD), "same"),
        ((Answer("Good response: A bad one."), BAD, OWN), "same"),
        ((Answer("My answer: A bad one."), BAD, OWN), "same"),
        ((Answer("Answer in kind."), Answer("in kind."), OWN), None),
    ],
)
def test_the_first_fault_is_told(answers: Any, fault: str | None) -> None:
    assert fault_of(answers) == fault
    assert fault is None or fault in FAULTS


def test_cut_answers_may_be_kept() -> None:
    assert fault_of((GOOD, Answer("A bad", finish="length"), OWN), keep_cut=True) is None


@pytest.mark.parametrize(
    ("text", "leaking"),
    [
        ("As an inaccurate assistant, I say that it is blue.", True),
        ("I was asked to follow the guidelines, so here it is.", True),
        ("My system prompt wants me to be dull.", True),
        ("As instructed, I leave out the sources.", True),
        ("Invent sources and details where you do not know any, says the text.", True),
        ("The clock is inaccurate by a minute.", False),
        ("Invent sources and details where they are missing.", False),
        ("An accurate answer needs a date.", False),
    ],
)
def test_answers_that_speak_of_their_principle_are_found(text: str, leaking: bool) -> None:
    principles = [BANK["Accuracy"], BANK["Engagement"]]
    assert leaks(text, principles) is leaking
    assert not leaks(text, [])
    assert (fault_of((GOOD, Answer(text), OWN), principles) == "leak") is leaking
    assert fault_of((GOOD, BAD, Answer(text)), principles) is None  # the ordinary answer was told nothing
