"""Figures that a loss hook logs beside its terms: means that are watched and never added to the loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RunningMean"]


@dataclass(frozen=True, slots=True, eq=False)
class RunningMean:
    """A weighted mean that can be added up over micro-batches, steps and processes.

    :param total: sum of the weighted values, a float scalar without gradient. :param weight: sum of their weights.
    """

    total: Tensor
    weight: Tensor

    @classmethod
    def of(cls, value: Tensor | float, weight: Tensor | float = 1.0) -> RunningMean:
        """Of values of any shape, and weights that fit them; what has the weight 0 may be NaN."""
        values = torch.as_tensor(value).detach()
        values = values if values.is_floating_point() else values.float()
        if isinstance(weight, Tensor):
            weights = weight.detach().to(values.device, values.dtype, non_blocking=True).expand_as(values)
        else:  # made where the values are, so that nobody waits for a copy
            weights = torch.full_like(values, weight)
        return cls(torch.where(weights != 0, values * weights, 0.0).sum(), weights.sum())

    def __add__(self, other: RunningMean) -> RunningMean:
        """Of both."""
        return RunningMean(self.total + other.total, self.weight + other.weight)

    @property
    def mean(self) -> Tensor:
        """The weighted mean, a scalar; NaN where nothing has a weight."""
        return self.total / self.weight
