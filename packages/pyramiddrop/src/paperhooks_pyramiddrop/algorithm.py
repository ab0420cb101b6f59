"""PyramidDrop in formulas, as functions on numbers and tensors (arXiv 2410.17247).

The decoder is cut into stages. At the end of every stage but the last, rho_s = lambda^s of the N0 visual tokens go on:
those to which the last instruction token pays the most attention (section 3.2). Text is never dropped. As in the
official code, the stage's end is the entry of the next layer r_s, whose norm and projections rank. B batch, T tokens of
the forward, n of them still alive, m rows that rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "choose",
    "even_layers",
    "importance",
    "instruction_ends",
    "kept_tokens",
    "last_of",
    "layer_flops",
    "preceding",
    "stage_ratios",
    "stand_ins",
]


# -- the schedule: where to drop, and how much -------------------------------------------------------------------------


def even_layers(n_layers: int, stages: int) -> tuple[int, ...]:
    """Drop layers r_s = s * floor(L / S): the even split behind the published FLOPs (stage ablation).

    >>> even_layers(32, 4)
    (8, 16, 24)
    """
    return tuple(s * (n_layers // stages) for s in range(1, stages))


def stage_ratios(ratio: float, drops: int) -> tuple[float, ...]:
    """Shares of the visual tokens that are left behind each drop: rho_s = lambda^s (section 3.2).

    >>> stage_ratios(0.5, 3)
    (0.5, 0.25, 0.125)
    """
    return tuple(ratio**s for s in range(1, drops + 1))


def kept_tokens(tokens: int, ratio: float) -> int:
    """How many of ``tokens`` visual tokens a share is: ``int(N0 * rho_s)``, cut off as in the official code.

    >>> kept_tokens(100, 0.29)
    28
    """
    return int(tokens * ratio)


def layer_flops(tokens: int, hidden: int, intermediate: int, kv_width: int) -> float:
    """Multiply-adds of one layer at n tokens: 4 n d^2 + 2 n^2 d + 3 n d m (section 3.3).

    The two of the four d^2 that belong to keys and values shrink with ``kv_width`` where heads share them.
    """
    linear = 2 * hidden * hidden + 2 * hidden * kv_width + 3 * hidden * intermediate
    return tokens * linear + 2 * tokens * tokens * hidden


# -- the rows that rank ------------------------------------------------------------------------------------------------


def last_of(rows: Tensor) -> Tensor:
    """The last True of every row, bool [B, T]: the last instruction token of a prompt; none where there is none."""
    position = torch.arange(1, rows.shape[1] + 1, device=rows.device) * rows
    return torch.zeros_like(rows).scatter(1, position.argmax(dim=1, keepdim=True), True) & rows


def instruction_ends(targets: Tensor, candidates: Tensor) -> Tensor:
    """In training: the ends of all instructions, bool [B, T] (official code; section 3.2 speaks of one).

    A row ranks if it is no target and the next token is one. Where that row is no candidate, the nearest before it.

    :param targets: bool [B, T], the tokens that the loss asks for. :param candidates: bool [B, T], rows that may rank.
    """
    return stand_ins(preceding(targets), candidates) & ~targets


def preceding(rows: Tensor) -> Tensor:
    """The rows in front of the given ones, bool [B, T]: those that predict them."""
    return torch.nn.functional.pad(rows[:, 1:], (0, 1), value=False)


def stand_ins(marked: Tensor, alive: Tensor) -> Tensor:
    """In place of every ``marked`` position the nearest one ``alive`` at or before it, if any; all bool [B, T]."""
    length = marked.shape[1]
    columns = torch.arange(length, device=marked.device).expand_as(marked)
    nearest = columns.masked_fill(~alive, -1).cummax(1).values
    found = nearest.masked_fill(~marked | (nearest < 0), length)  # a column behind the last, which is cut off
    return marked.new_zeros(len(marked), length + 1).scatter(1, found, True)[:, :-1]


# -- ranking and dropping ----------------------------------------------------------------------------------------------


def importance(attention: Tensor, valid: Tensor) -> Tensor:
    """The score of every token alive: the attention that the ranking rows pay it (section 3.2).

    :param attention: float32 [B, m, n], softmax(q K^T / sqrt(h)) of those rows, averaged over heads.
    :param valid: bool [B, m], which of the m rows there are; several (in training) are averaged.
    :return: float32 [B, n].
    """
    weight = valid.to(attention)[..., None]
    return (attention * weight).sum(1) / weight.sum(1).clamp(min=1)


def choose(scores: Tensor, segments: Tensor, protected: Tensor, keep: Tensor) -> Tensor:
    """Keep the best visual tokens of every segment, and all text (section 3.2; there a sample is one segment).

    :param scores: float [B, n]; NaN counts as the lowest score.
    :param segments: int64 [B, n]: 0 for text, s > 0 for a visual token of segment s.
    :param protected: bool [B, n]: visual tokens that must stay; they count towards ``keep``.
    :param keep: int64 [B, S+1]: tokens to keep of each segment (entry 0 is ignored). Never fewer than are protected.
    :return: bool [B, n]. Ties go to the earlier token.
    """
    visual = segments > 0
    scores = scores.to(segments.device).nan_to_num(nan=torch.finfo(scores.dtype).min)
    scores = scores.masked_fill(~visual, -torch.inf).masked_fill(protected & visual, torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, segments.gather(1, order).argsort(dim=1, stable=True))  # by segment, best first
    slots = torch.arange(order.shape[1], device=order.device).expand_as(order)
    place = torch.empty_like(order).scatter(1, order, slots)  # of each token in that order
    count = torch.zeros_like(keep).scatter_add(1, segments, torch.ones_like(segments))
    start = count.cumsum(1) - count
    must = torch.zeros_like(keep).scatter_add(1, segments, (protected & visual).long())
    limit = torch.maximum(keep, must)
    return ~visual | ((place - start.gather(1, segments)) < limit.gather(1, segments))
