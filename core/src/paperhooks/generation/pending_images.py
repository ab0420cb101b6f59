"""Images of a request that are laid out and not opened yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from paperhooks.io.hashing import hash_json
from paperhooks.io.images import Picture, fitted_image, fitted_size

__all__ = ["PendingImage", "side_by_side"]

_PIXEL: Final = 4


@dataclass(frozen=True)
class PendingImage:
    """A picture, or several side by side, scaled to no more than ``max_pixels`` once it is opened.

    In the place of an opened image in a request whose images are laid out. All but :meth:`open` reads no more than the
    pictures' bytes; each raises DataError for one that cannot be read.
    """

    pictures: tuple[Picture, ...]
    max_pixels: int | None = None

    @cached_property
    def key(self) -> str:
        """Hash of everything its pixels depend on: equal keys, equal images."""
        return hash_json([[picture.digest for picture in self.pictures], self.max_pixels])

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height of the opened image."""
        return fitted_size(self._whole, self.max_pixels)

    @property
    def _whole(self) -> tuple[int, int]:
        sizes = [picture.size for picture in self.pictures]
        return sum(width for width, _ in sizes), max(height for _, height in sizes)

    @cached_property
    def peak_bytes(self) -> int:
        """About how much memory :meth:`open` takes at its peak."""
        if len(self.pictures) == 1:
            return self.pictures[0].peak_bytes(self.max_pixels)
        width, height = self._whole
        return sum(picture.peak_bytes() for picture in self.pictures) + _PIXEL * width * height

    @property
    def held(self) -> int:
        """How many bytes are kept in memory for it before it is opened."""
        return sum(picture.held for picture in self.pictures)

    def open(self) -> Any:
        """The PIL image, upright, in RGB."""
        if len(self.pictures) == 1:
            return self.pictures[0].open(self.max_pixels)
        return fitted_image(side_by_side([picture.open() for picture in self.pictures]), self.max_pixels)


def side_by_side(images: Sequence[Any]) -> Any:
    """Images in a row, top edges aligned, on white."""
    from PIL import Image

    row = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width
    return row
