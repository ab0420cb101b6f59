"""The method itself: scores, the top of each side, and what is left of one without the other.

    S[i, j] = |W[i, j]| * c[j]          scores of one side; c[j] sums the norms of input channel j over its samples
    T       = the k largest of S,       k = floor(numel * ratio), for each weight matrix on its own
    I       = T_target minus T_reference

(arXiv 2410.16930, section on the method; the score is Wanda's with norms summed over samples.) Everything here works on
one matrix at a time, in float32, and gives the same entries on every device: scores are one rounded product each, and
ties at the threshold are taken in the order of their flat index.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import torch
from torch import Tensor

__all__ = [
    "Granularity",
    "Top",
    "compat_scores",
    "count",
    "groups",
    "isolate",
    "scores",
    "thresholds",
    "top",
]

#: Within what the top is taken: each weight matrix (the paper), each output (Wanda), or all matrices together.
Granularity: TypeAlias = Literal["matrix", "row", "global"]

_NO_THRESHOLD: Final = math.inf


def scores(weight: Tensor, channel_norms: Tensor, input_dim: int = 1) -> Tensor:
    """S = |W| * c, float32 in the shape of W.

    :param weight: [out, in] with ``input_dim`` 1, [in, out] with ``input_dim`` 0. :param channel_norms: c, [in].
    """
    c = channel_norms.to(weight.device, torch.float32)
    return weight.abs().float().mul_(c if input_dim == 1 else c[:, None])


def compat_scores(weight: Tensor, sample_norms: Tensor, input_dim: int = 1) -> Tensor:
    """S in the arithmetic of the official code, in the dtype of W: every norm rounded to bfloat16, the running sum over
    samples kept in the weight's dtype (in bfloat16 it stops growing at 256 equal terms).

    :param sample_norms: float32 [N, in], in the order of the samples.
    """
    magnitude = weight.abs()
    total = torch.zeros_like(magnitude)
    for norms in sample_norms.to(weight.device).bfloat16():
        total += magnitude * (norms if input_dim == 1 else norms[:, None])
    return total


def count(numel: int, ratio: float) -> int:
    """k = floor(numel * ratio).

    >>> count(331776, 0.05)
    16588
    """
    return int(numel * ratio)


def groups(matrix_scores: Tensor, granularity: Granularity, input_dim: int = 1) -> Tensor:
    """Scores as [G, n]: one row for each group of entries that compete with one another."""
    if granularity != "row":
        return matrix_scores.reshape(1, -1)
    return matrix_scores if input_dim == 1 else matrix_scores.T


@dataclass(frozen=True, slots=True, eq=False)
class Top:
    """Which entries of a group are its top: those above ``threshold`` and the first ties, ``k`` in all.

    threshold
        The k-th largest score of every group, [G]; infinite for k = 0.
    """

    threshold: Tensor
    k: int


def thresholds(grouped: Tensor, ks: Sequence[int]) -> list[Top]:
    """The k-th largest score of every group for several k, from one partial sort.

    :param grouped: [G, n]; see :func:`groups`. :param ks: each from 0 to n.
    """
    n = grouped.shape[1]
    wanted = sorted({n - k for k in ks if k > 0})
    found = dict(zip(wanted, _order_statistics(grouped, wanted), strict=True))
    none = torch.full((len(grouped),), _NO_THRESHOLD)
    return [Top(found[n - k] if k > 0 else none, k) for k in ks]


def _order_statistics(grouped: Tensor, places: Sequence[int]) -> list[Tensor]:
    """The values [G] at ``places`` of every group's ascending order."""
    if not places:
        return []
    if grouped.device.type == "cpu" and grouped.dtype == torch.float32:
        import numpy as np

        ordered = np.partition(grouped.numpy(), list(places), axis=1)
        return [torch.from_numpy(ordered[:, place].copy()) for place in places]
    return [grouped.kthvalue(place + 1, dim=1).values.cpu() for place in places]


def top(grouped: Tensor, chosen: Top, *, zeros: bool = False) -> Tensor:
    """The top of every group: bool [G, n], at most ``chosen.k`` a group.

    Entries that score 0 are never taken, unless ``zeros`` (the official code takes them when nothing else is left).
    """
    bar = chosen.threshold.to(grouped.device, grouped.dtype)[:, None]
    found = grouped >= bar
    if not zeros and not bool((bar > 0).all()):
        found &= grouped > 0
    # Sums in int32 are five times as fast as in int64, and a group has fewer entries than that counts.
    if bool((found.sum(1, dtype=torch.int32) > chosen.k).any()):  # ties: the first ones in flat order
        above = grouped > bar
        ties = found & ~above
        left = chosen.k - above.sum(1, dtype=torch.int32)
        found = above | (ties & (ties.cumsum(1, dtype=torch.int32) <= left[:, None]))
    return found


def isolate(target: Tensor, reference: Tensor) -> Tensor:
    """I = T_target minus T_reference, bool."""
    return target & ~reference
