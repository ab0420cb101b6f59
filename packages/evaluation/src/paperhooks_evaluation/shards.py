"""Sharing a run among processes: who answers which document, and waiting for the others."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from paperhooks.errors import DataError

from paperhooks_evaluation.task import Document

__all__ = ["check_shard", "share"]


def check_shard(shard: tuple[int, int] | None) -> None:
    """Raise DataError unless ``shard`` is an index and a count with 0 <= index < count."""
    if shard is not None and not 0 <= shard[0] < shard[1]:
        raise DataError(f"shard = {shard} must be (index, count) with 0 <= index < count, such as (0, 2)")


def share(documents: Iterable[Document], shard: tuple[int, int] | None) -> list[Document]:
    """The documents of a shard: those whose id hashes to it, in any order of the data and on any machine."""
    if shard is None:
        return list(documents)
    index, count = shard
    return [one for one in documents if _hash(one.id) % count == index]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
