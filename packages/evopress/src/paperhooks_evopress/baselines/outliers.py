"""OWL (arXiv 2310.05175): layers with more outliers among their weights stay denser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

import torch
from paperhooks import DataError
from paperhooks.models import CalibrationBatch, calibrate
from torch import Tensor, nn

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.baselines.knapsack import optimum
from paperhooks_evopress.baselines.matrix_errors import linear_weights

__all__ = ["OUTLIER", "STRENGTH", "outlier_share", "owl", "sparsities"]

#: M: an outlier is above so many times the mean.
OUTLIER: Final = (3.0, 5.0, 7.0, 10.0)
#: lambda: by how much a layer's sparsity may differ from that of all.
STRENGTH: Final = (0.02, 0.05, 0.08, 0.1, 0.2)
_HALVINGS: Final = 60


def owl(
    setting: Setting, *, outlier: Sequence[float] = OUTLIER, strength: Sequence[float] = STRENGTH
) -> Found:  # fmt: skip
    """The best of the shares that M and lambda give, each brought to the levels that are nearest.

    The problem is a sparsity of linear layers.

    :param outlier, strength: values of M and of lambda; each pair is one candidate.
    :raises DataError: another target, or modules other than linear layers.
    """
    problem = setting.problem
    space, target = problem.space, problem.target
    if target.kind != "sparsity":
        raise DataError(f"the target is {target}; OWL divides a sparsity among layers")
    layers = _layers(setting)
    found = _ratios(setting, layers, outlier)
    sizes = [sum(setting.levels.own_cost(name)["parameters"] for name in unit.modules) for unit in space.units]
    layer_of = [layers[unit.modules[0]] for unit in space.units]
    order = sorted(found)
    by_layer = [sum(size for size, own in zip(sizes, layer_of, strict=True) if own == n) for n in order]
    states: dict[State, dict[str, float]] = {}
    ratios: dict[str, list[float]] = {}
    for at, m in enumerate(outlier):
        ratios[f"{m:g}"] = shares = [found[n][at] for n in order]
        for each in strength:
            wanted = dict(zip(order, sparsities(shares, target.value, each, by_layer), strict=True))
            state = _nearest(setting, sizes, [wanted[n] for n in layer_of])
            states.setdefault(state, {"outlier": m, "strength": each})
    best, fitness = setting.best(list(states))
    return setting.found("owl", best, len(states) + 1, ratios=ratios, fitness=fitness, **states[best])


def outlier_share(metrics: Sequence[Tensor], outlier: float) -> float:
    """The share of entries above ``outlier`` times the mean of all.

    :param metrics: |W| sqrt(sum x^2) of each matrix of a layer.
    """
    entries = sum(each.numel() for each in metrics)
    bound = outlier * sum(float(each.double().sum()) for each in metrics) / entries
    return sum(int((each > bound).sum()) for each in metrics) / entries


def sparsities(
    ratios: Sequence[float], sparsity: float, strength: float, sizes: Sequence[float] | None = None
) -> list[float]:
    """The sparsity of each layer: less where more are outliers, and ``sparsity`` in all.

    s_b = s - t_b + mean(t) with t_b = 2 strength (r_b - min r) / (max r - min r), cut to 0..1 and moved together until
    the zeros are as many as wanted. Equal ratios give equal sparsities.

    :param ratios: of outliers in each layer. :param sizes: weights of each layer, equal ones by default.
    """
    low, high = min(ratios), max(ratios)
    if high == low:
        return [sparsity] * len(ratios)
    size = [1.0] * len(ratios) if sizes is None else list(sizes)
    moved = [-2 * strength * (ratio - low) / (high - low) for ratio in ratios]

    def cut(shift: float) -> list[float]:
        return [min(1.0, max(0.0, shift + each)) for each in moved]

    lowest, highest = -1.0, 1.0 + 2 * strength
    for _ in range(_HALVINGS):
        middle = (lowest + highest) / 2
        zeros = sum(own * each for own, each in zip(size, cut(middle), strict=True))
        lowest, highest = (middle, highest) if zeros < sparsity * sum(size) else (lowest, middle)
    return cut(highest)


def _nearest(setting: Setting, sizes: Sequence[float], wanted: Sequence[float]) -> State:
    """The levels within the budget that are nearest to sparsities wanted of each unit, by least squares."""
    space = setting.problem.space
    damages = [
        [(choice.cost - (1 - share) * size) ** 2 / max(1.0, size) for choice in unit.choices]
        for unit, size, share in zip(space.units, sizes, wanted, strict=True)
    ]
    state = optimum(space, damages)
    return state if space.feasible(state) else space.repair(state, Random(setting.seed))


def _layers(setting: Setting) -> dict[str, int]:
    """Module name to the index of the layer that it is in."""
    inside = {id(module): index for index, layer in enumerate(setting.view.layers) for module in layer.modules()}
    names = [name for unit in setting.problem.space.units for name in unit.modules]
    return {name: inside[id(setting.view.model.get_submodule(name))] for name in names}


def _ratios(setting: Setting, layers: Mapping[str, int], outlier: Sequence[float]) -> dict[int, list[float]]:
    """Layer to its share of outliers at each value of M."""
    weights = linear_weights(setting, list(layers))
    squares: dict[str, Tensor] = {}

    def receive(name: str, module: nn.Module, hidden: Tensor, batch: CalibrationBatch) -> None:
        new = hidden.flatten(0, -2).float().square().sum(0)
        squares[name] = squares[name] + new if name in squares else new

    setting.levels.restore()
    calibrate(setting.view, [{"input_ids": ids[None]} for ids in setting.sequences()], layers, receive, progress=False)
    found: dict[int, list[float]] = {}
    for layer in sorted(set(layers.values())):
        metrics = []
        for name in (name for name, own in layers.items() if own == layer):
            matrix = weights[name].matrix(0)
            read = squares.get(name, torch.zeros(len(matrix))).to(matrix.device)
            metrics.append(matrix.abs() * read.sqrt()[:, None])
        found[layer] = [outlier_share(metrics, each) for each in outlier]
    return found
