"""What is searched: units, the levels of each, and the states that a budget allows.

A state belongs to the space when it costs at most the budget and is *full*: no unit could take its next dearer level
with what is left. So a search cannot win by spending less, and where units of the smallest step can still take one,
less than this step is left. Mutation moves a unit one step down and another of its exchange class one step up, a
*switch*; where steps cost differently, steps at random mend what that did to the budget, first in the same classes.

    depth         units of the costs 1 and 0, an exchange class for attention and one for MLPs, a budget of counts each
    sparsity      levels a constant number of weights apart, one class: every switch keeps the cost
    bits          classes of units of one size or name, or one class of all
    kinds mixed   units may contain others: those inside a module that is left out cost nothing
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final

from paperhooks.errors import counted

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.spaces.ladders import Ladders
from paperhooks_evopress.spaces.units import Unit, UnitLevel

__all__ = ["Space", "Unit", "UnitLevel"]

_ATTEMPTS: Final = 20
#: Costs are sums of floats; budgets are compared within their rounding.
_ROUNDING: Final = 1 + 1e-12


@dataclass(frozen=True, slots=True)
class _Pool:
    """Units that spend from one budget.

    limit
        The budget, with room for rounding.
    step
        The smallest that one of them can take.
    """

    name: str
    budget: float
    units: tuple[int, ...]
    limit: float
    step: float


class Space:
    """States of units under a budget; a state has for each unit the place of its choice, 0 the dearest.

    A unit with one choice stays as it is: that is how a module is kept from changing.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        budget: float | None,
        budgets: Mapping[str, float] | None = None,
        *,
        start: State | None = None,
        max_level: int | None = None,
        max_deviation: int | None = None,
    ) -> None:
        """
        :param units: no module may be in two of them. :param budget: for all units of the classes without one of their
            own, in the unit of the choices' costs. :param budgets: exchange class to a budget of its own, such as how
            many attentions stay.
        :param start: the state to begin with, mended to the budget where it does not keep it. Without it units begin at
            levels as even as the budget allows, drawn where there is a choice.
        :param max_level: how many steps a unit may be from the start. :param max_deviation: how many steps all may be
            from it together. Both need one to begin with: without ``start``, a state of even levels drawn once.
        :raises ValueError: the cheapest levels cost more than a budget, or units overlap.
        """
        if not units:
            raise ValueError("units=(): there is nothing to search")
        self.budget, self.budgets = budget, dict(budgets or {})
        if start is None and (max_level is not None or max_deviation is not None):
            start = Space(units, budget, budgets).initial(Random(0))
        self._ladders = Ladders(units, start, max_level, max_deviation)
        self._classes: dict[str, list[int]] = {}
        for i, unit in enumerate(units):
            self._classes.setdefault(unit.exchange, []).append(i)
        self._pools = self._share()
        for pool in self._pools:
            self._check_reach(pool)

    @property
    def units(self) -> tuple[Unit, ...]:
        """What is searched, in the order of the places of a state."""
        return self._ladders.units

    def _share(self) -> list[_Pool]:
        if unknown := sorted(set(self.budgets) - set(self._classes)):
            raise ValueError(f"budgets of {', '.join(unknown)}: the classes are {', '.join(sorted(self._classes))}")
        shares = [(name, own, self._classes[name]) for name, own in self.budgets.items()]
        rest = [i for i, unit in enumerate(self.units) if unit.exchange not in self.budgets]
        if self.budget is not None and rest:
            shares.append(("", self.budget, rest))
        elif rest:
            names = ", ".join(sorted({repr(self.units[i].exchange) for i in rest}))
            raise ValueError(f"units of the classes {names} have no budget: give one for all, or for each class")
        elif self.budget is not None:
            raise ValueError(f"budget={self.budget}: it is for no unit, as all classes have budgets of their own")
        for number, (_, _, members) in enumerate(shares):
            for i in members:
                if outside := set(self._ladders.around[i]).difference(members):
                    names = f"{self.units[i].name} is inside {self.units[min(outside)].name}"
                    raise ValueError(
                        f"{names}, which spends from another budget than number {number + 1}: give both one"
                    )
        step = self._ladders.smallest_step
        return [_Pool(name, own, tuple(each), own * _ROUNDING, step(each)) for name, own, each in shares]

    def _check_reach(self, pool: _Pool) -> None:
        ladders, dear, cheap = self._ladders, [0] * len(self.units), [0] * len(self.units)
        for i in pool.units:
            dear[i], cheap[i] = ladders.rungs[i][ladders.top[i]][0], ladders.rungs[i][ladders.bottom[i]][0]
        least, most = ladders.spent(cheap, pool.units), ladders.spent(dear, pool.units)
        if least <= pool.limit:  # not the other way round: NaN is neither
            return
        what = f"the budget {pool.budget:.15g}" + f" of {pool.name!r}" * bool(pool.name)
        fixed = [self.units[i].name for i in pool.units if ladders.top[i] == ladders.bottom[i]]
        names = ", ".join(fixed[:8]) + f" and {len(fixed) - 8} more" * (len(fixed) > 8)
        raise ValueError(
            f"{what} is out of reach: the levels of {counted(len(pool.units), 'unit')} cost {least:.15g} to {most:.15g}"
            + f", and {counted(len(fixed), 'unit')} cannot change ({names})" * bool(fixed)
        )

    # -- what a state is -----------------------------------------------------------------------------------------------

    def cost(self, state: State) -> float:
        """What the units cost together; those inside a module that is left out cost nothing."""
        return self._ladders.spent(self._ladders.checked(state), range(len(self.units)))

    def choice(self, state: State) -> dict[str, str]:
        """Module to the label of its level; modules inside one that is left out are not in it."""
        return {
            module: unit.choices[place].label
            for i, (unit, place) in enumerate(zip(self.units, self._ladders.checked(state), strict=True))
            if self._ladders.shown(state, i)
            for module in unit.modules
        }

    def canonical(self, state: State) -> State:
        """The same for states of one effect: units inside a module that is left out stand at place 0."""
        return tuple(place if self._ladders.shown(state, i) else 0 for i, place in enumerate(state))

    def feasible(self, state: State) -> bool:
        """Whether a state is one of these units, keeps all budgets and limits, and is full."""
        try:
            state = self._ladders.checked(state)
        except ValueError:
            return False
        return self._ladders.within(state) and all(self._kept(state, pool) for pool in self._pools)

    def within(self, state: State) -> bool:
        """Whether a state keeps ``max_level`` and ``max_deviation``, whatever it costs."""
        return self._ladders.within(self._ladders.checked(state))

    def allowed(self, unit: int) -> tuple[int, ...]:
        """The places that ``max_level`` leaves a unit, by its number."""
        ladders = self._ladders
        return tuple(
            place for rung in ladders.rungs[unit][ladders.top[unit] : ladders.bottom[unit] + 1] for place in rung
        )

    def _kept(self, state: Sequence[int], pool: _Pool) -> bool:
        left = self._left(state, pool)
        return left >= 0 and not self._fitting(state, pool, left) and not self._payable(state, pool, left)

    def _left(self, state: Sequence[int], pool: _Pool) -> float:
        return pool.limit - self._ladders.spent(state, pool.units)

    def _fitting(self, state: Sequence[int], pool: _Pool, left: float) -> list[int]:
        """Units whose next dearer level is within what is left, and within the limits."""
        ladders, most = self._ladders, self._ladders.max_deviation
        found = [i for i in ladders.steps(state, pool.units, -1) if ladders.change(state, i, -1) <= left]
        return found if most is None else [i for i in found if ladders.deviation_after(state, i, -1) <= most]

    # -- states at random ----------------------------------------------------------------------------------------------

    def initial(self, random: Random) -> State:
        """``start``, mended where it has to be; without one, a state of levels as even as the budget allows.

        :raises ValueError: no state was found within the limits around ``start``.
        """
        if (start := self._ladders.start) is None:
            return self._even(random)
        if self.feasible(start):
            return start
        for _ in range(_ATTEMPTS):
            if self.feasible(state := self.repair(start, random)):
                return state
        raise ValueError(
            f"no state within the budget was found near the start, which costs {self.cost(start):.15g}: max_level or "
            "max_deviation may be too small"
        )

    def _even(self, random: Random) -> State:
        """From the dearest levels down to the budget by steps of units that are highest on their ladders, then up until
        it is full by steps of those that are lowest."""
        ladders, state = self._ladders, [0] * len(self.units)

        def offer(i: int) -> None:
            if (rung := ladders.rung[i][state[i]]) < ladders.bottom[i]:
                heapq.heappush(heap, ((rung + 1) / ladders.bottom[i], random.random(), i))

        def lowest(state: Sequence[int], fitting: list[int]) -> int:
            return max(fitting, key=lambda i: (ladders.rung[i][state[i]] / ladders.bottom[i], random.random()))

        for pool in self._pools:
            heap: list[tuple[float, float, int]] = []
            for i in pool.units:
                offer(i)
            left = self._left(state, pool)
            while left < 0 and heap:
                _, _, i = heapq.heappop(heap)
                if ladders.shown(state, i):
                    left -= ladders.change(state, i, 1)
                    state = ladders.moved(state, i, 1, random)
                    offer(i)
            state = self._filled(state, pool, random, lowest)
        return tuple(state)

    def repair(self, state: State, random: Random, changed: Sequence[int] = ()) -> State:
        """The state after steps at random: down until it costs no more than the budget, then up until it is full.

        :param changed: units that stay as they are where others suffice; others of their classes go first.
        """
        ladders, places = self._ladders, list(self._ladders.checked(state))
        for pool in self._pools:
            while self._left(places, pool) < 0 and (downs := ladders.steps(places, pool.units, 1)):
                places = ladders.moved(places, self._draw(downs, changed, random), 1, random)
            places = self._filled(places, pool, random, lambda _, units: self._draw(units, changed, random))
        return tuple(places)

    def _draw(self, options: list[int], changed: Sequence[int], random: Random) -> int:
        classes = {self.units[i].exchange for i in changed}
        others = [i for i in options if i not in changed]
        return random.choice([i for i in others if self.units[i].exchange in classes] or others or options)

    def _filled(
        self, state: list[int], pool: _Pool, random: Random, draw: Callable[[list[int], list[int]], int]
    ) -> list[int]:
        """A state within the budget after steps up, until it is full.

        :param draw: picks one of the units that can take a step.
        """
        while True:
            left = self._left(state, pool)
            if fitting := self._fitting(state, pool, left):
                state = self._ladders.moved(state, draw(state, fitting), -1, random, left)
            elif payable := self._payable(state, pool, left):
                up, payers, number = random.choice(payable)
                state = self._ladders.moved(state, up, -1, random)
                for i in random.sample(payers, number):
                    state = self._ladders.moved(state, i, 1, random)
            else:
                return state

    def _payable(self, state: Sequence[int], pool: _Pool, left: float) -> list[tuple[int, list[int], int]]:
        """Where the smallest step is left but its units stand at their dearest: units whose next step these can pay
        with a step down each, which of them could, and how many have to: then less than it is left."""
        ladders = self._ladders
        if left < pool.step or ladders.max_deviation is not None:
            return []
        payers = [i for i in ladders.steps(state, pool.units, 1) if -ladders.change(state, i, 1) == pool.step]
        found = []
        for up in ladders.steps(state, pool.units, -1) if payers else ():
            others = [i for i in payers if i != up]
            number = math.ceil((ladders.change(state, up, -1) - left) / pool.step)
            if not ladders.inside[up] and number <= len(others):
                found.append((up, others, number))
        return found

    # -- mutation ------------------------------------------------------------------------------------------------------

    def mutate(self, state: State, switches: int, random: Random) -> State | None:
        """Another feasible state by a number of switches; None where a finite number of attempts finds none."""
        before = self.canonical(state)
        for _ in range(_ATTEMPTS):
            places, changed = list(state), set[int]()
            for _ in range(switches):
                changed.update(self._switch(places, random))
            if not changed:
                return None
            child = self.repair(tuple(places), random, sorted(changed))
            if self.canonical(child) != before and self.feasible(child):
                return child
        return None

    def _switch(self, state: list[int], random: Random) -> tuple[int, ...]:
        """Change a state by one unit down and another of its class up, both drawn from where they stand.

        A class is drawn by its size, among those in which something can move. Where units have several levels of one
        cost, one of them may instead change to another of these by itself. Gives the units that have changed.
        """
        ladders, moves = self._ladders, {}
        for name, members in self._classes.items():
            pairs = ladders.steps(state, members, 1), ladders.steps(state, members, -1)
            if not all(pairs) or (pairs[0] == pairs[1] and len(pairs[0]) == 1):
                pairs = [], []
            beside = [i for i in members if len(ladders.places(state, i)) > 1 and ladders.shown(state, i)]
            if pairs[0] or beside:
                moves[name] = *pairs, beside
        if not moves:
            return ()
        (name,) = random.choices(list(moves), [len(self._classes[name]) for name in moves])
        downs, ups, beside = moves[name]
        if beside and (not downs or random.randrange(len(self._classes[name]) + len(beside)) < len(beside)):
            i = random.choice(beside)
            state[i] = random.choice([place for place in ladders.places(state, i) if place != state[i]])
            return (i,)
        down, up = random.choice(downs), random.choice(ups)
        while down == up:
            down, up = random.choice(downs), random.choice(ups)
        state[:] = ladders.moved(ladders.moved(state, down, 1, random), up, -1, random)
        return down, up

    # -- all states ----------------------------------------------------------------------------------------------------

    def size(self, limit: int) -> int | None:
        """How many states of different effect there are; None for more than ``limit``, or where counting takes long."""
        effort, found = 100 * (limit + len(self.units)), 0
        for step, state in enumerate(self._walk()):
            found += state is not None
            if found > limit or step > effort:
                return None
        return found

    def states(self) -> Iterator[State]:
        """All states of different effect, in canonical form."""
        return (state for state in self._walk() if state is not None)

    def _walk(self) -> Iterator[State | None]:
        """Through the units depth first: a state, or None for a step on the way to one."""
        ladders, state = self._ladders, [0] * len(self.units)
        order = [(i, pool) for pool in self._pools for i in sorted(pool.units, key=lambda i: len(ladders.around[i]))]
        bounds = [bound for pool in self._pools for bound in self._bounds(pool)]
        spent = [0.0] * (len(order) + 1)  # in the pool of each unit, before it
        stack = [self._open(state, order[0][0])]
        while stack:
            if not stack[-1]:
                stack.pop()
                continue
            k = len(stack) - 1
            i, pool = order[k]
            state[i] = stack[-1].pop()
            yield None
            total = spent[k] + (ladders.costs[i][state[i]] if ladders.shown(state, i) else 0)
            least, fullest = bounds[k]
            if total + least > pool.limit or total + fullest <= pool.limit:
                continue
            ends = k + 1 == len(order) or order[k + 1][1] is not pool
            if ends and not self._kept(state, pool):
                continue
            if k + 1 < len(order):
                spent[k + 1] = 0.0 if ends else total
                stack.append(self._open(state, order[k + 1][0]))
            elif ladders.within(state):
                yield tuple(state)

    def _open(self, state: Sequence[int], i: int) -> list[int]:
        """Places that a unit may take when those around it have theirs, the last one first."""
        if not self._ladders.shown(state, i):
            return [0]
        rungs = self._ladders.rungs[i][self._ladders.top[i] : self._ladders.bottom[i] + 1]
        return [place for rung in reversed(rungs) for place in reversed(rung)]

    def _bounds(self, pool: _Pool) -> Iterator[tuple[float, float]]:
        """For each unit on the way through a pool: the least that those after it cost, and the most, with the largest
        step on top: where even this is within the budget, some unit has a step left and no state is full."""
        ladders = self._ladders
        order = sorted(pool.units, key=lambda i: len(ladders.around[i]))
        dear = {i: ladders.costs[i][ladders.rungs[i][ladders.top[i]][0]] for i in order}
        cheap = {
            i: 0.0 if ladders.around[i] else ladders.costs[i][ladders.rungs[i][ladders.bottom[i]][0]] for i in order
        }
        largest = max(dear[i] + sum(dear[j] for j in ladders.inside[i]) for i in order)
        if (most := sum(dear.values())) <= pool.limit:
            largest = pool.limit - most + pool.step / 2  # only the dearest levels are full
        if ladders.max_deviation is not None:
            largest = math.inf  # what has no step left may be at any distance from the budget
        for k in range(len(order)):
            rest = order[k + 1 :]
            yield sum(cheap[i] for i in rest), sum(dear[i] for i in rest) + largest
