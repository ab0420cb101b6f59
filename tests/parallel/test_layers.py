"""Layers that a checkpoint computes again, and wrappers of single layers, in several processes."""

from __future__ import annotations

from cases_layers import METHODS, WAYS, train
from paperhooks.testing import RankPool
from selection import crossed

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


def possible(method: str, way: str, when: str) -> bool:
    """FSDP1 after attaching is refused by name."""
    return not (way.startswith("fsdp1") and when == "after")


@crossed(METHODS, WAYS, CHOSEN, possible)
def test_training_equals_one_process_without_wrappers(ranks: RankPool, method: str, way: str, when: str) -> None:
    ranks.run(train, method, way, when)
