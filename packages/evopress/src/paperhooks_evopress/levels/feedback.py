"""From second moments of inputs to how an error in one column of a matrix is made up for by the columns after it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from paperhooks import DataError
from torch import Tensor

__all__ = ["Feedback"]


@dataclass(frozen=True, eq=False)
class Feedback:
    """What column sweeps take from the inputs of a matrix.

    factor
        [C, C], upper triangular U with U^T U the inverse of the damped Hessian, in the order of work.
    order
        int64 [C], the inputs in the order of work.
    dead
        bool [C], inputs that were always 0: their weights are of no use.
    """

    factor: Tensor
    order: Tensor
    dead: Tensor

    @classmethod
    def of(
        cls, hessian: Tensor, unused: Tensor | None = None, *, damping: float = 0.01, by_size: bool = False
    ) -> Feedback:
        """Damp a Hessian and factor it.

        :param hessian: [C, C] in float32 or float64, the sum of x x^T, at any scale; it is left as it is.
        :param unused: bool [C], inputs whose weights are all 0, which have to stay so and are set apart.
        :param damping: share of the mean of the diagonal that is added to it.
        :param by_size: work on inputs from the largest second moment to the smallest, and not in their own order.
        :raises DataError: a Hessian that is not finite, or that cannot be factored.
        """
        diagonal = hessian.diagonal()
        if not bool(hessian.isfinite().all()):
            raise DataError("the second moments of the inputs are not finite; look at the model and the data")
        dead = diagonal == 0
        if bool(dead.all()):  # nothing was read: no input is known to be of no use, and each stands for itself
            return cls.none(len(hessian), hessian)
        damped = hessian.clone()
        own = damped.diagonal()
        mean = diagonal[~dead].mean()
        own[dead] = mean
        own += damping * mean
        apart = dead if unused is None else dead | unused
        damped[apart] = 0
        damped[:, apart] = 0
        own[apart] = mean
        order = torch.arange(len(hessian), device=hessian.device)
        if by_size:
            order = torch.argsort(diagonal, descending=True, stable=True)
            damped = damped[order][:, order]
        return cls(_factor(damped / mean), order, dead)

    @classmethod
    def none(cls, inputs: int, like: Tensor) -> Feedback:
        """For inputs of which nothing is known: columns do not make up for one another."""
        order = torch.arange(inputs, device=like.device)
        return cls(torch.eye(inputs, dtype=like.dtype, device=like.device), order, torch.zeros_like(order).bool())


def _factor(hessian: Tensor) -> Tensor:
    """Upper triangular U with U^T U = H^-1, by H = R R^T with R = U^-1: one factor and the inverse of a triangle."""
    for dtype in (hessian.dtype, torch.float64):
        # Turned by 180 degrees, the lower factor is an upper one of the matrix itself.
        lower, failed = torch.linalg.cholesky_ex(hessian.to(dtype).flip(0, 1))
        if not int(failed):
            one = torch.eye(len(lower), dtype=dtype, device=lower.device)
            upper: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1).contiguous(), one, upper=True)
            return upper.to(hessian.dtype).contiguous()
    raise DataError("the Hessian of the inputs has no factor even in float64; use more damping or more data")
