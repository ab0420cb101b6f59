"""Figures of the method: rings, positions, the mask, distances to the text, information flow, answers by place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from paperhooks.reports import line_figure, new_figure, style_axes
from torch import Tensor

from paperhooks_cca.algorithm import Grid, allowed_mask, token_order
from paperhooks_cca.images import grouped
from paperhooks_cca.schemes import SCHEMES, Scheme, order_table, scheme_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "decay_figure",
    "distance_figure",
    "flow_figure",
    "mask_figure",
    "mask_text",
    "place_figure",
    "position_figure",
    "prompt_positions",
    "ring_figure",
]

_INK = "#7b8696"


def ring_figure(grid: Grid, schemes: Sequence[str | Scheme] = tuple(SCHEMES)) -> Figure:
    """The level of every patch under each scheme, one panel a scheme."""
    tables = [order_table(scheme, *grid).view(grid) for scheme in schemes]
    titles = [f"{scheme_name(s)}: {int(t.max()) + 1} positions" for s, t in zip(schemes, tables, strict=True)]
    return _maps(tables, titles, numbers=max(grid) <= 8)


def position_figure(
    grid: Grid, before: int, after: int, schemes: Sequence[str | Scheme] = ("raster", "concentric")
) -> Figure:
    """The position of every token of a prompt with one image, along the sequence."""
    steps = list(range(before + grid[0] * grid[1] + after))
    series = {scheme_name(s): (steps, prompt_positions(grid, before, after, s)[0].tolist()) for s in schemes}
    return _smooth(line_figure(series, title="Position of every token", x="token in the sequence", y="rotary position"))


def mask_figure(
    grid: Grid, before: int, after: int, schemes: Sequence[str | Scheme] = ("raster", "concentric")
) -> Figure:
    """Who may attend to whom in a prompt with one image: rows ask, columns are asked, one panel a scheme."""
    masks = [allowed_mask(prompt_positions(grid, before, after, scheme))[0].float() for scheme in schemes]
    figure, axes = new_figure(width=3.4 * len(schemes), height=3.6, columns=len(schemes))
    stop = before + grid[0] * grid[1]
    for one, mask, scheme in zip(axes, masks, schemes, strict=True):
        one.imshow(mask.numpy(), cmap="Blues", vmin=0, vmax=1.6, interpolation="nearest")
        for edge in (before, stop):
            one.axhline(edge - 0.5, color=_INK, linewidth=0.7)
            one.axvline(edge - 0.5, color=_INK, linewidth=0.7)
        inside = mask[before:stop, before:stop].mean()
        style_axes(one, f"{scheme_name(scheme)}: {float(inside):.1%} inside", "key", "query")
        one.grid(False)
    return figure


def mask_text(grid: Grid, before: int, after: int, scheme: str | Scheme = "concentric") -> str:
    """The mask as text: ``#`` may attend, ``.`` may not; one line a query."""
    mask = allowed_mask(prompt_positions(grid, before, after, scheme))[0]
    return "\n".join("".join("#" if seen else "." for seen in row) for row in mask.tolist())


def distance_figure(
    grid: Grid, after: int, schemes: Sequence[str | Scheme] = ("raster", "manhattan", "concentric")
) -> Figure:
    """How far the text behind an image is from its patches: the share of pairs within a distance."""
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    size = grid[0] * grid[1]
    for scheme in schemes:
        placed = prompt_positions(grid, 0, after, scheme)[0]
        distances = (placed[size:, None] - placed[None, :size]).flatten().sort().values
        picked = torch.linspace(0, len(distances) - 1, 60).long()
        shares = ((picked + 1) / len(distances)).tolist()
        series[f"{scheme_name(scheme)} (at most {int(distances[-1])})"] = (distances[picked].tolist(), shares)
    return _smooth(
        line_figure(series, title="Distance from question to patch", x="positions", y="share of pairs within it")
    )


def decay_figure(grid: Grid, after: int, width: int = 128, theta: float = 10_000.0) -> Figure:
    """How rotary positions alone damp attention, and where the patches lie on that curve.

    The curve is the mean over rotation frequencies of cos(distance * frequency): the score of two vectors of ones.

    :param width: width of an attention head. :param theta: base of the rotary frequencies.
    """
    frequencies = theta ** (-torch.arange(0, width, 2) / width)
    size = grid[0] * grid[1]
    reach = torch.arange(size + after)
    curve = torch.cos(reach[:, None] * frequencies).mean(1)
    series: dict[str, tuple[Sequence[float], Sequence[float]]] = {"score": (reach.tolist(), curve.tolist())}
    figure = _smooth(
        line_figure(series, title="Attention by distance", x="positions between question and key", y="score")
    )
    axes = figure.axes[0]
    for scheme, height in (("raster", 0.86), ("concentric", 0.96)):
        placed = prompt_positions(grid, 0, after, scheme)[0]
        last = int(placed[-1])
        near, far = last - int(placed[:size].max()), last - int(placed[:size].min())
        axes.annotate("", (near, height), (far, height), arrowprops={"arrowstyle": "|-|", "color": _INK, "lw": 1.2})
        note = f"{scheme}: patches {near} to {far} away"
        axes.text(far + 8 if far < size / 2 else near, height + 0.01, note, color=_INK, fontsize=9, va="bottom")
    return figure


def flow_figure(flows: Mapping[str, Tensor]) -> Figure:
    """Attention from the question to every patch [H, W], one panel a setting; every panel has its own scale."""
    titles = [f"{name}\n{float(flow.sum()):.1%} of attention" for name, flow in flows.items()]
    return _maps([flow.float() for flow in flows.values()], titles)


def place_figure(shares: Mapping[str, Tensor], title: str = "") -> Figure:
    """A share between 0 and 1 for every place [H, W], one panel a setting, all on one scale."""
    names = [f"{name}\nmean {float(share.nanmean()):.1%}" for name, share in shares.items()]
    figure = _maps(list(shares.values()), names, limits=(0.0, 1.0), bar=True)
    if title:
        figure.suptitle(title, color=_INK, fontsize=11, x=0.01, ha="left")
    return figure


def prompt_positions(grid: Grid, before: int, after: int, scheme: str | Scheme) -> Tensor:
    """Positions [1, T] of a prompt with one image."""
    size = grid[0] * grid[1]
    real = torch.ones(1, before + size + after, dtype=torch.bool)
    return token_order(grouped([(0, before, grid)], scheme, real.device), real)[0]


def _smooth(figure: Figure) -> Figure:
    """Lines without a marker at every point: there are hundreds."""
    for line in figure.axes[0].lines:
        line.set_marker("")
    return figure


def _maps(
    tables: Sequence[Tensor],
    titles: Sequence[str],
    limits: tuple[float, float] | None = None,
    numbers: bool = False,
    bar: bool = False,
) -> Figure:
    figure, axes = new_figure(width=2.6 * len(tables), height=2.9, columns=len(tables))
    low, high = limits or (None, None)
    for one, table, title in zip(axes, tables, titles, strict=True):
        image: Any = one.imshow(table.numpy(), cmap="viridis", vmin=low, vmax=high, interpolation="nearest")
        if numbers:
            for (i, j), value in ((divmod(n, table.shape[1]), v) for n, v in enumerate(table.flatten().tolist())):
                light = value < (int(table.max()) + 1) / 2
                one.text(j, i, str(int(value)), ha="center", va="center", fontsize=8, color="w" if light else "k")
        one.set_axis_off()
        one.set_title(title, color=_INK, fontsize=9)
    if bar:
        figure.colorbar(image, ax=axes, shrink=0.75)
    return figure
