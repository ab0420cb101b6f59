"""The filter against a plain reading of its rule."""

from __future__ import annotations

from random import Random
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks_sso.data import filter_pairs
from paperhooks_sso.data.pair_filter import MEANS


def read_plainly(rows: list[dict[str, float]]) -> list[int]:
    """The rule as the specification says it, stage by stage."""
    one = [
        i for i, r in enumerate(rows)
        if r["chosen_good"] > r["chosen_plain"] > r["chosen_bad"]
        and r["rejected_bad"] > r["rejected_plain"] > r["rejected_good"]
    ]  # fmt: skip
    if not one:
        return []
    p, q = (fmean(rows[i][name] for i in one) for name in ("chosen_plain", "rejected_plain"))
    two = [i for i in one if rows[i]["chosen_plain"] >= p and rows[i]["rejected_plain"] >= q]
    if not two:
        return []
    up = {i: rows[i]["chosen_good"] - rows[i]["chosen_bad"] for i in two}
    down = {i: rows[i]["rejected_bad"] - rows[i]["rejected_good"] for i in two}
    return [i for i in two if up[i] > fmean(up.values()) and down[i] > fmean(down.values())]


def drawn(number: int, seed: int) -> list[dict[str, float]]:
    """Pairs of which about half pass the first stage."""
    random = Random(seed)
    rows = []
    for _ in range(number):
        row = {name: -random.uniform(0.5, 2.0) for name in MEANS}
        if random.random() < 0.6:
            for side, wanted, other in (("chosen", "good", "bad"), ("rejected", "bad", "good")):
                row[f"{side}_{wanted}"] = row[f"{side}_plain"] + random.uniform(0.01, 0.5)
                row[f"{side}_{other}"] = row[f"{side}_plain"] - random.uniform(0.01, 0.5)
        rows.append(row)
    return rows


@pytest.mark.parametrize("seed", range(8))
def test_it_keeps_what_the_rule_keeps(seed: int) -> None:
    rows = drawn(150, seed)
    kept, report = filter_pairs(rows)
    assert kept == read_plainly(rows)
    assert report.given == 150
    assert report.given > report.ordered > report.likely >= report.apart == len(kept) > 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.fixed_dictionaries({name: st.integers(-3, 0).map(float) for name in MEANS}), max_size=12))
def test_ties_and_small_sets_never_divide_by_nothing(rows: list[dict[str, float]]) -> None:
    kept, report = filter_pairs(rows)
    assert kept == read_plainly(rows)
    assert report.apart == len(kept)


def test_nothing_is_kept_of_nothing_of_one_and_of_equals() -> None:
    passing = {
        "chosen_plain": -1.0, "chosen_good": -0.5, "chosen_bad": -2.0,
        "rejected_plain": -1.0, "rejected_good": -2.0, "rejected_bad": -0.5,
    }  # fmt: skip
    kept, report = filter_pairs([])
    assert (kept, report.given, dict(report.thresholds)) == ([], 0, {})
    for number in (1, 5):
        kept, report = filter_pairs([passing] * number)
        assert (kept, report.ordered, report.likely, report.apart) == ([], number, number, 0)
    failing = passing | {"chosen_good": -3.0}
    kept, report = filter_pairs([failing] * 3)
    assert (kept, report.ordered, report.likely) == ([], 0, 0)


def test_a_missing_number_is_named() -> None:
    with pytest.raises(DataError, match="pair 1 has no 'chosen_good'"):
        filter_pairs([dict.fromkeys(MEANS, 0.0), {"chosen_plain": 0.0}])
