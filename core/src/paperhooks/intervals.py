"""Confidence intervals for what evaluations report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

__all__ = ["mean_interval", "wilson_interval"]


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927, equation without continuity correction).

    Raises ValueError unless 0 <= successes <= n, n >= 1 and 0 < confidence < 1.

    >>> [round(bound, 4) for bound in wilson_interval(8, 10)]
    [0.4902, 0.9433]
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} make no proportion")
    z, share = _quantile(confidence), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends the formula gives the bound exactly, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return low, 1.0 if successes == n else min(1.0, centre + half)


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """An interval for the mean of ``values``.

    Wilson's where all of them are 0 or 1; the normal approximation otherwise (the bare value for a single one). Raises
    ValueError for an empty sequence.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    if all(value in (0, 1) for value in values):
        return wilson_interval(int(sum(values)), len(values), confidence)
    centre = fmean(values)
    if len(values) == 1:
        return centre, centre
    half = _quantile(confidence) * stdev(values) / math.sqrt(len(values))
    return centre - half, centre + half


def _quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    return NormalDist().inv_cdf(0.5 + confidence / 2)
