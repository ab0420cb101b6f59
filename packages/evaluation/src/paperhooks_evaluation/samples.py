"""The responses of a run: ``samples.jsonl``, or ``samples-0-of-2.jsonl`` for a process that does a share of the work.

One line a document, appended and forced to the disk after every batch: ``id``, ``group``, ``doc_hash``,
``prompt_hash``, ``reply`` (the response; users' files and scripts know it by this key), ``finish``, ``tokens``,
``seconds``, ``error``. Scores are not here, since they can be made again from what is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from paperhooks.errors import DataError
from paperhooks.generation import Prompt, Response
from paperhooks.io import hash_json, plain, write_text

from paperhooks_evaluation.task import Document

__all__ = ["SampleFile", "document_hash", "prompt_hash", "read_documents", "sample_row", "write_documents"]


def document_hash(document: Document) -> str:
    """SHA-256 of a document's id, group and data."""
    return hash_json([document.id, document.group, document.data])


def prompt_hash(prompt: Prompt) -> str:
    """SHA-256 of everything in a prompt that the answer depends on: text, pixels, length limit, stop strings."""
    request = prompt.request
    images = [_image_hash(image) for image in request.images]
    return hash_json([prompt.text, prompt.special, images, request.max_new_tokens, request.stop])


def _image_hash(image: Any) -> str:
    if hasattr(image, "tobytes") and hasattr(image, "size"):
        head = f"{getattr(image, 'mode', '')} {getattr(image, 'shape', image.size)}".encode()
        return hashlib.sha256(head + image.tobytes()).hexdigest()
    return hash_json(str(image))


def sample_row(
    document: Document, response: Response, prompt: str | None = None, seconds: float = 0.0
) -> dict[str, Any]:
    """A line of the file; ``prompt`` is the prompt's hash where there was one."""
    return {
        "id": document.id,
        "group": document.group,
        "doc_hash": document_hash(document),
        "prompt_hash": prompt,
        "reply": None if response.error else response.text,
        "finish": response.finish or None,
        "tokens": response.new_tokens,
        "seconds": round(seconds, 4),
        "error": response.error or None,
    }


class SampleFile:
    """The rows of one run by document id.

    Reads the files of all shares in the folder and appends to that of ``shard`` (index and count). A torn last line,
    left by a kill, is dropped from the file that is appended to, and overlooked in those of others.
    """

    def __init__(self, folder: Path, shard: tuple[int, int] | None = None) -> None:
        name = "samples.jsonl" if shard is None else f"samples-{shard[0]}-of-{shard[1]}.jsonl"
        self.path = folder / name
        self.rows: dict[str, dict[str, Any]] = {}
        self._handle: IO[str] | None = None
        self.reload()

    def reload(self) -> None:
        """Read all files again, for what other processes have written."""
        self.rows = {}
        for path in sorted(self.path.parent.glob("samples*.jsonl")):
            for row in _read_rows(path, repair=path == self.path and self._handle is None):
                if not row.get("error") or self.rows.get(str(row["id"]), row).get("error"):
                    self.rows[str(row["id"])] = row

    def answered(self, document: Document) -> bool:
        """Whether a document has its response; an error is none. Raises DataError when the document was another one."""
        row = self.rows.get(document.id)
        if row is None or row.get("error"):
            return False
        if row.get("doc_hash") != document_hash(document):
            raise DataError(
                f"{self.path.parent} holds a response to another document {document.id!r}: the data have changed; use "
                "another folder, or force_new to begin anew"
            )
        return True

    def check_prompt(self, document_id: str, found: str) -> None:
        """Raise DataError unless the response of a document was given to the prompt with this hash."""
        row = self.rows[document_id]
        if row.get("prompt_hash") not in (found, None):
            raise DataError(
                f"{self.path.parent} holds a response to another prompt of {document_id!r}; use another folder, or "
                "force_new to begin anew"
            )

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and force them to the disk."""
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("a", encoding="utf-8", newline="\n")
        for row in rows:
            self._handle.write(json.dumps(plain(row), ensure_ascii=False) + "\n")
            self.rows[str(row["id"])] = dict(row)
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._handle is not None:
            self._handle.close()
            self._handle = None


def _read_rows(path: Path, repair: bool) -> list[dict[str, Any]]:
    # A response may hold any other line separator, so only "\n" ends a line.
    whole, _, torn = path.read_bytes().rpartition(b"\n")
    if torn and repair:
        os.truncate(path, len(whole) + 1 if whole else 0)
    lines = whole.split(b"\n") if whole else []
    return [_parse(path, number, line) for number, line in enumerate(lines, 1)]


def _parse(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: is damaged ({error}); repair or move the file") from error
    if not isinstance(row, dict) or "id" not in row:
        raise DataError(f"{path}:{number}: is no sample (an object with an id); repair or move the file")
    return row


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Keep the documents of a run beside its responses, so that both can be scored again without the data."""
    lines = [{"id": one.id, "group": one.group, "data": one.data} for one in documents]
    write_text(path, "".join(json.dumps(plain(line), ensure_ascii=False) + "\n" for line in lines))


def read_documents(path: Path) -> list[Document]:
    """What :func:`write_documents` wrote; raises DataError when it cannot be read."""
    try:
        rows = _read_rows(path, repair=False)
        return [Document(row["id"], row["group"], row["data"]) for row in rows]
    except (OSError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}); it is written by paperhooks.evaluate") from error
