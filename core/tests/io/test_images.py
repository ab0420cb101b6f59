"""Pictures: what is known of them before they are opened, and what opening gives."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from paperhooks.errors import DataError
from paperhooks.io import Picture, fitted_size, read_image, upright_image
from PIL import Image, ImageFile

ORIENTATION = 0x0112


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth colours that differ in all corners."""
    image = Image.merge("RGB", [
        Image.linear_gradient("L").resize((width, height)),
        Image.linear_gradient("L").rotate(90).resize((width, height)),
        Image.radial_gradient("L").resize((width, height)),
    ])  # fmt: skip
    return image.convert(mode)


def encoded(image: Image.Image, form: str = "PNG", turned: int = 1, **more: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif if turned != 1 else b"", **more)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turned", range(1, 9))
def test_size_is_known_before_an_image_is_opened(tmp_path: Path, form: str, turned: int) -> None:
    held = encoded(scene(30, 20), form, turned)
    file = tmp_path / "picture"
    file.write_bytes(held)
    for source in (held, file, str(file), lambda: held):
        picture = Picture(source)
        assert picture.size == picture.open().size == ((20, 30) if turned > 4 else (30, 20))
        assert picture.open(max_pixels=150).size == fitted_size(picture.size, 150)
        assert picture.digest == Picture(held).digest
        assert picture.held == (len(held) if source is held else 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "1", "I;16", "CMYK"])
def test_opening_gives_the_pixels_of_an_opened_image(mode: str) -> None:
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = scene(30, 20).convert("I").convert("I;16") if mode == "I;16" else scene(30, 20, mode)
    held = encoded(image, form, 6)
    with Image.open(io.BytesIO(held)) as opened:
        expected = upright_image(opened)
    found = Picture(held).open()
    assert (found.mode, found.size) == ("RGB", (20, 30))
    assert found.tobytes() == expected.tobytes() == read_image(held).tobytes()


def test_an_image_that_needs_no_change_is_not_copied() -> None:
    image = scene(30, 20)
    assert upright_image(image) is image


def test_a_large_jpeg_is_decoded_smaller_to_the_same_size(monkeypatch) -> None:
    held = encoded(scene(1001, 643), "JPEG", 6, quality=95)
    decoded: list[tuple[int, int]] = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: (decoded.append(self.size), load(self))[1])
    whole = Picture(held).open()
    assert decoded[-1] == (1001, 643)
    for pixels, scale in ((10**9, 1), (150_000, 1), (40_000, 2), (10_000, 4), (2_500, 8)):
        found = Picture(held).open(pixels)
        assert decoded[-1] == (-(-1001 // scale), -(-643 // scale)), pixels
        expected = whole.resize(fitted_size((643, 1001), pixels), Image.Resampling.LANCZOS)
        assert found.size == expected.size
        assert found.width * found.height <= pixels
        worst = max(abs(one - other) for one, other in zip(found.tobytes(), expected.tobytes(), strict=True))  # of 255
        assert worst <= 6, pixels


def test_peak_bytes_follow_what_is_decoded() -> None:
    wide = encoded(scene(1000, 600), "JPEG")
    assert Picture(wide).peak_bytes() == 4 * 600_000
    assert Picture(encoded(scene(1000, 600), "JPEG", 6)).peak_bytes() == 8 * 600_000
    assert Picture(encoded(scene(1000, 600, "L"))).peak_bytes() == 8 * 600_000
    assert Picture(wide).peak_bytes(max_pixels=5_000) == 8 * 250 * 150
    assert Picture(encoded(scene(1000, 600))).peak_bytes(max_pixels=5_000) == 8 * 600_000


def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(encoded(scene(8, 8)))
    first = Picture(file).digest
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda *_: pytest.fail("read again"))
        assert Picture(str(file)).digest == first
    file.write_bytes(encoded(scene(8, 9)))
    assert Picture(file).digest != first


@pytest.mark.parametrize("held", [b"", b"no image", encoded(scene(64, 64), "JPEG")[:400], encoded(scene(64, 64))[:300]])
def test_what_cannot_be_opened_is_named(tmp_path: Path, held: bytes) -> None:
    file = tmp_path / "bad.png"
    file.write_bytes(held)
    with pytest.raises(DataError, match=r"bad\.png cannot be opened as an image"):
        Picture(file).open()
    with pytest.raises(DataError, match="row 3 cannot be opened as an image"):
        Picture(held, "row 3").open()


def test_a_function_is_asked_once_for_all_that_is_told_before_opening() -> None:
    held, asked = encoded(scene(30, 20)), []
    picture = Picture(lambda: (asked.append(1), held)[1], "row 2")
    picture.check()
    assert (picture.size, picture.digest, len(asked)) == ((30, 20), Picture(held).digest, 1)
    assert picture.peak_bytes() == 4 * 600
    assert (picture.open().size, len(asked)) == ((30, 20), 2)


def test_an_error_of_a_function_that_names_its_place_stays_as_it_is() -> None:
    def gone() -> bytes:
        raise DataError("row 5 of x.parquet has no bytes")

    for use in (lambda one: one.digest, Picture.check, Picture.open):
        with pytest.raises(DataError, match=r"^row 5 of x\.parquet has no bytes$"):
            use(Picture(gone, "row 5"))


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch) -> None:
    def gone() -> bytes:
        raise OSError("the table is gone")

    for use in (lambda one: one.digest, lambda one: one.size, Picture.open):
        with pytest.raises(DataError, match=r"none\.png cannot be opened as an image: FileNotFoundError"):
            use(Picture(tmp_path / "none.png"))
        with pytest.raises(DataError, match="row 1 cannot be opened as an image: OSError: the table is gone"):
            use(Picture(gone, "row 1"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match="30 x 20 pixels are more than 500"):
        Picture(encoded(scene(30, 20))).open()
