"""Every method on every spread, attached before and after: as one process. A chosen set runs by default."""

from __future__ import annotations

from pathlib import Path

from cases import METHODS, equals_one_process
from paperhooks.testing import RankPool
from selection import crossed
from spreads import SPREADS

#: Every spread once and every method once; the others are marked slow.
CHOSEN = {
    ("pyramiddrop", "ddp", "after"),
    ("distil", "ddp-static", "after"),
    ("distil", "ddp-compiled", "before"),
    ("distil", "fsdp2-root", "after"),
    ("distil_term", "fsdp2-resharded", "before"),
    ("distil", "fsdp2-tail", "after"),
    ("cca", "fsdp2-checkpointing", "before"),
    ("random", "fsdp2-wrapped", "before"),
    ("pyramiddrop", "fsdp2-bfloat16", "after"),
    ("pyramiddrop", "tp", "after"),
    ("key_norm", "tp", "after"),
    ("cca", "tp", "after"),
    ("distil", "tp", "after"),
    ("both", "fsdp2-root", "before"),
    ("pyramiddrop", "offload-cpu", "after"),
    ("cca", "offload-disk", "after"),
}


def possible(method: str, way: str, when: str) -> bool:
    spread = SPREADS[way]
    return not (spread.loads and when == "before") and (spread.trains or not method.startswith("distil"))


@crossed(METHODS, SPREADS, CHOSEN, possible)
def test_equals_one_process(ranks: RankPool, tmp_path: Path, method: str, way: str, when: str) -> None:
    limit = 280 if "compiled" in way else 60  # a method that picks tokens compiles for every length
    ranks.run(equals_one_process, method, way, when, tmp_path, limit=limit)
