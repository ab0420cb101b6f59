"""The search on fitness of numbers: selection, stages, schedules, optima, checkpoints and ends."""

from __future__ import annotations

import itertools
import json
import math
import random as global_random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from paperhooks.errors import ModelError
from paperhooks_evopress.algorithm import (
    Evolution,
    SearchWarning,
    State,
    select,
    switches,
)
from paperhooks_evopress.algorithm import (
    SearchSchedule as Schedule,
)
from paperhooks_evopress.algorithm import (
    SelectionStage as Stage,
)
from paperhooks_evopress.history import Generation
from paperhooks_evopress.schedules import SCHEDULES, depth_generations, scaled, schedule_of
from paperhooks_evopress.spaces.space import (
    Space,
    Unit,
)
from paperhooks_evopress.spaces.space import (
    UnitLevel as Choice,
)

KEPT_OR_OUT = (Choice("kept", 1), Choice("left out", 0, skip=True))


def subsets(n: int, k: int, classes: int = 1) -> Space:
    """k of n, in each class."""
    units = [Unit(f"{name}{i}", f"{name}", KEPT_OR_OUT) for name in range(classes) for i in range(n)]
    return Space(units, None, {f"{name}": n - k for name in range(classes)})


def ladders(n: int, average: int = 2) -> Space:
    """n units of 5 levels."""
    return Space([Unit(f"m{i}", "", tuple(Choice(str(c), c) for c in (4, 3, 2, 1, 0))) for i in range(n)], average * n)


class Fitness:
    """Sums of weights of units and of pairs; remembers what it was asked."""

    def __init__(self, n: int, seed: int, pairs: float = 0, noise: float = 0) -> None:
        random = Random(seed)
        self.weights = [random.random() for _ in range(n)]
        self.pairs = (
            {(i, j): pairs * random.gauss(0, 1) for i, j in itertools.combinations(range(n), 2)} if pairs else {}
        )
        self.noise = noise
        self.calls: list[tuple[list[State], int, int, int | None]] = []

    def __call__(self, states: Sequence[State], tokens: int, seed: int, survivors: int | None) -> list[float]:
        self.calls.append((list(states), tokens, seed, survivors))
        return [self.of(state) + self.noise * Random(f"{seed}{state}").gauss(0, 1) for state in states]

    def of(self, state: State) -> float:
        single = sum(w * place**1.5 for w, place in zip(self.weights, state, strict=True))
        return single + sum(w * state[i] * state[j] for (i, j), w in self.pairs.items())


def quick(generations: int = 40, **options) -> Schedule:
    given = {
        "offspring": 8,
        "stages": (Stage(3, 20), Stage(1, 60)),
        "initial": 4,
        "initial_tokens": 20,
        "exhaustive": 0,
    }
    return Schedule(generations, **{**given, **options})


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_number_of_switches_is_the_smaller_of_two_draws() -> None:
    for most, shares in [(3, (5 / 9, 3 / 9, 1 / 9)), (1, (1,)), (7, [(15 - 2 * m) / 49 for m in range(1, 8)])]:
        random, draws = Random(0), 10_000
        counts = Counter(switches(random, most) for _ in range(draws))
        assert set(counts) == set(range(1, most + 1))
        chi_square = sum((counts[m] - share * draws) ** 2 / (share * draws) for m, share in enumerate(shares, 1))
        assert chi_square < {1: 1, 3: 13.82, 7: 22.46}[most]  # p = 0.001


def test_children_are_as_far_from_the_parent_as_was_drawn() -> None:
    space, random = subsets(200, 100), Random(0)
    start = space.initial(random)
    counts: Counter[int] = Counter()
    for _ in range(2000):
        child = space.mutate(start, switches(random, 3), random)
        counts[sum(a != b for a, b in zip(start, child, strict=True)) // 2] += 1
    expected = {m: share * 2000 for m, share in enumerate((5 / 9, 3 / 9, 1 / 9), 1)}
    assert set(counts) <= set(expected)
    assert sum((counts[m] - expected[m]) ** 2 / expected[m] for m in expected) < 13.82


@pytest.mark.parametrize(
    ("fitness", "survivors", "kept"),
    [
        ([3, 1, 2], 1, [1]),
        ([3, 1, 2], 3, [1, 2, 0]),
        ([2, 1, 1, 1], 2, [1, 2]),  # ties in their order
        ([math.nan, 2, 1], 2, [2, 1]),
        ([math.inf, 2, math.nan, 1], 4, [3, 1, 0, 2]),
        ([-math.inf, 2], 1, [1]),  # no loss is that good
        ([5], 3, [0]),
    ],
)
def test_selection(fitness: list[float], survivors: int, kept: list[int]) -> None:
    assert select(fitness, survivors) == kept


def test_without_any_finite_fitness_nothing_is_selected() -> None:
    with pytest.raises(ModelError, match="all 3 candidates is NaN or infinite"):
        select([math.nan, math.inf, -math.inf], 1)


# -- stages ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stages", [(Stage(1, 20), Stage(1, 60)), (Stage(4, 20), Stage(2, 30), Stage(1, 60))])
def test_the_parent_joins_the_last_stage_alone(stages: tuple[Stage, ...]) -> None:
    fitness = Fitness(12, 0)
    evolution = Evolution(subsets(12, 5), quick(stages=stages), fitness, seed=1)
    parent = None
    for generation in evolution.run():
        calls, fitness.calls = fitness.calls, []
        if parent is not None:
            assert [call[1] for call in calls] == [stage.tokens for stage in stages]
            assert len(calls[0][0]) == 8
            assert all(parent not in call[0] for call in calls[:-1])
            assert calls[-1][0][0] == parent
            assert [len(call[0]) for call in calls[1:-1]] == [stage.survivors for stage in stages[:-2]]
            assert len(calls[-1][0]) == stages[-2].survivors + 1
            assert [record.parents for record in generation.stages] == [0] * (len(stages) - 1) + [1]
            assert generation.stages[-1].fitness[0] == fitness.of(parent)
            for call, record in zip(calls, generation.stages, strict=True):
                assert [fitness.of(state) for state in call[0]] == list(record.fitness)
                assert len(set(call[0])) == len(call[0])
        parent = evolution.best
    assert len({seed for call in fitness.calls for seed in [call[2]]}) == len(fitness.calls)


def test_without_noise_the_best_never_gets_worse_and_the_parent_wins_ties() -> None:
    fitness = Fitness(14, 3, pairs=0.3)
    values = [generation.fitness for generation in Evolution(subsets(14, 6), quick(), fitness, seed=0).run()]
    assert all(later <= earlier for earlier, later in itertools.pairwise(values))
    evolution = Evolution(subsets(14, 6), quick(), lambda states, *_: [1.0] * len(states), seed=0)
    assert len({generation.best for generation in evolution.run()}) == 1


def test_minibatches_are_drawn_anew() -> None:
    fitness = Fitness(12, 0)
    list(Evolution(subsets(12, 5), quick(), fitness, seed=1).run())
    assert len({call[2] for call in fitness.calls}) == len(fitness.calls) == 81


def test_one_stage_and_a_larger_population() -> None:
    fitness = Fitness(12, 0)
    schedule = quick(60, stages=(Stage(3, 20),), population=3)
    evolution = Evolution(subsets(12, 5), schedule, fitness, seed=1)
    for generation in evolution.run():
        assert len(set(evolution.population)) == 3
        assert evolution.best == evolution.population[0] == generation.best
        assert len(generation.stages[-1].fitness) == (4 if generation.kind == "initial" else 11)
        assert generation.stages[-1].parents == (0 if generation.kind == "initial" else 3)
    assert fitness.calls[-1][3] == 3
    assert evolution.best == optimum(subsets(12, 5), fitness)


def test_values_that_are_not_finite_never_win() -> None:
    fitness, random = Fitness(12, 0), Random(0)

    def broken(states, *rest):
        return [
            random.choice([value, math.nan, math.inf]) if i else value for i, value in enumerate(fitness(states, *rest))
        ]

    evolution = Evolution(subsets(12, 5), quick(), broken, seed=1)
    for generation in evolution.run():
        assert math.isfinite(generation.fitness)
        for record in generation.stages:
            assert not any(map(math.isnan, record.fitness))
            assert all(math.isfinite(record.fitness[i]) for i in record.survivors)


def test_children_that_are_all_broken_leave_the_parent_and_nothing_finite_ends_it() -> None:
    good = {}

    def only_the_parent(states, tokens, *_):
        good.setdefault("state", states[0])
        return [1.0 if state == good["state"] else math.nan for state in states]

    evolution = Evolution(subsets(12, 5), quick(3), only_the_parent, seed=1)
    assert {generation.best for generation in evolution.run()} == {good["state"]}
    evolution = Evolution(subsets(12, 5), quick(3), lambda states, *_: [math.nan] * len(states), seed=1)
    with pytest.raises(ModelError, match="all 4 candidates"):
        next(evolution.run())
    assert evolution.best is None
    assert not evolution.history


def test_what_is_wrong_with_score_is_said() -> None:
    with pytest.raises(ValueError, match="score gave 1 values for 4 candidates"):
        next(Evolution(subsets(12, 5), quick(), lambda *_: [1.0], seed=1).run())


# -- optima ------------------------------------------------------------------------------------------------------------


def optimum(space: Space, fitness: Fitness) -> State:
    return min(space.states(), key=fitness.of)


SMALL = {
    "k of n": (subsets(14, 5), 14, 0.0),
    "k of n, pairs": (subsets(14, 5), 14, 0.3),
    "two classes": (subsets(8, 3, 2), 16, 0.0),
    "two classes, pairs": (subsets(8, 3, 2), 16, 0.2),
    "levels": (ladders(6), 6, 0.0),
    "levels, pairs": (ladders(6), 6, 0.1),
}


@pytest.mark.parametrize("kind", SMALL)
def test_the_optimum_is_found_in_nine_of_ten_seeds(kind: str) -> None:
    space, n, pairs = SMALL[kind]
    states = list(space.states())
    assert len(states) <= 20_000
    found = 0
    for seed in range(10):
        fitness = Fitness(n, seed, pairs)
        least = min(map(fitness.of, states))
        schedule = schedule_of("light", "bits") if "levels" in kind else schedule_of("paper", "depth")
        evolution = Evolution(space, replace(schedule, exhaustive=0), fitness, seed)
        found += any(fitness.of(generation.best) <= least + 1e-12 for generation in evolution.run())
    assert found >= 9


def test_small_spaces_are_scored_as_a_whole() -> None:
    fitness = Fitness(10, 0, pairs=1.0)
    space = subsets(10, 3)
    evolution = Evolution(space, quick(500, exhaustive=None), fitness, seed=0)
    (generation,) = evolution.run()
    assert (generation.kind, generation.note) == ("exhaustive", "all 120 states were scored instead of searched")
    assert evolution.best == optimum(space, fitness)
    assert evolution.finished
    ((states, tokens, _, survivors),) = fitness.calls
    assert (len(states), tokens, survivors) == (120, 60, 1)
    assert not list(evolution.run())
    few = quick(10, exhaustive=None)  # the search takes less than 120 times 60 tokens
    assert next(Evolution(space, few, fitness, seed=0).run()).kind == "initial"
    assert next(Evolution(space, quick(10, exhaustive=120), fitness, seed=0).run()).kind == "exhaustive"


def test_no_state_wins_by_spending_less() -> None:
    space = Space([Unit(f"m{i}", "", KEPT_OR_OUT) for i in range(6)], 4)
    assert {sum(state) for state in space.states()} == {2}


# -- ends --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [subsets(6, 0), subsets(6, 6), Space([Unit("m", "", KEPT_OR_OUT[:1])], 1)])
def test_a_single_state_is_given_back_with_a_warning(space: Space) -> None:
    evolution = Evolution(space, quick(), Fitness(6, 0), seed=0)
    with pytest.warns(SearchWarning, match="nothing to search"):
        (generation,) = evolution.run()
    assert generation.best in set(space.states())
    assert not generation.stages


@pytest.mark.timeout(5)
def test_fewer_states_than_candidates_and_children() -> None:
    fitness = Fitness(6, 0)
    evolution = Evolution(subsets(6, 1), quick(10, initial=9, offspring=9), fitness, seed=0)
    generations = list(evolution.run())
    assert len(generations[0].stages[0].fitness) == 6
    assert all(generation.note == "only 5 of 9 children differ" for generation in generations[1:])
    assert len(generations) == 11
    assert evolution.best == optimum(subsets(6, 1), fitness)
    pair = Evolution(subsets(2, 1), quick(5), Fitness(2, 0), seed=0)
    generations = list(pair.run())  # the only child goes on unscored to the last stage
    assert [len(generation.stages) for generation in generations] == [1] * 6


@pytest.mark.timeout(5)
def test_a_search_without_children_ends() -> None:
    units = [Unit("a", "x", (Choice("1", 2), Choice("0", 1))), Unit("b", "y", (Choice("1", 2), Choice("0", 1)))]
    evolution = Evolution(Space(units, 3), quick(50, initial=2), Fitness(2, 0), seed=0)
    generations = list(evolution.run())
    assert len(generations) == 2
    assert generations[1].note == "no child differs from its parents: the search ends"
    assert evolution.finished


def test_no_generations_keep_the_best_candidate_of_the_beginning() -> None:
    fitness = Fitness(12, 0)
    (generation,) = Evolution(subsets(12, 5), quick(0, initial=20), fitness, seed=0).run()
    assert generation.fitness == min(map(fitness.of, fitness.calls[0][0]))


# -- random numbers and checkpoints ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_search_and_global_numbers_stay() -> None:
    before = global_random.getstate()
    runs = [
        [g.to_json() for g in Evolution(subsets(14, 6), quick(10), Fitness(14, 0, noise=0.1), seed).run()]
        for seed in (5, 5, 6)
    ]
    assert runs[0] == runs[1] != runs[2]
    assert global_random.getstate() == before


def test_two_searches_at_once_do_not_know_of_each_other() -> None:
    alone = list(Evolution(subsets(14, 6), quick(10), Fitness(14, 0), 1).run())
    first, second = (Evolution(subsets(14, 6), quick(10), Fitness(14, 0), seed) for seed in (1, 2))
    assert [one for one, _ in zip(first.run(), second.run(), strict=True)] == alone


@pytest.mark.parametrize("stop", [0, 1, 7, 19, 20])
def test_interrupted_and_resumed_is_uninterrupted(stop: int) -> None:
    def search() -> Evolution:
        return Evolution(ladders(10), quick(20, population=2, stages=(Stage(4, 20), Stage(2, 60))),
                         Fitness(10, 0, pairs=0.1, noise=0.1), seed=4)  # fmt: skip

    whole = search()
    list(whole.run())
    part, rest = search(), search()
    list(itertools.islice(part.run(), stop))
    stored = part.state_dict()
    assert json.loads(json.dumps(stored, allow_nan=False)) == stored
    rest.load_state_dict(json.loads(json.dumps(stored)))
    assert rest.history == part.history
    list(rest.run())
    assert rest.state_dict() == whole.state_dict()
    assert rest.history == whole.history


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_loses_one_generation_alone(error: type[BaseException]) -> None:
    fitness = Fitness(14, 0, noise=0.1)
    whole = Evolution(subsets(14, 6), quick(10), fitness, seed=2)
    list(whole.run())
    calls = itertools.count()

    def fails_once(*request):
        if next(calls) == 8:
            raise error
        return fitness(*request)

    evolution = Evolution(subsets(14, 6), quick(10), fails_once, seed=2)
    with pytest.raises(error):
        list(evolution.run())
    assert evolution.history == whole.history[:4]  # one call at first and two in each generation
    assert evolution.best == whole.history[3].best
    list(evolution.run())
    assert evolution.state_dict() == whole.state_dict()


def test_records_are_plain_json() -> None:
    fitness = Fitness(12, 0)

    def stopped_early(states, tokens, seed, survivors):
        values = fitness(states, tokens, seed, survivors)
        worst = sorted(values)[survivors or -1 :][:1] or [math.inf]
        return [value if value < worst[0] else math.inf for value in values] if survivors else values

    for generation in Evolution(subsets(12, 5), quick(5), stopped_early, seed=1).run():
        assert Generation.from_json(json.loads(json.dumps(generation.to_json(), allow_nan=False))) == generation


def test_checkpoints_of_another_search_are_refused() -> None:
    evolution = Evolution(subsets(12, 5), quick(5), Fitness(12, 0), seed=1)
    list(evolution.run())
    stored = evolution.state_dict()
    for other, message in [
        (Evolution(subsets(12, 5), quick(5), Fitness(12, 0), seed=2), "checkpoint has seed 1, this search has 2"),
        (Evolution(subsets(12, 5), quick(6), Fitness(12, 0), seed=1), "has schedule"),
        (Evolution(subsets(12, 4), quick(5), Fitness(12, 0), seed=1), "does not fit this space"),
        (Evolution(subsets(13, 5), quick(5), Fitness(13, 0), seed=1), "does not fit this space"),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(stored)
        assert not other.history


# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: quick(-1), "generations=-1"),
        (lambda: quick(1.5), "generations=1.5"),
        (lambda: quick(offspring=0), "offspring=0"),
        (lambda: quick(stages=()), "at least one Stage"),
        (lambda: quick(stages=(Stage(9, 20), Stage(1, 60))), "stage 1 keeps 9 of 8 candidates"),
        (lambda: quick(stages=(Stage(1, 20), Stage(2, 60)), population=2), "stage 2 keeps 2 of 1 candidates"),
        (lambda: quick(stages=(Stage(3, 20), Stage(2, 60))), "the last stage keeps 2; it makes the next"),
        (lambda: quick(stages=(Stage(2, 20),), population=2, initial=1), "initial=1: expected a whole number"),
        (lambda: quick(max_mutations=0), "max_mutations=0"),
        (lambda: quick(initial_tokens=1), "initial_tokens=1"),
        (lambda: quick(exhaustive=-1), "exhaustive=-1"),
        (lambda: Stage(0, 20), "survivors=0"),
        (lambda: Stage(1, True), "tokens=True"),
        (lambda: schedule_of("fast", "bits"), "schedule='fast': expected one of paper, light, quick"),
        (lambda: depth_generations(4, 5), "removed=5"),
        (lambda: scaled(quick(), 0), "share=0"),
        (lambda: scaled(quick(), math.nan), "share=nan"),
        (lambda: scaled(quick(), 1e-4), "too little for one generation"),
    ],
)  # fmt: skip
def test_schedules_that_cannot_be_meant_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_falling_tokens_are_warned_of() -> None:
    with pytest.warns(SearchWarning, match="tokens of the stages are 60, 20"):
        quick(stages=(Stage(3, 60), Stage(1, 20)))


def test_published_schedules() -> None:
    """The tokens that a generation takes are those of the paper's settings."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        depth = schedule_of("paper", "depth", blocks=32, removed=12)
        assert (depth.generations, depth.generation_evaluations, depth.initial) == (160, 163_840, 64)
        assert depth == schedule_of("paper", "depth")
        sparsity, bits, light = (
            schedule_of("paper", "sparsity"),
            schedule_of("paper", "bits"),
            schedule_of("light", "bits"),
        )
        assert (sparsity.generations, sparsity.generation_evaluations) == (400, 458_752)
        assert (bits.generations, bits.generation_evaluations) == (150, 1_179_648)
        assert (light.generations, light.generation_evaluations) == (400, 24_576)
        assert schedule_of("paper", "bytes") == sparsity
        assert {schedule_of(name, "depth", blocks=30, removed=0).generations for name in SCHEDULES} == {1}
        assert schedule_of("quick", "depth", blocks=30, removed=6).generations == 96 == depth_generations(30, 6)
        assert max(schedule_of("quick", target).evaluations for target in ("depth", "sparsity", "bits")) <= 250_000


def test_scaled_schedules_keep_their_ratio() -> None:
    paper, light = schedule_of("paper", "sparsity"), schedule_of("light", "sparsity")
    share = 800_000 / paper.evaluations
    small = scaled(paper, share)
    assert 0.9 * 800_000 < small.evaluations <= 800_000
    assert small.stages[-1].survivors == 1
    share = 0.02
    assert scaled(paper, share).evaluations / scaled(light, share).evaluations == pytest.approx(
        paper.evaluations / light.evaluations, rel=0.1
    )
    assert scaled(paper, 1) == paper
