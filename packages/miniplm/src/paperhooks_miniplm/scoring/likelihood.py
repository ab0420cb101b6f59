"""Negative log-likelihoods of rows, as section 2.4 counts them: core's, under the names of the paper's steps.

For a row of ids with n entries the model reads the first n - 1 and predicts the last n - 1. A prediction counts unless
it is made from the end token: where padding is the end token, as in the official code, the first token of every further
document in a row is not predicted.
"""

from __future__ import annotations

import torch
from paperhooks.logprobs import LogLikelihood, OverLong, RowScores, ScoringWarning, longest_readable, row_pieces
from torch import Tensor

from paperhooks_miniplm.algorithm import IGNORED, counted_inputs

__all__ = ["LogLikelihood", "OverLong", "RowScores", "ScoringWarning", "fitted", "labels_of", "longest_readable"]

fitted = row_pieces


def labels_of(ids: Tensor, lengths: Tensor, end: int | None) -> Tensor:
    """What every position is to predict: int64 [B, T - 1], -100 where nothing counts.

    :param ids: int64 [B, T], padded on the right. :param lengths: real ids of each row, int64 [B].
    :param end: the end token, from which nothing is predicted; None predicts from all.
    """
    labels = ids[:, 1:].clone()
    there = torch.arange(1, ids.shape[1], device=ids.device) < lengths[:, None]
    counted = there & counted_inputs(ids[:, :-1], () if end is None else (end,))
    return labels.masked_fill(~counted, IGNORED)
