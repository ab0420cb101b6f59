"""Choices that nothing was measured for, and the best of several of them."""

from __future__ import annotations

from random import Random
from typing import Final

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.baselines.comparison import Found, Setting
from paperhooks_evopress.spaces import Space

__all__ = ["random_best", "uniform"]

#: Draws in a row without a new state, after which there are taken to be no more.
_FRUITLESS: Final = 250
#: Of how many it is the best where no tokens are told, as in the paper.
_CANDIDATES: Final = 32


def uniform(setting: Setting) -> Found:
    """Levels as even as the budget allows; where units have to differ, and at a depth, which ones is drawn.

    Where limits around a start forbid these, the start itself, which is even too.
    """
    space = setting.problem.space
    state = _even(space).initial(Random(setting.seed))
    return setting.found("uniform", state if space.within(state) else space.initial(Random(setting.seed)), 0)


def random_best(setting: Setting, tokens: int | None = None, *, even: bool = False) -> Found:
    """The best of random states of the space.

    :param tokens: that all of them read together, by default 32 minibatches. Fewer where there are fewer states.
    :param even: draw among levels as even as the budget allows, as the paper does for fractions of bits.
    """
    space, random = setting.problem.space, Random(setting.seed)
    number = _CANDIDATES if tokens is None else max(1, tokens // setting.read)
    states: dict[State, None] = {}
    old = 0  # draws since there was a new one
    while len(states) < number and old < _FRUITLESS:
        state = _even(space).initial(random) if even else _anywhere(space, random)
        if not space.within(state):
            state = space.initial(random)
        old = old + 1 if state in states else 0
        states[state] = None
    best, fitness = setting.best(list(states))
    return setting.found("random", best, len(states), candidates=len(states), fitness=fitness)


def _even(space: Space) -> Space:
    """The space without a state that it starts from."""
    return Space(space.units, space.budget, space.budgets)


def _anywhere(space: Space, random: Random) -> State:
    """Places at random, mended to the budget; where limits around a start forbid that, a walk of mutations."""
    state = space.repair(tuple(random.randrange(len(unit.choices)) for unit in space.units), random)
    if space.feasible(state):
        return state
    state = space.initial(random)
    for _ in space.units:
        state = space.mutate(state, 1, random) or state
    return state
