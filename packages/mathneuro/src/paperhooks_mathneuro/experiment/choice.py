"""Choosing a ratio and a factor on one part of the items, and reporting on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import torch
from paperhooks import DataError
from paperhooks.io import choice

from paperhooks_mathneuro.experiment.effects import Effects

__all__ = ["Choice", "Goal", "choose", "split"]

#: Make the target better without hurting the rest, or remove it and spare the rest.
Goal: TypeAlias = Literal["improve", "remove"]


@dataclass(frozen=True, slots=True)
class Choice:
    """An edit that was chosen on development items.

    selection, scale
        The edit; no selection where leaving the model alone was best.
    value
        What it was chosen for, on the development items: fall of the target's NLL, or rise above that of the others.
    candidates
        How many edits it was chosen among.
    """

    selection: str
    scale: float
    value: float
    candidates: int


def split(records: Sequence[Any], *, share: float = 0.5, seed: int = 0) -> tuple[list[Any], list[Any]]:
    """PlacedRecords in two random parts, the first with ``share`` of them: for choosing, and for reporting.

    Raises DataError where a part would be empty.
    """
    size = round(len(records) * share)
    if not 0 < size < len(records):
        raise DataError(f"{len(records)} records cannot be split with a share of {share}: a part would be empty")
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    return [records[i] for i in order[:size]], [records[i] for i in order[size:]]


def choose(effects: Effects, goal: Goal, *, among: Sequence[str] | None = None, tolerance: float = 0.01) -> Choice:
    """The best edit of an evaluation on development items.

    "improve" takes the edit after which the target's mean NLL is lowest, among those that raise no other side's by more
    than ``tolerance`` nats; leaving the model alone is a candidate. "remove" takes the edit that raises the target's
    NLL most beyond the others'.

    :param among: names of selections; all by default.
    :raises ValueError: another goal. :raises DataError: nothing to choose among.
    """
    choice("goal", goal, get_args(Goal))
    edits = [one for one in effects.edited if among is None or one.selection in among]
    if not edits:
        raise DataError("no edit was measured among those to choose from")
    target, *others = effects.sides
    best = Choice("", 1.0, 0.0, len(edits))
    for one in edits:
        gain = -float(effects.deltas(one, target).mean())
        rest = [float(effects.deltas(one, side).mean()) for side in others]
        value = gain if goal == "improve" else -gain - (sum(rest) / len(rest) if rest else 0.0)
        allowed = goal == "remove" or all(each <= tolerance for each in rest)
        if allowed and value > best.value:
            best = Choice(one.selection, one.scale, value, len(edits))
    return best
