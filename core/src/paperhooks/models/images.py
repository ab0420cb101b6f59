"""Where images lie among the tokens of a prompt, and on which grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from paperhooks.compat import anyres_tiles

__all__ = ["GridPart", "ImageSpan", "image_runs"]


class Family(Protocol):
    """What grids are read from: the family's name, and the model's config."""

    @property
    def family(self) -> str:
        """As ``config.model_type`` says it."""

    @property
    def config(self) -> Any:
        """The model's config."""


@dataclass(frozen=True, slots=True)
class GridPart:
    """A rectangle of image tokens: ``rows`` x ``cols`` tokens from ``start``, ``stride`` tokens from row to row.

    ``stride`` exceeds ``cols`` where a model closes every row with a newline token.
    """

    start: int
    rows: int
    cols: int
    stride: int

    def indices(self) -> list[int]:
        """The sequence indices of the grid's tokens, row by row (length rows * cols)."""
        return [self.start + r * self.stride + c for r in range(self.rows) for c in range(self.cols)]


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """A contiguous run of image tokens: batch ``row``, columns ``start`` to ``stop`` (exclusive), and its grids.

    ``parts`` is empty when the layout inside the run is not a known grid.
    """

    row: int
    start: int
    stop: int
    parts: tuple[GridPart, ...] = ()


def image_runs(mask: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every run of True in ``mask`` bool [B, T], row by row. The host waits for it once."""
    padded = torch.nn.functional.pad(mask.cpu().to(torch.int8), (1, 1))
    step = padded.diff(dim=1)
    starts, stops = (step == 1).nonzero().tolist(), (step == -1).nonzero().tolist()
    return [(row, start, stop) for (row, start), (_, stop) in zip(starts, stops, strict=True)]


# A layout is the number of tokens of one image and its grids relative to the image's first token.
_Layout = tuple[int, tuple[GridPart, ...]]


def image_layouts(view: Family, inputs: Mapping[str, Any]) -> list[_Layout]:
    grids = inputs.get("image_grid_thw")
    if grids is not None:
        merge = int(getattr(getattr(view.config, "vision_config", None), "spatial_merge_size", 1))
        return [_qwen_layout(thw, merge) for thw in grids.tolist()]
    sizes = inputs.get("image_sizes")
    if view.family == "llava_next" and sizes is not None:
        return [_llava_next_layout(view.config, size) for size in torch.as_tensor(sizes).tolist()]
    return []


def _qwen_layout(thw: list[int], merge: int) -> _Layout:
    frames, rows, cols = thw[0], thw[1] // merge, thw[2] // merge
    return frames * rows * cols, tuple(GridPart(f * rows * cols, rows, cols, cols) for f in range(frames))


def _llava_next_layout(config: Any, size: list[int]) -> _Layout:
    """The base image's grid, then the unpadded grid of tiles with a newline token at the end of every row."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    tiles = anyres_tiles((size[0], size[1]), config.image_grid_pinpoints, config.vision_config.image_size)
    rows, cols = tiles[0] * side, tiles[1] * side
    if size[1] / size[0] > cols / rows:
        rows -= 2 * ((rows - round(size[0] * (cols / size[1]), 7).__int__()) // 2)
    else:
        cols -= 2 * ((cols - round(size[1] * (rows / size[0]), 7).__int__()) // 2)
    base = GridPart(0, side, side, side)
    return side * side + rows * (cols + 1), (base, GridPart(side * side, rows, cols, cols + 1))


def fixed_side(view: Family) -> int | None:
    """Side of the square grid every image (or tile) has, for families whose images have one size."""
    vision = getattr(view.config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    size, patch = (v[0] if isinstance(v, list | tuple) else v for v in (size, patch))
    if not size or not patch:
        return None
    side = int(size) // int(patch)
    if view.family in ("smolvlm", "idefics3"):
        return side // int(view.config.scale_factor)
    if view.family == "internvl":
        return round(side * float(view.config.downsample_ratio))
    return side if view.family in ("llava", "vipllava", "paligemma", "llava_onevision") else None


def split_run(run: tuple[int, int, int], layouts: list[_Layout], view: Family) -> Iterator[ImageSpan]:
    """Cut one run into images: by the known layouts in order, else by the fixed size, else leave it whole."""
    row, start, stop = run
    while layouts and start + layouts[0][0] <= stop:
        length, parts = layouts.pop(0)
        moved = tuple(GridPart(start + p.start, p.rows, p.cols, p.stride) for p in parts)
        yield ImageSpan(row, start, start + length, moved)
        start += length
    side = fixed_side(view)
    while side and start + side * side <= stop and (stop - start) % (side * side) == 0:
        yield ImageSpan(row, start, start + side * side, (GridPart(start, side, side, side),))
        start += side * side
    if start < stop:
        yield ImageSpan(row, start, stop)
