"""Confidence intervals and p values for what evaluations report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import NormalDist, fmean, stdev
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

__all__ = ["bootstrap_interval", "holm", "mcnemar", "mean_interval", "paired_p", "smallest_p", "wilson_interval"]

#: Up to how many differences all sign flips are tried.
_EXACT: Final = 20
_FLIPS: Final = 10_000
_BLOCK: Final = 1 << 21


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion (Wilson 1927, equation without continuity correction).

    Successes may be a sum of credits from 0 to 1, which spread no more than whole ones do: the interval then is wider
    than it would have to be.

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


def bootstrap_interval(
    statistic: Callable[[Any], float],
    units: Sequence[Any] | np.ndarray[Any, Any],
    *,
    seed: int = 0,
    resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap of a statistic over independent units (Efron and Tibshirani 1993, section 13.3).

    Units are drawn with replacement; the statistic gets a list of them, or an array where ``units`` is one. What
    belongs together (the questions on one image) is one unit, which makes this the cluster bootstrap. Draws come from
    a generator of its own with ``seed``. Resamples on which the statistic is NaN are left out; both bounds are NaN when
    all are. Raises ValueError without units or resamples.

    >>> bootstrap_interval(lambda pairs: sum(a for a, _ in pairs) / len(pairs), [(1.0, "x")] * 4)
    (1.0, 1.0)
    """
    import numpy as np

    if len(units) == 0 or resamples < 1:
        raise ValueError(f"{len(units)} units and {resamples} resamples make no interval; both must be at least 1")
    tail = 50 - 50 * _checked(confidence)
    generator = np.random.default_rng(seed)
    values = [statistic(_drawn(units, generator.integers(len(units), size=len(units)))) for _ in range(resamples)]
    usable = [value for value in values if not math.isnan(value)]
    if not usable:
        return math.nan, math.nan
    low, high = np.percentile(usable, [tail, 100 - tail])
    return float(low), float(high)


def _drawn(units: Any, places: np.ndarray[Any, Any]) -> Any:
    # Fancy indexing of an array is a hundred times faster than a list of its rows.
    return units[places] if hasattr(units, "shape") else [units[i] for i in places.tolist()]


def _quantile(confidence: float) -> float:
    return NormalDist().inv_cdf(0.5 + _checked(confidence) / 2)


def _checked(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; it must lie between 0 and 1")
    return confidence


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: the p value of ``only_a`` against ``only_b`` documents right in one run alone.

    Under the null hypothesis either run is as likely to be the one that is right (McNemar 1947; exact binomial form).

    >>> mcnemar(1, 8)
    0.0390625
    """
    n = only_a + only_b
    tail: int = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**n)))  # integers up to here: 2**n overflows a float


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for testing all of them (Holm 1979): the chance that any of them is wrong stays at the level.

    The k-th smallest of n, k from 1, becomes the largest of (n - j + 1) p_(j) over j <= k, and at most 1.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, largest = [0.0] * len(order), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, (len(order) - rank) * p_values[place])
        corrected[place] = min(1.0, largest)
    return corrected


def paired_p(differences: Sequence[float] | np.ndarray[Any, Any], *, seed: int = 0, resamples: int = _FLIPS) -> float:
    """Two-sided p value of paired differences being symmetric around zero, by flipping their signs (Fisher 1935).

    Up to 20 differences all 2^n flips count, so the test is exact: under the hypothesis p is at most a with a
    probability of at most a. Above, ``resamples`` random ones and the observed one are compared by their studentised
    mean, which also makes it a test of the mean of a distribution that is not symmetric (Janssen 1999).
    :func:`smallest_p` is the resolution.

    :param differences: [n], n at least 1. :param seed: of the random flips, drawn by a generator of their own.
    :raises ValueError: no differences, one that is not finite, or no flips.

    >>> paired_p([0.1, 0.2, 0.4, 0.3]), smallest_p(4)
    (0.125, 0.125)
    """
    import numpy as np

    values = np.asarray(differences, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all() or resamples < 1:
        raise ValueError(f"{len(values)} differences and {resamples} flips make no test; give finite numbers, and some")
    values = values / (np.abs(values).max() or 1.0)  # sums of large numbers would be infinite
    # The sum of squares is the same under every flip, so that the studentised mean grows with the size of the sum.
    # What rounding adds to sums must not part those that are equal.
    least = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= _EXACT:
        sums = values[:1]
        for value in values[1:]:  # the first sign stays: the other half of all sums is the same but for its sign
            sums = np.concatenate([sums - value, sums + value])
        return float((np.abs(sums) >= least).mean())
    generator, extreme = np.random.default_rng(seed), 0
    step = max(1, _BLOCK // len(values))
    for start in range(0, resamples, step):
        signs = generator.integers(0, 2, size=(min(step, resamples - start), len(values)), dtype=np.int8)
        extreme += int((np.abs(2 * (signs @ values) - values.sum()) >= least).sum())
    return (1 + extreme) / (1 + resamples)


def smallest_p(n: int, *, resamples: int = _FLIPS) -> float:
    """The least p value that :func:`paired_p` can give for ``n`` differences."""
    return 2.0 ** (1 - n) if n <= _EXACT else 1 / (1 + resamples)
