"""The arithmetic of scores: chance, what stands in for an unread letter, and its luck."""

from __future__ import annotations

import math
import random
from statistics import pstdev

import pytest
from exam_runs import FALLBACKS, reference
from paperhooks.errors import DataError
from paperhooks_jmmmu import algorithm
from paperhooks_jmmmu.data import DOMAINS, SUBJECTS

STRUCTURE = reference("structure")
PUBLISHED = reference("published_results")


def options_of(*subjects: str) -> list[int]:
    """The number of options of every question, 0 for an open one."""
    found: list[int] = []
    for name in subjects:
        found += [0] * SUBJECTS[name].opens
        found += [k for k, n in SUBJECTS[name].options.items() for _ in range(n)]
    return found


PARTS = {
    **DOMAINS,
    "CA": tuple(name for name, one in SUBJECTS.items() if one.subset == "CA"),
    "CS": tuple(name for name, one in SUBJECTS.items() if one.subset == "CS"),
    "Overall": tuple(SUBJECTS),
}
PARTS["Culture-specific"] = PARTS["CS"]


@pytest.mark.parametrize(("part", "expected"), STRUCTURE["expected_random_accuracy_percent"].items())
def test_chance_is_that_of_the_structure(part: str, expected: float) -> None:
    assert 100 * algorithm.chance(options_of(*PARTS[part])) == pytest.approx(expected, abs=1e-9)


def test_chance_is_the_published_random_row() -> None:
    published = next(row["percent"] for row in PUBLISHED["rows"] if row["model"] == "Random Choice")
    names = {
        "overall": "Overall", "cs": "CS", "ca": "CA", "original_en_ca": "CA", "art_psychology": "Art and Psychology",
        "business": "Business", "science": "Science", "medicine": "Health and Medicine",
        "tech_eng": "Tech and Engineering",
    }  # fmt: skip
    for column, part in names.items():
        options = options_of(*PARTS[part])
        assert len(options) == PUBLISHED["n"][column]
        assert round(100 * algorithm.chance(options), 1) == published[column], part
    assert [round(100 * algorithm.chance(options_of(*PARTS[part])), 2) for part in ("Overall", "CS", "CA")] == [
        *(24.78, 25.0, 24.60),
    ]
    assert algorithm.chance([]) is None


def test_subjects_count_as_rounded() -> None:
    assert algorithm.rounded_accuracy(1, 3) == 0.33333
    assert algorithm.rounded_accuracy(0, 0) is None
    assert algorithm.weighted_accuracy([(1, 3), (0, 0), (5, 7)]) == pytest.approx((0.99999 + 7 * 0.71429) / 10, 1e-15)
    assert algorithm.weighted_accuracy([]) is None
    assert algorithm.weighted_accuracy([(0, 0)]) is None


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_questions_and_subjects_makes_no_difference(seed: int) -> None:
    draw = random.Random(seed)
    counts = [(draw.randint(0, 7) / draw.choice((3, 7)), draw.randint(3, 150)) for _ in range(28)]
    options = [draw.randint(2, 9) for _ in range(1320)]
    expected = algorithm.weighted_accuracy(counts), algorithm.chance(options)
    for _ in range(20):
        draw.shuffle(counts)
        draw.shuffle(options)
        assert (algorithm.weighted_accuracy(counts), algorithm.chance(options)) == expected


# -- letters in the place of others ------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 42, 1234])
def test_drawn_letters_are_those_of_one_generator(seed: int) -> None:
    sizes = [random.Random(7).randint(2, 9) for _ in range(200)]
    state = random.getstate()
    generator = random.Random(seed)
    expected = [generator.choice([*"ABCDEFGHI"[:size]]) for size in sizes]
    assert algorithm.drawn_letters(["ABCDEFGHI"[:size] for size in sizes], seed) == expected
    assert random.getstate() == state, "the generator of everybody else is left alone"


def test_drawn_letters_are_what_python_s_own_generator_gives() -> None:
    """After ``random.seed(0)``, as lmms-eval calls it."""
    assert "".join(algorithm.drawn_letters(["ABCD"] * 12, 0)) == "DDACDDCDCBBC"


def test_a_question_s_letter_depends_on_seed_and_id_alone() -> None:
    first = [algorithm.question_letter(0, f"validation_Design_{n}", "ABCD") for n in range(1, 31)]
    assert "".join(first[:12]) == "CCAAABCDACDD", "as in runs that were recorded"
    assert first != [algorithm.question_letter(1, f"validation_Design_{n}", "ABCD") for n in range(1, 31)]
    counts = [sum(algorithm.question_letter(0, f"q{n}", "ABCDE") == letter for n in range(5000)) for letter in "ABCDE"]
    assert max(abs(count - 1000) for count in counts) < 5 * math.sqrt(800)


def test_luck_is_the_spread_over_seeds() -> None:
    """1,000 seeds over 300 unread questions of 1,000, each with a letter that is right."""
    sizes = [2 + n % 4 for n in range(300)]
    letters = ["ABCDE"[:size] for size in sizes]
    scores = [
        sum(algorithm.question_letter(seed, f"q{n}", one) == "A" for n, one in enumerate(letters)) / 1000
        for seed in range(1000)
    ]
    assert pstdev(scores) == pytest.approx(algorithm.luck(sizes, 1000), rel=0.08)
    assert algorithm.luck([], 1000) == 0
    assert algorithm.luck([0, 0], 10) == 0, "nobody guesses what is open"
    # The figures that are quoted of it: 30 % and 90 % of 1,320 questions.
    assert 100 * algorithm.luck([4] * 396, 1320) == pytest.approx(0.64, abs=0.02)
    assert 100 * algorithm.luck([4] * 1188, 1320) == pytest.approx(1.1, abs=0.05)


def test_credit_and_names() -> None:
    assert [algorithm.expected_credit(k) for k in (0, 2, 4)] == [0, 0.5, 0.25]
    assert algorithm.FALLBACKS == FALLBACKS
    with pytest.raises(DataError, match="there is no fallback 'expect'; did you mean 'expected'"):
        algorithm.check_fallback("expect")
