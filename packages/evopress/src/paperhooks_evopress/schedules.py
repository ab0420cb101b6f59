"""The published schedules, and ways to make them smaller."""

from __future__ import annotations

import math
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from paperhooks_evopress.algorithm import SearchSchedule, SelectionStage

__all__ = ["SCHEDULES", "depth_generations", "scaled", "schedule_of"]

#: What each schedule is, for pages and messages.
SCHEDULES: Final = MappingProxyType(
    {
        "paper": "the published settings for this kind of target",
        "light": "the published lightweight search: 16 offspring, 512 and then 8192 tokens",
        "quick": "for small models on a CPU: 8 offspring, 128 and then 512 tokens, at most 250 000 token-evaluations",
    }
)

_DEPTH: Final = SearchSchedule(160, 32, (SelectionStage(2, 2048), SelectionStage(1, 32768)))
_SPARSITY: Final = SearchSchedule(
    400, 64, (SelectionStage(8, 2048), SelectionStage(2, 16384), SelectionStage(1, 65536))
)
_BITS: Final = SearchSchedule(150, 128, (SelectionStage(16, 2048), SelectionStage(4, 16384), SelectionStage(1, 131072)))
_LIGHT: Final = SearchSchedule(
    400, 16, (SelectionStage(1, 512), SelectionStage(1, 8192)), initial=16, initial_tokens=512
)
_QUICK: Final = SearchSchedule(96, 8, (SelectionStage(2, 128), SelectionStage(1, 512)), initial=16, initial_tokens=128)
_PAPER: Final = MappingProxyType({"depth": _DEPTH, "sparsity": _SPARSITY, "bits": _BITS})


def depth_generations(blocks: int, removed: int) -> int:
    """k (n - k) / 1.5 generations for k of n blocks, which is 160 for 12 of 32; one at least.

    :raises ValueError: more blocks are removed than there are.
    """
    if not 0 <= removed <= blocks:
        raise ValueError(f"removed={removed}: expected a number from 0 to blocks={blocks}")
    return max(1, round(removed * (blocks - removed) / 1.5))


def schedule_of(name: str, target: str, *, blocks: int = 0, removed: int = 0) -> SearchSchedule:
    """A schedule by name (arXiv 2410.14649, table of hyper-parameters).

    :param name: ``"paper"``, ``"light"`` or ``"quick"``. :param target: kind of the target. Nothing is published for
        others than ``"depth"``, ``"sparsity"`` and ``"bits"``: they get the schedule of sparsity.
    :param blocks, removed: for depth, how many blocks there are and how many attentions (or MLPs, or whole blocks) are
        left out: with fewer choices the search is shorter. Without ``blocks`` it is as long as for 12 of 32.
    :raises ValueError: there is no such schedule, or more is removed than there is.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}: expected one of {', '.join(SCHEDULES)}")
    found = {"light": _LIGHT, "quick": _QUICK}.get(name) or _PAPER.get(target, _SPARSITY)
    if target != "depth" or not blocks:
        return found
    generations = depth_generations(blocks, removed)
    return replace(found, generations=generations if name == "paper" else min(found.generations, generations))


def scaled(schedule: SearchSchedule, share: float) -> SearchSchedule:
    """A schedule of at most, and about, a share of the token-evaluations: equal shares keep the ratio of two schedules.

    Offspring, survivors and tokens fall by the third root each, and generations by what is then left to save. The
    number of switches and the population stay as they are.

    :raises ValueError: the share is not above 0 and at most 1, or too small for one generation.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a number above 0 and at most 1")
    root = math.pow(share, 1 / 3)

    def less(value: int, least: int) -> int:
        return max(least, round(value * root))

    population = schedule.population
    stages = tuple(SelectionStage(less(s.survivors, population), less(s.tokens, 2)) for s in schedule.stages)
    small = replace(
        schedule,
        offspring=less(schedule.offspring, population),
        stages=stages,
        initial=less(schedule.initial, population),
        initial_tokens=less(schedule.initial_tokens, 2),
    )
    left = math.floor(schedule.evaluations * share) - small.initial * small.initial_tokens
    if (generations := left // small.generation_evaluations) < min(1, schedule.generations):
        least = (small.initial * small.initial_tokens + small.generation_evaluations) / schedule.evaluations
        raise ValueError(
            f"share={share}: too little for one generation, which takes about {least:.2g} of this schedule"
        )
    return replace(small, generations=min(generations, schedule.generations))
