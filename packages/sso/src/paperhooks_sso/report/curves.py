"""The figures: curves of training, the funnel of pairs, weights, and what changes from iteration to iteration.

A group of pairs and an answer have the same colour everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from paperhooks.reports import PALETTE, bar_figure, line_figure, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["funnel_figure", "length_figure", "likelihood_figure", "probe_figure", "step_figure", "weight_figure"]

#: Why prompts are dropped, as what is left is called; in the order in which it is looked at.
_LEFT: Final = {
    "too_long": "short enough", "missing": "answered", "empty": "not empty", "cut": "not cut", "same": "not alike",
    "leak": "no leak",
}  # fmt: skip
_FILTERED: Final = {"ordered": "in order", "likely": "likely", "apart": "told apart"}
#: Of groups, and of answers.
_COLOURS: Final = {
    "plain": PALETTE[0], "good": PALETTE[2], "bad": PALETTE[1],
    "good answers": PALETTE[2], "bad answers": PALETTE[1], "ordinary answers": PALETTE[3],
}  # fmt: skip
#: Of what is neither.
_OTHER: Final = PALETTE[4]
_ALARM: Final = PALETTE[7]
#: W lies between these.
_WEIGHTS: Final = (0.5, 1.0)
#: The least that an axis of W shows.
_NARROWEST: Final = 0.01
_INK: Final = "#7b8696"


def step_figure(
    rounds: Sequence[Sequence[Mapping[str, float]]], series: Mapping[str, str], title: str, y: str
) -> Figure:
    """Values of every step of one round after another, with a dashed line where a new one begins.

    :param rounds: the steps of each. :param series: what a line is called, to the name of the value.
    """
    steps = [step for each in rounds for step in each]
    drawn = {}
    for name, key in series.items():
        places = [float(at) for at, step in enumerate(steps, 1) if key in step]
        if places:
            drawn[name] = (places, [steps[int(at) - 1][key] for at in places])
    figure = _lines(drawn, title, "step", y)
    begun = 0
    for each in rounds[:-1]:
        begun += len(each)
        figure.axes[0].axvline(begun + 0.5, color=_INK, linestyle="--", linewidth=0.9)
    return figure


def funnel_figure(pairs: Mapping[str, Any]) -> Figure:
    """How many prompts are left after every reason to drop one, down to the pairs that are kept."""
    left, labels, counts = pairs["prompts"], ["prompts"], [pairs["prompts"]]
    for reason, name in _LEFT.items():
        left -= pairs["dropped"].get(reason, 0)
        labels.append(name)
        counts.append(left)
    for stage, name in (_FILTERED if pairs.get("filter") else {}).items():
        labels.append(f"filter: {name}")
        counts.append(pairs["filter"][stage])
    return bar_figure(labels, counts, title="From prompts to pairs", x="prompts")


def weight_figure(weights: Mapping[str, Sequence[float]]) -> Figure:
    """Histograms of W side by side, on the same scale: of as much of 0.5 to 1 as there is any W in."""
    figure, axes = new_figure(width=max(3.6, min(11.0, 2.6 * len(weights))), height=3.1, columns=len(weights))
    seen = _seen_weights([value for values in weights.values() for value in values])
    highest = 0.0
    for one, (name, values) in zip(axes, weights.items(), strict=True):
        drawn: Any = one.hist(list(values), bins=25, range=seen, color=_OTHER, alpha=0.7)
        highest = max(highest, *map(float, drawn[0]))
        mean = sum(values) / max(1, len(values))
        one.axvline(mean, color=_INK, linestyle="--", linewidth=1.5)
        style_axes(one, f"{name}\nmean {mean:.3f}", "W", "pairs" if one is axes[0] else "")
    for one in axes:
        one.set_xlim(*seen)
        one.locator_params(axis="x", nbins=4)
        one.set_ylim(0, 1.08 * max(1.0, highest))
        one.locator_params(axis="y", integer=True)
    return figure


def probe_figure(
    before: Mapping[int, Mapping[str, float]], after: Mapping[int, Mapping[str, float]], series: Mapping[str, str]
) -> Figure:
    """Margins of every iteration, before and after its training, by iteration.

    :param series: what a line is called, to the name of the probe.
    """
    figure, (axes,) = new_figure()
    for name, key in series.items():
        label = name
        for iteration, probes in before.items():
            there = [(iteration - 0.12, probes), (iteration + 0.12, after.get(iteration, {}))]
            along, values = [at for at, own in there if key in own], [own[key] for _, own in there if key in own]
            if values:
                colour = _COLOURS[name]
                axes.plot(along, values, color=colour, marker="o", markersize=4, linewidth=1.8, label=label)
                label = "_again"  # what begins so is in no legend
    axes.axhline(0, color=_INK, linewidth=0.9)
    style_axes(axes, "Margins before and after the training of each iteration", "iteration", "nats a token")
    _whole_numbers(axes, before)
    _legend(axes)
    return figure


def likelihood_figure(before: Mapping[int, Mapping[str, float]]) -> Figure:
    """On-policy-ness of fresh answers by iteration: exp of the mean log-probability under the plain prompt."""
    lines = {
        "good answers": "chosen_likelihood", "bad answers": "rejected_likelihood",
        "ordinary answers": "ordinary_likelihood",
    }  # fmt: skip
    figure = _lines(
        _by_iteration(before, lines), "How likely fresh answers are without a principle", "iteration",
        "likelihood of a token",
    )  # fmt: skip
    _from_zero(figure.axes[0])
    return figure


def length_figure(lengths: Mapping[int, Mapping[str, float]], growth: float | None) -> Figure:
    """Mean tokens of the answers by iteration, with the line at which good ones set off the alarm."""
    lines = {"good answers": "chosen", "bad answers": "rejected", "ordinary answers": "ordinary"}
    figure = _lines(_by_iteration(lengths, lines), "Length of answers", "iteration", "tokens")
    axes = figure.axes[0]
    first = next(iter(lengths.values()), {}).get("chosen", 0.0)
    if growth is not None and first:
        axes.axhline(growth * first, color=_ALARM, linestyle="--", linewidth=1.3, label="alarm")
        _legend(axes)
    _from_zero(axes)
    return figure


def _lines(series: Mapping[str, tuple[list[float], list[float]]], title: str, x: str, y: str) -> Figure:
    """A line for each, in the colour of its name, which is told of those of a group or an answer."""
    figure = line_figure(series, title=title, x=x, y=y)
    axes = figure.axes[0]
    for line, name in zip(axes.lines, series, strict=True):
        line.set_color(_COLOURS.get(name, _OTHER))
    _whole_numbers(axes, [at for along, _ in series.values() for at in along])
    if any(name in _COLOURS for name in series):
        _legend(axes)
    return figure


def _legend(axes: Axes) -> None:
    """Beside the lines, so that it covers none."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _whole_numbers(axes: Axes, along: Iterable[float]) -> None:
    """An axis of things that are counted, also where there is only one."""
    there = list(along) or [1]
    first, last = min(there), max(there)
    room = max(0.5, 0.04 * (last - first))
    axes.set_xlim(first - room, last + room)
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)


def _from_zero(axes: Axes) -> None:
    """From 0 to what is highest, with room for its marker."""
    drawn: list[Any] = [line.get_ydata() for line in axes.lines]
    highest = max((float(value) for values in drawn for value in values), default=0.0)
    axes.set_ylim(0, 1.1 * highest if highest > 0 else 1.0)


def _seen_weights(values: Sequence[float]) -> tuple[float, float]:
    """The part of the range of W that an axis shows: values, and some room."""
    lowest, highest = _WEIGHTS
    low, high = min(values, default=lowest), max(values, default=highest)
    room = max(0.05 * (high - low), (_NARROWEST - (high - low)) / 2)
    return (
        max(lowest, min(low - room, highest - _NARROWEST)),
        min(highest, max(high + room, lowest + _NARROWEST)),
    )


def _by_iteration(
    values: Mapping[int, Mapping[str, float]], lines: Mapping[str, str]
) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for name, key in lines.items():
        there = [iteration for iteration, own in values.items() if own.get(key)]
        if there:
            found[name] = ([float(each) for each in there], [values[each][key] for each in there])
    return found
