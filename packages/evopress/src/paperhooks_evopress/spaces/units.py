"""Units of a search: modules that change together, and the levels they may stand at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

__all__ = ["Unit", "UnitLevel"]


@dataclass(frozen=True, slots=True)
class UnitLevel:
    """A level of a unit: its label, and its cost in the unit of the budget.

    :param skip: it leaves the unit out, with all modules inside; only the last choice of a unit may.
    """

    label: str
    cost: float
    skip: bool = False


@dataclass(frozen=True, slots=True)
class Unit:
    """Modules that stand at one level.

    :param name: of the unit, for messages. :param exchange: class of units that trade levels with one another.
    :param choices: from dear to cheap, labels distinct; the costs of all members together. :param members: names of the
        modules; without any, the unit is the module of its name.
    :raises ValueError: there is no choice, or the choices are not as told above.
    """

    name: str
    exchange: str
    choices: tuple[UnitLevel, ...]
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", tuple(self.choices))
        labels = [choice.label for choice in self.choices]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError(f"{self.name} has the choices {labels}: expected one or more, with labels of their own")
        for choice in self.choices:
            if not 0 <= choice.cost < math.inf:
                raise ValueError(f"{choice.label!r} of {self.name} costs {choice.cost}: expected a number from 0 on")
        for first, second in pairwise(self.choices):
            if first.cost < second.cost:
                raise ValueError(
                    f"{second.label!r} of {self.name} costs more than {first.label!r} before it: sort them "
                    "from dear to cheap"
                )
            if first.skip:
                raise ValueError(f"{first.label!r} leaves {self.name} out: it has to be the last of its choices")

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that change together."""
        return self.members or (self.name,)

    @property
    def rungs(self) -> tuple[tuple[int, ...], ...]:
        """Places of the choices, those of one cost together; leaving out is a rung of its own."""
        found: list[list[int]] = []
        for place, choice in enumerate(self.choices):
            if place and not choice.skip and choice.cost == self.choices[place - 1].cost:
                found[-1].append(place)
            else:
                found.append([place])
        return tuple(map(tuple, found))
