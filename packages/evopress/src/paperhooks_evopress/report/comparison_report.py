"""The table of several choices at one budget, and the figure of their sizes against what they lose."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from paperhooks.errors import MissingExtra
from paperhooks.io import plain
from paperhooks.reports import PALETTE, Block, Figure, Heading, Paragraph, RunFolder, Table, new_figure, style_axes

from paperhooks_evopress.spaces.targets import COUNTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["MeasuredChoice", "comparison_blocks", "pareto_figure", "text_table"]

_MEGA: Final = 1e6
#: From here on fractions are not shown.
_WHOLE: Final = 1e4


@dataclass(frozen=True)
class MeasuredChoice:
    """A choice and what it comes to.

    cost
        In what the target budgets.
    tokens, seconds
        Read and spent to find it.
    fitness, held_out
        On all calibration text, and on all held-out text where there is some.
    size
        Bytes of the whole model; None where levels do not tell theirs.
    """

    name: str
    choice: Mapping[str, str]
    cost: float
    tokens: int
    seconds: float
    fitness: float = math.nan
    held_out: float | None = None
    size: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON; numbers that are not finite are None."""
        values = {**vars(self), "choice": dict(self.choice)}
        finite = {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
        found: dict[str, Any] = plain(finite)
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeasuredChoice:
        """What :meth:`to_json` gave."""
        return cls(**{**data, "fitness": math.nan if data["fitness"] is None else data["fitness"]})


def _cells(rows: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Header and rows of plain JSON; a column that nobody has is left out."""
    fitness = "KL" if told["fitness"] == "kl" else told["fitness"]
    columns = {
        "choice": "name",
        COUNTED.get(told["cost_kind"], told["cost_kind"]): "cost",
        "model, MB": "size",
        f"{fitness}, calibration": "fitness",
        f"{fitness}, held out": "held_out",
        "tokens read": "tokens",
        "seconds": "seconds",
    }
    shown = {title: key for title, key in columns.items() if any(row[key] is not None for row in rows)}
    cells = [
        ["–" if row[key] is None else row[key] / _MEGA if key == "size" else row[key] for key in shown.values()]
        for row in rows
    ]
    return tuple(shown), cells


def text_table(told: Mapping[str, Any]) -> list[str]:
    """The table as lines of text.

    :param told: what the artefact of :class:`paperhooks_evopress.BestBaseline` says.
    """
    header, cells = _cells(told["table"], told)
    lines = [list(header), *([_shown(cell) for cell in row] for row in cells)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return ["  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])]) for name, *cells in lines]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= _WHOLE else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def comparison_blocks(run: RunFolder | None, rows: Sequence[MeasuredChoice], told: Mapping[str, Any]) -> list[Block]:
    """What a comparison adds to the report of its run, with the figure where matplotlib is installed.

    :param told: what the artefact says.
    """
    found: list[Block] = [
        Heading("Simple choices"),
        Paragraph(
            f"Choices for {told['target']} on one problem. The best simple one on the calibration text, "
            f"{told['baseline']}, was kept. A pass or candidate of a baseline read {told['pass_tokens']} tokens; all "
            "are measured on all text here."
        ),
        Table(
            *_cells(told["table"], told),
            "Lower is better. Tokens and seconds are what finding a choice took: those of a search hold making its "
            "levels, and what several choices asked for was measured once.",
        ),
    ]
    if run is not None and any(row.size is not None for row in rows):
        try:
            run.figure("pareto", pareto_figure(rows, str(told["fitness"])))
            found.append(Figure("pareto", alt=_alt(rows), caption="Below and to the left is better."))
        except MissingExtra as error:
            found.append(Paragraph(f"The figure is left out: {error}", "note"))
    found += [Paragraph(f"{name} could not answer: {why}", "note") for name, why in told["left_out"].items()]
    return found


def _value(row: MeasuredChoice) -> float:
    return row.fitness if row.held_out is None else row.held_out


def _alt(rows: Sequence[MeasuredChoice]) -> str:
    sized = [(row.name, row.size / _MEGA, _value(row)) for row in rows if row.size is not None]
    return "; ".join(f"{name}: {size:.4g} MB, {value:.4g}" for name, size, value in sized)


def pareto_figure(rows: Sequence[MeasuredChoice], fitness: str) -> MatplotlibFigure:
    """Sizes of the whole model against what is lost on held-out text, or on the calibration text without any; those
    that no other choice beats in both are joined.

    :raises MissingExtra: matplotlib is missing.
    """
    points = sorted(
        (row.size / _MEGA, _value(row), row.name) for row in rows if row.size is not None and math.isfinite(_value(row))
    )  # fmt: skip
    figure, (axes,) = new_figure()
    front: list[tuple[float, float]] = []
    for size, value, _ in points:
        if not front or value < front[-1][1]:
            front.append((size, value))
    axes.plot([x for x, _ in front], [y for _, y in front], color=PALETTE[1], linewidth=1.2, alpha=0.7)
    for place, (size, value, name) in enumerate(points):
        colour, marker = PALETTE[place % len(PALETTE)], _MARKERS[place % len(_MARKERS)]
        axes.scatter([size], [value], color=colour, marker=marker, label=name)
    held_out = any(row.held_out is not None for row in rows)
    lost = "KL" if fitness == "kl" else fitness
    style_axes(axes, "Size and loss", "whole model, MB", f"{lost} on {'held-out' if held_out else 'calibration'} text")
    axes.legend(frameon=False, labelcolor="#7b8696", fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


_MARKERS: Final = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
