"""How a selection and its thresholds move with the ratio, from one reading of the weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from paperhooks.models import running_model
from torch import nn

from paperhooks_mathneuro.algorithm import count, scores
from paperhooks_mathneuro.selection.ratio_sweep import SelectionWarning, sweep
from paperhooks_mathneuro.selection.selections import Recipe, weights_of
from paperhooks_mathneuro.selection.set_algebra import set_names
from paperhooks_mathneuro.statistics.statistics import Statistics

__all__ = ["RATIOS", "Curves", "threshold_curves"]

#: The ratios of the official code's sweep.
RATIOS: Final = (0.0001, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15)


@dataclass(frozen=True, slots=True)
class Curves:
    """Values at every ratio.

    selected
        Set name to its share of all scored entries.
    bars
        Kind of module to the median, over its matrices, of the target's threshold over its mean score; None where all
        of them are too small to have a top.
    """

    ratios: Sequence[float]
    selected: dict[str, list[float]]
    bars: dict[str, list[float | None]]


def threshold_curves(
    model: nn.Module, target: Statistics, reference: Statistics, *, ratios: Sequence[float] = RATIOS, **options: Any
) -> Curves:
    """Curves of target minus reference, and of half of the target minus its other half: what noise alone selects.

    :param options: further options of :func:`paperhooks_mathneuro.sweep`; granularity "row" has no threshold to show.
    """
    model = running_model(model)
    largest = max(matrix.numel for matrix in target.matrices)
    ratios = [ratio for ratio in ratios if count(largest, ratio)]  # smaller ones select nothing at all
    pairs = {"target - reference": (target, reference)}
    if not target.sums and len(target) > 1:
        pairs["half of the target - its other half"] = target.halves()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SelectionWarning)
        runs = {name: sweep(model, *pair, ratios=ratios, **options) for name, pair in pairs.items()}
    total = sum(matrix.numel for matrix in target.matrices)
    selected = {name: [sum(found[r].about["counts"].values()) / total for r in ratios] for name, found in runs.items()}
    forward = runs["target - reference"]
    return Curves(list(ratios), selected, _bars(model, [forward[r] for r in ratios]))


def _bars(model: nn.Module, recipes: Sequence[Any]) -> dict[str, list[float | None]]:
    """Medians by kind; matrices too small to have a top at a ratio are left out there."""
    if not all(isinstance(one, Recipe) and one.sides["target"].tops for one in recipes):
        return {}
    first = recipes[0]
    side = first.sides[set_names(first.expression)[0]]
    found: dict[str, list[list[float]]] = {}
    for matrix, weight in weights_of(model, first.matrices):
        mean = float(scores(weight, side.channels[side.inputs[matrix.name]], matrix.input_dim).mean())
        columns = found.setdefault(matrix.kind, [[] for _ in recipes])
        for column, recipe in zip(columns, recipes, strict=True):
            top = recipe.sides["target"].tops[matrix.name]
            if top.k and mean > 0:
                column.append(float(top.threshold[0]) / mean)
    return {kind: [median(c) if c else None for c in columns] for kind, columns in found.items()}
