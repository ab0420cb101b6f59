"""Images in a folder, found by their names; nothing outside of the folder is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["OUTSIDE", "ImageFolder"]

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
        return next((found for place in self.places if self.holds(found := place / name)), None)

    def find_stem(self, stem: str) -> Path | None:
        """The first image file with that name but for its ending; None if there is none."""
        return next((found for ending in _ENDINGS if (found := self.find(stem + ending))), None)

    def holds(self, path: Path) -> bool:
        """Whether a path leads to a file of this folder."""
        try:
            target = path.resolve()
            return target.is_file() and any(target.is_relative_to(root) for root in self.roots)
        except (OSError, ValueError):  # a name that no file can have
            return False
