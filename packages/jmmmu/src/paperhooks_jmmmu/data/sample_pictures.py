"""Small pictures with a text, for the synthetic set."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require

__all__ = ["FONTS", "Painter"]

#: Fonts with Japanese characters that are looked for, of Debian's fonts-ipafont-gothic and fonts-vlgothic.
FONTS: Final = (
    Path("/usr/share/fonts/opentype/ipafont-gothic/ipag.ttf"),
    Path("/usr/share/fonts/truetype/vlgothic/VL-Gothic-Regular.ttf"),
)
_SIZE: Final = (160, 120)
_LETTER: Final = 24


class Painter:
    """Draws pictures as PNG; the same text gives the same bytes.

    :param font: the file of a font; without one, the first of :data:`FONTS` that is there.
    :raises DataError: a font that cannot be read. :raises MissingExtra: without pillow.
    """

    def __init__(self, font: str = "") -> None:
        self._pil = require("PIL", "paperhooks-jmmmu[data]", "to draw pictures", called="pillow")
        fonts = require("PIL.ImageFont", "paperhooks-jmmmu[data]", "to draw pictures", called="pillow")
        file = Path(font) if font else next((path for path in FONTS if path.is_file()), None)
        try:
            self._font: Any = file and fonts.truetype(str(file), _LETTER)
        except OSError as error:
            raise DataError(f"{file} cannot be read as a font: {error}; name another") from error

    @property
    def writes(self) -> bool:
        """Whether there is a font; without one, pictures have colours and bars and no text."""
        return self._font is not None

    def picture(self, text: str) -> bytes:
        """A text in the middle of a coloured frame."""
        from PIL import Image, ImageDraw

        code = zlib.crc32(text.encode())
        image = Image.new("RGB", _SIZE, (128 + code % 128, 128 + code // 128 % 128, 128 + code // 2**14 % 128))
        draw = ImageDraw.Draw(image)
        draw.rectangle((10, 10, _SIZE[0] - 11, _SIZE[1] - 11), "white", "black")
        if self._font is not None:
            draw.text((_SIZE[0] / 2, _SIZE[1] / 2), text, "black", self._font, anchor="mm")
        else:
            _bars(draw, code)
        return _png(image)

    def page(self, lines: Sequence[str], pictures: Sequence[bytes]) -> bytes:
        """Lines of text with pictures below them."""
        from PIL import Image, ImageDraw

        height = (len(lines) + 1) * (_LETTER + 8)
        longest = max((self._font.getlength(line) for line in lines), default=0) if self._font is not None else 0
        width = max(int(longest) + 20, len(pictures) * _SIZE[0], 2 * _SIZE[0])
        image = Image.new("RGB", (width, height + (_SIZE[1] if pictures else 0)), "white")
        draw = ImageDraw.Draw(image)
        for number, line in enumerate(lines):
            top = number * (_LETTER + 8) + 4
            if self._font is not None:
                draw.text((10, top), line, "black", self._font)
            else:
                draw.rectangle((10, top, 10 + 6 * (1 + zlib.crc32(line.encode()) % 40), top + 8), "black")
        for number, picture in enumerate(pictures):
            image.paste(Image.open(io.BytesIO(picture)), (number * _SIZE[0], height))
        return _png(image)


def _bars(draw: Any, code: int) -> None:
    """A pattern in the place of a text: a bar for every bit that is 1."""
    for bit in range(16):
        if code >> bit & 1:
            draw.rectangle((20 + 7 * bit, 40, 23 + 7 * bit, 80), "black")


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
