"""What a search and the simple choices beside it are made from alike: levels, and what these depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from paperhooks import CompressionRequest, ModelView
from paperhooks.hooks import Levels
from paperhooks.io import tensor_digest
from paperhooks.plugins import catalog
from torch import Tensor

from paperhooks_evopress.plugin import DEFAULT_LEVELS
from paperhooks_evopress.spaces import Target, module_names

__all__ = ["decided_by", "level_methods", "offered_levels"]

#: Levels of sparsity on each side of the target.
_STEPS: Final = 8


def level_methods(view: ModelView, target: Target) -> list[Any]:
    """The methods whose levels are searched for a target where the user names none.

    For sparsity its levels lie around the target, D = 0.5 min(s, 1 - s) / 8 hidden^2 weights apart (the official
    code's default).
    """
    options: dict[str, Any] = {}
    if target.kind == "sparsity":
        hidden = int(view.text_config.hidden_size)
        step = int(0.5 * min(target.value, 1 - target.value) / _STEPS * hidden**2)
        options = {"around": target.value, "step": max(1, step)}
    return [catalog().create_method(name, **options) for name in DEFAULT_LEVELS[target.kind]]


def offered_levels(view: ModelView, request: CompressionRequest, target: Target, *, whole_layers: bool) -> Levels:
    """What is offered for the modules of a target; those without levels belong to what contains them."""
    levels = request.levels(view, module_names(view, target, whole_layers=whole_layers))
    with_levels = [name for name, own in levels.items() if own]
    return levels if len(with_levels) in (0, len(levels)) else request.levels(view, with_levels)


def decided_by(sequences: Sequence[Tensor]) -> dict[str, Any]:
    """What the values of levels depend on besides model and options, as plain data."""
    return {"calibration": tensor_digest(torch.cat(list(sequences)))}
