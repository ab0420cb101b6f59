"""Names of transformers that the models' room alone needs and that its documentation does not promise."""

from __future__ import annotations

from typing import Any

__all__ = ["anyres_tiles"]


def anyres_tiles(size: tuple[int, int], pinpoints: Any, tile: int) -> tuple[int, int]:
    """Rows and columns of tiles into which llava_next cuts an image of ``size`` (height, width)."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    rows, columns = get_anyres_image_grid_shape(size, pinpoints, tile)
    return int(rows), int(columns)
