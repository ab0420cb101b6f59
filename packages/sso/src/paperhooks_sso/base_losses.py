"""Base losses of a pair of answers, by name: what is minimised of each of the three pairs.

With d = (S_c - S_r) - (R_c - R_r) for the chosen and the rejected answer, and a = S / |y|:

    sigmoid   -log sigmoid(beta d) (1 - e) - log sigmoid(-beta d) e, with label smoothing e     (DPO)
    hinge     max(0, 1 - beta d)                                                                (SLiC)
    ipo       (d' - 1 / (2 beta))^2, d' of the means a and R / |y|                              (IPO)
    simpo     -log sigmoid(beta (a_c - a_r) - margin)                                           (SimPO)
    orpo      -a_c - beta log sigmoid(log odds of exp(a_c) against exp(a_r))                    (ORPO)

:func:`register_pair_loss` adds others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from paperhooks import DataError
from paperhooks.io import choice
from torch import Tensor
from torch.nn.functional import logsigmoid

__all__ = ["PairConstants", "PairLoss", "PairSums", "pair_loss", "pair_losses", "register_pair_loss"]


class PairConstants(Protocol):
    """Constants of base losses, as :class:`~paperhooks_sso.Objective` has them."""

    @property
    def beta(self) -> float:
        """Above 0."""

    @property
    def smoothing(self) -> float:
        """Label smoothing, from 0 to below 0.5."""

    @property
    def simpo_margin(self) -> float:
        """Margin of SimPO."""


@dataclass(frozen=True, slots=True, eq=False)
class PairSums:
    """Log-probabilities of the answers of B pairs, natural logarithm.

    chosen, rejected
        S, float [B]: sums over the tokens of an answer, its end-of-turn token included.
    chosen_count, rejected_count
        |y|, int64 [B].
    reference_chosen, reference_rejected
        R, float [B] without gradient, or None.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_count: Tensor
    rejected_count: Tensor
    reference_chosen: Tensor | None = None
    reference_rejected: Tensor | None = None

    @property
    def chosen_mean(self) -> Tensor:
        """a of the chosen answers [B]; 0 for one without tokens."""
        return _mean(self.chosen, self.chosen_count)

    @property
    def rejected_mean(self) -> Tensor:
        """a of the rejected answers [B]; 0 for one without tokens."""
        return _mean(self.rejected, self.rejected_count)

    @property
    def counted(self) -> Tensor:
        """Bool [B]: both answers have tokens."""
        return (self.chosen_count > 0) & (self.rejected_count > 0)

    def wide(self) -> PairSums:
        """In float32 at least, and finite where an answer has no tokens."""
        return replace(
            self,
            chosen=_wide(self.chosen, self.chosen_count),
            rejected=_wide(self.rejected, self.rejected_count),
            reference_chosen=None if self.reference_chosen is None else _wide(self.reference_chosen, self.chosen_count),
            reference_rejected=(
                None if self.reference_rejected is None else _wide(self.reference_rejected, self.rejected_count)
            ),
        )

    def logratio(self, mean: bool = False) -> Tensor:
        """d [B], of sums or of means per token; without references (S_c - S_r)."""
        chosen, rejected = self.shift(mean)
        return chosen - rejected

    def shift(self, mean: bool = False) -> tuple[Tensor, Tensor]:
        """S - R of chosen and rejected answers [B], or of their means per token."""
        chosen = self.chosen if self.reference_chosen is None else self.chosen - self.reference_chosen
        rejected = self.rejected if self.reference_rejected is None else self.rejected - self.reference_rejected
        return (_mean(chosen, self.chosen_count), _mean(rejected, self.rejected_count)) if mean else (chosen, rejected)


@dataclass(frozen=True, slots=True)
class PairLoss:
    """A base loss.

    name
        By which it is chosen.
    function
        Takes :class:`PairSums` in float32 or more and the constants; gives the loss [B].
    reference
        Whether it compares with a reference.
    means
        Whether it is made of means per token, and rewards are then too.
    """

    name: str
    function: Callable[[PairSums, PairConstants], Tensor]
    reference: bool = True
    means: bool = False

    def __call__(self, pairs: PairSums, constants: PairConstants) -> Tensor:
        """Loss [B]; 0, without gradient, for a pair one of whose answers has no token."""
        # Taken out before the loss is made, so that no gradient of it can be NaN.
        there = pairs.counted
        safe = replace(pairs, chosen=pairs.chosen.where(there, 0.0), rejected=pairs.rejected.where(there, 0.0))
        return self.function(safe, constants).where(there, 0.0)

    def rewards(self, pairs: PairSums, beta: float) -> tuple[Tensor, Tensor]:
        """beta (S - R) of the chosen and of the rejected answers, [B] each."""
        chosen, rejected = pairs.shift(self.means)
        return beta * chosen, beta * rejected

    def check_reference(self, pairs: PairSums, group: str) -> None:
        """Raise DataError for references that are missing, or that the loss has no use for."""
        there = pairs.reference_chosen is not None and pairs.reference_rejected is not None
        if self.reference and not there:
            raise DataError(
                f"the loss {self.name!r} compares with a reference, and the pairs of group {group!r} have none; give "
                "the reference model, its columns, or a loss without reference such as 'simpo'"
            )
        if there and not self.reference:
            raise DataError(f"the loss {self.name!r} has no reference, and the pairs of group {group!r} come with one")


def _sigmoid(pairs: PairSums, constants: PairConstants) -> Tensor:
    scaled = constants.beta * pairs.logratio()
    return -logsigmoid(scaled) * (1 - constants.smoothing) - logsigmoid(-scaled) * constants.smoothing


def _hinge(pairs: PairSums, constants: PairConstants) -> Tensor:
    return torch.relu(1 - constants.beta * pairs.logratio())


def _ipo(pairs: PairSums, constants: PairConstants) -> Tensor:
    return (pairs.logratio(mean=True) - 1 / (2 * constants.beta)) ** 2


def _simpo(pairs: PairSums, constants: PairConstants) -> Tensor:
    return -logsigmoid(constants.beta * (pairs.chosen_mean - pairs.rejected_mean) - constants.simpo_margin)


def _orpo(pairs: PairSums, constants: PairConstants) -> Tensor:
    chosen, rejected = pairs.chosen_mean, pairs.rejected_mean
    odds = (chosen - rejected) - (_log_complement(chosen) - _log_complement(rejected))
    return -chosen - constants.beta * logsigmoid(odds)


_LOSSES: Final[dict[str, PairLoss]] = {
    loss.name: loss
    for loss in (
        PairLoss("sigmoid", _sigmoid),
        PairLoss("hinge", _hinge),
        PairLoss("ipo", _ipo, means=True),
        PairLoss("simpo", _simpo, reference=False, means=True),
        PairLoss("orpo", _orpo, reference=False, means=True),
    )
}


def pair_losses() -> tuple[str, ...]:
    """Names of the base losses."""
    return tuple(_LOSSES)


def pair_loss(name: Any) -> PairLoss:
    """A base loss by name; raises ValueError for an unknown one."""
    return _LOSSES[choice("loss", name, pair_losses())]


def register_pair_loss(loss: PairLoss) -> None:
    """Add a base loss for everybody in this process; raises ValueError where its name is taken."""
    if loss.name in _LOSSES:
        raise ValueError(f"there is a loss {loss.name!r} already; give yours another name")
    _LOSSES[loss.name] = loss


def _mean(sums: Tensor, counts: Tensor) -> Tensor:
    return sums / counts.to(sums.device).clamp(min=1)


def _wide(sums: Tensor, counts: Tensor) -> Tensor:
    wide = sums.to(torch.promote_types(sums.dtype, torch.float32))
    return wide.where(counts.to(sums.device) > 0, 0.0)


def _log_complement(logs: Tensor) -> Tensor:
    """log(1 - exp(a)) of a <= 0, whose slope stays finite at 0."""
    return torch.log(-torch.expm1(logs.clamp(max=-1e-7)))
