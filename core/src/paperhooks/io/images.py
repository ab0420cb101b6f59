"""Reading images, from files and from data sets alike."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperhooks.errors import DataError, require
from paperhooks.io.harmless import error_text

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_image", "upright_image"]


def read_image(source: str | Path | bytes, called: str = "") -> Image:
    """The image in a file, or in its bytes, upright and as RGB.

    :param called: what to call it in messages; the file without it.
    :raises DataError: it is no image that can be read, or has more pixels than pillow takes for sane; it is named.
    :raises MissingExtra: pillow is missing.
    """
    pillow = require("PIL.Image", "paperhooks[plots]", "to open images", called="pillow")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            most = pillow.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:
                raise ValueError(f"{image.width} x {image.height} pixels are more than {most}; scale it down")
            return upright_image(image)
    except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
        where = called or ("image data" if isinstance(source, bytes) else source)
        raise DataError(f"{where} cannot be opened as an image: {error_text(error)}") from error


def upright_image(image: Image) -> Image:
    """An image turned as its EXIF entry says, as RGB; of 16 bits the upper ones count."""
    from PIL import ImageOps

    turned: Any = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16 bits, of which converting would take all that is brighter than 255 for white
        wide = turned.convert("I")
        if turned.mode != "I" or wide.getextrema()[1] > 255:
            turned = wide.point(lambda value: value * (1 / 257))
    converted: Image = turned.convert("RGB")
    return converted
