"""``samples.jsonl``: one line an item, appended and flushed at once, so that a killed run goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from paperhooks.engine import Request
from paperhooks.errors import DataError
from paperhooks.provenance import hash_json, plain, write_text

__all__ = ["SampleFile", "request_hash"]


def request_hash(request: Request, prompt: str) -> str:
    """SHA-256 of everything in a request that the answer depends on: prompt, pixels, length limit."""
    return hash_json([prompt, [_image_hash(image) for image in request.images], request.max_new_tokens])


def _image_hash(image: Any) -> str:
    if hasattr(image, "tobytes") and hasattr(image, "size"):
        head = f"{getattr(image, 'mode', '')} {getattr(image, 'shape', image.size)}".encode()
        return hashlib.sha256(head + image.tobytes()).hexdigest()
    return hash_json(str(image))


class SampleFile:
    """The rows of one run by item id. A torn last line, left by a kill, is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, dict[str, Any]] = {}
        self._handle: IO[str] | None = None
        if path.exists():
            self._load()

    def _load(self) -> None:
        text = self.path.read_text(encoding="utf-8", errors="replace")
        whole, _, torn = text.rpartition("\n")
        for number, line in enumerate(whole.splitlines(), 1):
            row = _parse(self.path, number, line)
            self.rows[str(row["id"])] = row
        if torn:
            write_text(self.path, whole + "\n" if whole else "")

    def get(self, item_id: str, request: str) -> dict[str, Any] | None:
        """The finished row of an item, or None when it has none or ended in an error.

        Raises DataError when the row answers another request.
        """
        row = self.rows.get(item_id)
        if row is None or row.get("error"):
            return None
        if row.get("request") != request:
            raise DataError(f"{self.path} holds an answer of item {item_id!r} to another prompt; use another folder")
        return row

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row and force it to the disk."""
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("a", encoding="utf-8", newline="\n")
        self._handle.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
        self._handle.flush()
        os.fsync(self._handle.fileno())
        self.rows[str(row["id"])] = dict(row)

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _parse(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: is damaged ({error}); repair or move the file") from error
    if not isinstance(row, dict) or "id" not in row:
        raise DataError(f"{path}:{number}: is no sample (an object with an id); repair or move the file")
    return row
