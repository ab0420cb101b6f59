"""Runs of all rotations taken together: what a model knows when no letter is worth more than another.

A question with k options is asked k times (``rotation`` 0 to k - 1), so that every letter is right once. Whoever likes
a letter gains by it in one rotation what is lost in the others.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.io import read_records
from paperhooks.reports import Block, Heading, Paragraph, RunFolder, Table
from paperhooks_evaluation import Metric, compare, mean_metric

from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.data import CHOICE

__all__ = ["LetterShare", "Rotations", "compare_rotations"]

#: What runs of several rotations cannot share: the rotation and the questions' texts.
_ROTATED: Final = ("rotation", "documents")
#: What else may differ: which questions were asked, files of replies, and a seed that draws nothing.
_OTHERS: Final = ("asked", "replies", "run_seed")
_GROUPINGS: Final = ("subset", "domain", "subject")


@dataclass(frozen=True, slots=True)
class LetterShare:
    """A letter, of the questions with the most common number of options, k.

    :param given: its share among the letters that were read; 1 / k of a model that likes none more than another.
    :param recall: accuracy where it is the right one.
    """

    letter: str
    given: float
    recall: float


@dataclass(frozen=True, slots=True)
class Rotations:
    """The outcome of :func:`compare_rotations`.

    :param accuracy: the mean over rotations, of all questions, then by subset, domain and subject; intervals over
        questions.
    :param all_right: of the same parts, the share of questions that are right in every rotation.
    :param by_rotation: number of the rotation to accuracy, of questions that have it and were asked in all of theirs.
    :param options, letters: k, and its letters; :attr:`bias` is about them.
    :param left_out: questions that were not asked in all their rotations, or whose options may not move.
    """

    mode: str
    accuracy: Sequence[Metric]
    all_right: Sequence[Metric]
    by_rotation: Mapping[int, float]
    options: int
    letters: Sequence[LetterShare]
    left_out: int

    @property
    def bias(self) -> float:
        """The standard deviation of the letters' recalls: 0 where it makes no difference which letter is right.

        Zheng et al., Large Language Models Are Not Robust Multiple Choice Selectors (ICLR 2024), section 2.
        """
        return pstdev(one.recall for one in self.letters)

    def __str__(self) -> str:
        mean, right = self.accuracy[0], self.all_right[0]
        return (
            f"{len(self.by_rotation)} rotations ({self.mode}): accuracy {_told(mean)}, right in all rotations "
            f"{_told(right)}, letter bias {100 * self.bias:.1f} points, n = {mean.n}"
        )


@dataclass(frozen=True, slots=True)
class _Reply:
    score: float
    letter: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its replies by rotation, of which none is missing."""

    groups: Mapping[str, str]
    options: int
    answers: Sequence[Any]
    replies: Sequence[_Reply]


def compare_rotations(
    runs: Sequence[str | Path], *, mode: str = "robust-wrong", out: str | Path | None = None
) -> Rotations:
    """Take the runs of one model and task that differ in ``rotation`` alone together.

    :param runs: of the rotations 0 to k - 1, in any order, for questions with k options; those with more are left out.
    :param mode: of all runs. Modes that draw letters add their luck.
    :param out: a folder for a report.
    :raises DataError: a single run, one rotation twice, runs that differ in more, or no question in all its rotations.
    """
    by_rotation = _by_rotation(runs)
    first, *others = by_rotation.values()
    for other in others:
        found = compare(first, other, mode=mode, allow=_ROTATED, resamples=2)
        if more := [one for one in found.differences if one.name not in _ROTATED + _OTHERS]:
            raise DataError(
                f"{first} (a) and {other} (b) differ in more than the rotation: {'; '.join(map(str, more))}; ask all "
                "rotations of one model alike"
            )
    asked, left_out = _asked(by_rotation, mode)
    if not asked:
        raise DataError(
            f"no question was asked in all its rotations: there are runs of {', '.join(map(str, by_rotation))}; "
            "questions with k options need 0 to k - 1"
        )
    result = _together(asked, mode, left_out)
    if out is not None:
        _write(by_rotation, result, Path(out))
    return result


def _by_rotation(runs: Sequence[str | Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for run in map(Path, runs):
        options = RunFolder.open(run, "evaluate").result["inputs"]["options"]
        if "rotation" not in options:
            raise DataError(f"{run} is no run of a task whose options rotate")
        if (number := options["rotation"]) in found:
            raise DataError(f"{run} and {found[number]} are both of rotation {number}; give one of each")
        found[number] = run
    if len(found) < 2:
        raise DataError(f"there are runs of {len(found)} rotations; expected those of 0 to k - 1 for k options")
    return dict(sorted(found.items()))


def _asked(runs: Mapping[int, Path], mode: str) -> tuple[list[_Asked], int]:
    """The questions that were asked in all their rotations, and how many were not."""
    documents = {
        number: {row["id"]: row for _, row in read_records(run / "documents.jsonl")} for number, run in runs.items()
    }
    replies = {number: _replies(run / "scores.csv", mode) for number, run in runs.items()}
    names = list(dict.fromkeys(name for rows in documents.values() for name in rows))
    found = []
    for name in names:
        row = next(rows[name] for rows in documents.values() if name in rows)
        for number, rows in documents.items():
            if name in rows and _asked_about(rows[name]) != _asked_about(row):
                raise DataError(
                    f"{name} of {runs[number]} is another question than in the other runs: it was asked of other data; "
                    "ask all rotations of the same data"
                )
        k = len(row["data"]["options"]) if row["data"]["question_type"] == CHOICE else 0
        if k and all(name in documents.get(number, ()) and name in replies[number] for number in range(k)):
            answers = [documents[number][name]["data"]["answer"] for number in range(k)]
            found.append(_Asked(row["groups"], k, answers, [replies[number][name] for number in range(k)]))
    return found, len(names) - len(found)


def _asked_about(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a rotation leaves alone."""
    data = row["data"]
    return data["question"], sorted(data["options"]), sorted(data["pictures"].items())


def _replies(file: Path, mode: str) -> dict[str, _Reply]:
    found = {}
    for _, row in read_records(file):
        if row["mode"] == mode:
            letter = "" if row["fallback"] == "1" else str(json.loads(row["value"]))
            found[row["id"]] = _Reply(float(row["score"]), letter)
    return found


def _together(asked: Sequence[_Asked], mode: str, left_out: int) -> Rotations:
    parts: dict[tuple[str, str], list[_Asked]] = {}
    for grouping in _GROUPINGS:
        for group in sorted({one.groups[grouping] for one in asked if grouping in one.groups}):
            parts[grouping, group] = [one for one in asked if one.groups.get(grouping) == group]
    k = max(Counter(one.options for one in asked).items(), key=lambda pair: (pair[1], -pair[0]))[0]
    numbers = range(max(one.options for one in asked))
    means: list[Metric] = []
    right: list[Metric] = []
    for (grouping, group), members in {("", ""): list(asked), **parts}.items():
        scores = [[reply.score for reply in one.replies] for one in members]
        means.append(mean_metric("accuracy", list(map(fmean, scores)), group, grouping))
        right.append(mean_metric("all right", [float(min(each) == 1) for each in scores], group, grouping))
    return Rotations(
        mode,
        means,
        right,
        {number: fmean(one.replies[number].score for one in asked if number < one.options) for number in numbers},
        k,
        _letters([one for one in asked if one.options == k], k),
        left_out,
    )


def _letters(asked: Sequence[_Asked], k: int) -> list[LetterShare]:
    given = Counter(reply.letter for one in asked for reply in one.replies if reply.letter)
    right: dict[str, list[float]] = {}
    for one in asked:
        for answer, reply in zip(one.answers, one.replies, strict=True):
            for letter in answer:  # one letter, or a list of which any is right
                right.setdefault(letter, []).append(reply.score)
    total = given.total() or 1
    return [LetterShare(letter, given[letter] / total, fmean(right[letter])) for letter in letters_of([""] * k)]


def _told(metric: Metric) -> str:
    low, high = metric.bounds
    return f"{metric.value or 0.0:.1%} [{low:.1%}, {high:.1%}]"


def _write(runs: Mapping[int, Path], result: Rotations, out: Path) -> None:
    content = dataclasses.asdict(result) | {"bias": result.bias}
    with RunFolder(out) as folder:
        folder.start("jmmmu-rotations", inputs={"mode": result.mode, "runs": list(map(str, runs.values()))}, seed=0)
        folder.record(rotations=content)
        folder.report("Rotations taken together", _blocks(runs, result))
        folder.finish()


def _blocks(runs: Mapping[int, Path], result: Rotations) -> list[Block]:
    parts = [
        (mean.part or "all", mean.n, mean.value, mean.low, mean.high, right.value, right.low, right.high)
        for mean, right in zip(result.accuracy, result.all_right, strict=True)
    ]
    turns = [(number, str(runs[number]), value) for number, value in result.by_rotation.items()]
    letters = [(one.letter, one.given, one.recall) for one in result.letters]
    return [
        Paragraph(f"{result}."),
        Paragraph(
            f"Left out: {result.left_out} questions that were not asked in all their rotations; open ones, and such "
            "whose options speak of others, are asked in rotation 0 alone."
        ),
        Heading("Accuracy"),
        Table(
            ("part", "n", "accuracy", "low", "high", "all right", "low", "high"), parts,
            "Accuracy: the mean over rotations; all right: in every one of them. 95 % intervals over questions.",
        ),
        Heading("By rotation"),
        Table(("rotation", "run", "accuracy"), turns, "Of questions that have so many options."),
        Heading("Letters"),
        Table(
            ("letter", "given", "accuracy where it is right"), letters,
            f"Questions with {result.options} options, in which every letter is right equally often: given would be "
            f"{1 / result.options:.3f} each. Letter bias: the standard deviation of the last column.",
        ),
    ]  # fmt: skip
