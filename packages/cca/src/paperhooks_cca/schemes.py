"""Schemes: orders of an image's patches, as tables over its grid; the paper's rings and what they are compared with.

A table gives every cell of an H x W grid its level, 0 first. Patches of one level share one position; the image takes
as many positions as the table has levels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from paperhooks.io import function_or_choice
from torch import Tensor

from paperhooks_cca.algorithm import edge_distances, ring_table

__all__ = [
    "SCHEMES",
    "Scheme",
    "levels",
    "manhattan_table",
    "order_table",
    "raster_table",
    "reverse_table",
    "scheme_name",
]

#: Makes the table int64 [H, W] of a grid.
Scheme: TypeAlias = Callable[[int, int], Tensor]


def manhattan_table(height: int, width: int) -> Tensor:
    """Distance to the nearest corner in rows plus columns, as MCA-LLaVA orders patches; H - 1 levels on even squares.

    >>> manhattan_table(3, 3).tolist()
    [[0, 1, 0], [1, 2, 1], [0, 1, 0]]

    :return: int64 [height, width]. :raises ValueError: a side is less than 1.
    """
    rows, columns = edge_distances(height, width)
    return rows[:, None] + columns[None, :]


def raster_table(height: int, width: int) -> Tensor:
    """Row by row, every patch a level of its own: what stock models do.

    :return: int64 [height, width]. :raises ValueError: a side is less than 1.
    """
    rows, columns = edge_distances(height, width)
    return torch.arange(len(rows) * len(columns)).view(len(rows), len(columns))


def reverse_table(height: int, width: int) -> Tensor:
    """Raster backwards: the last patch comes first (the pilot study of section 3).

    :return: int64 [height, width]. :raises ValueError: a side is less than 1.
    """
    return height * width - 1 - raster_table(height, width)


SCHEMES: dict[str, Scheme] = {
    "concentric": ring_table,
    "reverse": reverse_table,
    "raster": raster_table,
    "manhattan": manhattan_table,
}


def scheme_name(scheme: str | Scheme) -> str:
    """The name of a scheme; a function goes by its own.

    :raises ValueError: it is neither.
    """
    known = function_or_choice("scheme", scheme, tuple(SCHEMES))
    return known if isinstance(known, str) else getattr(known, "__name__", type(known).__name__)


def order_table(scheme: str | Scheme, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """The flat table int64 [H * W] of a scheme on ``device``; made once a grid and device. Do not write to it.

    :raises ValueError: an unknown scheme, an empty grid, or a function that returns no int64 [H, W] table of levels
        0, 1, ... without a gap.
    """
    return (_kept_table if _hashable(scheme) else _table)(scheme, height, width, device)


def levels(scheme: str | Scheme, height: int, width: int) -> int:
    """How many positions an image of H x W patches takes under ``scheme``."""
    return int(order_table(scheme, height, width).max()) + 1


def _table(scheme: str | Scheme, height: int, width: int, device: torch.device | None) -> Tensor:
    name = scheme_name(scheme)
    make: Any = SCHEMES[name] if isinstance(scheme, str) else scheme
    table = make(height, width)
    tensor = isinstance(table, Tensor)
    if not tensor or table.dtype != torch.int64 or tuple(table.shape) != (height, width):
        found = f"{table.dtype} {list(table.shape)}" if tensor else type(table).__name__
        raise ValueError(f"scheme {name!r} returned {found}; expected int64 [{height}, {width}]")
    if not torch.equal(table.unique(), torch.arange(int(table.max()) + 1)):
        raise ValueError(f"scheme {name!r} leaves levels of a {height} x {width} grid empty")
    return table.flatten().to(device, non_blocking=True)


def _hashable(scheme: object) -> bool:
    """Whether tables of a scheme can be kept; callable objects that cannot be hashed are asked anew every time."""
    try:
        hash(scheme)
    except TypeError:
        return False
    return True


_kept_table = lru_cache(maxsize=256)(_table)
