"""Puts the results of ``testbed_training.py`` together: means over seeds, heat maps by place, a report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table
from paperhooks_cca.figures import place_figure

__all__ = ["report"]

GRID = 7


def report(out: Path, arms: Sequence[str]) -> dict[str, Any]:
    """Write ``report.html`` from the result files in ``out``; returns every figure by start and arm."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob("*-*-*.json"))]
    figures: dict[str, Any] = {}
    blocks: list[Block] = [
        Paragraph("Means over seeds with their standard deviation; every seed starts all arms alike.")
    ]
    run = RunFolder(out / "report")
    run.start("cca-testbed-training", inputs={"arms": list(arms)})  # made anew from whatever results there are
    for start in sorted({r["start"] for r in found}):
        for moment in ("before", "after"):
            by_arm = {arm: [r[moment] for r in found if (r["start"], r["arm"]) == (start, arm)] for arm in arms}
            part = {arm: _summary([r for r in rs if r]) for arm, rs in by_arm.items() if any(rs)}
            if part:
                figures[f"{start} {moment}"] = part
                blocks += _blocks(run, f"{start}-{moment}", part)
    run.report("Training with Concentric Causal Attention on the test bed", blocks)
    run.finish()
    return figures


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy and F1 by split, mean over splits, and the yes share by place."""
    summary: dict[str, Any] = {"seeds": len(results), "questions": results[0]["questions"]}
    for key in ("accuracy", "f1"):
        for split in results[0]["pope"]:
            summary[f"{key} {split}"] = _spread([r["pope"][split][key] for r in results])
        summary[f"{key} mean"] = _spread([fmean(s[key] for s in r["pope"].values()) for r in results])
    total = results[0]["probes"]
    rows = [[fmean(r["places"][i * GRID : (i + 1) * GRID]) / total for i in range(GRID)] for r in results]
    summary["bottom minus top rows"] = _spread([fmean(r[-2:]) - fmean(r[:2]) for r in rows])
    summary["places"] = [round(fmean(r["places"][c] / total for r in results), 4) for c in range(GRID * GRID)]
    return summary


def _spread(values: Sequence[float]) -> list[float]:
    return [round(fmean(values), 4), round(stdev(values), 4) if len(values) > 1 else 0.0]


def _blocks(run: RunFolder, name: str, part: dict[str, Any]) -> list[Block]:
    keys = [key for key in next(iter(part.values())) if key not in ("places", "seeds", "questions")]
    rows = [(arm, s["seeds"], *(f"{s[k][0]:.3f} ± {s[k][1]:.3f}" for k in keys)) for arm, s in part.items()]
    places = {arm: torch.tensor(_square(summary["places"])) for arm, summary in part.items()}
    figure = place_figure(places, "Share of yes by the place of a lone object")
    run.figure(name, figure)
    return [
        Heading(name.replace("-", ", ")),
        Table(("arm", "seeds", *keys), rows),
        Figure(name, "share of yes by the place of a lone object", "A lone object in each of 49 cells; all are there."),
    ]


def _square(values: Sequence[float]) -> list[Sequence[float]]:
    return [values[i * GRID : (i + 1) * GRID] for i in range(GRID)]
