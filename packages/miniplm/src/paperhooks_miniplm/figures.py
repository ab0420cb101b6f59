"""Figures: the scores and where they were cut, both models against each other, what is kept of each domain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from paperhooks.reports import PALETTE, bar_figure, new_figure, style_axes

from paperhooks_miniplm.algorithm import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["UNITS", "kept_figure", "scatter_figure", "score_figure"]

#: What scores are measured in, by how they are normalised.
UNITS: Final = {"mean": "nats a token", "sum": "nats a row", "per_byte": "nats a byte"}
_GREY: Final = "#7b8696"
_POINTS: Final = 4000


def score_figure(values: Array, cut: float, *, kept: Array, unit: str = UNITS["mean"]) -> Figure:
    """Histogram of difference scores, those of kept rows in colour, with a line at the cut."""
    figure, (axes,) = new_figure()
    known = ~np.isnan(values)
    low, high = np.percentile(values[known], [0.1, 99.9]) if known.any() else (0.0, 1.0)
    edges = np.linspace(low, high if high > low else low + 1, 61).tolist()
    axes.hist(values[known & ~kept], bins=edges, color=_GREY, alpha=0.45, label="dropped")
    axes.hist(values[known & kept], bins=edges, color=PALETTE[0], alpha=0.7, label="kept")
    if np.isfinite(cut):
        axes.axvline(cut, color=PALETTE[1], linestyle="--", linewidth=1.5, label=f"cut at {cut:.3g}")
    style_axes(axes, "Difference scores", f"reference minus teacher, {unit}", "rows")
    axes.legend(frameon=False, labelcolor=_GREY, fontsize=9)
    return figure


def scatter_figure(
    teacher: Array, reference: Array, domains: Array | None = None, *, unit: str = UNITS["mean"]
) -> Figure:
    """Loss under the reference against loss under the teacher, a point a row, coloured by domain."""
    figure, (axes,) = new_figure(width=6.4, height=5.0)
    rows = np.flatnonzero(~np.isnan(teacher) & ~np.isnan(reference))
    if len(rows) > _POINTS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _POINTS, replace=False))
    names = [""] if domains is None else _frequent(domains[rows])
    for number, name in enumerate(names):
        own = rows if domains is None else rows[domains[rows] == name]
        colour = PALETTE[number % len(PALETTE)]
        axes.plot(teacher[own], reference[own], ".", color=colour, markersize=3, alpha=0.5, label=name or "rows")
    if len(rows):
        ends = [min(teacher[rows].min(), reference[rows].min()), max(teacher[rows].max(), reference[rows].max())]
        axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1)
    style_axes(axes, "Teacher against reference", f"teacher, {unit}", f"reference, {unit}")
    axes.legend(frameon=False, labelcolor=_GREY, fontsize=8.5, markerscale=3, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def kept_figure(shares: Mapping[str, float], overall: float) -> Figure:
    """Share of each domain that is kept, with a dashed line at the share of all rows."""
    figure = bar_figure(
        [name or "(no domain)" for name in shares], [100 * share for share in shares.values()],
        title=f"Kept by domain (all: {overall:.0%})", x="% of the domain's rows", reference=100 * overall,
    )  # fmt: skip
    figure.axes[0].set_xlim(0, 100)
    return figure


def _frequent(domains: Array) -> list[str]:
    names, counts = np.unique(domains, return_counts=True)
    return [str(name) for name in names[np.argsort(-counts, kind="stable")][: len(PALETTE)]]
