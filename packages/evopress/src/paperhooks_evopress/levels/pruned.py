"""Which entries of a matrix are pruned at each level, chosen block by block as the sweep reaches them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["PrunedColumns", "smallest"]


class PrunedColumns:
    """The rule of SparseGPT: in each block of inputs those entries go whose loss, (w / U_jj)^2, is smallest.

    A level takes the same share of every block, and exactly its number of entries of the whole matrix.

    :param zeros: how many entries go at each level. :param factor, block: as for :func:`sweep`.
    """

    def __init__(self, zeros: Sequence[int], factor: Tensor, outputs: int, block: int) -> None:
        self._gone = [_by_block(each, len(factor), outputs, block) for each in zeros]
        self._diagonal = factor.diagonal()
        self.kept = torch.ones(len(zeros), len(factor), outputs, dtype=torch.bool, device=factor.device)

    def begin(self, start: int, stop: int, weights: Tensor) -> None:
        """Choose what goes of a block."""
        losses = (weights[:, start:stop] / self._diagonal[start:stop, None]).abs()  # ordered as their squares are
        for level, gone in enumerate(self._gone):
            self.kept[level, start:stop] = ~smallest(losses[level], gone[start])

    def settle(self, place: int, column: Tensor) -> Tensor:
        """Zero for what goes."""
        return torch.where(self.kept[:, place], column, 0)


def _by_block(zeros: int, inputs: int, outputs: int, block: int) -> dict[int, int]:
    """First input of each block to how many of its entries go: equal shares, rounded.

    What rounding loses or adds in all, the last blocks make up for, one entry each.
    """
    sizes = {start: (min(start + block, inputs) - start) * outputs for start in range(0, inputs, block)}
    gone = {start: round(size * zeros / (inputs * outputs)) for start, size in sizes.items()}
    step = 1 if sum(gone.values()) < zeros else -1
    for start in reversed(sizes):
        if sum(gone.values()) == zeros:
            break
        if 0 <= gone[start] + step <= sizes[start]:
            gone[start] += step
    return gone


def smallest(values: Tensor, count: int) -> Tensor:
    """Where exactly ``count`` smallest entries are, bool of the shape of ``values``; among equal ones the first."""
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    flat = values.flatten()
    bound = _smallest_value(flat, count)
    found = flat <= bound
    spare = int(found.sum()) - count
    if spare:  # of those at the bound, the last ones stay
        equal = flat == bound
        found &= ~equal | (equal.cumsum(0) <= int(equal.sum()) - spare)
    return found.view_as(values)


def _smallest_value(flat: Tensor, count: int) -> float:
    """The ``count``-th smallest entry."""
    if flat.device.type == "cpu":  # numpy finds it in a tenth of the time of torch
        return float(np.partition(flat.numpy(), count - 1)[count - 1])
    return float(flat.kthvalue(count).values)
