"""Layers that a checkpoint computes again, and wrappers of single layers, in several processes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from cases_layers import METHODS, WAYS, train
from paperhooks.testing import RankPool

#: Every way once; the others are marked slow.
CHOSEN = {
    ("noisy", "ddp", "after"),
    ("dice", "ddp-reentrant", "before"),
    ("noisy", "fsdp2", "before"),
    ("dice", "fsdp2-reentrant", "after"),
    ("dice", "fsdp2-then-wrapped", "after"),
    ("dice", "fsdp1", "before"),
    ("noisy", "fsdp1-wrapped", "before"),
}


def cases() -> list[Any]:
    found = itertools.product(METHODS, WAYS, ("before", "after"))
    allowed = (case for case in found if not (case[1].startswith("fsdp1") and case[2] == "after"))  # refused by name
    marks = {case: () if case in CHOSEN else (pytest.mark.slow,) for case in allowed}
    return [pytest.param(*case, marks=marks[case], id="-".join(case)) for case in marks]


@pytest.mark.parametrize(("method", "way", "when"), cases())
def test_training_equals_one_process_without_wrappers(ranks: RankPool, method: str, way: str, when: str) -> None:
    ranks.run(train, method, way, when)
