"""POPE-style questions: balance, honest answers, and absent objects of the promised kind."""

from __future__ import annotations

from collections import Counter

import pytest
from paperhooks_testbed import STRATEGIES, Question, generate_scene, pope_questions


def asked(question: Question) -> tuple[str, str]:
    colour, form = question.text.removeprefix("is there a ").removesuffix(" ?").split()
    return colour, form


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_half_yes_half_no_and_true(strategy):
    questions = pope_questions("test", strategy, 120)
    assert Counter(q.answer for q in questions) == {"yes": 60, "no": 60}
    for question in questions:
        there = asked(question) in {(s.colour, s.form) for s in question.scene.shapes}
        assert question.answer == ("yes" if there else "no")
    assert questions == pope_questions("test", strategy, 120)
    assert questions != pope_questions("test", strategy, 120, seed=1)


def test_strategies_differ_in_what_is_absent():
    absent = {
        strategy: [q for q in pope_questions("test", strategy, 300) if q.answer == "no"] for strategy in STRATEGIES
    }
    common = Counter((s.colour, s.form) for i in range(500) for s in set(generate_scene("test", i).shapes))
    popularity = {k: sum(common[asked(q)] for q in qs) / len(qs) for k, qs in absent.items()}
    assert popularity["popular"] > popularity["random"]

    def halves(questions: list[Question]) -> float:
        hits = 0
        for question in questions:
            colour, form = asked(question)
            hits += any(s.colour == colour for s in question.scene.shapes)
            hits += any(s.form == form for s in question.scene.shapes)
        return hits / (2 * len(questions))

    assert halves(absent["adversarial"]) > 0.9 > halves(absent["random"])


def test_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="no strategy 'easy'; use one of random, popular, adversarial"):
        pope_questions("test", "easy", 2)
