"""The optional filter of pairs by six mean log-probabilities (section 4.1, step 6), with a report of every stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

from paperhooks import DataError

__all__ = ["MEANS", "FilterReport", "filter_pairs"]

#: Mean log-probabilities a of an answer under a prompt: y+ and y- under x, x+ and x-.
MEANS: Final = ("chosen_plain", "chosen_good", "chosen_bad", "rejected_plain", "rejected_good", "rejected_bad")


@dataclass(frozen=True, slots=True)
class FilterReport:
    """How many pairs each stage kept, and the means it compared with; a stage that got none has none.

    :param given: pairs. :param ordered: those whose answers are likelier the closer their prompt asks for them.
    :param likely: of these, those whose answers are likely enough under the plain prompt.
    :param apart: of these, those whose principles tell them apart: what is kept.
    :param thresholds: name to the mean that a stage compared with.
    """

    given: int
    ordered: int
    likely: int
    apart: int
    thresholds: Mapping[str, float]


def filter_pairs(rows: Sequence[Mapping[str, float]]) -> tuple[list[int], FilterReport]:
    """Places of the pairs to keep, and the report.

    (a) a(y+|x+) > a(y+|x) > a(y+|x-) and a(y-|x-) > a(y-|x) > a(y-|x+); (b) of those, a(y+|x) and a(y-|x) are not below
    their means; (c) of those, a(y+|x+) - a(y+|x-) and a(y-|x-) - a(y-|x+) are above their means. About one in ten is
    left; of a single pair, or of pairs that are all alike, none.

    :param rows: a pair each, with the six numbers of :data:`MEANS`.
    :raises DataError: a row lacks one of them.
    """
    for at, row in enumerate(rows):
        missing = [name for name in MEANS if name not in row]
        if missing:
            raise DataError(f"pair {at} has no {missing[0]!r}; the filter needs {', '.join(MEANS)}")
    thresholds: dict[str, float] = {}
    ordered = [at for at, row in enumerate(rows) if _ordered(row)]
    likely = _above(ordered, {f"{name}_plain": [r[f"{name}_plain"] for r in rows] for name in _SIDES}, thresholds, True)
    contrasts = {f"{name}_contrast": [_contrast(row, name) for row in rows] for name in _SIDES}
    kept = _above(likely, contrasts, thresholds, False)
    return kept, FilterReport(len(rows), len(ordered), len(likely), len(kept), thresholds)


_SIDES: Final = ("chosen", "rejected")
#: The principle under which an answer should be likely, and the one under which it should not.
_WANTED: Final = {"chosen": ("good", "bad"), "rejected": ("bad", "good")}


def _ordered(row: Mapping[str, float]) -> bool:
    def holds(name: str) -> bool:
        wanted, other = _WANTED[name]
        return row[f"{name}_{wanted}"] > row[f"{name}_plain"] > row[f"{name}_{other}"]

    return all(map(holds, _SIDES))


def _contrast(row: Mapping[str, float], name: str) -> float:
    wanted, other = _WANTED[name]
    return row[f"{name}_{wanted}"] - row[f"{name}_{other}"]


def _above(
    places: Sequence[int], columns: Mapping[str, Sequence[float]], thresholds: dict[str, float], equal: bool
) -> list[int]:
    """The places whose values reach, or where ``equal`` is False exceed, the means over all places."""
    if not places:
        return []
    means = {name: fmean(values[at] for at in places) for name, values in columns.items()}
    thresholds.update(means)
    return [
        at for at in places
        if all(v[at] > means[n] or (equal and v[at] == means[n]) for n, v in columns.items())
    ]  # fmt: skip
