"""The least sum of damages within a budget, against all states."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from paperhooks import DataError
from paperhooks_evopress import (
    Space,
    Unit,
)
from paperhooks_evopress import (
    UnitLevel as Choice,
)
from paperhooks_evopress.baselines import optimum


def total(space: Space, damages, state) -> float:
    shown = space.choice(state)
    return math.fsum(own[p] for u, own, p in zip(space.units, damages, state, strict=True) if u.name in shown)


def brute_force(space: Space, damages, budget: float) -> float:
    states = itertools.product(*(range(len(unit.choices)) for unit in space.units))
    return min(total(space, damages, state) for state in states if space.cost(state) <= budget * (1 + 1e-12))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", ["integers", "floats", "ties"])
def test_totals_are_those_of_brute_force(seed: int, kind: str) -> None:
    draw = random.Random(seed)
    units, damages = [], []
    for n in range(5):
        number = draw.randint(1, 4)
        costs = sorted(draw.uniform(0, 9) if kind == "floats" else draw.randint(0, 9) for _ in range(number))[::-1]
        units.append(Unit(f"u{n}", "all", tuple(Choice(str(p), c) for p, c in enumerate(costs))))
        damages.append([draw.randint(0, 2) if kind == "ties" else draw.uniform(-0.2, 3) for _ in range(number)])
    least, most = sum(u.choices[-1].cost for u in units), sum(u.choices[0].cost for u in units)
    budget = least + draw.random() * (most - least)
    space = Space(units, budget)
    state = optimum(space, damages)
    assert space.cost(state) <= budget * (1 + 1e-12)
    assert total(space, damages, state) == pytest.approx(brute_force(space, damages, budget), abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_out_counts_once_and_its_parts_not(seed: int) -> None:
    draw = random.Random(seed)
    units, damages = [], []
    for block in ("a", "b"):
        units.append(Unit(block, "all", (Choice("kept", draw.randint(0, 2)), Choice("out", 0, True))))
        damages.append([0.0, draw.uniform(0, 5)])
        for part in ("x", "y"):
            costs = sorted(draw.sample(range(1, 9), 3))[::-1]
            units.append(Unit(f"{block}.{part}", "all", tuple(Choice(str(c), c) for c in costs)))
            damages.append([0.0, draw.uniform(0, 2), draw.uniform(1, 4)])
    budget = draw.randint(2, 20)
    space = Space(units, budget)
    state = optimum(space, damages)
    assert space.cost(state) <= budget
    assert total(space, damages, state) == pytest.approx(brute_force(space, damages, budget), abs=1e-12)


def test_each_class_has_its_own_budget() -> None:
    choices = (Choice("kept", 1), Choice("out", 0, True))
    units = [Unit(f"{kind}{n}", kind, choices) for n in range(4) for kind in ("attention", "mlp")]
    damages = [[0.0, each] for each in (3.0, 1.0, 2.0, 4.0, 1.0, 3.0, 4.0, 2.0)]
    state = optimum(Space(units, None, {"attention": 2, "mlp": 3}), damages)
    assert [unit.name for unit, place in zip(units, state, strict=True) if place] == [
        "mlp0",
        "attention1",
        "attention2",
    ]


def test_a_model_of_many_matrices_is_solved_at_once() -> None:
    draw = random.Random(0)
    units, damages = [], []
    for n in range(210):
        size = draw.choice([110_592, 331_776, 884_736])
        units.append(Unit(f"u{n}", "all", tuple(Choice(str(b), size * b / 8 + size // 16) for b in (8, 6, 5, 4, 3, 2))))
        damages.append([draw.uniform(0.5, 2) * 4.0**-b for b in (8, 6, 5, 4, 3, 2)])
    space = Space(units, 0.6 * sum(unit.choices[0].cost for unit in units))
    state = optimum(space, damages)
    assert space.feasible(state)
    for seed in range(20):
        other = space.repair(state, random.Random(seed))
        other = space.mutate(other, 2, random.Random(seed)) or other
        assert total(space, damages, other) >= total(space, damages, state) - 1e-12


def test_what_is_not_finite_is_not_chosen() -> None:
    units = [Unit(name, "all", (Choice("8", 8), Choice("4", 4), Choice("2", 2))) for name in "ab"]
    assert optimum(Space(units, 10), [[0, 1, math.inf], [0, math.nan, 5]]) == (0, 2)
    with pytest.raises(DataError, match="cost 10 at least, and the budget is 6"):
        optimum(Space(units, 6), [[0, math.inf, 1], [0, math.inf, math.inf]])
    with pytest.raises(DataError, match="cost inf"):
        optimum(Space(units, 6), [[math.inf] * 3, [0, 0, 0]])
    with pytest.raises(ValueError, match="2 damages of b"):
        optimum(Space(units, 10), [[0, 1, 2], [0, 1]])
