"""Comparisons at several budgets as one front: how large the model is against what it loses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks import Artefact, DataError
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table, line_figure

__all__ = ["write_front"]

_METHOD: Final = "paperhooks_evopress.simple_choices:BestBaseline"
_MEGA: Final = 1e6


def write_front(folders: Sequence[str | Path], out: str | Path) -> list[dict[str, Any]]:
    """Draw what each choice comes to over the budgets of several comparisons, as a report.

    :param folders: of ``paperhooks evopress baselines``, on one model, one text, and with one fitness.
    :param out: run folder; one of the same comparisons is written again.
    :return: a row for each choice and budget, ``name``, ``target``, ``size`` in bytes, ``lost`` on held-out text (on
        the calibration text where there is none), and ``front``: no other row is smaller and loses less.
    :raises DataError: no finished comparisons, or such as are not alike; names the first difference.
    :raises MissingExtra: matplotlib is missing.
    """
    runs = [_opened(folder) for folder in folders]
    tables = [Artefact.load(run.path).data for run in runs]
    _check_alike(runs, tables)
    held_out = all(row["held_out"] is not None for told in tables for row in told["table"])
    key = "held_out" if held_out else "fitness"
    rows = [
        {"name": row["name"], "target": told["target"], "size": row["size"], "lost": row[key]}
        for told in tables
        for row in told["table"]
        if row["size"] is not None and row[key] is not None
    ]
    if not rows:
        raise DataError("the levels in these comparisons do not tell their bytes, so that there are no sizes to draw")
    rows = [row for place, row in enumerate(rows) if row not in rows[:place]]  # a budget that was compared twice
    rows.sort(key=lambda row: (row["size"], row["lost"]))
    least = float("inf")
    for row in rows:
        row["front"], least = row["lost"] < least, min(least, row["lost"])
    fitness = "KL" if tables[0]["fitness"] == "kl" else tables[0]["fitness"]
    lost = f"{fitness} on {'held-out' if held_out else 'calibration'} text"
    with RunFolder(out) as run:
        run.start("evopress-front", inputs={"comparisons": [each.result["inputs_hash"] for each in runs]})
        series = {}
        for name in dict.fromkeys(row["name"] for row in rows):
            own = [row for row in rows if row["name"] == name]
            series[name] = [row["size"] / _MEGA for row in own], [row["lost"] for row in own]
        run.figure("front", line_figure(series, title="Size and loss", x="whole model, MB", y=lost))
        run.record(rows=rows)
        run.report("Sizes and losses", _blocks(rows, lost))
        run.finish()
    return rows


def _blocks(rows: Sequence[dict[str, Any]], lost: str) -> list[Block]:
    cells = [
        (row["name"], row["target"], row["size"] / _MEGA, row["lost"], "yes" if row["front"] else "") for row in rows
    ]
    best = "; ".join(f"{row['name']} at {row['target']}" for row in rows if row["front"])
    return [
        Heading("Size and loss"),
        Paragraph(f"No other choice is smaller and loses less than: {best}."),
        Figure("front", alt=best, caption="Below and to the left is better."),
        Table(("choice", "target", "model, MB", lost, "on the front"), cells),
    ]


def _opened(folder: str | Path) -> RunFolder:
    run = RunFolder.open(folder, "compress")
    method = run.result["inputs"]["method"]["class"]
    if method != _METHOD:
        raise DataError(f"{run.path} holds a run of {method!r}; expected a folder of: paperhooks evopress baselines")
    if not run.finished:
        raise DataError(f"the comparison in {run.path} is not finished; run the same command again to go on with it")
    return run


def _check_alike(runs: Sequence[RunFolder], tables: Sequence[Any]) -> None:
    """Raise DataError for comparisons of different models, texts or fitness."""
    first = runs[0]
    for run, told in zip(runs[1:], tables[1:], strict=True):
        for name in ("model", "data"):
            if run.result["inputs"][name] != first.result["inputs"][name]:
                raise DataError(f"{run.path} and {first.path} have another {name}; compare like with like")
        if told["fitness"] != tables[0]["fitness"]:
            raise DataError(f"{run.path} measures {told['fitness']}, and {first.path} {tables[0]['fitness']}")
