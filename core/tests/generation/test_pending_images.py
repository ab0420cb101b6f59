"""Pictures in requests: laid out unopened, and opened to the same pixels later."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.generation import PendingImage, Request, arrange
from paperhooks.io import Picture
from PIL import Image


def held(colour: str, width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


RED, BLUE = held("red", 40, 10), held("blue", 8, 24)


def asking(images: list[Any]) -> Request:
    content = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}, {"type": "image"}]
    return Request([{"role": "user", "content": content}], images=images)


@pytest.mark.parametrize("max_pixels", [None, 100])
@pytest.mark.parametrize("layout", ["prepend", "interleave", "joined", "text-only"])
def test_pictures_are_laid_out_like_opened_images(layout: str, max_pixels: int | None) -> None:
    images = [Image.open(io.BytesIO(one)) for one in (RED, BLUE)]
    expected = arrange(asking(images), layout, max_pixels)
    pictures = [Picture(RED), Picture(BLUE)]
    at_once = arrange(asking(pictures), layout, max_pixels)
    later = arrange(asking(pictures), layout, max_pixels, opened=False)
    assert list(later.messages) == list(at_once.messages) == list(expected.messages)
    assert all(isinstance(image, PendingImage) for image in later.images)
    assert [image.size for image in later.images] == [image.size for image in expected.images]
    pixels = [image.tobytes() for image in expected.images]
    assert [image.tobytes() for image in at_once.images] == pixels
    assert [image.open().tobytes() for image in later.images] == pixels


def test_pictures_beside_opened_images() -> None:
    mixed = [Picture(RED), Image.open(io.BytesIO(BLUE))]
    (row,) = arrange(asking(mixed), "joined", opened=False).images
    assert row.size == (48, 24)
    first, second = arrange(asking(mixed), "prepend", opened=False).images
    assert (type(first), second.size) == (PendingImage, (8, 24))


def test_a_key_tells_what_pixels_depend_on(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(RED)
    red, blue = Picture(RED), Picture(BLUE)
    assert PendingImage((red,)).key == PendingImage((Picture(tmp_path / "a.png"),)).key
    others = [((red,), 100), ((red,), 101), ((blue,), None), ((red, blue), None), ((blue, red), None)]
    assert len({PendingImage(*one).key for one in [((red,), None), *others]}) == 6


def test_what_is_kept_and_taken() -> None:
    pending = PendingImage((Picture(RED), Picture(lambda: BLUE)))
    assert pending.held == len(RED)
    assert pending.peak_bytes == 4 * (400 + 192 + 48 * 24)


def test_a_picture_that_is_none_is_named() -> None:
    pending = PendingImage((Picture(b"none", "row 4"),))
    for use in (lambda: pending.size, lambda: pending.peak_bytes, pending.open):
        with pytest.raises(DataError, match="row 4 cannot be opened as an image"):
            use()
