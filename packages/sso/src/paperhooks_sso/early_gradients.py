"""The gradient of one group made before the next group runs, so that fewer groups are in memory at once.

W couples the groups: the gradient of the sums S of x+ and of x- depends on those of x, but not on one another's
(equations (3) to (5) of :mod:`paperhooks_sso.algorithm` are sums over both, given W). So x goes first and its graph is
kept; x+ goes next, and its gradient is made at once; x- goes last and its gradient is made together with that of x, for
which x+ is a constant. Two graphs are held instead of three; one of two in version 2, which has no x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from paperhooks import LossContext
from paperhooks.logprobs import Head
from torch import Tensor

from paperhooks_sso.algorithm import Objective, sso_loss
from paperhooks_sso.batches import BatchPart, pair_sums

__all__ = ["sums_in_turn"]

_Sums = tuple[Tensor, Tensor]


def sums_in_turn(
    context: LossContext,
    parts: Sequence[BatchPart],
    references: Sequence[Tensor | None],
    objective: Objective,
    head: Head,
    check: Callable[[LossContext, Sequence[_Sums], Sequence[Tensor | None]], None],
) -> list[_Sums]:
    """S [R] and |y| [R] of every part; those of the last but one are constants, whose gradient is made already.

    :param parts: one a group, in the order of ``objective.groups``. :param check: looks at sums and references before a
        gradient is made of them.
    """
    *early, last = parts
    with context.unsynchronised():
        found = [part.sums(context.model, head) for part in early]
        if early and torch.is_grad_enabled():
            check(context, found, references)
            values, counts = found[-1]
            slope = _slope(context, parts, references, objective, found)
            context.backward((values * slope).sum())
            found[-1] = values.detach(), counts
    return [*found, last.sums(context.model, head)]


def _slope(
    context: LossContext,
    parts: Sequence[BatchPart],
    references: Sequence[Tensor | None],
    objective: Objective,
    found: Sequence[_Sums],
) -> Tensor:
    """The derivative of this micro-batch's share of the loss by the sums that were found last, [R]."""
    *others, (values, counts) = [(own.detach(), number) for own, number in found]
    leaf = values.requires_grad_()
    # What is still to come adds to the loss, and nothing to this derivative: any pairs may stand in its place.
    groups = pair_sums(parts, [*others, (leaf, counts), (leaf.detach(), counts)], [*references[:-1], references[-2]])
    with torch.enable_grad():
        share = context.example_mean(sso_loss(groups, objective).examples)
    (slope,) = torch.autograd.grad(share, leaf)
    return slope
