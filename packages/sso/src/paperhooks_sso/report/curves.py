"""The figures: curves of training, the funnel of pairs, weights, and what changes from iteration to iteration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from paperhooks.reports import PALETTE, bar_figure, line_figure, new_figure, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["funnel_figure", "length_figure", "likelihood_figure", "probe_figure", "step_figure", "weight_figure"]

#: Why prompts are dropped, as what is left is called; in the order in which it is looked at.
_LEFT: Final = {
    "too_long": "short enough", "missing": "answered", "empty": "not empty", "cut": "not cut", "same": "not alike",
    "leak": "no leak",
}  # fmt: skip
_FILTERED: Final = {"ordered": "in order", "likely": "likely", "apart": "told apart"}
#: W lies between these.
_WEIGHTS: Final = (0.5, 1.0)
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
        places = [at for at, step in enumerate(steps, 1) if key in step]
        if places:
            drawn[name] = (places, [steps[at - 1][key] for at in places])
    figure = line_figure(drawn, title=title, x="step", y=y)
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
    """Histograms of W side by side, on the same scale."""
    figure, axes = new_figure(width=max(3.6, min(11.0, 2.6 * len(weights))), height=2.9, columns=len(weights))
    highest = 0.0
    for one, (name, values) in zip(axes, weights.items(), strict=True):
        drawn: Any = one.hist(list(values), bins=25, range=_WEIGHTS, color=PALETTE[0], alpha=0.7)
        highest = max(highest, *map(float, drawn[0]))
        mean = sum(values) / max(1, len(values))
        one.axvline(mean, color=PALETTE[1], linestyle="--", linewidth=1.5)
        style_axes(one, f"{name}: {mean:.3f}", "W", "pairs" if one is axes[0] else "")
    for one in axes:
        one.set_ylim(0, 1.08 * max(1.0, highest))
    return figure


def probe_figure(before: Mapping[int, Mapping[str, float]], after: Mapping[int, Mapping[str, float]]) -> Figure:
    """The three margins of every iteration, before and after its training, by iteration."""
    figure, (axes,) = new_figure()
    for place, name in enumerate(("plain", "good", "bad")):
        colour, key = PALETTE[place], f"{name}_margin"
        for iteration, probes in before.items():
            if key in probes and key in after.get(iteration, {}):
                along, values = [iteration - 0.12, iteration + 0.12], [probes[key], after[iteration][key]]
                axes.plot(along, values, color=colour, marker="o", markersize=4, linewidth=1.8)
        axes.plot([], [], color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
    axes.axhline(0, color=_INK, linewidth=0.9)
    style_axes(axes, "Margins before and after the training of each iteration", "iteration", "nats a token")
    axes.set_xticks(list(before))
    axes.set_xlim(min(before, default=1) - 0.5, max(before, default=1) + 0.5)
    axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    return figure


def likelihood_figure(before: Mapping[int, Mapping[str, float]]) -> Figure:
    """On-policy-ness of fresh answers by iteration: exp of the mean log-probability under the plain prompt."""
    lines = {"good": "chosen_likelihood", "bad": "rejected_likelihood", "ordinary": "ordinary_likelihood"}
    figure = line_figure(
        _by_iteration(before, lines), title="How likely fresh answers are without a principle", x="iteration",
        y="likelihood of a token",
    )  # fmt: skip
    figure.axes[0].set_ylim(bottom=0)
    return figure


def length_figure(lengths: Mapping[int, Mapping[str, float]], growth: float | None) -> Figure:
    """Mean tokens of the answers by iteration, with the line at which good ones set off the alarm."""
    lines = {"good": "chosen", "bad": "rejected", "ordinary": "ordinary"}
    figure = line_figure(_by_iteration(lengths, lines), title="Length of answers", x="iteration", y="tokens")
    first = next(iter(lengths.values()), {}).get("chosen", 0.0)
    if growth is not None and first:
        axes = figure.axes[0]
        axes.axhline(growth * first, color=PALETTE[7], linestyle="--", linewidth=1.3, label="alarm")
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9)
    figure.axes[0].set_ylim(bottom=0)
    return figure


def _by_iteration(
    values: Mapping[int, Mapping[str, float]], lines: Mapping[str, str]
) -> dict[str, tuple[list[float], list[float]]]:
    found = {}
    for name, key in lines.items():
        there = [iteration for iteration, own in values.items() if own.get(key)]
        if there:
            found[name] = ([float(each) for each in there], [values[each][key] for each in there])
    return found
