"""The official learning-rate schedule (section 2.7): linear from zero, then a cosine down to a minimum."""

from __future__ import annotations

import math
from functools import partial

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["lr_at", "warmup_cosine"]


def lr_at(step: int, base: float, minimum: float, warmup: int, total: int) -> float:
    """Learning rate of an optimiser step, counted from 0: the first step has rate 0 unless ``warmup`` is 0.

    >>> [round(lr_at(step, 6e-4, 6e-5, 2000, 100_000), 7) for step in (0, 1000, 2000, 51_000, 100_000)]
    [0.0, 0.0003, 0.0006, 0.00033, 6e-05]

    :param base: rate at the end of the warm-up. :param minimum: rate at step ``total`` and after it.
    :raises ValueError: unless 0 <= ``warmup`` < ``total`` and 0 <= ``step``.
    """
    if not 0 <= warmup < total or step < 0:
        raise ValueError(f"step {step} with warmup {warmup} of {total}; expected 0 <= warmup < total and step >= 0")
    if step < warmup:
        return base * step / warmup
    done = (min(step, total) - warmup) / (total - warmup)
    return minimum + (base - minimum) / 2 * (1 + math.cos(math.pi * done))


def warmup_cosine(optimizer: Optimizer, *, warmup: int, total: int, minimum: float | None = None) -> LambdaLR:
    """:func:`lr_at` for every parameter group, from the rates that ``optimizer`` has.

    :param minimum: rate at the end, for all groups; a tenth of a group's own rate by default, as in the paper.
    :raises ValueError: as :func:`lr_at`, or a group whose rate is not above 0.
    """
    lr_at(0, 1.0, 0.0, warmup, total)
    rates = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
    if min(rates) <= 0:
        raise ValueError(f"the optimiser has learning rates {rates}; a schedule needs them above 0")
    ends = [0.1 if minimum is None else minimum / rate for rate in rates]
    return LambdaLR(optimizer, [partial(_factor, end=end, warmup=warmup, total=total) for end in ends])


def _factor(step: int, end: float, warmup: int, total: int) -> float:
    return lr_at(step, 1.0, end, warmup, total)
