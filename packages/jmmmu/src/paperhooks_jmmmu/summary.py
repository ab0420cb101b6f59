"""What a run's records come to: the published figures to the digit, and what stands behind them.

Behind the score: how many replies could not be read, what it would be without a letter in their place or with a credit
of 1 / k, what random letters would get, intervals, flags of replies, and which letters were given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import fsum
from typing import Any, Final

from paperhooks.reports import Table, wilson_interval
from paperhooks_evaluation import FigureSpec, Metric, Record, Summary, grouped, mean_metric

from paperhooks_jmmmu.algorithm import chance, expected_credit, luck, rounded_accuracy, weighted_accuracy
from paperhooks_jmmmu.answers import NOTHING, OUTSIDE, SEVERAL, choice_once, flags_once, letters_of
from paperhooks_jmmmu.baselines import fixed_letters
from paperhooks_jmmmu.data import CHOICE, SUBJECTS, Edition
from paperhooks_jmmmu.figures import letters_figure, subjects_figure

__all__ = ["summarise"]

_PUBLISHED: Final = ("subject", "domain", "subset")
#: How many replies a table shows, and how much of each.
_SHOWN: Final = 30
_SHOWN_LETTERS: Final = 80


def summarise(records: Sequence[Record], metric: str, edition: Edition, *, official: bool) -> Summary:
    """The figures of one mode, the overall score first.

    :param metric: the score's name. :param edition: what the run asks, to tell a part of it from all.
    :param official: whether the published parser read the replies; those that the robust one reads otherwise are shown.
    """
    groups = grouped(records)
    metrics = [_score(metric, records, "", "")]
    for (grouping, group), members in groups.items():
        metrics.append(_score(metric, members, grouping, group))
    for (grouping, group), members in {("", ""): list(records), **groups}.items():
        if grouping in ("", *_PUBLISHED):
            metrics += _behind(members, grouping, group)
    notes, flags, (given, right) = _notes(records, edition), _flags(records), _letters(records)
    tables = [_table(metrics, metric, groups, records, notes), _unread(flags)]
    if official:
        tables.append(_otherwise(records))
    subjects = [one for one in metrics if one.name == metric and one.grouping == "subject"]
    figures: list[FigureSpec] = [letters_figure(given, right)] if given else []
    if subjects:
        chances = {one.group: one.value or 0.0 for one in metrics if one.name == "chance" and one.grouping == "subject"}
        figures.insert(0, subjects_figure(subjects, chances))
    extra = {
        "notes": notes, "flags": flags, "rules": _rules(records), "letters": {"given": given, "right": right},
        "baselines": _baselines(records),
    }  # fmt: skip
    return Summary(metrics, tuple(tables), tuple(figures), extra)


def _score(metric: str, records: Sequence[Record], grouping: str, group: str) -> Metric:
    """The score of a group: subjects and domains rounded, subsets and the whole from rounded subjects, as published."""
    value = _published(records, grouping, lambda record: record.score)
    # Credits of 1 / k are means over draws; a normal interval over them would leave the draws out.
    low, high = wilson_interval(min(fsum(record.score for record in records), len(records)), len(records))
    return Metric(metric, value, len(records), low, high, group, "wilson", grouping=grouping)


def _published(records: Sequence[Record], grouping: str, worth: Callable[[Record], float]) -> float | None:
    if grouping in ("", "subset"):
        subjects: dict[str, list[float]] = {}
        for record in records:
            subjects.setdefault(record.document.groups["subject"], []).append(worth(record))
        return weighted_accuracy((sum(scores), len(scores)) for scores in subjects.values())
    return rounded_accuracy(sum(map(worth, records)), len(records))


def _behind(records: Sequence[Record], grouping: str, group: str) -> list[Metric]:
    """The share of replies that could not be read, and what the score would be with other letters in their place."""
    unread = [float(record.parsed.fallback) for record in records]
    wrong = _published(records, grouping, lambda record: 0.0 if record.parsed.fallback else record.score)
    expected = _published(records, grouping, _expected)
    figures = {"acc_if_wrong": wrong, "acc_if_expected": expected, "chance": chance(map(_options, records))}
    return [
        replace(mean_metric("unread", unread, group, grouping), higher_is_better=False),
        *(Metric(name, value, len(records), group=group, grouping=grouping) for name, value in figures.items()),
    ]


def _expected(record: Record) -> float:
    return expected_credit(_options(record)) if record.parsed.fallback else record.score


def _options(record: Record) -> int:
    """k, 0 for an open question."""
    data = record.document.data
    return len(data["options"]) if data["question_type"] == CHOICE else 0


# -- tables ------------------------------------------------------------------------------------------------------------


def _notes(records: Sequence[Record], edition: Edition) -> list[str]:
    whole = sum(SUBJECTS[name].n for name in edition.subjects)
    notes = [f"Partial: {len(records)} of {whole} questions."] if len(records) < whole else []
    guessed = [_options(record) for record in records if record.parsed.fallback and _options(record)]
    if guessed:
        notes.append(
            f"{len(guessed)} letters could not be read; drawing random ones for them moves the score by "
            f"{100 * luck(guessed, len(records)):.2f} points (one standard deviation)."
        )
    return notes


def _table(
    metrics: Sequence[Metric], metric: str, groups: Mapping[tuple[str, str], Sequence[Record]],
    records: Sequence[Record], notes: Sequence[str],
) -> Table:  # fmt: skip
    by_part = {(one.name, one.grouping, one.group): one for one in metrics}
    parts = [("", ""), *(("subset", name) for name in ("CA", "CS"))]
    parts += [part for name in ("domain", "subject") for part in groups if part[0] == name]
    rows = []
    for grouping, group in parts:
        members = records if not grouping else groups.get((grouping, group), ())
        if not members:
            continue
        score, unread, guess = (by_part[name, grouping, group] for name in (metric, "unread", "chance"))
        rows.append((
            group or "all", score.n, round(sum(record.score for record in members), 2), score.value, score.low,
            score.high, guess.value, unread.value, sum(record.truncated for record in members) / len(members),
        ))  # fmt: skip
    header = ("part", "n", "correct", "accuracy", "low", "high", "random", "unread", "cut")
    caption = (
        "95 % intervals; random: expected of random letters, open questions counting 0. Do not rank subjects of 30 "
    )
    return Table(header, rows, " ".join([caption + "questions without their intervals.", *notes]))


def _unread(counts: Mapping[str, int]) -> Table:
    caption = "Replies by what is odd about them; several: more than one letter, outside: a letter that is no option."
    return Table(("reply", "n"), [(name, n) for name, n in counts.items()], caption)


def _otherwise(records: Sequence[Record]) -> Table:
    """Replies to multiple-choice questions of which the robust parser makes another letter, the first of them."""
    rows = []
    for record in filter(_options, records):
        letter = None if record.parsed.fallback else record.parsed.value
        robust = choice_once(record.response, tuple(record.document.data["options"])).letter
        if robust != letter:
            reply = " ".join(record.response[:_SHOWN_LETTERS].split())
            right = "".join(record.document.data["answer"])  # one letter, or a list of which any is right
            rows.append((record.document.id, reply, letter or "", robust or "", right))
    caption = f"Replies that the two parsers read as different letters, none in an empty cell: {len(rows)}"
    caption += f"; the first {_SHOWN}." if len(rows) > _SHOWN else "."
    return Table(("question", "reply", "official", "robust", "right"), rows[:_SHOWN], caption)


def _flags(records: Sequence[Record]) -> dict[str, int]:
    counts = Counter(flag for record in records for flag in flags_once(record.response))
    for record in records:
        if record.parsed.fallback and _options(record):
            rule = choice_once(record.response, tuple(record.document.data["options"])).rule
            counts[{SEVERAL: "several", OUTSIDE: "outside", NOTHING: "no letter"}.get(rule, "robust reads it")] += 1
    names = ("empty", "refusal", "several", "outside", "looping", "too_long", "no letter", "robust reads it")
    return {name: counts[name] for name in names}


def _letters(records: Sequence[Record]) -> tuple[dict[str, int], dict[str, int]]:
    """How often each letter was read, and how often it was right, of multiple-choice questions."""
    asked = [record for record in records if _options(record)]
    most = max(map(_options, asked), default=0)
    given = Counter(str(record.parsed.value) for record in asked if not record.parsed.fallback)
    right = Counter(str(answer) for record in asked if isinstance(answer := record.document.data["answer"], str))
    letters = letters_of([""] * most)
    return {letter: given[letter] for letter in letters}, {letter: right[letter] for letter in letters}


def _rules(records: Sequence[Record]) -> dict[str, int]:
    return dict(sorted(Counter(record.parsed.rule for record in records).items()))


def _baselines(records: Sequence[Record]) -> dict[str, Any]:
    letter, n, always = fixed_letters([record.document.data["answer"] for record in records if _options(record)])
    return {
        "random": chance(map(_options, records)),
        "most_frequent": {"letter": letter, "accuracy": n / len(records) if records else None},
        "always_A": always / len(records) if records else None,
    }
