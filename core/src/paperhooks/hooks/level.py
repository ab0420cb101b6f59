"""Something that could be done to a module, and what the module costs then."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from paperhooks.errors import HookError
from paperhooks.weights.packed_forms import Packed

__all__ = ["Level"]


@dataclass(frozen=True, eq=False)
class Level:
    """Something that could be done to one module.

    method, label
        Who offers it, and its name among all levels of the module, such as ``"sparsity 0.5"``.
    cost
        What the module costs at this level, by kind: exact ``"bytes"`` (codes, scales, zeros and masks), ``"codes"``
        for those of codes alone, ``"flops"``, ``"parameters"``.
    prepare
        Makes the values of the module's parameters at this level, packed, by the parameter's name in the module, such
        as ``{"weight": ...}`` or, of modules in it, ``{"q_proj.weight": ...}``; parameters that it does not name stay.
        None leaves the module as it is. Called once, while the module has its own weights.
    skip
        Leave the module out: a layer, or the attention or the MLP of one. There is nothing to prepare then.
    options
        The level's own settings, for records.
    """

    method: str
    label: str
    cost: Mapping[str, float]
    prepare: Callable[[], Mapping[str, Packed]] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    skip: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.label, str) or not self.label:
            raise HookError(f"a level of {self.method!r} has the label {self.label!r}; expected text, and some of it")
        if not isinstance(self.cost, Mapping) or not all(map(_is_cost, self.cost.values())):
            raise HookError(
                f"the level {self.label!r} of {self.method!r} costs {self.cost!r}; expected numbers of 0 or more by "
                'kind, such as {"bytes": 1024}'
            )
        if self.prepare is not None and not callable(self.prepare):
            raise HookError(
                f"the level {self.label!r} of {self.method!r} has {type(self.prepare).__name__} for prepare; expected "
                "a function that makes the values when they are wanted"
            )
        if self.skip and self.prepare is not None:
            raise HookError(f"the level {self.label!r} of {self.method!r} skips its module and has values for it too")


def _is_cost(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return math.isfinite(value) and value >= 0
