"""The arithmetic of JMMMU's scores: aggregation, what stands in for an answer that cannot be read, and chance.

Letters: n questions of a group, c of them right, k options of a question.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from typing import Final

from paperhooks.errors import DataError, did_you_mean

__all__ = [
    "FALLBACKS",
    "chance",
    "check_fallback",
    "drawn_letters",
    "expected_credit",
    "luck",
    "question_letter",
    "rounded_accuracy",
    "weighted_accuracy",
]

#: What stands in for a letter that cannot be read: a draw seeded by the question, the draws of lmms-eval (one generator
#: for the whole run), a credit of 1/k, nothing.
FALLBACKS: Final = ("per-question", "lmms-eval", "expected", "wrong")
#: Decimals to which the published scores round a subject's accuracy.
_DECIMALS: Final = 5


def rounded_accuracy(right: float, n: int) -> float | None:
    """c / n, rounded to 5 decimals, as the published scores have it for a subject or domain; None for n = 0.

    >>> rounded_accuracy(2, 3)
    0.66667
    """
    return round(right / n, _DECIMALS) if n else None


def weighted_accuracy(subjects: Iterable[tuple[float, int]]) -> float | None:
    """sum(right and n of every subject, as n * :func:`rounded_accuracy`) / sum(n); None without any question.

    The published score of a subset and of the whole: subjects weigh as they are long, and count as rounded.

    :param subjects: c and n of each.

    >>> round(weighted_accuracy([(2, 3), (3, 3)]), 9)
    0.833335
    """
    counted = [(rounded_accuracy(right, n) or 0.0, n) for right, n in subjects if n]
    total = sum(n for _, n in counted)
    return math.fsum(accuracy * n for accuracy, n in counted) / total if total else None


# -- answers that cannot be read ---------------------------------------------------------------------------------------


def drawn_letters(choices: Sequence[str], seed: int) -> list[str]:
    """What lmms-eval answers in the place of replies that it cannot read: ``random.choice``, one after another.

    :param choices: the letters of each question (``"ABCD"``), in the order in which lmms-eval scores them.
    :param seed: of the one generator; lmms-eval seeds Python's own with 0.
    """
    generator = random.Random(seed)
    return [generator.choice(letters) for letters in choices]


def question_letter(seed: int, question_id: str, letters: str) -> str:
    """A letter that depends on seed and question alone: the same in any order, batch, process and resumed run.

    The first 8 bytes of SHA-256 of ``"<seed> <id>"`` as a number, modulo k.
    """
    digest = hashlib.sha256(f"{seed} {question_id}".encode()).digest()
    return letters[int.from_bytes(digest[:8], "big") % len(letters)]


def expected_credit(options: int) -> float:
    """What a random letter is worth on average: 1 / k; 0 for an open question, which nobody guesses."""
    return 1 / options if options else 0.0


def check_fallback(name: str) -> str:
    """The fallback, if there is such a one; raises DataError."""
    if name not in FALLBACKS:
        raise DataError(f"there is no fallback {name!r}; {did_you_mean(name, FALLBACKS)}")
    return name


# -- chance ------------------------------------------------------------------------------------------------------------


def chance(options: Iterable[int]) -> float | None:
    """The expected accuracy of random letters: the mean of 1 / k, open questions (k = 0) counting 0; None without any.

    :param options: k of every question.

    >>> chance([4, 4, 2, 0])
    0.25
    """
    credits = [expected_credit(k) for k in options]
    return math.fsum(credits) / len(credits) if credits else None


def luck(options: Iterable[int], n: int) -> float:
    """The standard deviation that random letters alone give a score: sqrt(sum over them of 1/k (1 - 1/k)) / n.

    :param options: k of the questions whose letter is drawn. :param n: of all questions of the score.
    """
    return math.sqrt(sum(expected_credit(k) * (1 - expected_credit(k)) for k in options)) / n
