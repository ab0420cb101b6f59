"""Grids of codes: scales and zeros for runs of weights, and the rules by which a sweep rounds to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Grid", "InputGroups", "OutputGroups", "storable"]


@dataclass(frozen=True)
class Grid:
    """How scale and zero follow from the range of a run of weights.

    symmetric
        From -m to m with m the largest magnitude, and the zero in the middle of the codes.
    range_includes_zero
        Widen ranges to 0, so that the zero is one of the codes, as every packed form wants it. Without it, the zero of
        a run whose weights have one sign is outside of the codes.
    dtype
        In which scales are stored, and values computed from codes.
    """

    symmetric: bool = False
    range_includes_zero: bool = True
    dtype: torch.dtype = torch.float32

    def fit(self, low: Tensor, high: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, as it is stored, and zero for ranges of weights.

        :param low, high: smallest and largest weight of each run. :param top: the largest code, of any shape that fits.
        """
        if self.range_includes_zero:
            low, high = low.clamp(max=0), high.clamp(min=0)
        if self.symmetric:
            high = torch.maximum(low.abs(), high)
            low = -high if self.range_includes_zero else torch.where(low < 0, -high, low)
        flat = low == high
        low, high = torch.where(flat, -1, low), torch.where(flat, 1, high)
        scale = storable((high - low) / top, self.dtype)
        if self.symmetric:
            return scale, ((top + 1) / 2).expand_as(scale)
        zero = (-low / scale).round()
        return scale, torch.minimum(zero.clamp(min=0), top) if self.range_includes_zero else zero

    def rounded(self, weights: Tensor, scale: Tensor, zero: Tensor, top: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and the values that they are unpacked to."""
        codes = torch.minimum((weights / scale + zero).round().clamp(min=0), top)
        return codes, ((codes - zero) * scale).float().to(self.dtype).to(weights.dtype)


def storable(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Positive scales as they come back from ``dtype``: rounded, and neither 0 nor infinite."""
    kept = torch.float32 if dtype == torch.float64 else dtype  # packed weights are unpacked in float32
    limits = torch.finfo(kept)
    return scale.clamp(limits.tiny, limits.max).to(kept).to(scale.dtype)


class _Groups:
    """Codes of all inputs at all levels, and the scales and zeros of their groups."""

    def __init__(self, widths: Sequence[int], shape: tuple[int, int], grid: Grid, like: Tensor) -> None:
        self.grid = grid
        self.top = torch.tensor([[2.0**width - 1] for width in widths], dtype=like.dtype, device=like.device)
        self.codes = torch.empty(len(widths), *shape, dtype=torch.uint8, device=like.device)


class InputGroups(_Groups):
    """Runs of neighbouring inputs share a scale and a zero in each output; the last run may be shorter.

    They are fitted to the weights as these are at the beginning of the block in which the run's first input is met.
    With a block as long as a run, that is all feedback; with a longer one, what the same block gives is not yet there.

    :param widths: bits of a code at each level. :param shape: inputs and outputs. :param group: inputs of a run.
    :param order: int64 [inputs], the inputs in the order of work. :param like: a weight, for dtype and device.
    """

    def __init__(
        self, widths: Sequence[int], shape: tuple[int, int], group: int, order: Tensor, grid: Grid, like: Tensor
    ) -> None:
        super().__init__(widths, shape, grid, like)
        inputs, outputs = shape
        count = -(-inputs // group)
        self._groups = (order // group).tolist()
        places = torch.empty_like(order)
        places[order] = torch.arange(inputs, device=order.device)
        self._places = places.split(group)
        self._fitted: set[int] = set()
        self.scales = torch.empty(len(widths), count, outputs, dtype=like.dtype, device=like.device)
        self.zeros = torch.empty_like(self.scales)
        self._weights = like

    def begin(self, start: int, stop: int, weights: Tensor) -> None:
        """Groups that begin in this block are fitted to these weights."""
        self._weights = weights

    def settle(self, place: int, column: Tensor) -> Tensor:
        """The nearest values of the grid."""
        group = self._groups[place]
        if group not in self._fitted:
            self._fitted.add(group)
            low, high = self._weights[:, self._places[group]].aminmax(dim=1)
            self.scales[:, group], self.zeros[:, group] = self.grid.fit(low, high, self.top)
        codes, values = self.grid.rounded(column, self.scales[:, group], self.zeros[:, group], self.top)
        self.codes[:, place] = codes
        return values


class OutputGroups(_Groups):
    """Runs of neighbouring outputs share a scale and a zero at each input: for matrices stored as [inputs, outputs].

    Parameters as of :class:`InputGroups`; ``group`` counts outputs. Scales and zeros are in the order of work.
    """

    def __init__(self, widths: Sequence[int], shape: tuple[int, int], group: int, grid: Grid, like: Tensor) -> None:
        super().__init__(widths, shape, grid, like)
        inputs, outputs = shape
        self._group, self._padding = group, -outputs % group
        self.scales = torch.empty(len(widths), inputs, -(-outputs // group), dtype=like.dtype, device=like.device)
        self.zeros = torch.empty_like(self.scales)

    def begin(self, start: int, stop: int, weights: Tensor) -> None:
        """Every input has its own grids: nothing to do for a block."""

    def settle(self, place: int, column: Tensor) -> Tensor:
        """The nearest values of the grid."""
        levels, outputs = column.shape
        full = torch.cat([column, column[:, -1:].expand(levels, self._padding)], dim=1) if self._padding else column
        low, high = full.view(levels, -1, self._group).aminmax(dim=2)
        scales, zeros = self.grid.fit(low, high, self.top)
        self.scales[:, place], self.zeros[:, place] = scales, zeros
        own = [each.repeat_interleave(self._group, dim=1)[:, :outputs] for each in (scales, zeros)]
        codes, values = self.grid.rounded(column, own[0], own[1], self.top)
        self.codes[:, place] = codes
        return values
