"""What tells a healthy loop from one that collapses: margins, gap, on-policy-ness, lengths; and alarms.

All of it is made of mean log-probabilities a of answers under prompts (:func:`paperhooks_sso.data.answer_means`) and of
the report of the pairs. x+ and x- are the prompt with a good and with a bad principle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any, Final

import torch
from paperhooks.errors import counted
from paperhooks.generation import Response
from paperhooks.io import number, optional, whole

__all__ = [
    "PROBES",
    "Alarm",
    "AlarmLimits",
    "failure_alarms",
    "failures",
    "margin_alarms",
    "pair_alarms",
    "probe_values",
    "weights_of",
]

#: Name of a probe to (sign, name of a mean) pairs that are summed; of the last ones exp is taken.
_SUMS: Final[Mapping[str, tuple[tuple[int, str], ...]]] = {
    "plain_margin": ((1, "chosen_plain"), (-1, "rejected_plain")),
    "good_margin": ((1, "chosen_good"), (-1, "rejected_good")),
    "bad_margin": ((1, "ordinary_bad"), (-1, "chosen_bad")),
    "chosen_gap": ((1, "chosen_good"), (-1, "chosen_bad")),
    "rejected_gap": ((1, "rejected_bad"), (-1, "rejected_good")),
    "chosen_mean": ((1, "chosen_plain"),),
    "rejected_mean": ((1, "rejected_plain"),),
}
_LIKELY: Final[Mapping[str, str]] = {
    "chosen_likelihood": "chosen_plain", "rejected_likelihood": "rejected_plain",
    "ordinary_likelihood": "ordinary_plain",
}  # fmt: skip
#: Names of all probes, in order.
PROBES: Final = (*_SUMS, *_LIKELY)


@dataclass(frozen=True, slots=True)
class Alarm:
    """Something that has gone wrong, as data.

    :param name: of the limit. :param value, threshold: what was found, and what is allowed.
    :param sentence: for people: what it is, and what to do.
    """

    name: str
    value: float
    threshold: float
    sentence: str


@dataclass(frozen=True, slots=True)
class AlarmLimits:
    """What stops the loop; None switches an alarm off.

    min_pairs
        Fewest pairs to train on.
    failed
        Largest share of questions to the model that may end in an error. While there are more, another call asks them
        again.
    cut, same, leaking
        Largest shares of prompts with an answer that met its limit of tokens, with answers that are alike, or that
        speak of their principle.
    length_growth
        Largest ratio of the mean length of y+ to that of the model that the loop began with.
    gap_kept
        Smallest share of the first iteration's gap between principles that fresh pairs must still have.
    margin_fall
        By how much the margin of the good or the bad group may fall in training, in nats a token.

    :raises ValueError: a limit that cannot be meant.
    """

    min_pairs: int | None = 8
    failed: float | None = 0.0
    cut: float | None = 0.5
    same: float | None = 0.5
    leaking: float | None = 0.5
    length_growth: float | None = 2.0
    gap_kept: float | None = 0.25
    margin_fall: float | None = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "min_pairs", optional(whole, "min_pairs", self.min_pairs, at_least=1))
        for each in fields(self)[1:]:
            object.__setattr__(self, each.name, optional(number, each.name, getattr(self, each.name), low=0))


def probe_values(means: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every probe of :data:`PROBES` over pairs; those that no pair can tell are left out.

    ``plain_margin``, ``good_margin``, ``bad_margin``
        a of the preferred minus a of the dispreferred answer, of the three groups.
    ``chosen_gap``, ``rejected_gap``
        How far the principles tell an answer apart: a under the principle it was sampled for, minus a under the other.
    ``chosen_mean``, ``rejected_mean``
        a under the plain prompt.
    ``chosen_likelihood``, ``rejected_likelihood``, ``ordinary_likelihood``
        On-policy-ness, exp(a) under the plain prompt.
    """
    found: dict[str, float] = {}
    for name, parts in _SUMS.items():
        values = [sum(sign * row[mean] for sign, mean in parts) for row in means if all(m in row for _, m in parts)]
        found |= {name: fmean(values)} if values else {}
    for name, mean in _LIKELY.items():
        logs = torch.tensor([row[mean] for row in means if mean in row], dtype=torch.float64)
        found |= {name: float(logs.exp().mean())} if len(logs) else {}
    return found


def weights_of(means: Sequence[Mapping[str, float]], alpha: float) -> list[float]:
    """W of every pair, between 0.5 and 1 (equation (1) of :mod:`paperhooks_sso.algorithm`)."""
    mixed = [alpha * row["chosen_plain"] + (1 - alpha) * row["rejected_plain"] for row in means]
    weights: list[float] = torch.sigmoid(-torch.tensor(mixed, dtype=torch.float64)).tolist()
    return weights


def failures(replies: Mapping[str, Response], limit: float | None) -> Alarm | None:
    """The alarm of replies of which more than a share of ``limit`` ended in an error; None where no more did."""
    wrong = {key: reply.error for key, reply in replies.items() if reply.error}
    if limit is None or not wrong or len(wrong) <= limit * len(replies):
        return None
    key, error = next(iter(wrong.items()))
    share = len(wrong) / len(replies)
    return Alarm(
        "failed", share, limit,
        f"{len(wrong)} of {len(replies)} failed, such as {key} ({error}), and {limit:.0%} may; another call asks them "
        f"again, or goes on without them with the limit failed={math.ceil(100 * share) / 100:g}",
    )  # fmt: skip


def failure_alarms(replies: Mapping[str, Response], limits: AlarmLimits) -> list[Alarm]:
    """The alarm of answers that ended in an error, before pairs are made of the others."""
    found = failures(replies, limits.failed)
    return [] if found is None else [replace(found, sentence=f"of the answers, {found.sentence}")]


def pair_alarms(report: Mapping[str, Any], first: Mapping[str, Any], limits: AlarmLimits) -> list[Alarm]:
    """Alarms of pairs that were made, before anything is trained on them.

    :param report: fields of a :class:`~paperhooks_sso.data.PairReport`. :param first: that of the first iteration.
    """
    return list(_pair_alarms(report, first, limits))


def _pair_alarms(report: Mapping[str, Any], first: Mapping[str, Any], limits: AlarmLimits) -> Iterator[Alarm]:
    kept, dropped = report["kept"], {name: count for name, count in report["dropped"].items() if count}
    if limits.min_pairs is not None and kept < limits.min_pairs:
        why = ", ".join(f"{name} {count}" for name, count in dropped.items()) or "none was dropped"
        yield Alarm(
            "min_pairs", kept, limits.min_pairs,
            f"{kept} of {counted(report['prompts'], 'prompt')} gave a pair, and "
            f"{counted(limits.min_pairs, 'is', 'are')} wanted ({why}); give more prompts, or look at why they are "
            "dropped",
        )  # fmt: skip
    advice = {
        "cut": ("have an answer that was cut at the limit of tokens", "raise max_new_tokens"),
        "same": ("have answers that are alike", "the principles have no effect on this model any more"),
        "leaking": ("have an answer that speaks of its principle", "look at the principles"),
    }
    for name, (what, hint) in advice.items():
        limit = getattr(limits, name)
        if limit is not None and report[name] > limit:
            yield Alarm(
                name, report[name], limit,
                f"{report[name]:.0%} of the prompts {what}, and {limit:.0%} are allowed; {hint}",
            )  # fmt: skip
    before, now = first["lengths"].get("chosen", 0.0), report["lengths"].get("chosen", 0.0)
    if limits.length_growth is not None and before and now > limits.length_growth * before:
        yield Alarm(
            "length_growth", now / before, limits.length_growth,
            f"good answers have become {now / before:.2g} times as long as at the beginning ({before:.0f} to {now:.0f} "
            f"tokens), and {limits.length_growth:g} times are allowed: the usual sign of a collapse; go back to an "
            "earlier checkpoint, or train with W",
        )  # fmt: skip


def margin_alarms(
    before: Mapping[str, float], after: Mapping[str, float] | None, first: Mapping[str, float], limits: AlarmLimits
) -> list[Alarm]:
    """Alarms of probes: of fresh pairs before training, and of what training has done.

    :param before: probes of this iteration's pairs under the model that sampled. :param after: the same pairs after
        training, or None. :param first: those of the first iteration before training.
    """
    return [*_gap_alarm(before, first, limits), *(_fall_alarms(before, after, limits) if after is not None else ())]


def _gap_alarm(before: Mapping[str, float], first: Mapping[str, float], limits: AlarmLimits) -> Iterator[Alarm]:
    now, then = ((row.get("chosen_gap", 0.0) + row.get("rejected_gap", 0.0)) / 2 for row in (before, first))
    if limits.gap_kept is not None and then > 0 and now < limits.gap_kept * then:
        yield Alarm(
            "gap_kept", now / then, limits.gap_kept,
            f"good and bad principles tell answers apart by {now:.3g} nats a token, by {then:.3g} at the "
            f"beginning, and {limits.gap_kept:.0%} of it is wanted: pairs are no longer right; train with G",
        )  # fmt: skip


def _fall_alarms(before: Mapping[str, float], after: Mapping[str, float], limits: AlarmLimits) -> Iterator[Alarm]:
    for name, what in (("good_margin", "good"), ("bad_margin", "bad")):
        fall = before.get(name, 0.0) - after.get(name, 0.0)
        if limits.margin_fall is not None and fall > limits.margin_fall:
            yield Alarm(
                name, -fall, -limits.margin_fall,
                f"training has lowered the {what} margin from {before[name]:.3g} to {after[name]:.3g} nats a "
                f"token, and a fall of {limits.margin_fall:g} is allowed; lower the learning rate, or train with G",
            )  # fmt: skip
