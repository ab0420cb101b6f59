"""Levels by an additive model: what each level alone does to the predictions, and the least sum within the budget.

This is what HIGGS, AutoScheme and AutoQuantize assume, each with a measure of its own. The search can start from it.
"""

from __future__ import annotations

import math
from typing import Final

from tqdm import tqdm

from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.baselines.knapsack import optimum
from paperhooks_evopress.spaces import AS_IT_IS

__all__ = ["additive"]

#: Choices that are scored at once.
_TOGETHER: Final = 64


def additive(setting: Setting, *, progress: bool = False) -> Found:
    """Each level of each unit is scored with all else as it is; an integer program takes the damages to add up.

    >>> found = additive(setting)  # doctest: +SKIP
    >>> Evolution(space, schedule, score, seed, start=found.state)  # doctest: +SKIP
    """
    units = setting.problem.space.units
    choices: list[dict[str, str]] = [{}]
    places: list[list[int]] = []
    for unit in units:
        places.append([])
        for choice in unit.choices:
            plain = choice.label == AS_IT_IS or all(
                (level := setting.levels.level(module, choice.label)).prepare is None and not level.skip
                for module in unit.modules
            )
            places[-1].append(0 if plain else len(choices))
            if not plain:
                choices.append(dict.fromkeys(unit.modules, choice.label))
    scores: list[float] = []
    # Neighbours have most layers in common, and each part is seen to be done.
    for at in tqdm(range(0, len(choices), _TOGETHER), desc="single levels", disable=not progress):
        scores += setting.scores(choices[at : at + _TOGETHER])
    if setting.evaluator.fitness == "perplexity":
        scores = [math.log(score) for score in scores]  # losses add up, and not their exponentials
    damages = [[scores[at] - scores[0] for at in own] for own in places]
    state = optimum(setting.problem.space, damages)
    told = {unit.name: own for unit, own in zip(units, damages, strict=True)}
    return setting.found("additive", state, len(choices), damages=told)
