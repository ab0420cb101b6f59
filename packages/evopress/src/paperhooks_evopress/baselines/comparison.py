"""What a baseline is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paperhooks import DataError, ModelView
from paperhooks.hooks import Levels
from torch import Tensor

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.evaluator import Evaluator, minibatch
from paperhooks_evopress.spaces import LevelProblem

__all__ = ["Found", "Setting"]


@dataclass(frozen=True)
class Found:
    """The answer of a baseline.

    name
        Of the baseline.
    state, choice
        A state of the problem's space, within its budget, from which a search may start (``Space(start=...)``), and
        the levels that it means, module name to label.
    tokens
        Read by the model and by candidates, passes of remembered results too.
    told
        What the baseline has measured, as plain data.
    """

    name: str
    state: State
    choice: Mapping[str, str]
    tokens: int
    told: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Setting:
    """A problem, and the text on which all baselines are measured.

    levels, problem
        What is offered, and what is chosen among it. The model stands at any choice afterwards.
    evaluator
        Of the same levels; its fitness is what one-shot, greedy, random and additive choices go by.
    tokens, seed
        The minibatch that every candidate and every pass over the model reads. Where there are fewer tokens, all.
    """

    levels: Levels
    problem: LevelProblem
    evaluator: Evaluator
    tokens: int
    seed: int = 0

    @property
    def view(self) -> ModelView:
        """Of the model."""
        return self.evaluator.view

    @property
    def read(self) -> int:
        """How many tokens a pass reads."""
        return min(self.tokens, self.evaluator.tokens)

    def sequences(self) -> list[Tensor]:
        """The text that :meth:`scores` reads, int64 [T] each."""
        own = self.evaluator.sequences
        return [own[number][:length] for number, length in minibatch([len(s) for s in own], self.read, self.seed)]

    def scores(self, choices: Sequence[Mapping[str, str]], *, survivors: int | None = None) -> list[float]:
        """Fitness of each choice, lower is better, ``inf`` where it is not finite.

        :param survivors: as for :meth:`paperhooks_evopress.Evaluator.score`.
        :raises DataError: none is finite.
        """
        found = self.evaluator.score(choices, self.read, self.seed, survivors)
        if choices and not any(map(math.isfinite, found)):
            raise DataError(
                f"all {len(choices)} candidates of {self.problem.target} give a {self.evaluator.fitness} that is not "
                "finite, so that none is better than another; look at the levels that are offered"
            )
        return found

    def best(self, states: Sequence[State]) -> tuple[State, float]:
        """The state of the lowest fitness, the first of equal ones, and this fitness."""
        scores = self.scores([self.problem.choice(state) for state in states], survivors=1)
        place = min(range(len(states)), key=scores.__getitem__)
        return states[place], scores[place]

    def found(self, name: str, state: State, passes: int, **told: Any) -> Found:
        """An answer.

        :param passes: how many times the minibatch was read for it.
        :raises DataError: it is none that the search may give: ``max_level`` or ``max_deviation`` forbid it.
        """
        if not self.problem.space.within(state):
            raise DataError(
                f"the baseline {name} knows nothing of max_level and max_deviation, and chooses levels for "
                f"{self.problem.target} that they forbid; compare with a search without these limits"
            )
        return Found(name, state, self.problem.choice(state), passes * self.read, told)
