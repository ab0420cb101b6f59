"""The method: scores, the top of each side, and what is left of one without the other, step by step.

    a_n[j]  = sqrt(sum over tokens t of X_n[t, j]^2)        step 1: norm of input channel j in sample n
    c[j]    = sum over samples n of a_n[j]                  steps 2 and 3
    S[i, j] = |W[i, j]| * c[j]                              step 3: scores of one side
    T       = the k largest of S, k = floor(numel * ratio)  step 4, for each weight matrix on its own
    I       = T_target minus T_reference                    steps 5 and 6
    W[i, j] <- s * W[i, j] for (i, j) in I                  step 7, in :mod:`paperhooks_mathneuro.surgery`

(arXiv 2410.16930, section on the method, in the steps of the official code, bryanchrist/MathNeuro at 88eb121; the score
is Wanda's with norms summed over samples.) Everything here works on one matrix at a time and gives the same entries on
every device: scores are one rounded product each, and ties at the threshold are taken in the order of their flat index.

Letters: B samples of a batch, N samples of a side, T tokens, D input channels; a matrix is [G, n] where G groups of n
entries have a top each, and one group in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

__all__ = ["Top", "channel_sums", "compat_scores", "count", "isolate", "scores", "squared_norms", "thresholds", "top"]

_NO_THRESHOLD: Final = math.inf


def squared_norms(inputs: Tensor, counted: Tensor) -> Tensor:
    """Step 1, before the root: sums of squares over the tokens that count, float32 [B, D].

    :param inputs: X, what a matrix reads, [B, T, D]. Widened first: squares of float16 overflow at 256.
    :param counted: bool [B, T], False for padding.
    """
    wide = inputs.float()
    if not bool(counted.all()):
        wide = wide.masked_fill(~counted.to(inputs.device, non_blocking=True)[..., None], 0.0)
    return wide.square().sum(1)


def channel_sums(sample_norms: Tensor, times: Tensor, *, squared: bool = False) -> Tensor:
    """Step 3: c[j] = sum_n times[n] a_n[j], float64 [D].

    :param sample_norms: a, [N, D]. :param times: how often each sample counts, [N]; once in the paper.
    :param squared: sum the squares, as Wanda does.
    """
    # Counts times norms and not a gather of rows: a resample then makes nothing of the size of all norms.
    weights = times.double()
    total = torch.zeros(sample_norms.shape[1], dtype=torch.float64)
    for part in weights.nonzero().flatten().split(64):
        wide = sample_norms[part].double()
        total += weights[part] @ (wide.square() if squared else wide)
    return total


def scores(weight: Tensor, channel_norms: Tensor, input_dim: int = 1) -> Tensor:
    """Step 3: S = |W| * c, float32 in the shape of W.

    :param weight: [out, in] with ``input_dim`` 1, [in, out] with ``input_dim`` 0. :param channel_norms: c, [in].
    """
    c = channel_norms.to(weight.device, torch.float32)
    return weight.abs().float().mul_(c if input_dim == 1 else c[:, None])


def compat_scores(weight: Tensor, sample_norms: Tensor, input_dim: int = 1) -> Tensor:
    """Steps 2 and 3 in the arithmetic of the official code, in the dtype of W: every norm rounded to bfloat16, the
    running sum over samples kept in the weight's dtype (in bfloat16 it stops growing at 256 equal terms).

    :param sample_norms: float32 [N, in], in the order of the samples.
    """
    magnitude = weight.abs()
    total = torch.zeros_like(magnitude)
    for norms in sample_norms.to(weight.device).bfloat16():
        total += magnitude * (norms if input_dim == 1 else norms[:, None])
    return total


def count(numel: int, ratio: float) -> int:
    """Step 4: k = floor(numel * ratio).

    >>> count(331776, 0.05)
    16588
    """
    return int(numel * ratio)


@dataclass(frozen=True, slots=True, eq=False)
class Top:
    """Step 4: which entries of a group are its top: those above ``threshold`` and the first ties, ``k`` in all.

    threshold
        The k-th largest score of every group, [G]; infinite for k = 0.
    """

    threshold: Tensor
    k: int


def thresholds(grouped: Tensor, ks: Sequence[int]) -> list[Top]:
    """Step 4: the k-th largest score of every group for several k, from one partial sort.

    :param grouped: scores [G, n]. :param ks: each from 0 to n.
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
    """Step 4: the top of every group, T: bool [G, n], at most ``chosen.k`` a group.

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
    """Step 6: I = T_target minus T_reference, bool in their shape."""
    return target & ~reference
