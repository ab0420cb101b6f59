"""Figures of a run: subjects with intervals beside chance, letters read beside letters right, languages by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from paperhooks_evaluation import FigureSpec, Metric, PairedDifference

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["domains_figure", "letters_figure", "subjects_figure"]

_CULTURE = ("Japanese_", "World_History")
#: Reads on light and on dark ground.
_GREY: Final = "#7b8696"
#: Colour and width of the lines of an interval, one over the other: seen on a bar, and beside it on any ground.
_WHISKERS: Final = (("#f3f4f6", 3.2), ("#374151", 1.4))
_LEGEND: Final[Mapping[str, Any]] = {"frameon": False, "labelcolor": _GREY, "fontsize": 9}


def subjects_figure(subjects: Sequence[Metric], chances: Mapping[str, float]) -> FigureSpec:
    """Bars by subject in the colour of the subset, with 95 % whiskers and a mark where random letters would be."""

    def draw() -> Figure:
        from paperhooks.reports import PALETTE, new_figure, style_axes

        figure, (axes,) = new_figure(width=7.0, height=0.24 * len(subjects) + 1.2)
        agnostic = [one for one in subjects if not one.group.startswith(_CULTURE)]
        specific = [one for one in subjects if one.group.startswith(_CULTURE)]
        drawn = [*reversed(specific), *reversed(agnostic)]  # the lowest bar first
        for label, colour, part in (("culture-agnostic", 0, agnostic), ("culture-specific", 1, specific)):
            if part:
                places = [drawn.index(one) for one in part]
                values = [one.value or 0.0 for one in part]
                axes.barh(places, values, color=PALETTE[colour], height=0.7, label=label)
        marked = [place for place, one in enumerate(drawn) if one.group in chances]
        lows, highs = zip(*(one.bounds for one in drawn), strict=True)
        for shade, width in _WHISKERS:
            axes.hlines(range(len(drawn)), lows, highs, color=shade, linewidth=width)
        axes.scatter([chances[drawn[place].group] for place in marked], marked, s=90, marker="|", color=PALETTE[3],
                     linewidths=2, zorder=3, label="random letters")  # fmt: skip
        axes.set_yticks(range(len(drawn)), [f"{one.group.replace('_', ' ')} ({one.n})" for one in drawn])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.8, len(drawn) - 0.2)
        axes.legend(**_LEGEND, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
        style_axes(axes, x="accuracy")
        return figure

    caption = "Lines: 95 % intervals. Marks: what random letters get. In brackets: questions."
    return FigureSpec("subjects", "accuracy by subject, with intervals and chance", caption, draw)


def letters_figure(given: Mapping[str, int], right: Mapping[str, int]) -> FigureSpec:
    """How often each letter was read, and how often it is right."""

    def draw() -> Figure:
        from paperhooks.reports import PALETTE, new_figure, style_axes

        figure, (axes,) = new_figure(width=5.0, height=3.0)
        places = range(len(given))
        axes.bar([place - 0.2 for place in places], list(given.values()), width=0.4, color=PALETTE[0], label="read")
        axes.bar([place + 0.2 for place in places], list(right.values()), width=0.4, color=PALETTE[1], label="right")
        axes.set_xticks(list(places), list(given))
        axes.locator_params(axis="y", integer=True)
        axes.legend(**_LEGEND)
        style_axes(
            axes,
            title=f"{sum(given.values())} of {sum(right.values())} letters could be read",
            x="letter",
            y="questions",
        )
        return figure

    caption = "Letters that could be read, not drawn ones: does the model like a letter more than it is right?"
    return FigureSpec("letters", "letters that were read and letters that are right", caption, draw)


def domains_figure(domains: Sequence[PairedDifference]) -> FigureSpec:
    """Arrows from the English (a) to the Japanese (b) accuracy of every domain, with the difference's interval."""

    def draw() -> Figure:
        from paperhooks.reports import PALETTE, new_figure, style_axes

        figure, (axes,) = new_figure(width=6.5, height=0.5 * len(domains) + 1.4)
        drawn = [*reversed(domains)]
        for place, one in enumerate(drawn):
            arrow: dict[str, Any] = {"arrowstyle": "-|>", "color": PALETTE[1], "lw": 2, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (one.b, place), (one.a, place), arrowprops=arrow)
            points = f"{100 * one.delta:+.1f} [{100 * one.low:+.1f}, {100 * one.high:+.1f}]"
            axes.text((one.a + one.b) / 2, place + 0.18, points, color=_GREY, fontsize=8, ha="center")
        axes.scatter([one.a for one in drawn], range(len(drawn)), color=PALETTE[0], zorder=3, label="English")
        axes.scatter([one.b for one in drawn], range(len(drawn)), color=PALETTE[1], marker="|", s=80, zorder=3,
                     label="Japanese")  # fmt: skip
        axes.set_yticks(range(len(drawn)), [f"{one.group} ({one.n})" for one in drawn])
        values = [value for one in drawn for value in (one.a, one.b)]
        axes.set_xlim(max(-0.04, min(values) - 0.12), min(1.04, max(values) + 0.12))
        axes.set_ylim(-0.6, len(drawn) - 0.3)
        axes.legend(**_LEGEND, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
        style_axes(axes, x="accuracy")
        return figure

    return FigureSpec(
        "languages",
        "accuracy in English and in Japanese by domain",
        "From English (dot) to Japanese (tip): the difference in points, its 95 % interval. In brackets: questions.",
        draw,
    )
