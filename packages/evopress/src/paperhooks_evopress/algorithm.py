"""The search: a (mu + lambda) evolutionary algorithm with selection in several stages, on numbers alone.

    m     = min(U, U'), U and U' uniform on 1..max_mutations               switches of one child
    C     = lambda distinct children, each a mutated member of the population, none equal to a member
    C     <- the survivors_s best of C on one minibatch of tokens_s tokens,   stages s = 1 .. S - 1
    P     <- the mu best of P and C on one minibatch of tokens_S tokens       stage S: the population joins here

(arXiv 2410.14649, sections 3 and 4.) The population joins the last stage by the stage's place, not by its number of
survivors as in the official code, where a schedule of survivors 1, 1 lets the parent push out all children on the few
tokens of the first stage. Where fitness is equal the earlier candidate wins, and members of the population come first.

A minibatch is drawn anew for every stage, so a member of the population is scored again in every generation, and "never
worse" holds on that minibatch only. How good a candidate is, what may be searched and what mutation means come from
outside: nothing here knows of models. Fitness is lower for better candidates.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from random import Random
from typing import Any, Final, Protocol, TypeAlias

from paperhooks.errors import ModelError

from paperhooks_evopress.history import Generation, StageRecord
from paperhooks_evopress.search_schedule import SearchSchedule, SearchWarning, SelectionStage

__all__ = [
    "Evolution",
    "Score",
    "SearchSchedule",
    "SearchSpace",
    "SearchWarning",
    "SelectionStage",
    "State",
    "select",
    "states_to_score",
    "switches",
]

#: For each unit the place of its level, 0 the dearest.
State: TypeAlias = tuple[int, ...]

#: Candidates, tokens, seed of the minibatch and how many will survive (None: every value is wanted) to one fitness
#: each; lower is better, and ``inf`` will do for a candidate that provably cannot survive.
Score: TypeAlias = Callable[[Sequence[State], int, int, "int | None"], Sequence[float]]

#: So many mutations in a row that give no new child end the making of children.
_MISSES: Final = 200


class SearchSpace(Protocol):
    """What is searched; :class:`paperhooks_evopress.spaces.space.Space` is one."""

    def initial(self, random: Random) -> State:
        """A feasible state to start from."""

    def mutate(self, state: State, switches: int, random: Random) -> State | None:
        """Another feasible state, a number of switches away; None where none was found."""

    def canonical(self, state: State) -> State:
        """The same for all states that mean the same."""

    def feasible(self, state: State) -> bool:
        """Whether the state belongs to the space."""

    def size(self, limit: int) -> int | None:
        """How many states there are; None for more than ``limit``."""

    def states(self) -> Iterator[State]:
        """All of them."""


def switches(random: Random, most: int) -> int:
    """How many switches a child gets, the smaller of two uniform draws from 1..most: of 3, 5/9, 3/9 and 1/9."""
    return min(random.randint(1, most), random.randint(1, most))


def select(fitness: Sequence[float], survivors: int) -> list[int]:
    """Places of the best, best first; equal ones in their order, NaN and infinities behind all others.

    :raises ModelError: none is finite, so that nothing tells the candidates apart.
    """
    if not any(map(math.isfinite, fitness)):
        raise ModelError(
            f"the fitness of all {len(fitness)} candidates is NaN or infinite: nothing tells them apart. Look at the "
            "loss of the model as it is on these texts, and at levels that make it overflow"
        )
    finite = [value if math.isfinite(value) else math.inf for value in fitness]
    return sorted(range(len(finite)), key=finite.__getitem__)[:survivors]


def states_to_score(space: SearchSpace, schedule: SearchSchedule) -> int | None:
    """How many states there are, where all of them are scored in place of a search; None where it is searched."""
    limit = schedule.exhaustive
    if limit is None:
        limit = schedule.evaluations // schedule.stages[-1].tokens
    size = space.size(max(limit, 1))
    return size if size is not None and size <= max(limit, 1) else None


@dataclass(frozen=True, slots=True)
class _Progress:
    """All of a search that changes, exchanged as one so that no interrupt comes in between."""

    population: tuple[State, ...]
    history: tuple[Generation, ...]
    random: tuple[Any, ...]
    ended: bool


class Evolution:
    """A search, generation by generation.

    An interrupt, or an error of ``score``, loses the generation that was under way and no other: the population, the
    random numbers and the history are those of the last generation that ended, and :meth:`run` goes on from there.
    """

    def __init__(
        self, space: SearchSpace, schedule: SearchSchedule, score: Score, seed: int, *, start: State | None = None
    ) -> None:  # fmt: skip
        """
        :param space: states and their mutation. :param score: their fitness. :param seed: of all that is random.
        :param start: a state of the space to begin with, in place of those that it begins with itself.
        :raises ValueError: the start does not belong to the space.
        """
        if start is not None and not space.feasible(start):
            raise ValueError(f"start={start}: it does not belong to the space, whose budget or limits it does not keep")
        self.space, self.schedule, self.seed, self.start = space, schedule, seed, start
        self._score = score
        self._progress = _Progress((), (), Random(seed).getstate(), ended=False)

    @property
    def population(self) -> tuple[State, ...]:
        """States, best first; empty before the first generation has ended."""
        return self._progress.population

    @property
    def history(self) -> tuple[Generation, ...]:
        """The generations that have ended."""
        return self._progress.history

    @property
    def best(self) -> State | None:
        """The best state so far, by its last minibatch; None before the first generation has ended."""
        return self.population[0] if self.population else None

    def finalists(self, most: int) -> tuple[State, ...]:
        """The states that led longest, to be compared on more text than a generation reads; the last one first.

        What a generation kept was the best on its own minibatch. The state that the search began with is among them
        where there is room, so that what wins is no worse than it.

        :param most: how many at most.
        """
        reigns = Counter(self.space.canonical(each.best) for each in self.history)
        first: dict[State, State] = {}
        for each in reversed(self.history):
            first.setdefault(self.space.canonical(each.best), each.best)
        ends = [self.space.canonical(each.best) for each in (*self.history[-1:], *self.history[:1])]
        order = dict.fromkeys([*ends, *sorted(first, key=lambda state: -reigns[state])])
        return tuple(first[state] for state in list(order)[:most])

    @property
    def finished(self) -> bool:
        """Whether :meth:`run` has nothing left to do."""
        return self._progress.ended or len(self.history) > self.schedule.generations

    def run(self) -> Iterator[Generation]:
        """Generation by generation, the first population first, to the end of the schedule.

        :raises ModelError: no candidate of a stage that includes the population has a finite fitness.
        """
        while not self.finished:
            yield self._step()

    def _step(self) -> Generation:
        random = Random()
        random.setstate(self._progress.random)
        population, generation, ended = self._next(random) if self.history else self._first(random)
        self._progress = _Progress(population, (*self.history, generation), random.getstate(), ended)
        return generation

    # -- the first population ------------------------------------------------------------------------------------------

    def _first(self, random: Random) -> tuple[tuple[State, ...], Generation, bool]:
        schedule, last = self.schedule, self.schedule.stages[-1]
        size = states_to_score(self.space, schedule)
        if size == 1:
            only = tuple(self.space.states())
            warnings.warn(
                "only one choice is within the budget: there is nothing to search", SearchWarning, stacklevel=4
            )
            return only, Generation(0, "exhaustive", (), only[0], None, "the only state within the budget"), True
        if size is not None:
            note = f"all {size} states were scored instead of searched"
            states, stage = tuple(self.space.states()), last
        else:
            note, states, stage = (
                "",
                self._initial(random),
                SelectionStage(schedule.population, schedule.initial_tokens),
            )
        if len(states) <= schedule.population:
            return (
                states,
                Generation(0, "initial", (), states[0], None, "one choice to begin with, which was not scored"),
                False,
            )
        values = self._scored(states, stage.tokens, schedule.population, random)
        kept = select(values, schedule.population)
        population = tuple(states[place] for place in kept)
        record = StageRecord(stage.tokens, values, tuple(kept))
        kind = "exhaustive" if note else "initial"
        return population, Generation(0, kind, (record,), population[0], values[kept[0]], note), bool(note)

    def _initial(self, random: Random) -> tuple[State, ...]:
        if self.start is not None:
            return (self.start,)
        found: dict[State, State] = {}
        misses = 0
        while len(found) < self.schedule.initial and misses < _MISSES:
            state = self.space.initial(random)
            misses = misses + 1 if self.space.canonical(state) in found else 0
            found.setdefault(self.space.canonical(state), state)
        return tuple(found.values())

    # -- a generation --------------------------------------------------------------------------------------------------

    def _next(self, random: Random) -> tuple[tuple[State, ...], Generation, bool]:
        number, parents = len(self.history), self.population
        candidates = self._children(random)
        if not candidates:
            before = self.history[-1].fitness
            note = "no child differs from its parents: the search ends"
            return parents, Generation(number, "generation", (), parents[0], before, note), True
        wanted = self.schedule.offspring
        note = "" if len(candidates) == wanted else f"only {len(candidates)} of {wanted} children differ"
        records = []
        *stages, last = self.schedule.stages
        for stage in stages:
            if len(candidates) > stage.survivors:
                values = self._scored(candidates, stage.tokens, stage.survivors, random)
                alive = sum(map(math.isfinite, values))  # what is broken does not go on, even if there is room
                kept = select(values, min(stage.survivors, alive)) if alive else []
                records.append(StageRecord(stage.tokens, values, tuple(kept)))
                candidates = tuple(candidates[place] for place in kept)
        candidates = parents + candidates
        # After other stages few are left, and how the parent does on new tokens is worth its price.
        values = self._scored(candidates, last.tokens, None if stages else last.survivors, random)
        kept = select(values, last.survivors)
        records.append(StageRecord(last.tokens, values, tuple(kept), len(parents)))
        population = tuple(candidates[place] for place in kept)
        return population, Generation(number, "generation", tuple(records), population[0], values[kept[0]], note), False

    def _children(self, random: Random) -> tuple[State, ...]:
        """Distinct children, none of which means the same as a parent; fewer where no more are found."""
        seen = set(map(self.space.canonical, self.population))
        children: list[State] = []
        misses = 0
        while len(children) < self.schedule.offspring and misses < _MISSES:
            parent = random.choice(self.population)
            child = self.space.mutate(parent, switches(random, self.schedule.max_mutations), random)
            if child is None or self.space.canonical(child) in seen:
                misses += 1
                continue
            seen.add(self.space.canonical(child))
            children.append(child)
            misses = 0
        return tuple(children)

    def _scored(
        self, candidates: tuple[State, ...], tokens: int, survivors: int | None, random: Random
    ) -> tuple[float, ...]:
        values = tuple(map(float, self._score(candidates, tokens, random.getrandbits(32), survivors)))
        if len(values) != len(candidates):
            raise ValueError(f"score gave {len(values)} values for {len(candidates)} candidates")
        return tuple(value if math.isfinite(value) else math.inf for value in values)

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that a search needs to go on after its last whole generation, as plain JSON."""
        version, words, gauss = self._progress.random
        return {
            "seed": self.seed,
            "schedule": _plain(self.schedule),
            "population": [list(state) for state in self.population],
            "random": [version, list(words), gauss],
            "ended": self._progress.ended,
            "history": [generation.to_json() for generation in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another search of the same space, schedule and seed stood.

        :raises ValueError: it is of another one, or was changed.
        """
        for name, own in (("seed", self.seed), ("schedule", _plain(self.schedule))):
            if state[name] != own:
                raise ValueError(f"the checkpoint has {name} {state[name]}, this search has {own}: start a new one")
        population = tuple(tuple(places) for places in state["population"])
        if not all(map(self.space.feasible, population)):
            raise ValueError("the checkpoint's population does not fit this space: other units, or another budget")
        history = tuple(Generation.from_json(generation) for generation in state["history"])
        ordered = [generation.number for generation in history] == list(range(len(history)))
        # Any of them may be the winner in the end.
        if not ordered or not all(self.space.feasible(g.best) for g in history) or bool(history) != bool(population):
            raise ValueError("the checkpoint's history is not that of a search of this space")
        (version, words, gauss), random = state["random"], Random()
        random.setstate((version, tuple(words), gauss))
        self._progress = _Progress(population, history, random.getstate(), bool(state["ended"]))


def _plain(schedule: SearchSchedule) -> dict[str, Any]:
    return {**asdict(schedule), "stages": [asdict(stage) for stage in schedule.stages]}
