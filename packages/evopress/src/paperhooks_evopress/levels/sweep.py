"""One sweep over the columns of a matrix for all of its levels: what each changes, the later columns make up for.

All levels of a matrix have the same inputs. They are swept side by side, so that what is done a column at a time is
done once for all of them; products of matrices are made one level at a time, on operands of one shape, so that a level
has the same bits whichever others are made beside it.
"""

from __future__ import annotations

from typing import Final, Protocol

from torch import Tensor

__all__ = ["ColumnRule", "sweep"]

#: Columns in a block whose errors reach the rest of the block as they come; further ones hear of them in one product.
_INNER: Final = 32
#: Numbers after which another level may begin.
_ALIGNED: Final = 16


class ColumnRule(Protocol):
    """What becomes of a column at each level."""

    def begin(self, start: int, stop: int, weights: Tensor) -> None:
        """A block of inputs is next.

        :param weights: [levels, inputs, outputs] in the order of work, with the feedback of all blocks before.
        """

    def settle(self, place: int, column: Tensor) -> Tensor:
        """The values that stay.

        :param place: of the input in the order of work. :param column: [levels, outputs], with all feedback.
        """


def sweep(weight: Tensor, factor: Tensor, levels: int, rule: ColumnRule, block: int = 128) -> Tensor:
    """Settle one input after another at all levels, and change the inputs after it against the error.

    :param weight: [inputs, outputs] in the order of work. :param factor: [inputs, inputs], as :class:`Feedback` has it.
    :param block: inputs whose error reaches later blocks together.
    :return: [levels, inputs, outputs], settled.
    """
    weights = _aligned(weight.expand(levels, *weight.shape))
    diagonal = factor.diagonal().tolist()
    for start in range(0, len(weight), block):
        stop = min(start + block, len(weight))
        rule.begin(start, stop, weights)
        work = _aligned(weights[:, start:stop])  # the rule may look at weights without the feedback inside the block
        errors = _aligned(work)
        for first in range(start, stop, _INNER):
            last = min(first + _INNER, stop)
            for place in range(first, last):
                i = place - start
                column = work[:, i]
                settled = rule.settle(place, column)
                error = (column - settled) / diagonal[place]
                # Two operations, each rounded by itself, so that no level's bits depend on how a loop is cut.
                work[:, i + 1 : last - start] -= factor[place, place + 1 : last, None] * error[:, None]
                work[:, i] = settled
                errors[:, i] = error
            _feed_back(work[:, last - start :], factor[first:last, last:stop], errors[:, first - start : last - start])
        weights[:, start:stop] = work
        _feed_back(weights[:, stop:], factor[start:stop, stop:], errors)
    return weights


def _aligned(weights: Tensor) -> Tensor:
    """A copy in which each level begins at an address that products of matrices like, as it would alone."""
    levels, inputs, outputs = weights.shape
    memory = weights.new_zeros(levels, inputs, -(-outputs // _ALIGNED) * _ALIGNED)
    return memory[..., :outputs].copy_(weights)


def _feed_back(weights: Tensor, factor: Tensor, errors: Tensor) -> None:
    """Change weights [levels, n, outputs] against errors [levels, m, outputs], with factor [m, n]."""
    if weights.shape[1]:
        for own, error in zip(weights, errors, strict=True):
            own.addmm_(factor.T, error, alpha=-1)
