"""Places of images: plain data that a document carries, and the picture that lies there."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from paperhooks.errors import DataError
from paperhooks.generation import Request
from paperhooks.io import Picture

from paperhooks_evaluation.sources.folders import OUTSIDE, ImageFolder
from paperhooks_evaluation.sources.image_columns import stored_bytes
from paperhooks_evaluation.task import Document

__all__ = ["image_request", "placed_picture"]


def placed_picture(place: Mapping[str, Any], digest: str = "") -> Picture:
    """The picture at a place, which is read when it is opened.

    A place is ``{"picture": FILE}``, or ``{"table": FILE, "row": NUMBER, "column": NAME, "folder": FOLDER}`` for bytes
    in a Parquet file, or for a name there of a file in the folder.

    :param digest: SHA-256 of the bytes that are expected; without it, any picture is taken.
    :raises DataError: another picture lies there.
    """
    if "picture" in place:
        found = Picture(Path(place["picture"]))
    else:
        where = f"{place['folder']}, row {place['row']} of {Path(place['table']).name}, {place['column']}"
        read = partial(_bytes, place["table"], place["row"], place["column"], place["folder"], where)
        found = Picture(read, where)
    if digest and found.digest != digest:
        raise DataError(f"{found.called} is another picture than when the data were read; it was changed since")
    return found


def image_request(document: Document, text: str, max_new_tokens: int) -> Request:
    """One message of the user: the image at the document's place, then a text."""
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return Request(
        [{"role": "user", "content": content}],
        images=[placed_picture(document.place)],
        max_new_tokens=max_new_tokens,
        metadata={"id": document.id},
    )


def _bytes(table: str, row: int, column: str, folder: str, where: str) -> bytes:
    held, name = stored_bytes(table, row, column)
    if held is not None:
        return held
    found = ImageFolder(Path(folder)).find(name) if isinstance(name, str) else None
    if found is None:
        raise DataError(f"{where}: has no bytes of an image, and the file {name!r} {OUTSIDE}")
    return found.read_bytes()
