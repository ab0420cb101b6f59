"""The report of a search: the levels by layer, the fitness over generations, and what the winner costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from paperhooks.errors import MissingExtra, counted
from paperhooks.reports import (
    Block,
    Figure,
    Heading,
    Paragraph,
    RunFolder,
    Table,
    bar_figure,
    line_figure,
    new_figure,
    style_axes,
)

from paperhooks_evopress.history import Generation
from paperhooks_evopress.report.search_text import layer_and_kind
from paperhooks_evopress.spaces import AS_IT_IS, LevelProblem
from paperhooks_evopress.spaces.targets import amount

if TYPE_CHECKING:
    from matplotlib.figure import Figure as MatplotlibFigure

__all__ = ["blocks", "level_figure", "level_grid", "order_figure", "stage_lines"]

#: Timings of a run that are parts of a search.
_PARTS = ("levels", "start", "search", "comparison")
#: Notes of generations that are shown.
_NOTES = 5
#: Seconds that are worth a bar.
_SHORT = 0.01
#: Where the colours begin, so that the dearest level is not white.
_PALEST = -0.15
#: Levels that a legend can hold.
_LEGEND = 12
#: Units whose names fit beside a figure.
_NAMED = 48


def blocks(
    run: RunFolder | None,
    posed: LevelProblem,
    history: Sequence[Generation],
    won: Mapping[str, str],
    told: Mapping[str, Any],
    timings: Mapping[str, float],
) -> list[Block]:
    """What a search adds to the report of its run, with figures where matplotlib is installed.

    :param won: module name to label. :param told: what the artefact says of the search. :param timings: seconds of its
        parts.
    """
    found: list[Block] = [Heading("Search"), Paragraph(_summary(told)), Table(("", ""), _facts(told, history))]
    if run is not None:
        try:
            found += _figures(run, posed, history, won, told, timings)
        except MissingExtra as error:
            found.append(Paragraph(f"Figures are left out: {error}", "note"))
    counts: dict[str, int] = {}
    for unit in posed.space.units:
        label = won.get(unit.modules[0], AS_IT_IS) or "as it is"
        counts[label] = counts.get(label, 0) + 1
    rows = sorted(counts.items(), key=lambda item: -item[1])
    found.append(Table(("level", "units"), rows, "How many units stand at each level."))
    notes = [f"Generation {each.number}: {each.note}." for each in history if each.note and each.kind != "initial"]
    if len(notes) > _NOTES:
        notes = [*notes[:_NOTES], f"And {len(notes) - _NOTES} more notes of this kind, in search.json."]
    return [*found, *(Paragraph(note, "note") for note in notes)]


def _figures(
    run: RunFolder,
    posed: LevelProblem,
    history: Sequence[Generation],
    won: Mapping[str, str],
    told: Mapping[str, Any],
    timings: Mapping[str, float],
) -> list[Block]:
    found: list[Block] = []
    lines = stage_lines(history)
    if lines:
        run.figure("fitness", line_figure(
            lines, title="Fitness, on the minibatches of each generation", x="generation",
            y="KL divergence" if told["fitness"] == "kl" else str(told["fitness"]),
        ))  # fmt: skip
        values = next(reversed(lines.values()))[1]
        alt = f"fitness of the last stage from {values[0]:.4g} to {values[-1]:.4g} over {len(values)} generations"
        found.append(Figure("fitness", alt=alt, caption="Each stage of each generation has its own text: no line is "
                            "smooth. The parent is scored again in the last stage."))  # fmt: skip
    run.figure("levels", level_figure(posed, won))
    found.append(Figure("levels", alt="the level of each unit by layer", caption="Darker is cheaper."))
    if any(each.best != history[-1].best for each in history):
        run.figure("order", order_figure(posed, history))
        found.append(Figure(
            "order", alt="the levels of the best choice of each generation",
            caption="The best choice of each generation: darker is cheaper. Only units whose level changed are shown.",
        ))  # fmt: skip
    parts = {name: seconds for name, seconds in timings.items() if name in _PARTS and seconds >= _SHORT}
    if parts:
        run.figure("time", bar_figure(list(parts), list(parts.values()), title="Where the time went", x="seconds"))
        longest = max(parts, key=parts.__getitem__)
        words = f"seconds by part; {longest} took {parts[longest]:.3g} s"
        found.append(Figure("time", alt=words, caption="Interrupted runs included."))
    return found


def stage_lines(history: Sequence[Generation]) -> dict[str, tuple[list[float], list[float]]]:
    """Generations and fitness for each line of the figure: the best child of each stage, and the parent.

    The lower one of the last stage is kept.
    """
    found: dict[str, tuple[list[float], list[float]]] = {}

    def put(name: str, generation: int, values: Sequence[float]) -> None:
        if finite := [value for value in values if math.isfinite(value)]:
            along, best = found.setdefault(name, ([], []))
            along.append(float(generation))
            best.append(min(finite))

    for each in history:
        if each.kind != "generation":
            continue
        for number, stage in enumerate(each.stages, 1):
            last = number == len(each.stages)
            put(f"best child, {stage.tokens} tokens", each.number, stage.fitness[stage.parents :])
            if last and stage.parents:
                put("parent, scored again", each.number, stage.fitness[: stage.parents])
    return found


def order_figure(posed: LevelProblem, history: Sequence[Generation]) -> MatplotlibFigure:
    """A row a unit, a column a generation, of units whose level changed; those that settled first come first.

    :raises MissingExtra: matplotlib is missing.
    """
    units = posed.space.units
    last = history[-1].best
    since = []
    for at in range(len(units)):
        settled = next((n for n in range(len(history) - 1, -1, -1) if history[n].best[at] != last[at]), -1)
        since.append(settled)
    order = sorted((at for at in range(len(units)) if since[at] >= 0), key=lambda at: (since[at], -last[at]))
    grid = [[each.best[at] / max(1, len(units[at].choices) - 1) for each in history] for at in order]
    figure, (axes,) = new_figure(height=min(9.0, 1.2 + 0.17 * len(order)))
    axes.imshow(grid, aspect="auto", cmap="Blues", vmin=_PALEST, vmax=1.0, interpolation="nearest")
    style_axes(axes, "Order in which levels settled", "generation", "" if len(order) <= _NAMED else "unit")
    if len(order) <= _NAMED:
        axes.set_yticks(range(len(order)), [units[at].name for at in order], fontsize=7)
    axes.locator_params(axis="x", integer=True)
    axes.grid(visible=False)
    return figure


def _summary(told: Mapping[str, Any]) -> str:
    final, first = told.get("final"), told.get("first")
    ended = f"The search for {told['target']} ended after {counted(told['generations'], 'generation')}."
    if final is None or first is None:
        return ended
    fitness = "KL divergence (nats a token)" if told["fitness"] == "kl" else told["fitness"]
    return (
        f"{ended} Of the choices that led longest the best is kept: {fitness} {final:.4g} on all calibration text, "
        f"against {first:.4g} of the choice that the search began with."
    )


def _facts(told: Mapping[str, Any], history: Sequence[Generation]) -> list[tuple[str, Any]]:
    kind = told["cost_kind"]
    return [
        ("budget of what is searched", f"at most {amount(told['budget'], kind)}"),
        ("cost of the winner", amount(told["cost"], kind)),
        ("perplexity of the model itself", told["teacher_perplexity"]),
        ("tokens that candidates read", told["evaluations"]),
        ("began with", _beginning(told["start"], history)),
    ]


def _beginning(start: str, history: Sequence[Generation]) -> str:
    if start != "even":
        return "the additive model's answer" if start == "additive" else start
    if not history or not history[0].stages:
        return "levels as even as the budget allows"
    tried = len(history[0].stages[0].fitness)
    return f"the best of {'all' if history[0].kind == 'exhaustive' else 'the first'} {tried} choices"


def level_grid(posed: LevelProblem, won: Mapping[str, str]) -> tuple[list[str], list[int], list[list[float]]]:
    """Kinds of units, layers, and for each how far it is from the dearest (0) to the cheapest level (1); NaN: none."""
    cells: dict[tuple[str, int], float] = {}
    for unit in posed.space.units:
        layer, kind = layer_and_kind(unit.modules[0])
        labels = [each.label for each in unit.choices]
        place = labels.index(won.get(unit.modules[0], AS_IT_IS)) if won.get(unit.modules[0], AS_IT_IS) in labels else 0
        cells[kind, layer] = place / max(1, len(labels) - 1)
    kinds = list(dict.fromkeys(kind for kind, _ in cells))
    layers = sorted({layer for _, layer in cells})
    return kinds, layers, [[cells.get((kind, layer), math.nan) for layer in layers] for kind in kinds]


def _level_shades(posed: LevelProblem, won: Mapping[str, str]) -> list[tuple[float, str]]:
    """How far the levels that were chosen are down their ladders, and their labels, dearest first."""
    found: set[tuple[float, str]] = set()
    for unit in posed.space.units:
        labels = [each.label for each in unit.choices]
        label = won.get(unit.modules[0], AS_IT_IS)
        if label in labels:
            found.add((round(labels.index(label) / max(1, len(labels) - 1), 3), label or "as it is"))
    return sorted(found)


def level_figure(posed: LevelProblem, won: Mapping[str, str]) -> MatplotlibFigure:
    """A strip a kind of unit, a cell a layer: darker where the level is cheaper, with a legend of a few levels.

    :raises MissingExtra: matplotlib is missing.
    """
    kinds, layers, grid = level_grid(posed, won)
    shades = _level_shades(posed, won)
    named = 0 < len(shades) <= _LEGEND
    figure, (axes,) = new_figure(height=max(1.2 + 0.34 * len(kinds), 0.9 + 0.22 * len(shades) * named))
    axes.imshow(grid, aspect="auto", cmap="Blues", vmin=_PALEST, vmax=1.0, interpolation="nearest")
    if named:
        from matplotlib import colormaps
        from matplotlib.colors import to_hex
        from matplotlib.patches import Patch

        colours = [to_hex(colormaps["Blues"]((shade - _PALEST) / (1 - _PALEST))) for shade, _ in shades]
        handles = [Patch(color=colour, label=label) for colour, (_, label) in zip(colours, shades, strict=True)]
        axes.legend(handles=handles, frameon=False, labelcolor="#7b8696", fontsize=8, loc="center left",
                    bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    axes.set_yticks(range(len(kinds)), kinds)
    step = max(1, len(layers) // 12)
    axes.set_xticks(range(0, len(layers), step), [str(layer) for layer in layers[::step]])
    style_axes(axes, "Levels by layer", "layer", "")
    axes.grid(visible=False)
    return figure
