"""Scores that need no model: random letters, the letter that is right most often, always A."""

from __future__ import annotations

from collections.abc import Sequence

from paperhooks_evaluation import Document

from paperhooks_jmmmu.algorithm import chance, question_letter
from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.controls import frequent_letter
from paperhooks_jmmmu.data import CHOICE

__all__ = ["baselines", "fixed_letters"]


def fixed_letters(answers: Sequence[str | Sequence[str]]) -> tuple[str, int, int]:
    """The letter that is right most often, how many questions it gets right, and how many A does.

    :param answers: of multiple-choice questions; several right letters count for A, and for no most frequent one.
    """
    letter, n = frequent_letter(one for one in answers if isinstance(one, str))
    return letter, n, sum("A" in one for one in answers)


def baselines(documents: Sequence[Document], seed: int = 0) -> dict[str, float]:
    """Accuracy of each over all questions, open ones counting 0.

    ``random``: expected. ``one draw``: a letter for every question, seeded by ``seed`` and the question's id.

    :raises ValueError: no questions.
    """
    if not documents:
        raise ValueError("there are no questions")
    asked = [one for one in documents if one.data["question_type"] == CHOICE]
    options = [len(one.data["options"]) if one.data["question_type"] == CHOICE else 0 for one in documents]
    drawn = sum(
        question_letter(seed, one.id, letters_of(one.data["options"])) in one.data["answer"] for one in asked
    )  # fmt: skip
    letter, n, always = fixed_letters([one.data["answer"] for one in asked])
    total = len(documents)
    return {
        "random": chance(options) or 0.0,
        "one draw": drawn / total,
        f"most frequent ({letter})": n / total,
        "always A": always / total,
    }
