"""Figures of a run: subjects with intervals beside chance, letters given beside letters right, languages by domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paperhooks_evaluation import FigureSpec, Metric

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["domains_figure", "letters_figure", "subjects_figure"]

_CULTURE = ("Japanese_", "World_History")


def subjects_figure(subjects: Sequence[Metric], chances: Mapping[str, float]) -> FigureSpec:
    """Bars by subject in the colour of the subset, with 95 % whiskers and a mark where random letters would be."""

    def draw() -> Figure:
        from paperhooks.reports import PALETTE, new_figure, style_axes

        figure, (axes,) = new_figure(width=7.0, height=0.24 * len(subjects) + 1.2)
        for place, one in enumerate(reversed(subjects)):
            value, (low, high) = one.value or 0.0, one.bounds
            colour = PALETTE[1] if one.group.startswith(_CULTURE) else PALETTE[0]
            axes.barh(place, value, color=colour, height=0.7)
            axes.plot([low, high], [place, place], color="#333333", linewidth=1)
            if one.group in chances:
                axes.plot([chances[one.group]] * 2, [place - 0.4, place + 0.4], color="#000000", linewidth=1.5)
        axes.set_yticks(range(len(subjects)), [one.group.replace("_", " ") for one in reversed(subjects)])
        axes.set_xlim(0, 1)
        style_axes(axes, title="By subject: culture-agnostic, and culture-specific in the other colour", x="accuracy")
        return figure

    caption = "Whiskers: 95 % intervals. Black marks: what random letters get."
    return FigureSpec("subjects", "accuracy by subject, with intervals and chance", caption, draw)


def letters_figure(given: Mapping[str, int], right: Mapping[str, int]) -> FigureSpec:
    """How often each letter was given, and how often it is right."""

    def draw() -> Figure:
        from paperhooks.reports import PALETTE, new_figure, style_axes

        figure, (axes,) = new_figure(width=5.0, height=3.0)
        places = range(len(given))
        axes.bar([place - 0.2 for place in places], list(given.values()), width=0.4, color=PALETTE[0], label="given")
        axes.bar([place + 0.2 for place in places], list(right.values()), width=0.4, color=PALETTE[1], label="right")
        axes.set_xticks(list(places), list(given))
        axes.legend(frameon=False)
        style_axes(axes, title="Letters", x="", y="questions")
        return figure

    return FigureSpec("letters", "letters that were given and letters that are right", "A liking for a letter.", draw)


def domains_figure(lines: Sequence[tuple[str, float, float]]) -> FigureSpec:
    """Arrows from the English to the Japanese accuracy.

    :param lines: domain, English and Japanese accuracy.
    """

    def draw() -> Figure:
        from paperhooks.reports import PALETTE, new_figure, style_axes

        figure, (axes,) = new_figure(width=6.0, height=0.45 * len(lines) + 1.2)
        for place, (_, english, japanese) in enumerate(reversed(lines)):
            arrow: dict[str, Any] = {"arrowstyle": "->", "color": PALETTE[1], "lw": 2}
            axes.annotate("", (japanese, place), (english, place), arrowprops=arrow)
            axes.plot([english], [place], "o", color=PALETTE[0])
        axes.set_yticks(range(len(lines)), [name for name, *_ in reversed(lines)])
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.6, len(lines) - 0.4)
        style_axes(axes, title="From English to Japanese", x="accuracy")
        return figure

    return FigureSpec(
        "languages", "accuracy in English and in Japanese by domain", "Dots: English. Tips: Japanese.", draw
    )
