"""Images of evaluation data: files in a folder, or a data set of the hub; opened when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, require
from paperhooks.generation import Request
from paperhooks.io import from_hub, read_image, read_records
from paperhooks_evaluation import Document

__all__ = ["OUTSIDE", "ImageFolder", "hub_columns", "image_request", "is_hub_name"]

_ENDINGS: Final = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
#: What to say of an image that is not found.
OUTSIDE: Final = "is missing (what a name or a link would find outside of the folder is not opened)"


class ImageFolder:
    """Finds images by name in a folder or in a folder directly inside it (``val2014/``, ``images/``, ...).

    Nothing outside of the folder is found, by no name and by no link; of a download of the hub, whose files are links,
    its own store is a part.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        self.places = (folder, *inner)
        root = folder.resolve()
        stores = [path.parents[1] / "blobs" for path in (root, *root.parents) if path.parent.name == "snapshots"]
        self.roots = (root, *stores)

    def find(self, name: str) -> Path | None:
        """The first file with that name; None if there is none."""
        return next((found for place in self.places if self._is_inside(found := place / name)), None)

    def find_stem(self, stem: str) -> Path | None:
        """The first image file with that name but for its ending; None if there is none."""
        return next((found for ending in _ENDINGS if (found := self.find(stem + ending))), None)

    def _is_inside(self, path: Path) -> bool:
        try:
            target = path.resolve()
            return target.is_file() and any(target.is_relative_to(root) for root in self.roots)
        except (OSError, ValueError):  # a name that no file can have
            return False


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
    if "hub" not in data:
        return read_image(data["picture"])
    stored = _hub_rows(data["hub"], data["split"])[data["row"]]["image"]
    where = f"{data['hub']}, row {data['row']}"
    held, path = (stored.get("bytes"), stored.get("path")) if isinstance(stored, Mapping) else (None, None)
    if isinstance(held, bytes):
        return read_image(held, where)
    folder = Path(data["hub"])
    found = ImageFolder(folder).find(path) if isinstance(path, str) and folder.is_dir() else None
    if found is None:
        raise DataError(f"{where}: has no bytes of an image, and the file {path!r} {OUTSIDE}")
    return read_image(found)


def is_hub_name(source: str) -> bool:
    """Whether a source is a data set's name or a folder of parquet files, for the ``datasets`` library."""
    folder = Path(source)
    if folder.is_dir():
        return any(folder.glob("*.parquet")) or any(folder.glob("*/*.parquet"))
    return not folder.exists() and source.count("/") == 1 and not source.startswith((".", "/", "~"))


def hub_columns(source: str, columns: Sequence[str], split: str = "test") -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of the rows of a hub data set with these columns only, so that no image is read.

    :raises DataError: when it cannot be loaded, lacks one of the columns or its images; MissingExtra without datasets.
    """
    rows = _hub_rows(source, split)
    missing = [name for name in (*columns, "image") if name not in rows.column_names]
    if missing:
        raise DataError(f"{source} has no column {', '.join(missing)}; it has {', '.join(rows.column_names)}")
    yield from read_records(rows.select_columns(list(columns)))


@lru_cache(maxsize=4)
def _hub_rows(source: str, split: str) -> Any:
    """The rows with their images as stored: those are read like files, whatever the library would make of them."""
    library = require("datasets", "paperhooks-hallucination[data]", f"to read {source}")
    try:
        rows = from_hub(f"hub:{source}:{split}", streaming=False)
    except DataError as error:
        raise DataError(
            f"{source} is no folder here and its split {split!r} cannot be loaded as a data set: {error.__cause__}"
        ) from error
    return rows.cast_column("image", library.Image(decode=False)) if "image" in rows.column_names else rows
