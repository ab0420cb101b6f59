"""Probes and alarms: what they are made of, and at which values they go off."""

from __future__ import annotations

import math
from typing import Any

import pytest
from paperhooks_sso import AlarmLimits
from paperhooks_sso.probes import PROBES, margin_alarms, pair_alarms, probe_values, weights_of

MEANS = {
    "chosen_plain": -1.0, "chosen_good": -0.5, "chosen_bad": -2.0, "rejected_plain": -1.5, "rejected_good": -3.0,
    "rejected_bad": -0.75, "ordinary_plain": -0.25, "ordinary_bad": -1.25,
}  # fmt: skip


def test_probes_are_differences_of_means() -> None:
    other = {name: value - 1 for name, value in MEANS.items()}
    found = probe_values([MEANS, other])
    assert tuple(found) == PROBES
    assert found["plain_margin"] == 0.5
    assert found["good_margin"] == 2.5
    assert found["bad_margin"] == 0.75
    assert found["chosen_gap"] == 1.5
    assert found["rejected_gap"] == 2.25
    assert found["chosen_mean"] == -1.5
    assert found["chosen_likelihood"] == pytest.approx((math.exp(-1) + math.exp(-2)) / 2)
    without = {name: value for name, value in MEANS.items() if not name.startswith("ordinary")}
    assert set(PROBES) - set(probe_values([without])) == {"bad_margin", "ordinary_likelihood"}
    assert probe_values([]) == {}
    assert weights_of([MEANS], 0.66) == [pytest.approx(1 / (1 + math.exp(-(0.66 * 1.0 + 0.34 * 1.5))))]


def report(**changed: Any) -> dict[str, Any]:
    return {
        "prompts": 20, "kept": 10, "dropped": {"same": 4, "cut": 0}, "cut": 0.1, "same": 0.2, "leaking": 0.0,
        "lengths": {"chosen": 100.0}, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "name", "words"),
    [
        ({"kept": 7}, "min_pairs", r"7 of 20 prompts gave a pair, and 8 are wanted \(same 4\)"),
        ({"cut": 0.6}, "cut", "60% of the prompts have an answer that was cut.*50% are allowed; raise max_new_tokens"),
        ({"same": 0.51}, "same", "51% of the prompts have answers that are alike"),
        ({"leaking": 0.9}, "leaking", "90% of the prompts have an answer that speaks of its principle"),
        ({"lengths": {"chosen": 201.0}}, "length_growth", r"2 times as long as at the beginning \(100 to 201 tokens\)"),
    ],
)
def test_pairs_set_off_the_alarm_of_what_is_wrong(changed: Any, name: str, words: str) -> None:
    assert pair_alarms(report(), report(), AlarmLimits()) == []
    (alarm,) = pair_alarms(report(**changed), report(), AlarmLimits())
    assert alarm.name == name
    import re

    assert re.search(words, alarm.sentence)
    off = AlarmLimits(**{name: None})
    assert pair_alarms(report(**changed), report(), off) == []


def test_one_is_told_as_one() -> None:
    (alarm,) = pair_alarms(report(prompts=1, kept=0), report(), AlarmLimits(min_pairs=1))
    assert alarm.sentence.startswith("0 of 1 prompt gave a pair, and 1 is wanted (same 4); give more prompts")


def test_a_gap_that_shrinks_and_margins_that_fall_are_alarms() -> None:
    first, limits = probe_values([MEANS]), AlarmLimits()
    assert margin_alarms(first, first, first, limits) == []
    closed = {**first, "chosen_gap": 0.1, "rejected_gap": 0.3}
    (alarm,) = margin_alarms(closed, None, first, limits)
    assert (alarm.name, alarm.value, alarm.threshold) == ("gap_kept", pytest.approx(0.2 / 1.875), 0.25)
    fallen = {**first, "good_margin": first["good_margin"] - 0.2, "bad_margin": first["bad_margin"] - 0.05}
    (alarm,) = margin_alarms(first, fallen, first, limits)
    assert alarm.name == "good_margin"
    assert "the good margin from 2.5 to 2.3" in alarm.sentence
    assert margin_alarms(first, fallen, first, AlarmLimits(margin_fall=None)) == []
    nothing = {**first, "chosen_gap": 0.0, "rejected_gap": 0.0}
    assert margin_alarms(nothing, None, nothing, limits) == []  # there was none to lose


@pytest.mark.parametrize("limits", [{"min_pairs": 0}, {"cut": -1}, {"length_growth": "x"}])
def test_limits_that_cannot_be_meant_are_named(limits: Any) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(limits))} is"):
        AlarmLimits(**limits)
