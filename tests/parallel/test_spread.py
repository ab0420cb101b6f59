"""How a model is spread is read off its modules, the same on every rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cases_spread as cases
import pytest
from paperhooks.testing import RankPool

#: What a view says on the first of two ranks.
EXPECTED: dict[str, dict[str, Any]] = {
    "ddp": {"kinds": ["ddp"], "group": [0, 1], "in_step": False, "replicas": 2, "heads": [4, 4], "units": 0},
    "fsdp2-root": {
        "kinds": ["fsdp2"], "group": [0, 1], "in_step": True, "replicas": 2, "units": 5,
        "of head": "FSDPLlamaForCausalLM",
    },
    "fsdp2-tail": {"kinds": ["fsdp2"], "units": 7, "of head": "FSDPLinear"},
    "tp": {
        "kinds": ["tp"], "group": [0, 1], "in_step": True, "replicas": 1, "heads": [2, 4],
        "text": "spread by tensor parallelism over 2 processes",
    },
    "offload-cpu": {"kinds": ["offload"], "group": [], "in_step": False, "replicas": 2},
    "offload-disk": {"kinds": ["offload"], "text": "offloaded by accelerate"},
}  # fmt: skip


@pytest.mark.parametrize("spread", EXPECTED)
def test_what_a_view_says(ranks: RankPool, tmp_path: Path, spread: str) -> None:
    first, second = ranks.run(cases.described, spread, tmp_path)
    assert {name: first[name] for name in EXPECTED[spread]} == EXPECTED[spread]
    together = first["replicas"] == 1
    assert [first["replica"], second["replica"]] == [0, 0 if together else 1]
    assert [first["leader"], second["leader"]] == [True, not together]
    for name in ("kinds", "group", "text", "of head"):
        assert first[name] == second[name], name


def test_wrappers_are_named(ranks: RankPool) -> None:
    ranks.run(cases.wrappers_are_named)


def test_an_open_context_parallel_is_refused(ranks: RankPool) -> None:
    ranks.run(cases.an_open_context_parallel_is_refused)


def test_a_tensor_parallel_group_counts_once(four_ranks: RankPool) -> None:
    assert four_ranks.run(cases.replicas_of_tensor_parallel_groups) == [
        [["tp"], 0, 2, True, [0, 1], 2],
        [["tp"], 0, 2, False, [0, 1], 2],
        [["tp"], 1, 2, True, [2, 3], 2],
        [["tp"], 1, 2, False, [2, 3], 2],
    ]


def test_meshes_of_two_dimensions(four_ranks: RankPool) -> None:
    for rank, found in enumerate(four_ranks.run(cases.meshes_of_two_dimensions)):
        assert found[:3] == [["fsdp2", "tp"], rank // 2, 2]
        assert found[3:] == [rank % 2 == 0, [0, 1, 2, 3], ["fsdp2"], 4, [0, 1, 2, 3]]


def test_a_mesh_without_names_is_refused(four_ranks: RankPool) -> None:
    four_ranks.run(cases.unnamed_meshes_are_refused)
