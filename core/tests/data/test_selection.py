"""Choosing rows: the official rule, ties, NaN, budgets, quotas, noise, duplicates; in blocks as in memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks.data import choose as select
from paperhooks.data import top_rows
from paperhooks.data.top_rows import ordered_keys

FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-45, -1e-45, 3.4e38, math.inf, -math.inf, math.nan, 0.5, 2.5])


def plain(values: np.ndarray, k: int) -> list[int]:
    """The k best by a stable sort, NaN never."""
    known = [i for i in range(len(values)) if not math.isnan(values[i])]
    return sorted(sorted(known, key=lambda i: (-values[i], i))[:k])


@pytest.mark.parametrize(("ratio", "k"), [(0.29, 28), (0.57, 56), (0.58, 57), (0.5, 50)])
def test_k_is_the_floor_of_the_float_product(ratio: float, k: int) -> None:
    assert len(select(np.arange(100, dtype=np.float32), ratio=ratio)) == k


@settings(max_examples=80, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=40), st.integers(0, 40), st.integers(1, 7))
def test_blocks_and_ties_change_nothing(values: list[float], k: int, block: int) -> None:
    array = np.array(values, dtype=np.float32)
    size = top_rows._BLOCK
    try:
        top_rows._BLOCK = block
        found = select(array, count=k)
    finally:
        top_rows._BLOCK = size
    assert found.rows.tolist() == plain(array, k)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FLOATS, st.integers(1, 9)), min_size=1, max_size=30), st.integers(0, 120), st.integers(1, 7))
def test_budgets_of_tokens_are_filled_from_the_best_on(rows, budget: int, block: int) -> None:
    values, lengths = np.array([v for v, _ in rows], dtype=np.float32), np.array([n for _, n in rows])
    size = top_rows._BLOCK
    try:
        top_rows._BLOCK = block
        found = select(values, tokens=budget, lengths=lengths)
    finally:
        top_rows._BLOCK = size
    wanted, left = [], budget
    for i in sorted((i for i in range(len(values)) if not math.isnan(values[i])), key=lambda i: (-values[i], i)):
        if lengths[i] > left:
            break
        wanted.append(i)
        left -= lengths[i]
    total = int(lengths[found.rows].sum())
    assert total <= budget
    # Whole buckets above the cut are taken, so only where a row stops the run may the two differ: by whole rows.
    assert found.rows.tolist() == sorted(wanted)


def test_keys_are_in_the_order_of_floats() -> None:
    values = np.array([-np.inf, -1e30, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1e30, np.inf], dtype=np.float32)
    keys = ordered_keys(values).astype(np.int64)
    assert keys[4] == keys[5]
    assert (np.diff(keys) >= 0).all()
    assert (np.diff(keys) > 0).sum() == 8
    assert ordered_keys(np.array([np.nan, -np.nan], dtype=np.float32)).tolist() == [0, 0]


def test_more_than_there_is_gives_all_that_has_a_score() -> None:
    values = np.array([1, np.nan, 3], dtype=np.float32)
    found = select(values, ratio=1.0)
    assert found.rows.tolist() == [0, 2]
    assert (found.about["asked"], found.about["unscored"]) == (3, 1)
    nothing = select(np.full(4, np.nan, dtype=np.float32), count=2)
    assert len(nothing) == 0
    assert math.isnan(nothing.cut)


def test_quotas_keep_a_share_of_every_domain() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=100).astype(np.float32)
    domains = np.array(["a"] * 70 + ["b"] * 30)
    values[:70] += 10
    assert select(values, ratio=0.5).mask()[70:].sum() == 0
    same = select(values, ratio=0.5, domains=domains, quota="domain")
    assert (same.mask()[:70].sum(), same.mask()[70:].sum()) == (35, 15)
    for name, part in (("a", slice(0, 70)), ("b", slice(70, 100))):
        alone = select(values[part], ratio=0.5)
        assert (same.rows[domains[same.rows] == name] - part.start).tolist() == alone.rows.tolist()
    given = select(values, ratio=0.5, domains=domains, quota={"a": 0.1, "b": 0.9})
    assert (given.mask()[:70].sum(), given.mask()[70:].sum()) == (7, 27)
    counted = select(values, count=51, domains=domains, quota="domain")
    assert (counted.mask()[:70].sum(), counted.mask()[70:].sum()) == (36, 15)
    lengths = np.full(100, 10)
    budget = select(values, tokens=500, lengths=lengths, domains=domains, quota="domain")
    assert (budget.mask()[:70].sum(), budget.mask()[70:].sum()) == (35, 15)
    with pytest.raises(DataError, match="names the domain 'c'; the corpus has 'a', 'b'"):
        select(values, ratio=0.5, domains=domains, quota={"c": 1})
    with pytest.raises(DataError, match="needs the domain of every row"):
        select(values, ratio=0.5, quota="domain")


def test_noise_is_seeded_and_vanishes_with_its_temperature() -> None:
    values = np.random.default_rng(1).normal(size=3000).astype(np.float32)
    best = select(values, ratio=0.3)
    drawn = [select(values, ratio=0.3, temperature=1.0, seed=s).rows.tolist() for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert select(values, ratio=0.3, temperature=1e-9, seed=1).rows.tolist() == best.rows.tolist()
    overlap = len(set(drawn[0]) & set(best.rows.tolist())) / len(best)
    assert 0.3 < overlap < 0.9
    # With two rows, Gumbel noise takes the better one with probability e^d / (1 + e^d).
    pair = np.array([1.0, 0.0], dtype=np.float32)
    wins = sum(select(pair, count=1, temperature=1.0, seed=s).rows[0] == 0 for s in range(600))
    assert wins / 600 == pytest.approx(math.e / (1 + math.e), abs=0.06)


def test_the_top_and_marked_rows_may_be_left_out() -> None:
    values = np.arange(20, dtype=np.float32)
    assert select(values, count=4, upper=0.1).rows.tolist() == [14, 15, 16, 17]
    drop = np.zeros(20, dtype=bool)
    drop[19] = True
    assert select(values, count=2, drop=drop).rows.tolist() == [17, 18]
    assert select(values, count=2, drop=drop).about["dropped"] == 1


def test_a_domain_without_a_ratio_of_its_own_has_that_of_all() -> None:
    values, domains = np.arange(20, dtype=np.float32), ["a"] * 10 + ["b"] * 10
    found = select(values, ratio=0.5, quota={"a": 0.2}, domains=domains)
    assert found.rows.tolist() == [8, 9, *range(15, 20)]


def test_the_upper_cut_does_not_see_the_noise() -> None:
    values = np.zeros(1010, dtype=np.float32)
    values[500:510] = 5
    for temperature in (0.0, 5.0):
        found = select(values, ratio=0.5, upper=0.01, temperature=temperature, seed=3)
        assert not set(range(500, 510)) & set(found.rows.tolist())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "not by none"),
        ({"ratio": 0.5, "count": 1}, "not by ratio, count"),
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"ratio": 1.1}, "ratio is 1.1"),
        ({"ratio": math.nan}, "ratio is nan"),
        ({"count": -1}, "count is -1"),
        ({"tokens": 5}, "needs the length of every row"),
        ({"ratio": 0.5, "temperature": -1}, "temperature = -1"),
        ({"ratio": 0.5, "upper": 1.0}, "upper = 1.0"),
        ({"ratio": 0.5, "drop": np.zeros(3, dtype=bool)}, "drop tells of 3 rows, the corpus has 4"),
        ({"count": 1, "domains": np.array(list("aabb")), "quota": {"a": 1}}, "goes with ratio="),
        ({"ratio": 0.5, "domains": np.array(list("aabb")), "quota": {"a": 2}}, "a quota is 2"),
    ],
)
def test_choices_that_cannot_be_are_refused(options, words: str) -> None:
    with pytest.raises(DataError, match=words):
        select(np.arange(4, dtype=np.float32), **options)


def test_an_empty_corpus_is_refused() -> None:
    with pytest.raises(DataError, match="has no rows"):
        select(np.zeros(0, dtype=np.float32), ratio=0.5)


def test_bitmaps() -> None:
    found = select(np.array([3, 1, 2, 9, 8, 0, 0, 0, 7], dtype=np.float32), count=3)
    assert found.bitmap().tolist() == [0b00011000, 0b10000000]
    assert found.mask().sum() == 3
