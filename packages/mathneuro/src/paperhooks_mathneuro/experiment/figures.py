"""Figures: where a selection lies, what its edits do, how stable it is, and how it grows with the ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from paperhooks.reports import PALETTE, new_figure, style_axes

from paperhooks_mathneuro.experiment.effects import Effects, ScoreChange
from paperhooks_mathneuro.experiment.stabilities import NoiseFloor, Stability
from paperhooks_mathneuro.selection.overlaps import Shares

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["dissociation_figure", "share_figure", "stability_figure", "threshold_figure"]

_GREY: Final = "#7b8696"
_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*")


def share_figure(found: Shares, title: str = "Share of the entries selected") -> Figure:
    """A map of layers and kinds of modules, with the shares of both beside it."""
    import numpy as np

    layers, kinds = list(found.by_layer), list(found.by_kind)
    grid = np.full((len(kinds), len(layers)), math.nan)
    for (layer, kind), share in found.cells.items():
        grid[kinds.index(kind), layers.index(layer)] = 100 * share
    height = 1.5 + 0.34 * len(kinds)
    figure, axes = new_figure(width=9.2, height=height, columns=2)
    left, right = axes
    spec: Any = left.get_gridspec()
    spec.set_width_ratios([3.2, 1])
    image = left.imshow(grid, aspect="auto", cmap="viridis", vmin=0)
    left.grid(False)
    left.set_yticks(range(len(kinds)), labels=kinds)
    step = max(1, len(layers) // 10)
    left.set_xticks(range(0, len(layers), step), labels=["head" if n is None else str(n) for n in layers[::step]])
    style_axes(left, title, "layer")
    left.grid(False)
    bar = figure.colorbar(image, ax=left, pad=0.01)
    bar.ax.tick_params(colors=_GREY, labelsize=8)
    bar.set_label("%", color=_GREY)
    bar.outline.set_visible(False)
    right.barh(range(len(kinds)), [100 * found.by_kind[k] for k in kinds], color=PALETTE[0], alpha=0.7, height=0.7)
    right.set_yticks([])
    right.set_ylim(len(kinds) - 0.5, -0.5)
    right.axvline(100 * found.total, color=PALETTE[1], linestyle="--", linewidth=1.3)
    style_axes(right, f"all: {found.total:.2%}", "% of the kind")
    right.grid(False, axis="y")
    return figure


def dissociation_figure(effects: Effects, *, title: str = "", seed: int = 0, resamples: int = 1000) -> Figure:
    """Change of the target's NLL against that of the next side, one point with intervals for each set and factor.

    Above the dashed diagonal an edit hurts the target more, below it the reference.
    """
    target, other = effects.sides[:2]
    figure, (axes,) = new_figure(width=7.4, height=5.2)
    names = list(dict.fromkeys(one.selection for one in effects.edited))
    scales = list(dict.fromkeys(one.scale for one in effects.edited))
    least = largest = 0.0
    for one in effects.edited:
        y = effects.change(one, target, seed=seed, resamples=resamples)
        x = effects.change(one, other, seed=seed, resamples=resamples)
        colour = PALETTE[names.index(one.selection) % len(PALETTE)]
        axes.errorbar(
            x.delta, y.delta, xerr=_whiskers(x), yerr=_whiskers(y), color=colour, capsize=2, elinewidth=1.1,
            marker=_MARKERS[scales.index(one.scale) % len(_MARKERS)], markersize=7, linestyle="none",
        )  # fmt: skip
        least, largest = min(least, x.low, y.low), max(largest, x.high, y.high)
    if largest > 3:  # removing a whole top costs ten times as much as anything else
        for scale in (axes.set_xscale, axes.set_yscale):
            scale("symlog", linthresh=0.5, linscale=0.6)
        ticks = [t for t in (-2, -1, -0.5, 0, 0.5, 1, 2, 5, 10, 20) if 1.2 * least <= t <= 1.2 * largest]
        axes.set_xticks(ticks, labels=[f"{t:g}" for t in ticks])
        axes.set_yticks(ticks, labels=[f"{t:g}" for t in ticks])
        axes.minorticks_off()
    margin = 0.1 if largest > 3 else 0.06 * (largest - least)
    ends = (least - margin, largest * (1.25 if largest > 3 else 1) + margin)
    axes.plot(ends, ends, color=_GREY, linestyle="--", linewidth=1)
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    style_axes(axes, title, f"change of the {other} NLL, nats a token", f"change of the {target} NLL, nats a token")
    _legend(axes, names, scales)
    return figure


def _legend(axes: Any, names: Sequence[str], scales: Sequence[float]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=PALETTE[i % len(PALETTE)], marker="o", linestyle="none", label=name)
        for i, name in enumerate(names)
    ]
    if len(scales) > 1:
        marks += [
            Line2D([], [], color=_GREY, marker=_MARKERS[i % len(_MARKERS)], linestyle="none", label=f"factor {scale:g}")
            for i, scale in enumerate(scales)
        ]
    axes.legend(
        handles=marks, frameon=False, labelcolor=_GREY, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0)
    )


def _whiskers(change: ScoreChange) -> list[list[float]]:
    return [[max(0.0, change.delta - change.low)], [max(0.0, change.high - change.delta)]]


def stability_figure(found: Sequence[Stability], noise: NoiseFloor | None = None) -> Figure:
    """What is found again from disjoint samples, against their number; one dot a split, a line through the means."""
    figure, axes = new_figure(width=8.4, height=3.4, columns=2 if noise is not None else 1)
    for name, colour, of in (("found again", PALETTE[0], "found_again"), ("Jaccard", PALETTE[2], "jaccard")):
        sizes = [one.n for one in found]
        values = [getattr(one, of) for one in found]
        axes[0].plot(sizes, [sum(v) / len(v) for v in values], color=colour, marker="o", markersize=4, label=name)
        for n, each in zip(sizes, values, strict=True):
            axes[0].plot([n] * len(each), each, color=colour, marker=".", linestyle="none", alpha=0.5)
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks([one.n for one in found], labels=[str(one.n) for one in found])
    axes[0].minorticks_off()
    axes[0].set_ylim(0, 1)
    style_axes(axes[0], "Two disjoint halves", "samples a side and half", "share")
    axes[0].legend(frameon=False, labelcolor=_GREY, fontsize=9, loc="lower right")
    if noise is not None:
        _noise(axes[1], noise)
    return figure


def _noise(axes: Any, noise: NoiseFloor) -> None:
    rows = (
        ("target - reference", noise.isolated),
        ("target halves", noise.target),
        ("reference halves", noise.reference),
    )
    for place, (_, values) in enumerate(rows):
        axes.barh(place, 100 * sum(values) / len(values), color=PALETTE[0 if place == 0 else 1], alpha=0.6, height=0.6)
        axes.plot([100 * v for v in values], [place] * len(values), color=_GREY, marker="|", linestyle="none")
    axes.set_yticks(range(len(rows)), labels=[name for name, _ in rows])
    axes.invert_yaxis()
    style_axes(axes, f"Noise floor, {noise.n} samples a side", "% of the entries selected")
    axes.grid(False, axis="y")


def threshold_figure(
    ratios: Sequence[float], selected: Mapping[str, Sequence[float]], bars: Mapping[str, Sequence[float | None]]
) -> Figure:
    """How sets and thresholds move with the ratio.

    :param selected: set name to its share of the entries at every ratio.
    :param bars: kind of module to the median over its matrices of threshold over mean score, at every ratio.
    """
    figure, (left, right) = new_figure(width=9.2, height=3.6, columns=2)
    for i, (name, values) in enumerate(selected.items()):
        left.plot(ratios, values, color=PALETTE[i % len(PALETTE)], marker="o", markersize=4, label=name)
    left.plot(ratios, ratios, color=_GREY, linestyle="--", linewidth=1, label="whole top")
    for i, (kind, heights) in enumerate(bars.items()):
        shown = [math.nan if height is None else height for height in heights]
        right.plot(ratios, shown, color=PALETTE[i % len(PALETTE)], marker="o", markersize=4, label=kind)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.legend(frameon=False, labelcolor=_GREY, fontsize=8)
    style_axes(left, "Entries selected", "ratio (share of a matrix in the top)", "share of all entries")
    style_axes(right, "Thresholds of the target", "ratio", "threshold / mean score")
    return figure
