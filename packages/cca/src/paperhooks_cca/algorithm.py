"""Positions and masks of Concentric Causal Attention, as functions on tensors (section 4.2 of the paper).

The two rules, and the identity that joins them:

- text tokens count on; the patches of an image get the counter plus their level, and the image takes as many
  positions as it has levels;
- inside an image a patch sees the patches of its own and of earlier levels; everything else is causal;
- so token q may attend to token k exactly where ``position[k] <= position[q]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from paperhooks.errors import DataError
from paperhooks.models import ImageSpan, image_runs
from torch import Tensor

from paperhooks_cca.schemes import Scheme, levels, order_table

__all__ = ["Grid", "ImageGroup", "allowed_mask", "grouped", "grouped_spans", "positions", "split_runs", "token_order"]

#: Rows and columns of patches.
Grid: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ImageGroup:
    """All images of one grid in a batch: ``rows`` int64 [n] and ``starts`` int64 [n], the column of the first patch."""

    grid: Grid
    rows: Tensor
    starts: Tensor

    @property
    def columns(self) -> Tensor:
        """int64 [n, H * W]: the columns of every image's patches in raster order."""
        patches = torch.arange(self.grid[0] * self.grid[1], device=self.starts.device)
        return self.starts[:, None] + patches


def token_order(
    groups: Sequence[ImageGroup], real: Tensor, start: Tensor | int = 0, scheme: str | Scheme = "concentric"
) -> tuple[Tensor, Tensor]:
    """Position of every token, and the position of the token that follows.

    :param groups: where the images are.
    :param real: bool [B, T], False for padding.
    :param start: int64 [B] or a number, the position of the first token.
    :return: int64 [B, T] and int64 [B]. Padding on the left gets ``start``, padding on the right goes on counting.
    """
    step = real.to(torch.int64)
    inner = torch.zeros_like(step)
    for group in groups:
        rows, columns = group.rows[:, None], group.columns
        step[rows, columns] = 0
        inner[rows, columns] = order_table(scheme, *group.grid, device=step.device)
        step[group.rows, columns[:, -1]] = levels(scheme, *group.grid)
    counted = step.cumsum(1)
    first = start[:, None] if isinstance(start, Tensor) else start
    return counted - step + inner + first, counted[:, -1] + start


def positions(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_token_id: int,
    grids: Grid | Sequence[Grid],
    scheme: str | Scheme = "concentric",
) -> Tensor:
    """Position ids of a whole batch (equation 3 of the paper, for any grid and any number of images).

    >>> ids = torch.tensor([[7, 9, 9, 9, 9, 9, 9, 9, 9, 9, 8]])
    >>> positions(ids, None, image_token_id=9, grids=(3, 3)).tolist()
    [[0, 1, 1, 1, 1, 2, 1, 1, 1, 1, 3]]

    :param input_ids: int64 [B, T], every image expanded to its H * W placeholders.
    :param attention_mask: [B, T], 0 for padding, or None.
    :param grids: one grid for all images, or the grid of each image, row by row.
    :return: int64 [B, T], 0-based.
    :raises DataError: a run of placeholders does not hold whole images.
    """
    real = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
    spans = split_runs(image_runs(input_ids == image_token_id), grids)
    return token_order(grouped(spans, input_ids.device), real, 0, scheme)[0]


def allowed_mask(positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Who may attend to whom: ``positions[k] <= positions[q]`` and k is no padding.

    :param positions: int64 [B, T], from :func:`positions`.
    :param attention_mask: [B, T], 0 for padding, or None.
    :return: bool [B, T, T], row = query, column = key.
    """
    allowed = positions[:, None, :] <= positions[:, :, None]
    return allowed if attention_mask is None else allowed & attention_mask.bool()[:, None, :]


def split_runs(runs: Sequence[tuple[int, int, int]], grids: Grid | Sequence[Grid]) -> list[tuple[int, int, Grid]]:
    """Cut runs of image tokens (row, start, stop) into images: (row, start, grid).

    :param grids: one grid for all images, or the grid of each image in order.
    :raises DataError: a run does not hold whole images, or there are more or fewer images than grids; names the sample,
        where the run starts, its length and the expected grid.
    """
    if len(grids) == 2 and all(isinstance(side, int) for side in grids):
        one: Any = grids
        return [image for run in runs for image in _cut(run, one)]
    left: list[Any] = list(grids)
    found = []
    for row, start, stop in runs:
        while start < stop:
            grid = left.pop(0) if left else None
            if grid is None or start + grid[0] * grid[1] > stop:
                raise wrong_run((row, start, stop), grid)
            found.append((row, start, grid))
            start += grid[0] * grid[1]
    if left:
        raise DataError(f"{len(left)} grids are left over, the first of {left[0]}: there are fewer images than grids")
    return found


def grouped_spans(spans: Sequence[ImageSpan], expected: Grid | None = None) -> list[tuple[int, int, Grid]]:
    """(row, start, grid) of the grids in spans as core finds them; a newline token after each row counts as a column.

    :param expected: the grid that every image should have, for the message.
    :raises DataError: a span whose layout is not known.
    """
    found = []
    for span in spans:
        if not span.parts:
            raise wrong_run((span.row, span.start, span.stop), expected)
        found += [(span.row, part.start, (part.rows, part.stride)) for part in span.parts]
    return found


def grouped(images: Sequence[tuple[int, int, Grid]], device: torch.device) -> list[ImageGroup]:
    """Images (row, start, grid) by grid, as tensors on ``device``."""
    by_grid: dict[Grid, list[tuple[int, int]]] = {}
    for row, start, grid in images:
        by_grid.setdefault((grid[0], grid[1]), []).append((row, start))
    groups = []
    for grid, places in by_grid.items():
        rows, starts = torch.tensor(places, dtype=torch.int64).to(device).unbind(1)
        groups.append(ImageGroup(grid, rows, starts))
    return groups


def wrong_run(run: tuple[int, int, int], grid: Grid | None) -> DataError:
    """The error for a run of image tokens that holds no whole images."""
    row, start, stop = run
    expected = f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} tokens an image" if grid else "images of a known grid"
    return DataError(
        f"sample {row}: {stop - start} image tokens from column {start}, expected {expected}. Was the text truncated "
        "inside an image, or an image cut by a chunked prefill? Keep images whole, or pass grid=(H, W)"
    )


def _cut(run: tuple[int, int, int], grid: Grid) -> list[tuple[int, int, Grid]]:
    row, start, stop = run
    size = grid[0] * grid[1]
    if size < 1 or (stop - start) % size:
        raise wrong_run(run, grid)
    return [(row, at, grid) for at in range(start, stop, size)]
