"""Levels by the error of each matrix on its own inputs, as SPDY and the dynamic program of EvoPress' code take it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from paperhooks import DataError
from paperhooks.models import InputMoments, calibrate_by_layer
from paperhooks.weights import Packed
from torch import Tensor, nn

from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.baselines.knapsack import optimum
from paperhooks_evopress.levels.matrices import Weight, find_weights
from paperhooks_evopress.spaces import AS_IT_IS

__all__ = ["least_error", "linear_weights"]


def least_error(setting: Setting) -> Found:
    """The least sum of tr(dW H dW^T) / tr(W H W^T) over the matrices, with H = sum of x x^T over what each reads.

    Values of levels that were not prepared are made first. The model has its own weights afterwards.

    :raises DataError: levels that leave a module out, of experts, or of modules without a matrix: they have no such
        error.
    """
    units = setting.problem.space.units
    if out := next((unit for unit in units if unit.choices[-1].skip), None):
        raise DataError(f"{out.name} may be left out, which has no error of a matrix; use the additive model")
    names = [name for unit in units for name in unit.modules]
    weights = linear_weights(setting, names)
    setting.levels.prepare(progress=False)
    moments = [InputMoments()]
    errors: dict[str, dict[str, float]] = {}
    batches = [{"input_ids": ids[None]} for ids in setting.sequences()]
    for _, here in calibrate_by_layer(
        setting.view, batches, names, lambda *read: moments[0].receive(*read), sequential=False, progress=False
    ):
        for name in here:
            errors[name] = {
                level.label: _error(weights[name], moments[0][name], setting.levels.packed(name, level.label))
                for level in setting.levels[name]
            }
        moments[0] = InputMoments()
    damages = [
        [
            0.0 if choice.label == AS_IT_IS else math.fsum(errors[name][choice.label] for name in unit.modules)
            for choice in unit.choices
        ]
        for unit in units
    ]
    return setting.found("least_error", optimum(setting.problem.space, damages), 1, errors=errors)


def linear_weights(setting: Setting, names: list[str]) -> dict[str, Weight]:
    """The matrix of each module; raises DataError for modules that are no linear layers."""
    modules = {name: setting.view.model.get_submodule(name) for name in names}
    found = find_weights(modules)
    for name in names:
        if name not in found or len(found[name][0].shape) != 2:
            raise DataError(
                f"{name} is a {type(modules[name]).__name__}; this baseline reads the inputs of linear layers alone"
            )
    return {name: own[0] for name, own in found.items()}


def _error(weight: Weight, moment: Tensor, values: Mapping[str, Packed]) -> float:
    """The error of a level relative to what the matrix gives; 0 for one that changes nothing."""
    if weight.name not in values:
        return 0.0
    made = nn.Parameter(values[weight.name].unpack().to(weight.parameter.device), requires_grad=False)
    own = weight.matrix(0)
    change = replace(weight, parameter=made).matrix(0) - own
    moment = moment.to(own.device, own.dtype)
    error, size = (float(torch.sum(each * (moment @ each))) for each in (change, own))
    if size <= 0:  # it gives nothing on this text
        return math.inf if error > 0 else 0.0
    return max(0.0, error) / size
