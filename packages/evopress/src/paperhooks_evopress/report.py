"""The report of a search: the levels by layer, the fitness over generations, and what the winner costs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paperhooks.errors import MissingExtra
from paperhooks.reports import Block, Figure, Heading, Paragraph, RunFolder, Table, line_figure, new_figure, style_axes

from paperhooks_evopress.history import Generation
from paperhooks_evopress.problems import AS_IT_IS, LevelProblem

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["blocks", "level_figure", "level_grid"]

_LAYER = re.compile(r"^(.*?\.)(\d+)(?:\.(.*))?$")


def blocks(
    run: RunFolder | None,
    posed: LevelProblem,
    history: Sequence[Generation],
    won: Mapping[str, str],
    told: Mapping[str, Any],
) -> list[Block]:
    """What a search adds to the report of its run, with figures where matplotlib is installed.

    :param won: module name to label. :param told: what the artefact says of the search.
    """
    found: list[Block] = [Heading("Search"), Paragraph(_summary(told)), Table(("", ""), _facts(told))]
    scored = [each for each in history if each.fitness is not None]
    if run is not None:
        try:
            if len(scored) > 1:
                axis = [float(each.number) for each in scored]
                values = [each.fitness if each.fitness is not None else math.nan for each in scored]
                run.figure("fitness", line_figure(
                    {"best of the last stage": (axis, values)}, title="Fitness, on a minibatch of each generation",
                    x="generation", y=str(told["fitness"]),
                ))  # fmt: skip
                alt = f"fitness from {values[0]:.4g} to {values[-1]:.4g} over {len(scored)} generations"
                found.append(
                    Figure("fitness", alt=alt, caption="Each generation has its own text: the line is not smooth.")
                )
            run.figure("levels", level_figure(posed, won))
            found.append(Figure("levels", alt="the level of each unit by layer", caption="Darker is cheaper."))
        except MissingExtra as error:
            found.append(Paragraph(f"Figures are left out: {error}", "note"))
    counts: dict[str, int] = {}
    for unit in posed.space.units:
        label = won.get(unit.modules[0], AS_IT_IS) or "as it is"
        counts[label] = counts.get(label, 0) + 1
    rows = sorted(counts.items(), key=lambda item: -item[1])
    found.append(Table(("level", "units"), rows, "How many units stand at each level."))
    notes = list(dict.fromkeys(each.note for each in history if each.note))
    return [*found, *(Paragraph(note, "note") for note in notes)]


def _summary(told: Mapping[str, Any]) -> str:
    final, first = told.get("final"), told.get("first")
    if final is None or first is None:
        return f"The search for {told['target']} ended after {told['generations']} generations."
    found = (
        f"{told['fitness']} {final:.4g} on all calibration text, against {first:.4g} of the choice that it began with"
    )
    return f"The search for {told['target']} ended after {told['generations']} generations: {found}."


def _facts(told: Mapping[str, Any]) -> list[tuple[str, Any]]:
    budget = told["budget"]
    words = (
        ", ".join(f"{name}: {own:g}" for name, own in budget.items()) if isinstance(budget, Mapping) else f"{budget:g}"
    )
    return [
        ("budget", f"{words} {told['cost_kind']}"),
        ("cost of the winner", f"{told['cost']:g} {told['cost_kind']}"),
        ("perplexity of the model itself", told["teacher_perplexity"]),
        ("token-evaluations", told["evaluations"]),
    ]


def level_grid(posed: LevelProblem, won: Mapping[str, str]) -> tuple[list[str], list[int], list[list[float]]]:
    """Kinds of units, layers, and for each how far it is from the dearest (0) to the cheapest level (1); NaN: none."""
    cells: dict[tuple[str, int], float] = {}
    for unit in posed.space.units:
        match = _LAYER.match(unit.modules[0])
        layer, kind = (int(match[2]), match[3] or "layer") if match else (0, unit.name)
        labels = [each.label for each in unit.choices]
        place = labels.index(won.get(unit.modules[0], AS_IT_IS)) if won.get(unit.modules[0], AS_IT_IS) in labels else 0
        cells[kind, layer] = place / max(1, len(labels) - 1)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = sorted({layer for _, layer in cells})
    return kinds, layers, [[cells.get((kind, layer), math.nan) for layer in layers] for kind in kinds]


def level_figure(posed: LevelProblem, won: Mapping[str, str]) -> MatplotlibFigure:
    """A strip a kind of unit, a cell a layer: darker where the level is cheaper.

    :raises MissingExtra: matplotlib is missing.
    """
    kinds, layers, grid = level_grid(posed, won)
    figure, (axes,) = new_figure(height=1.2 + 0.34 * len(kinds))
    axes.imshow(grid, aspect="auto", cmap="Blues", vmin=-0.15, vmax=1.0, interpolation="nearest")
    axes.set_yticks(range(len(kinds)), kinds)
    step = max(1, len(layers) // 12)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    style_axes(axes, "Levels by layer", "layer", "")
    axes.grid(visible=False)
    return figure
