"""Figures without global state: matplotlib ``Figure`` objects on the Agg canvas, never pyplot.

Backgrounds are transparent and text is a middle grey, so that one file reads on light and on dark pages. Needs the
extra ``paperhooks[plots]``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import require
from paperhooks.io.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["PALETTE", "bar_figure", "histogram_figure", "line_figure", "new_figure", "save_figure", "style_axes"]

#: Colours that stay apart for colour-blind readers, on light and on dark ground.
PALETTE: Final = ("#4c78dd", "#e08a2e", "#2fa37c", "#c2579b", "#8a6fd1", "#b0953a", "#4aa5c4", "#d1605e")
_MARKERS: Final = ("o", "s", "^", "D")
#: Series whose legend finds room among the lines.
_INSIDE: Final = 6
_INK: Final = "#7b8696"
_GRID: Final = "#9aa4b233"


def new_figure(width: float = 7.2, height: float = 3.6, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of ``width`` x ``height`` inches with a row of styled axes.

    Raises MissingExtra without matplotlib.
    """
    agg = require("matplotlib.backends.backend_agg", "paperhooks[plots]", "to draw figures")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    agg.FigureCanvasAgg(figure)
    figure.patch.set_alpha(0.0)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for one in axes:
        style_axes(one)
    return figure, axes


def style_axes(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Quiet axes: no box, light grid, grey text; titles and labels where given."""
    axes.patch.set_alpha(0.0)
    axes.set_axisbelow(True)
    axes.grid(True, color=_GRID, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=9)
    if title:
        axes.set_title(title, color=_INK, fontsize=11, fontweight="bold", loc="left")
    if x:
        axes.set_xlabel(x, color=_INK, fontsize=9.5)
    if y:
        axes.set_ylabel(y, color=_INK, fontsize=9.5)


def bar_figure(
    labels: Sequence[str],
    values: Sequence[float],
    *,
    intervals: Sequence[tuple[float, float]] | None = None,
    title: str = "",
    x: str = "",
    reference: float | None = None,
) -> Figure:
    """Horizontal bars, first label on top, with interval whiskers and a dashed reference line where given."""
    figure, (axes,) = new_figure(height=max(1.6, 0.42 * len(labels) + 1.1))
    places = range(len(labels))
    axes.barh(places, values, color=PALETTE[0], alpha=0.6, height=0.62)
    if intervals is not None:
        low = [max(0.0, value - bounds[0]) for value, bounds in zip(values, intervals, strict=True)]
        high = [max(0.0, bounds[1] - value) for value, bounds in zip(values, intervals, strict=True)]
        axes.errorbar(values, places, xerr=[low, high], fmt="none", ecolor=_INK, elinewidth=1.4, capsize=3)
    if reference is not None:
        axes.axvline(reference, color=PALETTE[1], linestyle="--", linewidth=1.3)
    axes.set_yticks(list(places), labels=list(labels))
    axes.invert_yaxis()
    style_axes(axes, title, x)
    axes.grid(False, axis="y")
    return figure


def line_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, title: str = "", x: str = "", y: str = ""
) -> Figure:
    """One line with markers a series (name to x and y values), with a legend when there are several.

    Where all x are whole numbers, as generations and steps are, so are the ticks.
    """
    figure, (axes,) = new_figure()
    for place, (name, (along, values)) in enumerate(series.items()):
        rounds, colour = divmod(place, len(PALETTE))  # a colour that comes again has another marker
        marker = _MARKERS[rounds % len(_MARKERS)]
        axes.plot(along, values, color=PALETTE[colour], marker=marker, markersize=4, linewidth=1.8, label=name)
    style_axes(axes, title, x, y)
    if all(float(value).is_integer() for along, _ in series.values() for value in along):
        axes.locator_params(axis="x", integer=True)
    if len(series) > _INSIDE:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    elif len(series) > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def histogram_figure(
    values: Sequence[float], *, bins: int = 40, marker: float | None = None, title: str = "", x: str = "", y: str = ""
) -> Figure:
    """A histogram with a dashed line at ``marker`` where given."""
    figure, (axes,) = new_figure()
    axes.hist(list(values), bins=bins, color=PALETTE[0], alpha=0.7)
    if marker is not None:
        axes.axvline(marker, color=PALETTE[1], linestyle="--", linewidth=1.5)
    style_axes(axes, title, x, y)
    return figure


def save_figure(figure: Figure, base: Path) -> tuple[Path, Path]:
    """Write ``base.svg`` and ``base.png`` (144 dpi) atomically; the same figure gives the same bytes."""
    import matplotlib

    paths = base.parent / f"{base.name}.svg", base.parent / f"{base.name}.png"
    # matplotlib has no argument for the salt of SVG ids; without one they change from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "paperhooks"}):
        for path, options in zip(paths, _SAVE_OPTIONS, strict=True):
            with atomic_path(path) as temporary:
                figure.savefig(temporary, transparent=True, **options)
    return paths


_SAVE_OPTIONS: Final[tuple[dict[str, Any], ...]] = (
    {"format": "svg", "metadata": {"Date": None}},
    {"format": "png", "dpi": 144, "metadata": {"Software": None}},
)
