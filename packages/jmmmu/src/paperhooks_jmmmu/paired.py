"""Japanese against English, question by question: what the language costs, as the questions are the same.

JMMMU's culture-agnostic questions are MMMU's, translated, under their ids. A fair comparison asks both in one layout,
with one limit, and reads both by one parser; what differs beyond the language is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from paperhooks.errors import DataError
from paperhooks.reports import RunFolder
from paperhooks_evaluation import Comparison, FigureSpec, RunsDiffer, compare

from paperhooks_jmmmu.figures import domains_figure

__all__ = ["compare_languages"]

#: What two runs of the two tasks cannot share.
_LANGUAGE: Final = ("task", "documents", "revision")
_TASKS: Final = ["mmmu-paired", "jmmmu"]


def compare_languages(
    english: str | Path,
    japanese: str | Path,
    *,
    mode: str = "robust-wrong",
    out: str | Path | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> Comparison:
    """Compare a run of ``mmmu-paired`` with one of ``jmmmu``, paired by id: Japanese minus English.

    With the counts of questions that one language alone has right, the exact McNemar test, a bootstrap interval over
    pictures, and all of it by domain and by whether pictures were translated.

    :param mode: of both runs; without a fallback that draws letters, by a parser that reads both languages, unless
        another is asked for.
    :param out: a folder for a report; where there is matplotlib, with arrows from English to Japanese by domain
        (``languages.svg`` and ``languages.png``).
    :param seed, resamples: of the bootstrap.
    :raises DataError: the runs are of other tasks, or of these in the other order; runs that differ in layout, limit,
        stop strings, options, model settings that change what is asked, or scoring.
    """
    tasks = [RunFolder.open(run, "evaluate").result["inputs"]["task"] for run in (english, japanese)]
    if tasks != _TASKS:
        raise DataError(
            f"{english} is a run of {tasks[0]!r}, {japanese} one of {tasks[1]!r}; give a run of {_TASKS[0]!r}, then "
            f"one of {_TASKS[1]!r}"
        )
    try:
        return compare(
            english, japanese, mode=mode, out=out, allow=_LANGUAGE, seed=seed, resamples=resamples,
            labels=("English", "Japanese"), figures=_figures,
        )  # fmt: skip
    except RunsDiffer as error:
        told = "".join(f"\n  {one}" for one in error.differences)
        raise DataError(
            f"{english} (a) and {japanese} (b) differ in more than the language:{told}\nask both in the same way, with "
            "one layout, limit and stop string, and score both alike"
        ) from error


def _figures(found: Comparison) -> list[FigureSpec]:
    domains = [one for one in found.groups if one.grouping == "domain"]
    return [domains_figure(domains)] if domains else []
