"""The best rows of very many scores, exactly and in constant memory.

Scores are read in blocks, any number of times. The k-th largest is found from two histograms over 16 bits each of an
order-preserving view of float32; then one pass takes everything above it, and the first of its equals. NaN is never
taken; of equal scores the lower row wins, whatever the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

import numpy as np

__all__ = ["Array", "Blockwise", "best", "best_within", "blocks", "gumbel", "ordered_keys"]

Array: TypeAlias = np.ndarray[Any, Any]
#: Gives an array of a block of rows.
Blockwise: TypeAlias = Callable[[slice], Array]

_BLOCK: Final = 1 << 20
_HALF: Final = 1 << 16


def blocks(n: int) -> Iterator[slice]:
    """Slices of consecutive rows that cover ``n`` rows."""
    return (slice(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK))


def ordered_keys(values: Array) -> Array:
    """uint32 in the order of float32 ``values``: 0 for NaN, and one key for both zeros.

    >>> ordered_keys(np.array([-1, -0.0, 0.0, 1, np.nan], dtype=np.float32)).argsort(kind="stable").tolist()
    [4, 0, 1, 2, 3]
    """
    bits = (np.asarray(values, dtype=np.float32) + np.float32(0)).view(np.uint32)
    keys = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    found: Array = np.where(np.isnan(values), np.uint32(0), keys)
    return found


def gumbel(rows: slice, seed: int) -> Array:
    """Standard Gumbel noise of a block of rows, float32; the same for a row whatever else is drawn."""
    uniform = np.random.default_rng([seed, rows.start // _BLOCK]).random(rows.stop - rows.start)
    found: Array = (-np.log(-np.log(np.maximum(uniform, 1e-300)))).astype(np.float32)
    return found


def best(keys: Blockwise, n: int, k: int) -> Array:
    """The ``k`` rows with the largest keys, ascending: int64; fewer where fewer have a key above 0.

    :param keys: uint32 keys of a block of rows, 0 for rows that must not be taken.
    """
    return best_within(keys, lambda rows: np.ones(rows.stop - rows.start, dtype=np.int64), n, k)


def best_within(keys: Blockwise, costs: Blockwise, n: int, budget: int) -> Array:
    """The rows with the largest keys whose costs fit ``budget`` together, ascending: int64.

    Rows are taken from the best on; the first that does not fit ends it.
    """
    if budget <= 0:
        return np.zeros(0, dtype=np.int64)
    upper, above = _cut(_histogram(keys, costs, n, lambda k: (k >> 16, k > 0)), 0, budget)
    if upper < 0:  # everything fits
        return _taken(keys, costs, n, 0, None)
    lower, above = _cut(_histogram(keys, costs, n, lambda k: (k & 0xFFFF, (k >> 16 == upper) & (k > 0))), above, budget)
    key = (upper << 16) | lower
    return _taken(keys, costs, n, key, budget - above)


def _histogram(keys: Blockwise, costs: Blockwise, n: int, part: Callable[[Array], tuple[Array, Array]]) -> Array:
    total = np.zeros(_HALF, dtype=np.int64)
    for rows in blocks(n):
        bucket, inside = part(keys(rows))
        # bincount with weights is float64, which is exact for sums below 2**53
        total += np.bincount(bucket[inside], weights=costs(rows)[inside], minlength=_HALF).astype(np.int64)
    return total


def _cut(histogram: Array, above: int, budget: int) -> tuple[int, int]:
    """The bucket in which the budget is exceeded, and what the buckets above it cost; -1 where none is."""
    reached = above + histogram[::-1].cumsum()
    places = np.flatnonzero(reached > budget)
    if not len(places):
        return -1, int(reached[-1])
    place = int(places[0])
    return _HALF - 1 - place, int(reached[place - 1]) if place else above


def _taken(keys: Blockwise, costs: Blockwise, n: int, key: int, left: int | None) -> Array:
    """Rows above ``key``, and the first of its equals whose costs fit what is ``left``; none of these for None."""
    found: list[Array] = []
    for rows in blocks(n):
        own = keys(rows)
        taken = own > key
        if left is not None:
            same = np.flatnonzero(own == key)
            spent = costs(rows)[same].cumsum()
            fits = int(np.searchsorted(spent, left, "right"))
            taken[same[:fits]] = True
            if fits < len(same):
                left = None
            elif fits:
                left -= int(spent[-1])
        found.append(np.flatnonzero(taken).astype(np.uint32))  # within the block: half the size while all are collected
    kept, at = np.empty(sum(map(len, found)), dtype=np.int64), 0
    for rows, own in zip(blocks(n), found, strict=True):
        kept[at : at + len(own)] = own
        kept[at : at + len(own)] += rows.start
        at += len(own)
    return kept
