"""The columns of JMMMU's published table, and the row that a run gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from paperhooks_evaluation import Summary

from paperhooks_jmmmu.data import SUBJECTS, Edition

__all__ = ["COLUMNS", "leaderboard_row"]

#: Column to the grouping and group behind it.
COLUMNS: Final[Mapping[str, tuple[str, str]]] = {
    "Overall": ("", ""),
    "CS": ("subset", "CS"),
    "CA": ("subset", "CA"),
    "Japanese Art": ("subject", "Japanese_Art"),
    "Japanese Heritage": ("subject", "Japanese_Heritage"),
    "Japanese History": ("subject", "Japanese_History"),
    "World History": ("subject", "World_History"),
    "Art & Psychology": ("domain", "Art and Psychology"),
    "Business": ("domain", "Business"),
    "Science": ("domain", "Science"),
    "Health & Medicine": ("domain", "Health and Medicine"),
    "Tech & Engineering": ("domain", "Tech and Engineering"),
}


def leaderboard_row(summary: Summary, metric: str, edition: Edition) -> dict[str, Any]:
    """Percent with one decimal by column; None where the run has no question of it.

    Data that are a part of the edition give a row that says so in a last column, ``Partial``.
    """
    found = {(one.grouping, one.group): one for one in summary.metrics if one.name == metric}
    row: dict[str, Any] = {
        column: _percent(found[part].value if part in found else None) for column, part in COLUMNS.items()
    }
    n, whole = found["", ""].n, sum(SUBJECTS[name].n for name in edition.subjects)
    return row | ({"Partial": f"{n} of {whole} questions"} if n < whole else {})


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)
