"""Reading images from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paperhooks.errors import DataError, require

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_image"]


def read_image(file: str | Path) -> Image:
    """The image in a file, as RGB.

    :raises DataError: the file is no image that can be read; it is named. :raises MissingExtra: pillow is missing.
    """
    pillow = require("PIL.Image", "paperhooks[plots]", "to open images", called="pillow")
    try:
        with pillow.open(file) as image:
            converted: Image = image.convert("RGB")
            return converted
    except OSError as error:
        raise DataError(f"{file} cannot be opened as an image: {error}") from error
