"""Positions and mask of Concentric Causal Attention, as functions on tensors (arXiv 2410.15926, section 4).

The two rules, and the identity that joins them:

- text tokens count on; the patches of an image get the counter plus their ring, and the image takes as many positions
  as it has rings (section 4.1);
- inside an image a patch sees the patches of its own ring and of those outside it; everything else is causal
  (section 4.2);
- so token q may attend to token k exactly where ``position[k] <= position[q]``.

B batch, T tokens, H x W patches of an image in raster order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Grid", "ImageGroup", "allowed_mask", "edge_distances", "ring_table", "token_order"]

#: Rows and columns of patches.
Grid: TypeAlias = tuple[int, int]


def ring_table(height: int, width: int) -> Tensor:
    """Concentric rings: the border is ring 0, the centre the last, ceil(min(H, W) / 2) rings in all (section 4.1).

    >>> ring_table(3, 4).tolist()
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]

    :return: int64 [height, width], ``min(i, j, H - 1 - i, W - 1 - j)``. :raises ValueError: a side is less than 1.
    """
    rows, columns = edge_distances(height, width)
    return torch.minimum(rows[:, None], columns[None, :])


def edge_distances(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Distance of every row and of every column to the nearer edge, int64 [height] and int64 [width].

    :raises ValueError: a side is less than 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a grid of {height} x {width} patches has no patch; both sides must be at least 1")
    rows, columns = torch.arange(height), torch.arange(width)
    return torch.minimum(rows, height - 1 - rows), torch.minimum(columns, width - 1 - columns)


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """All images of one grid in a batch.

    rows, starts
        int64 [n]: the row of each image, and the column of its first patch.
    table
        int64 [H * W]: the level of every patch, its ring in the paper.
    levels
        How many positions an image takes.
    """

    rows: Tensor
    starts: Tensor
    table: Tensor
    levels: int

    @property
    def columns(self) -> Tensor:
        """int64 [n, H * W]: the columns of every image's patches."""
        return self.starts[:, None] + torch.arange(len(self.table), device=self.starts.device)


def token_order(groups: Sequence[ImageGroup], real: Tensor, start: Tensor | int = 0) -> tuple[Tensor, Tensor]:
    """Position of every token (equation 3, for any grids and any number of images), and of the token that follows.

    :param groups: where the images are. :param real: bool [B, T], False for padding.
    :param start: int64 [B] or a number, the position of the first token.
    :return: int64 [B, T] and int64 [B]. Padding on the left gets ``start``, padding on the right goes on counting.
    """
    step = real.to(torch.int64)
    inner = torch.zeros_like(step)
    for group in groups:
        rows, columns = group.rows[:, None], group.columns
        step[rows, columns] = 0
        inner[rows, columns] = group.table
        step[group.rows, columns[:, -1]] = group.levels
    counted = step.cumsum(1)
    first = start[:, None] if isinstance(start, Tensor) else start
    return counted - step + inner + first, counted[:, -1] + start


def allowed_mask(positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Who may attend to whom: ``positions[k] <= positions[q]`` and k is no padding (section 4.2).

    :param positions: int64 [B, T], from :func:`token_order`.
    :param attention_mask: [B, T], 0 for padding, or None.
    :return: bool [B, T, T], row = query, column = key.
    """
    allowed = positions[:, None, :] <= positions[:, :, None]
    return allowed if attention_mask is None else allowed & attention_mask.bool()[:, None, :]
