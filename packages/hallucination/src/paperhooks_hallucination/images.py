"""Images and rows of evaluation data: files in a folder, or a data set of the hub; opened when they are needed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require
from paperhooks.generation import Request
from paperhooks.io import read_image
from paperhooks_evaluation import Document

__all__ = ["ImageFolder", "hub_columns", "image_request", "is_hub_name", "json_lines", "read_json"]

_ENDINGS: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


class ImageFolder:
    """Finds images by name in a folder or in a folder directly inside it (``val2014/``, ``images/``, ...)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        self.places = (folder, *inner)

    def find(self, name: str) -> Path | None:
        """The first file with that name; None if there is none."""
        return next((place / name for place in self.places if (place / name).is_file()), None)

    def find_stem(self, stem: str) -> Path | None:
        """The first image file with that name but for its ending; None if there is none."""
        return next((found for ending in _ENDINGS if (found := self.find(stem + ending))), None)


def image_request(document: Document, text: str, max_new_tokens: int) -> Request:
    """One message of the user: a document's image, then a text.

    :raises DataError: a file that is no image.
    :raises MissingExtra: pillow or datasets is missing.
    """
    content = [{"type": "image"}, {"type": "text", "text": text}]
    return Request(
        [{"role": "user", "content": content}],
        images=[_image(document.data)],
        max_new_tokens=max_new_tokens,
        metadata={"id": document.id},
    )


def _image(data: Mapping[str, Any]) -> Any:
    """The PIL image, in RGB, of a document's data: ``picture`` (a file), or ``hub``, ``split`` and ``row``.

    Runs keep the data of their documents, so these keys stay as they are.
    """
    if "hub" in data:
        return _hub_rows(data["hub"], data["split"])[data["row"]]["image"].convert("RGB")
    return read_image(data["picture"])


def is_hub_name(source: str) -> bool:
    """Whether a source is a data set's name or a folder of parquet files, for the ``datasets`` library."""
    folder = Path(source)
    if folder.is_dir():
        return any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet"))
    return not folder.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def hub_columns(source: str, columns: Sequence[str], split: str = "test") -> Iterator[dict[str, Any]]:
    """The rows of a hub data set with these columns only, so that no image is decoded.

    :raises DataError: when it cannot be loaded, lacks one of the columns or its images; MissingExtra without datasets.
    """
    rows = _hub_rows(source, split)
    missing = [name for name in (*columns, "image") if name not in rows.column_names]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    for row in rows.select_columns(list(columns)):
        yield dict(row)


@lru_cache(maxsize=4)
def _hub_rows(source: str, split: str) -> Any:
    library = require("datasets", "paperhooks-hallucination[data]", f"to read {source}")
    try:
        return library.load_dataset(source, split=split)
    except Exception as error:  # the library raises whatever its file systems raise
        raise DataError(
            f"{source} is no folder here and its split {split!r} cannot be loaded as a data set: {error}"
        ) from error


def json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | None]]:
    """Line number (from 1) and object of every line that is not blank; None for a line that is no JSON object."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            yield number, row if isinstance(row, dict) else None


def read_json(file: Path) -> Any:
    """A JSON file's content; raises DataError when it cannot be read."""
    try:
        return json.loads(_text(file))
    except ValueError as error:
        raise DataError(f"{file} is no JSON file: {error}") from error


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
