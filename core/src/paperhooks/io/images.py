"""Reading images from files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from paperhooks.errors import DataError, MissingExtra

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_image"]


def read_image(file: str | Path) -> Image:
    """The image in a file, as RGB.

    :raises DataError: the file is no image that can be read; it is named. :raises MissingExtra: pillow is missing.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtra("pillow", "paperhooks[plots]", "to open images") from error
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except OSError as error:
        raise DataError(f"{file} cannot be opened as an image: {error}") from error
