"""Depth search against traces of the official code, on the fitness that these were made with."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from paperhooks_evopress.algorithm import (
    Evolution,
    SearchWarning,
    State,
    select,
)
from paperhooks_evopress.algorithm import (
    SearchSchedule as Schedule,
)
from paperhooks_evopress.algorithm import (
    SelectionStage as Stage,
)
from paperhooks_evopress.spaces.space import (
    Space,
    Unit,
)
from paperhooks_evopress.spaces.space import (
    UnitLevel as Choice,
)

TRACES = json.loads((Path(__file__).parent / "reference" / "search_drop.json").read_text(encoding="utf-8"))
RUNS = TRACES["runs"]
N = len(TRACES["weights"]["attn"])
#: Of the fitness in the traces.
KINDS = {"attn": "ab", "mlp": "mb"}


def fitness(letters: str) -> float:
    """Of states written as a letter a block: a and m for what is removed, b for both, n for nothing."""
    single = sum(
        weight
        for kind, removed in KINDS.items()
        for weight, letter in zip(TRACES["weights"][kind], letters, strict=True)
        if letter in removed
    )
    attentions = [letter in "ab" for letter in letters]
    return single + TRACES["nonadditive"] * sum(map(all, itertools.pairwise(attentions)))


def options(name: str) -> dict[str, list[str]]:
    """The arguments of a run; where they are not told, those that all runs have."""
    found: dict[str, list[str]] = {}
    for word in RUNS[name].get("args", RUNS["invert"]["args"]):
        if word.startswith("--"):
            found[word[2:]] = values = []
        else:
            values.append(word)
    return found


def space(removed: int, legal: Sequence[str] | None = None, *, whole: bool = False, n: int = N) -> Space:
    choices = (Choice("kept", 1), Choice("left out", 0, skip=True))
    if whole:
        return Space([Unit(f"{i}", "block", choices, (f"{i}.attn", f"{i}.mlp")) for i in range(n)], n - removed)
    units = [
        Unit(f"{i}.{kind}", kind, choices if legal is None or kind in legal[i].split("+") else choices[:1])
        for kind in KINDS
        for i in range(n)
    ]
    return Space(units, None, dict.fromkeys(KINDS, n - removed))


def space_of(name: str) -> Space:
    given = options(name)
    removed = math.floor(float(given["sparsity"][0]) * N + 1e-9)
    return space(removed, RUNS[name].get("legal"), whole="drop_entire_block" in given)


def schedule_of(name: str, **changes: Any) -> Schedule:
    given = options(name)
    stages = zip(given["survivors_per_selection"], given["tokens_per_selection"], strict=True)
    settings = {
        "generations": int(given["generations"][0]),
        "offspring": int(given["offspring"][0]),
        "stages": tuple(Stage(int(survivors), int(tokens)) for survivors, tokens in stages),
        "initial": int(given["initially_generated"][0]),
        "initial_tokens": int(given["initial_tokens"][0]),
        "max_mutations": int(given.get("max_mutations", ["3"])[0]),
        "population": int(given.get("population_size", ["1"])[0]),
        "exhaustive": 0,
    }
    return Schedule(**{**settings, **changes})


def state(letters: str, whole: bool) -> State:
    if whole:
        return tuple(int(letter == "b") for letter in letters)
    return tuple(int(letter in removed) for removed in KINDS.values() for letter in letters)


def letters(searched: Space, state: State) -> str:
    choice = searched.choice(state)
    gone = [tuple(choice[f"{i}.{kind}"] == "left out" for kind in KINDS) for i in range(len(choice) // 2)]
    return "".join({(0, 0): "n", (1, 0): "a", (0, 1): "m", (1, 1): "b"}[pair] for pair in gone)


def sign(name: str) -> int:
    return -1 if name == "invert" else 1


@pytest.mark.parametrize("name", RUNS)
def test_every_stage_keeps_the_same_survivors(name: str) -> None:
    for stage in RUNS[name]["stages"]:
        values = [sign(name) * fitness(candidate) for candidate in stage["candidates"]]
        kept = select(values, stage["num_survive"])
        assert [stage["candidates"][place] for place in kept] == stage["survivors"]
        assert [values[place] for place in kept] == pytest.approx(stage["survivor_fitness"])


@pytest.mark.parametrize("name", RUNS)
def test_every_candidate_of_the_traces_belongs_to_the_space(name: str) -> None:
    searched, whole = space_of(name), "drop_entire_block" in options(name)
    for stage in RUNS[name]["stages"]:
        for candidate in stage["candidates"]:
            assert searched.feasible(state(candidate, whole))
            assert letters(searched, state(candidate, whole)) == candidate


@pytest.mark.parametrize("name", RUNS)
def test_a_search_with_the_settings_of_a_trace(name: str) -> None:
    """Stages and tokens are those of the trace, candidates are legal and distinct, and the best never gets worse."""
    searched, asked = space_of(name), []

    def score(states: Sequence[State], tokens: int, seed: int, survivors: int | None) -> Iterable[float]:
        asked.append((tokens, [letters(searched, state) for state in states]))
        assert all(map(searched.feasible, states))
        assert len(set(states)) == len(states)
        return [sign(name) * fitness(candidate) for candidate in asked[-1][1]]

    schedule = schedule_of(name)
    evolution, last = Evolution(searched, schedule, score, seed=0), math.inf
    for number, generation in enumerate(evolution.run()):
        parents = asked[-1][1][: generation.stages[-1].parents]
        first = asked[0][1]
        if number:
            assert not set(parents) & set(first)
            assert [tokens for tokens, _ in asked] == [stage.tokens for stage in schedule.stages]
            counts = [schedule.offspring, *(stage.survivors for stage in schedule.stages[:-1])]
            counts[-1] += schedule.population
            assert [len(candidates) for _, candidates in asked] == counts
        assert generation.fitness <= last
        last, asked = generation.fitness, []
    assert number == schedule.generations


def test_the_traces_optimum_is_that_of_the_space() -> None:
    best = min(space(2).states(), key=lambda each: fitness(letters(space(2), each)))
    removed = {kind: [i for i in range(N) if letters(space(2), best)[i] in known] for kind, known in KINDS.items()}
    assert removed == {kind: TRACES["brute_force_optimum"][kind] for kind in KINDS}
    assert fitness(letters(space(2), best)) == pytest.approx(TRACES["brute_force_optimum"]["fitness"])


def test_the_optimum_is_found() -> None:
    searched = space(2)
    found = 0
    for seed in range(10):
        schedule = schedule_of("max_mutations1", generations=30, offspring=16, max_mutations=3)
        evolution = Evolution(
            searched, schedule, lambda states, *_: [fitness(letters(searched, s)) for s in states], seed
        )
        list(evolution.run())
        found += fitness(letters(searched, evolution.best)) <= TRACES["brute_force_optimum"]["fitness"] + 1e-9
    assert found >= 9


#: What the official code loops for ever at, or dies of, and the number of generations that are made here instead.
HAZARDS = {
    "nothing_to_remove (sparsity 0.1 of 6)": (space(0), {}, 0),
    "everything_removed (sparsity 1.0)": (space(N), {}, 0),
    "more_initial_candidates_than_states (entire blocks, C(6,1)=6 < 9)": (space(1, whole=True), {"initial": 9}, 8),
    "more_offspring_than_states (entire blocks, 5 < 9)": (space(1, whole=True), {"offspring": 9}, 8),
    "more_tokens_than_calibration (401 > 400)": (space(2), {"initial_tokens": 401}, 8),  # the evaluator's to mend
    "zero_generations": (space(2), {"generations": 0}, 0),
}


def test_all_hazards_of_the_traces_are_tried() -> None:
    assert set(HAZARDS) == set(TRACES["hazards"])


@pytest.mark.timeout(5)
@pytest.mark.parametrize("name", HAZARDS)
@pytest.mark.filterwarnings("ignore::paperhooks_evopress.algorithm.SearchWarning")
def test_hazards_end_in_a_result(name: str) -> None:
    searched, changes, generations = HAZARDS[name]
    for exhaustive in (0, None):
        schedule = schedule_of("max_mutations1", exhaustive=exhaustive, **changes)
        evolution = Evolution(searched, schedule, lambda states, *_: [fitness(letters(searched, s)) for s in states], 0)
        history = list(evolution.run())
        assert searched.feasible(evolution.best)
        assert history[-1].number == (generations if exhaustive == 0 else history[-1].number)


def test_a_depth_without_choices_is_warned_of() -> None:
    for removed in (0, N):
        evolution = Evolution(space(removed), schedule_of("max_mutations1"), lambda states, *_: [0.0] * len(states), 0)
        with pytest.warns(SearchWarning, match="only one choice"):
            list(evolution.run())
        assert letters(space(removed), evolution.best) == ("b" if removed else "n") * N


def test_fewer_legal_sublayers_than_wanted_are_named() -> None:
    legal = ["attn", "none", "none", "mlp", "mlp", "mlp"]
    with pytest.raises(
        ValueError, match=r"budget 4 of 'attn' is out of reach.* 5 units cannot change \(1.attn, 2.attn"
    ):
        space(2, legal)
