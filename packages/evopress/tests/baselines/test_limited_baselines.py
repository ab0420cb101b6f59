"""Baselines where a search may go only so far from an even choice: they keep to that, or refuse by their names."""

from __future__ import annotations

import math
from itertools import pairwise
from random import Random
from typing import Any

import pytest
import scored_models as made
import torch
from paperhooks import CompressionRequest, DataError, ModelView
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_evopress import GPTQ, Evaluator, Space, SparseGPT, Target, Unit, UnitLevel, problem
from paperhooks_evopress.baselines import BASELINES, Setting, baselines_of, optimum
from paperhooks_evopress.spaces import module_names

SEQUENCES = made.sequences_of([24, 17, 9])
LIMITS = (
    {"max_level": 0}, {"max_level": 1}, {"max_deviation": 0}, {"max_deviation": 2},
    {"max_level": 1, "max_deviation": 4},
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def setting(target: str, **limits: int) -> Setting:
    view, wanted = ModelView.from_model(tiny_llama(layers=3)), Target.of(target)
    if wanted.kind == "depth":
        levels = made.drop_levels(view)
    else:
        method: Any = GPTQ(widths=(2, 3, 4, 5), group=16)
        if wanted.kind == "sparsity":
            method = SparseGPT(around=0.5, step=64, steps=4)
        data = [ids.tolist() for ids in SEQUENCES]
        request = CompressionRequest("test", data=data, offers=[method.compression_levels], progress=False)
        levels = request.levels(view, module_names(view, wanted))
    evaluator = Evaluator(view, levels, SEQUENCES, most_perplexity=math.inf)
    return Setting(levels, problem(view, levels, wanted, **limits), evaluator, 40)


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("target", ["depth=1", "sparsity=0.5", "bits=3", "bits=2.5"])
def test_limits_are_kept_or_the_baseline_is_refused(target: str, limits: dict[str, int]) -> None:
    asked = setting(target, **limits)
    before, answered, refused = fingerprint(asked.view.model), [], {}
    with asked.levels:
        for name in baselines_of(asked.problem.target.kind):
            try:
                found = BASELINES[name](asked)
            except DataError as error:
                refused[name] = str(error)
            else:
                assert asked.problem.space.within(found.state), name
                assert asked.problem.space.cost(found.state) <= total(asked) * (1 + 1e-12), name
                answered.append(name)
    assert {"uniform", "random"} <= set(answered)
    for name, said in refused.items():
        assert f"the baseline {name.removesuffix('_layers')}" in said
        assert "knows nothing of max_level and max_deviation" in said
    assert fingerprint(asked.view.model).differences(before) == []


def total(asked: Setting) -> float:
    space = asked.problem.space
    return sum(space.budgets.values()) if space.budget is None else space.budget


def test_without_limits_none_is_refused_for_them() -> None:
    for target in ("depth=1", "sparsity=0.5", "bits=3"):
        asked = setting(target)
        for name in baselines_of(asked.problem.target.kind):
            BASELINES[name](asked)


@pytest.mark.parametrize("seed", range(10))
def test_the_knapsack_is_the_best_of_what_levels_allow(seed: int) -> None:
    draw = Random(seed)
    units = [Unit(f"u{i}", "all", tuple(UnitLevel(str(c), c) for c in range(5, 0, -1))) for i in range(5)]
    damages = [[0.0, *sorted(draw.random() for _ in range(4))] for _ in units]
    space = Space(units, 15, start=(2,) * 5, max_level=1)
    found = optimum(space, damages)
    assert space.within(found)
    assert set(found) <= {1, 2, 3}

    def damage(state: tuple[int, ...]) -> float:
        return math.fsum(own[place] for own, place in zip(damages, state, strict=True))

    assert damage(found) == pytest.approx(min(map(damage, space.states())))
    assert damage(optimum(Space(units, 15), damages)) <= damage(found)
    assert all(low < high for own in damages for low, high in pairwise(own))
