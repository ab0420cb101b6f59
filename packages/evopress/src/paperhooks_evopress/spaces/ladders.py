"""What a state means: where each unit stands on its levels, what that costs, and the steps that it can take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from random import Random

from paperhooks.errors import counted

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.spaces.units import Unit

__all__ = ["Ladders"]


class Ladders:
    """Units with their choices as ladders: a rung has the choices of one cost, rung 0 is the dearest.

    Units may be inside one another: what is inside a module that is left out is not *shown*; it costs nothing and has
    no steps to take. States are places of choices, in tuples or lists; no method changes one.

    around, inside
        For each unit the units of which one may leave it out, and those that it may leave out.
    top, bottom
        The first and the last rung of each unit that ``max_level`` allows.
    """

    def __init__(
        self, units: Sequence[Unit], start: State | None, max_level: int | None, max_deviation: int | None
    ) -> None:
        """See :class:`paperhooks_evopress.spaces.space.Space`."""
        self.units, self.max_deviation = tuple(units), max_deviation
        self.costs = [[choice.cost for choice in unit.choices] for unit in self.units]
        self.rungs = [unit.rungs for unit in self.units]
        self.rung = [[r for r, rung in enumerate(rungs) for _ in rung] for rungs in self.rungs]
        self._skip = [len(unit.choices) - 1 if unit.choices[-1].skip else None for unit in self.units]
        self.around, self.inside = self._nest()
        self.start = None if start is None else self.checked(start)
        for name, most in (("max_level", max_level), ("max_deviation", max_deviation)):
            if most is not None and (start is None or most < 0):
                raise ValueError(f"{name}={most}: expected a number of steps from a start, which is {start}")
        self.top, self.bottom = [0] * len(self.units), [len(rungs) - 1 for rungs in self.rungs]
        if max_level is not None and self.start is not None:
            here = [rung[place] for rung, place in zip(self.rung, self.start, strict=True)]
            self.top = [max(0, rung - max_level) for rung in here]
            self.bottom = [min(last, rung + max_level) for last, rung in zip(self.bottom, here, strict=True)]

    def _nest(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        owner: dict[str, int] = {}
        for i, unit in enumerate(self.units):
            for module in unit.modules:
                if module in owner:
                    raise ValueError(f"{module} is in two units, {self.units[owner[module]].name} and {unit.name}")
                owner[module] = i
        skipping = {module: i for module, i in owner.items() if self._skip[i] is not None}
        around = []
        for unit in self.units:
            parents = [accumulate(module.split(".")[:-1], "{}.{}".format) for module in unit.modules]
            found = [tuple(sorted({skipping[p] for p in names if p in skipping})) for names in parents]
            if len(set(found)) > 1:
                raise ValueError(
                    f"only a part of the unit {unit.name} is inside a module that may be left out: divide it"
                )
            around.append(found[0])
        return around, [tuple(j for j, each in enumerate(around) if i in each) for i in range(len(self.units))]

    def checked(self, state: Sequence[int]) -> State:
        """The state as a tuple.

        :raises ValueError: it is not one of these units.
        """
        if len(state) != len(self.units):
            raise ValueError(f"a state of {counted(len(state), 'place')}: there are {counted(len(self.units), 'unit')}")
        for place, unit in zip(state, self.units, strict=True):
            if not 0 <= place < len(unit.choices):
                raise ValueError(f"place {place} of {unit.name}: it has {counted(len(unit.choices), 'choice')}")
        return tuple(state)

    # -- what a state is -----------------------------------------------------------------------------------------------

    def shown(self, state: Sequence[int], i: int) -> bool:
        """Whether nothing around unit ``i`` is left out."""
        around = self.around[i]
        return not around or not any(state[j] == self._skip[j] for j in around)

    def spent(self, state: Sequence[int], units: Sequence[int]) -> float:
        """What some units cost together."""
        return sum(self.costs[i][state[i]] for i in units if self.shown(state, i))

    def deviation(self, state: Sequence[int]) -> int:
        """How many steps the shown units are from ``start`` together; 0 without one."""
        if self.start is None:
            return 0
        pairs = enumerate(zip(self.start, state, strict=True))
        return sum(abs(self.rung[i][a] - self.rung[i][b]) for i, (a, b) in pairs if self.shown(state, i))

    def within(self, state: Sequence[int]) -> bool:
        """Whether a state keeps the limits of levels and of deviation."""
        if self.max_deviation is not None and self.deviation(state) > self.max_deviation:
            return False
        rungs = ((i, self.rung[i][place]) for i, place in enumerate(state))
        return all(self.top[i] <= rung <= self.bottom[i] or not self.shown(state, i) for i, rung in rungs)

    # -- steps ---------------------------------------------------------------------------------------------------------

    def steps(self, state: Sequence[int], units: Sequence[int], by: int) -> list[int]:
        """Those of the units that can move one rung down (``by`` 1, cheaper) or up (-1)."""
        rung, top, bottom = self.rung, self.top, self.bottom
        able = [i for i in units if (rung[i][state[i]] < bottom[i] if by > 0 else rung[i][state[i]] > top[i])]
        return [i for i in able if self.shown(state, i)]

    def places(self, state: Sequence[int], i: int, by: int = 0) -> tuple[int, ...]:
        """The places of the rung that unit ``i`` would step to, or of its own."""
        return self.rungs[i][self.rung[i][state[i]] + by]

    def moved(self, state: Sequence[int], i: int, by: int, random: Random, left: float = math.inf) -> list[int]:
        """The state with unit ``i`` one step further, on a place of that rung at random.

        What was left out comes back as it was, or with all inside at their cheapest where it costs more than ``left``.
        """
        places, found = self.places(state, i, by), list(state)
        found[i] = places[0] if len(places) == 1 else random.choice(places)
        family = (i, *self.inside[i])
        if by < 0 and self.inside[i] and self.spent(found, family) - self.spent(state, family) > left:
            return self._stepped(state, i, by)
        return found

    def change(self, state: Sequence[int], i: int, by: int) -> float:
        """How much dearer a step of the shown unit ``i`` is, negative for a cheaper one; what was left out comes back
        with all inside at their cheapest."""
        if not self.inside[i]:
            return self.costs[i][self.places(state, i, by)[0]] - self.costs[i][state[i]]
        family = (i, *self.inside[i])
        return self.spent(self._stepped(state, i, by), family) - self.spent(state, family)

    def deviation_after(self, state: Sequence[int], i: int, by: int) -> int:
        """:meth:`deviation` after the step that :meth:`change` tells the cost of."""
        return self.deviation(self._stepped(state, i, by))

    def _stepped(self, state: Sequence[int], i: int, by: int) -> list[int]:
        after = list(state)
        after[i] = self.places(state, i, by)[0]
        if state[i] == self._skip[i]:
            for j in self.inside[i]:
                after[j] = self.rungs[j][self.bottom[j]][0]
        return after

    def smallest_step(self, units: Sequence[int]) -> float:
        """Of those whose steps always cost the same, which is not so with other units inside; infinite without any."""
        ladders = (
            [self.costs[i][rung[0]] for rung in self.rungs[i][self.top[i] : self.bottom[i] + 1]]
            for i in units
            if not self.inside[i]
        )
        return min((a - b for ladder in ladders for a, b in pairwise(ladder) if a > b), default=math.inf)
