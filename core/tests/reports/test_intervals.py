"""p values of paired differences: exact for few, never too small on data without an effect."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
from paperhooks.reports import paired_p, smallest_p


@pytest.mark.parametrize("n", [1, 2, 3, 6, 9])
def test_few_differences_are_flipped_in_all_ways(n: int) -> None:
    values = np.random.default_rng(n).normal(0.4, 1, n).round(1)
    sums = [
        abs(sum(sign * value for sign, value in zip(s, values, strict=True)))
        for s in itertools.product((1, -1), repeat=n)
    ]
    assert paired_p(values) == pytest.approx(sum(s >= abs(values.sum()) - 1e-9 for s in sums) / 2**n)
    assert paired_p(np.arange(1.0, n + 1)) == smallest_p(n) == 2 / 2**n


def test_the_smallest_value_is_said() -> None:
    """Six differences cannot be significant at 0.03, whatever they are."""
    assert paired_p([0.5, 0.6, 0.7, 0.5, 0.4, 0.6]) == smallest_p(6) == 0.03125
    assert paired_p(np.full(21, 0.3) + np.arange(21), resamples=999) == smallest_p(21, resamples=999) == 1 / 1000


def test_values_without_an_effect_give_one() -> None:
    for n in (1, 8, 20, 21, 40):
        assert paired_p([0.0] * n) == 1.0
        assert paired_p([0.1, -0.1] * n) == 1.0


def test_an_effect_is_seen_and_draws_can_be_repeated() -> None:
    values = np.random.default_rng(0).normal(1, 0.1, 50)
    assert paired_p(values) == smallest_p(50) < 1e-3
    noise = np.random.default_rng(1).normal(0.2, 1, 60)
    assert paired_p(noise) == paired_p(noise.tolist()) != paired_p(noise, seed=1)
    state = np.random.get_state()[1].copy()
    paired_p(noise)
    assert (np.random.get_state()[1] == state).all()


def test_large_samples_agree_with_the_t_test() -> None:
    """For 400 draws the studentised mean is as good as normal."""
    values = np.random.default_rng(3).exponential(1, 400) - 0.92
    t = values.mean() / (values.std(ddof=1) / 20)
    assert paired_p(values) == pytest.approx(math.erfc(abs(t) / math.sqrt(2)), abs=0.015)


@pytest.mark.parametrize(
    ("n", "draws"),
    [(4, 2000), (6, 2000), (10, 2000), (20, 100), pytest.param(20, 2000, marks=pytest.mark.slow), (30, 2000)],
)
def test_a_share_of_at_most_six_in_a_hundred_falls_below_a_twentieth(n: int, draws: int) -> None:
    data = np.random.default_rng(n).normal(0, 1, (draws, n))
    found = np.array([paired_p(row, resamples=999) for row in data])
    assert (found < 0.05).mean() <= (0.06 if draws == 2000 else 0.12)
    assert found.min() >= smallest_p(n, resamples=999)


def test_all_flips_of_twenty_are_quick() -> None:
    begin = time.process_time()
    paired_p(np.random.default_rng(0).normal(0, 1, 20))
    assert time.process_time() - begin < 0.5


def test_what_makes_no_test_is_refused() -> None:
    for values in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match="make no test"):
            paired_p(values)
    with pytest.raises(ValueError, match="0 flips"):
        paired_p([1.0], resamples=0)
