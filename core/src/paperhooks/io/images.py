"""Reading images, from files and from data sets alike; and pictures that are opened when they are needed."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from paperhooks.errors import DataError, require
from paperhooks.io.harmless import error_text
from paperhooks.io.hashing import hash_file

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Picture", "fitted_image", "fitted_size", "read_image", "upright_image"]

#: The EXIF entry that says how an image is turned, and its values that swap width and height.
_ORIENTATION: Final = 0x0112
_SWAPPED: Final = (5, 6, 7, 8)
#: Bytes that pillow takes for a pixel in RGB, and times that while an image is turned, converted or scaled.
_PIXEL: Final = 4
_WHILE_CHANGED: Final = 2
#: How many times larger than what it is scaled to an image is decoded at least, each side: as pillow's thumbnails.
_MARGIN: Final = 2

_Source: TypeAlias = str | Path | bytes | Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class _Head:
    """What the first bytes of an image tell: its size upright, whether it has to be changed for that, its format."""

    width: int
    height: int
    plain: bool
    format: str


class Picture:
    """An image that is not opened yet: where it is, what it is called, and what tells it from others.

    It may stand in the place of an opened image in a :class:`paperhooks.generation.Request`. Bytes are read again
    whenever they are needed, unless they are the source.

    :param source: a file, the bytes of one, or a function that gives them, such as one that reads a row of a table.
    :param called: what to call it in messages; the file without it.
    """

    def __init__(self, source: _Source, called: str = "") -> None:
        self._source = source
        self.called = called or (str(source) if isinstance(source, str | Path) else "image data")

    def __repr__(self) -> str:
        return f"Picture({self.called!r})"

    @property
    def held(self) -> int:
        """How many bytes it keeps in memory."""
        return len(self._source) if isinstance(self._source, bytes) else 0

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the bytes; those of a file that did not change are read once.

        :raises DataError: they cannot be read.
        """
        try:
            if isinstance(self._source, str | Path):
                told = Path(self._source).stat()
                return _file_digest(str(self._source), told.st_ino, told.st_size, told.st_mtime_ns)
            return hashlib.sha256(self._bytes()).hexdigest()
        except DataError:  # of the function, which has named what it reads
            raise
        except Exception as error:
            raise DataError(f"{self.called} cannot be opened as an image: {error_text(error)}") from error

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, upright, as its first bytes tell; raises DataError as :meth:`open` does."""
        return self._head.width, self._head.height

    def check(self) -> None:
        """Raise DataError or MissingExtra, as :meth:`open` does, unless its first bytes are those of an image."""
        _ = self._head, self.digest

    def peak_bytes(self, max_pixels: int | None = None) -> int:
        """About how much memory :meth:`open` takes at its peak, as its first bytes tell."""
        head, (width, height) = self._head, fitted_size(self.size, max_pixels)
        scale = _draft_scale(self.size, (width, height)) if head.format == "JPEG" else 1
        pixels = math.ceil(head.width / scale) * math.ceil(head.height / scale)
        return pixels * _PIXEL * (1 if head.plain and (width, height) == self.size else _WHILE_CHANGED)

    def open(self, max_pixels: int | None = None) -> Image:
        """The image, upright, in RGB, and with no more than ``max_pixels``.

        Where it is to be scaled down, a JPEG is decoded at a fraction of its size that is twice the result at least.

        :raises DataError: it is no image that can be read, or has more pixels than pillow takes for sane; it is named.
        :raises MissingExtra: pillow is missing.
        """

        def read(image: Any) -> Image:
            if image.format != "JPEG":
                return fitted_image(upright_image(image), max_pixels)
            whole = _upright_size(image)
            size = fitted_size(whole, max_pixels)
            scale = _draft_scale(whole, size)
            if scale > 1:
                image.draft(image.mode, (image.width // scale, image.height // scale))
            return _resized(upright_image(image), size)

        found: Image = self._read(read)
        return found

    @cached_property
    def _head(self) -> _Head:
        def read(image: Any) -> _Head:
            return _Head(*_upright_size(image), image.mode == "RGB" and _orientation(image) == 1, str(image.format))

        found: _Head = self._read(read, hashed=callable(self._source))
        return found

    def _bytes(self) -> bytes:
        if isinstance(self._source, bytes):
            return self._source
        return Path(self._source).read_bytes() if isinstance(self._source, str | Path) else self._source()

    def _read(self, use: Callable[[Any], Any], hashed: bool = False) -> Any:
        """What a function makes of the opened file; whatever goes wrong is an error that names it.

        :param hashed: take the digest as well, so that bytes which are costly to get are read once for both.
        """
        pillow = require("PIL.Image", "paperhooks[plots]", "to open images", called="pillow")
        try:
            source = self._source if isinstance(self._source, str | Path) else io.BytesIO(held := self._bytes())
            if hashed:
                self.digest = hashlib.sha256(held).hexdigest()
            with pillow.open(source) as image:
                most = pillow.MAX_IMAGE_PIXELS
                if most is not None and image.width * image.height > most:
                    raise ValueError(f"{image.width} x {image.height} pixels are more than {most}; scale it down")
                return use(image)
        except DataError:
            raise
        except Exception as error:  # decoders raise whatever a damaged file makes them stumble over
            raise DataError(f"{self.called} cannot be opened as an image: {error_text(error)}") from error


def read_image(source: str | Path | bytes, called: str = "") -> Image:
    """The image in a file, or in its bytes, upright and as RGB.

    :param called: what to call it in messages; the file without it.
    :raises DataError, MissingExtra: as :meth:`Picture.open`.
    """
    return Picture(source, called).open()


def upright_image(image: Image) -> Image:
    """An image turned as its EXIF entry says, as RGB; of 16 bits the upper ones count.

    The image itself, decoded, where nothing of it has to be changed.
    """
    from PIL import ImageOps

    image.load()
    turned: Any = ImageOps.exif_transpose(image) if image.getexif().get(_ORIENTATION, 1) != 1 else image
    if turned.mode.startswith("I"):  # 16 bits, of which converting would take all that is brighter than 255 for white
        wide = turned.convert("I")
        if turned.mode != "I" or wide.getextrema()[1] > 255:
            turned = wide.point(lambda value: value * (1 / 257))
    converted: Image = turned if turned.mode == "RGB" else turned.convert("RGB")
    return converted


def fitted_size(size: tuple[int, int], max_pixels: int | None) -> tuple[int, int]:
    """Width and height scaled to no more than ``max_pixels``, in their proportion; at least 1 each."""
    width, height = size
    if max_pixels is None or width * height <= max_pixels:
        return size
    factor = math.sqrt(max_pixels / (width * height))
    return max(1, int(width * factor)), max(1, int(height * factor))


def fitted_image(image: Image, max_pixels: int | None) -> Image:
    """An image scaled down to no more than ``max_pixels``; itself where it has no more."""
    return _resized(image, fitted_size(image.size, max_pixels))


def _resized(image: Image, size: tuple[int, int]) -> Image:
    if image.size == size:
        return image
    from PIL.Image import Resampling

    return image.resize(size, Resampling.LANCZOS)


def _draft_scale(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """By how much a JPEG may be decoded smaller: 1, 2, 4 or 8."""
    room = min(have / (_MARGIN * want) for have, want in zip(size, wanted, strict=True))
    return next(scale for scale in (8, 4, 2, 1) if scale <= room or scale == 1)


def _upright_size(image: Any) -> tuple[int, int]:
    return (image.height, image.width) if _orientation(image) in _SWAPPED else (image.width, image.height)


def _orientation(image: Any) -> int:
    # A PNG without the entry at its start would be decoded in search of one at its end.
    told = image.format != "PNG" or "exif" in image.info
    return int(image.getexif().get(_ORIENTATION, 1)) if told else 1


@lru_cache(maxsize=65_536)
def _file_digest(file: str, *state: int) -> str:
    """SHA-256 of a file in a state (inode, size, time of its last change)."""
    return hash_file(Path(file))
