"""The state of a space whose damages, taken to add up, are least within the budget: an exact knapsack.

Dynamic programming over the units, as in SPDY, on fronts of partial states of which none is both cheaper and better
than another; so costs may be any numbers, and no budget is divided into steps. A Lagrange multiplier bounds what a
partial state can still come to, and those above the damage of a state that is known are left: few remain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from paperhooks import DataError

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.spaces import Space, Unit
from paperhooks_evopress.spaces.ladders import Ladders

__all__ = ["optimum"]

_Floats: TypeAlias = NDArray[np.float64]
#: As in the space: costs are sums of floats.
_ROUNDING: Final = 1 + 1e-12
_HALVINGS: Final = 100


@dataclass(frozen=True)
class _Front:
    """Partial states, from cheap to dear, the damage falling: costs and damages [n], places [n, units]."""

    costs: _Floats
    damages: _Floats
    places: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.costs)

    def undominated(self) -> _Front:
        """Without what another is at most as dear as, and at least as good."""
        order = _undominated(self.costs, self.damages)
        return _Front(self.costs[order], self.damages[order], self.places[order])

    def beside(self, other: _Front) -> _Front:
        """The states of both."""
        costs = np.concatenate((self.costs, other.costs))
        damages = np.concatenate((self.damages, other.damages))
        return _Front(costs, damages, np.concatenate((self.places, other.places))).undominated()


def optimum(space: Space, damages: Sequence[Sequence[float]]) -> State:
    """The state within the budget with the least sum of damages; a unit inside a module that is left out has none.

    It need not be full, as states of the space are, where a cheaper level does no more damage than a dearer one.
    ``max_level`` of the space is kept; its ``max_deviation``, a limit of all units together, need not be.

    :param damages: of each unit at each of its choices; what is not finite is not chosen.
    :raises DataError: nothing within the budget has finite damage.
    """
    ladders = Ladders(space.units, None, None, None)
    damages = [
        [damage if place in allowed else math.inf for place, damage in enumerate(own)]
        for allowed, own in zip(map(space.allowed, range(len(space.units))), damages, strict=True)
    ]
    names = dict.fromkeys(unit.exchange for unit in space.units)
    pools = [(own, [name]) for name, own in space.budgets.items()]
    if space.budget is not None:
        pools.append((space.budget, [name for name in names if name not in space.budgets]))
    found = np.zeros(len(space.units), dtype=np.int32)
    for budget, classes in pools:
        roots = [i for i, unit in enumerate(space.units) if unit.exchange in classes and not ladders.around[i]]
        if roots:
            found += _least([_family(ladders, damages, i) for i in roots], budget)
    return tuple(int(place) for place in found)


# -- fronts --------------------------------------------------------------------------------------------------------


def _family(ladders: Ladders, damages: Sequence[Sequence[float]], i: int) -> _Front:
    """A unit with all units inside: it is left out, or each of them is at a level."""
    unit = ladders.units[i]
    kept = _choices(ladders.units, damages, i, [p for p, choice in enumerate(unit.choices) if not choice.skip])
    for j in ladders.inside[i]:
        if max(ladders.around[j], key=lambda outer: len(ladders.around[outer])) == i:
            kept = _joined(kept, _family(ladders, damages, j))
    out = _choices(ladders.units, damages, i, [p for p, choice in enumerate(unit.choices) if choice.skip])
    return kept.beside(out)


def _choices(units: Sequence[Unit], damages: Sequence[Sequence[float]], i: int, places: Sequence[int]) -> _Front:
    if len(damages[i]) != len(units[i].choices):
        raise ValueError(f"{len(damages[i])} damages of {units[i].name}: it has {len(units[i].choices)} choices")
    usable = [place for place in places if math.isfinite(damages[i][place])]
    states = np.zeros((len(usable), len(units)), dtype=np.int32)
    states[:, i] = usable
    costs = np.array([float(units[i].choices[place].cost) for place in usable], dtype=np.float64)
    return _Front(costs, np.array([damages[i][place] for place in usable], dtype=np.float64), states).undominated()


def _undominated(costs: _Floats, damages: _Floats) -> NDArray[np.intp]:
    """Where states are that no other beats, from cheap to dear."""
    order = np.lexsort((damages, costs))
    falling = damages[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(falling)[:-1]))[: len(order)]
    return order[falling < before]


def _joined(
    first: _Front, second: _Front, limit: float = math.inf, price: float = 0.0, most: float = math.inf
) -> _Front:
    """Every state of one with every state of the other, without those dominated.

    :param limit: of the cost. :param most: of the damage and ``price`` times the cost.
    """
    costs = (first.costs[:, None] + second.costs).ravel()
    damages = (first.damages[:, None] + second.damages).ravel()
    pairs = np.flatnonzero((costs <= limit) & (damages + price * costs <= most))
    order = pairs[_undominated(costs[pairs], damages[pairs])]
    own, other = np.divmod(order, max(1, len(second)))
    return _Front(costs[order], damages[order], first.places[own] + second.places[other])


# -- the best sum ----------------------------------------------------------------------------------------------------


def _least(families: Sequence[_Front], budget: float) -> NDArray[np.int32]:
    """Places of all units, of the least damage within a budget."""
    limit = budget * _ROUNDING
    cheapest = [float(front.costs[0]) if len(front) else math.inf for front in families]
    if not sum(cheapest) <= limit:
        raise DataError(
            f"the levels whose damage is finite cost {sum(cheapest):.15g} at least, and the budget is {budget:.15g}"
        )
    price = _price(families, limit)
    bounds = [float((front.damages + price * front.costs).min()) for front in families]
    picked = [_picked(front, price) for front in families]
    known = math.fsum(float(front.damages[at]) for front, at in zip(families, picked, strict=True))
    scale = sum(float(np.abs(front.damages).max()) for front in families) + price * limit
    most = known + price * limit + 1e-11 * scale
    found = _Front(np.zeros(1), np.zeros(1), np.zeros((1, families[0].places.shape[1]), dtype=np.int32))
    rest_cost, rest_bound = sum(cheapest), sum(bounds)
    for front, least, bound in zip(families, cheapest, bounds, strict=True):
        rest_cost, rest_bound = rest_cost - least, rest_bound - bound
        found = _joined(found, front, limit - rest_cost, price, most - rest_bound)
    places: NDArray[np.int32] = found.places[-1]
    return places


def _picked(front: _Front, price: float) -> int:
    """Where damage and cost at this price are least; the cheaper one of equals, and the cheapest at no finite one."""
    return int(np.argmin(front.damages + price * front.costs)) if math.isfinite(price) else 0


def _price(families: Sequence[_Front], limit: float) -> float:
    """About the lowest price of cost at which the best levels by themselves keep the budget."""

    def kept(price: float) -> bool:
        return sum(float(front.costs[_picked(front, price)]) for front in families) <= limit

    if kept(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not kept(high):
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) else (middle, high)
    return high
