"""Images of a batch: where they are, what grids they have, and how they are placed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from paperhooks import Call, ModelView
from paperhooks.errors import DataError
from paperhooks.io import refused, shown, whole_list
from paperhooks.models import ImageSpan, image_runs
from torch import Tensor

from paperhooks_cca.algorithm import Grid, ImageGroup, token_order
from paperhooks_cca.known import Known
from paperhooks_cca.schemes import Scheme, levels, order_table

__all__ = ["Resolver", "find_images", "grid_option", "grouped", "grouped_spans", "positions", "split_runs"]

#: Says where the images of a forward are; for models whose layout is not known here.
Resolver: TypeAlias = Callable[[ModelView, Call], Sequence[ImageSpan]]


def grid_option(name: str, value: Any) -> Any:
    """An option that says the grid of every image: (H, W) as whole numbers, or a function.

    :raises ValueError: it is neither.
    """
    if callable(value):
        return value
    try:
        height, width = whole_list(name, value, at_least=1)
    except ValueError:
        raise refused(name, value, "(H, W), two whole numbers of at least 1, or a function") from None
    return height, width


def find_images(
    view: ModelView, call: Call, grid: Grid | Resolver | None, known: Known
) -> list[tuple[int, int, Grid]] | None:
    """The images of this forward as (row, start, grid); None when it is not known which tokens are images.

    :param known: what the host knows of the forward.

    :raises DataError: image tokens that are no whole grids, video tokens, images without anything that says where
        their tokens are, or a grid function that gives anything but spans inside this forward.
    """
    if callable(grid):
        return _resolved(grid, view, call)
    mask = known.image
    if mask is None:
        if call.input_ids is None and any(name in call.inputs for name in ("pixel_values", "mm_encoder_outputs")):
            raise DataError(
                "cca: images came with inputs_embeds, so their tokens cannot be found; pass input_ids, or "
                "visual_mask (bool [B, T]) beside inputs_embeds"
            )
        return None
    if known.videos:
        raise DataError("cca is not defined for video tokens; leave videos out, or detach it for them")
    drafts = call.draft_length
    if drafts:  # prompt lookup may propose image tokens, which are words like others
        mask = mask.clone()
        mask[:, -drafts:] = False
    if grid is not None:
        return split_runs(image_runs(mask), grid)
    side = view.image_side
    return grouped_spans(view.image_spans(None, known.layout, mask=mask), (side, side) if side else None)


def _resolved(grid: Resolver, view: ModelView, call: Call) -> list[tuple[int, int, Grid]]:
    """What a grid function says, checked: spans of image tokens inside the forward that do not overlap."""
    spans: Any = grid(view, call)
    if not isinstance(spans, Sequence) or not all(isinstance(span, ImageSpan) for span in spans):
        raise DataError(
            f"cca: the grid function returned {shown(spans)}; expected a list of paperhooks.models.ImageSpan, empty "
            "where there is no image"
        )
    images = grouped_spans(spans)
    ends = [0] * call.rows
    for row, start, (height, width) in sorted(images):
        stop = start + height * width
        if not 0 <= row < call.rows or start < ends[row] or stop > call.query_length:
            raise DataError(
                f"cca: the grid function puts {height} x {width} image tokens into columns {start} to {stop} of row "
                f"{row}; this forward has {call.rows} rows of {call.query_length} tokens, and images do not overlap"
            )
        ends[row] = stop
    return images


# -- images as tensors -------------------------------------------------------------------------------------------------


def positions(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    image_token_id: int,
    grids: Grid | Sequence[Grid],
    scheme: str | Scheme = "concentric",
) -> Tensor:
    """Position ids of a whole batch, without a model (:func:`paperhooks_cca.algorithm.token_order`).

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
    images = split_runs(image_runs(input_ids == image_token_id), grids)
    return token_order(grouped(images, scheme, input_ids.device), real)[0]


def grouped(images: Sequence[tuple[int, int, Grid]], scheme: str | Scheme, device: torch.device) -> list[ImageGroup]:
    """Images (row, start, grid) by grid, with the levels of ``scheme``, as tensors on ``device``."""
    by_grid: dict[Grid, list[tuple[int, int]]] = {}
    for row, start, grid in images:
        by_grid.setdefault((grid[0], grid[1]), []).append((row, start))
    groups = []
    for grid, places in by_grid.items():
        rows, starts = torch.tensor(places, dtype=torch.int64).to(device, non_blocking=True).unbind(1)
        groups.append(ImageGroup(rows, starts, order_table(scheme, *grid, device=device), levels(scheme, *grid)))
    return groups


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
                raise _wrong_run((row, start, stop), grid)
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
            raise _wrong_run((span.row, span.start, span.stop), expected)
        found += [(span.row, part.start, (part.rows, part.stride)) for part in span.parts]
    return found


def _cut(run: tuple[int, int, int], grid: Grid) -> list[tuple[int, int, Grid]]:
    row, start, stop = run
    size = grid[0] * grid[1]
    if size < 1 or (stop - start) % size:
        raise _wrong_run(run, grid)
    return [(row, at, grid) for at in range(start, stop, size)]


def _wrong_run(run: tuple[int, int, int], grid: Grid | None) -> DataError:
    """The error for a run of image tokens that holds no whole images."""
    row, start, stop = run
    expected = f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} tokens an image" if grid else "images of a known grid"
    return DataError(
        f"sample {row}: {stop - start} image tokens from column {start}, expected {expected}. Was the text truncated "
        "inside an image, or an image cut by a chunked prefill? Keep images whole, or pass grid=(H, W)"
    )
