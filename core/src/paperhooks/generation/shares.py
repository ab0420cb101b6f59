"""Which process answers what: shares by the hash of an id, in any order of the data and on any machine."""

from __future__ import annotations

import hashlib

from paperhooks.errors import DataError
from paperhooks.generation.requests import Backend
from paperhooks.io.processes import Ranks

__all__ = ["check_shard", "in_shard", "replicas"]


def check_shard(shard: tuple[int, int] | None) -> None:
    """Raise DataError unless ``shard`` is an index and a count with 0 <= index < count."""
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise DataError(f"shard = {shard} must be (index, count) with 0 <= index < count, such as (0, 2)")


def in_shard(key: str, shard: tuple[int, int] | None) -> bool:
    """Whether an id belongs to a share: it hashes to it; without a share all do."""
    return shard is None or int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % shard[1] == shard[0]


def replicas(backend: Backend, shard: tuple[int, int] | None, noun: str) -> Ranks | None:
    """The processes by replicas of what answers; None for one that does a shard and knows of no other.

    :raises DataError: a shard of processes that hold parts of one model.
    """
    ranks = backend.ranks()
    if shard is None:
        return ranks
    if ranks.in_step:
        raise DataError(
            f"shard = {shard} is for processes that know nothing of one another, and these hold parts of one model; "
            f"leave it out, and they share the {noun}s"
        )
    return None
