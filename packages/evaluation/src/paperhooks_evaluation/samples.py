"""The responses of a run: ``samples.jsonl``, or ``samples-0-of-2.jsonl`` for a process that does a share of the work.

One line a document, appended with a checksum and forced to the disk after every batch: ``id``, ``groups``,
``doc_hash``, ``prompt_hash``, ``reply`` (the response; users' files and scripts know it by this key), ``reasoning``
(what the model wrote in front of it), ``finish``, ``tokens``, ``prompt_tokens``, ``seconds``, ``error``. Scores are
not here, since they can be made again from what is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError, counted
from paperhooks.generation import PendingImage, Prompt, Response
from paperhooks.io import AppendLog, hash_json, plain, read_records, redacted, write_text

from paperhooks_evaluation.task import Document

__all__ = [
    "SampleFile",
    "document_hash",
    "prompt_hash",
    "read_documents",
    "sample_row",
    "total_cost",
    "write_documents",
]

#: What every row has; another file is none of ours.
_KEYS: Final = ("id", "groups", "doc_hash", "prompt_hash", "reply", "error", "run")
_NAME: Final = re.compile(r"samples(-\d+-of-\d+)?\.jsonl")


def document_hash(document: Document) -> str:
    """SHA-256 of a document's id, groups and data; not of its place."""
    return hash_json([document.id, document.groups, document.data])


def prompt_hash(prompt: Prompt) -> str:
    """SHA-256 of everything in a prompt that the answer depends on: text, images, length limit, stop strings.

    Opened images count by their pixels, pictures by their bytes and how they are scaled and joined.
    """
    request = prompt.request
    images = [_image_hash(image) for image in request.images]
    return hash_json([prompt.text, prompt.special, images, request.max_new_tokens, request.stop])


def _image_hash(image: Any) -> str:
    if isinstance(image, PendingImage):
        return image.key
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
        "groups": dict(document.groups),
        "doc_hash": document_hash(document),
        "prompt_hash": prompt,
        "reply": None if response.error else response.text,
        "reasoning": response.reasoning or None,
        "finish": response.finish or None,
        "tokens": response.new_tokens,
        "prompt_tokens": response.prompt_tokens,
        "seconds": round(seconds, 4),
        "error": redacted(response.error) or None,
    }


def total_cost(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens of the prompts and of the answers of rows; older rows do not have the former."""
    costs = [(row.get("prompt_tokens") or 0, row.get("tokens") or 0) for row in rows]
    return {"prompt_tokens": sum(prompt for prompt, _ in costs), "answer_tokens": sum(answer for _, answer in costs)}


class SampleFile:
    """The rows of one run by document id; ``run`` is the hash of what determines its responses.

    Reads the files of all shares in the folder and appends to that of ``shard`` (index and count), unless another
    process ``writes`` for this one. Reading changes nothing; a torn last line, left by a kill, goes with the first row
    that is appended.
    """

    def __init__(self, folder: Path, run: str, shard: tuple[int, int] | None = None, *, writes: bool = True) -> None:
        name = "samples.jsonl" if shard is None else f"samples-{shard[0]}-of-{shard[1]}.jsonl"
        self.path, self.run, self.writes = folder / name, run, writes
        self.rows: dict[str, dict[str, Any]] = {}
        self._log = AppendLog(self.path, _KEYS, ("seconds",))
        self.reload()

    def reload(self) -> None:
        """Read all files again, for what other processes have written; raises DataError for a damaged one."""
        self.rows = {}
        for path in sorted(path for path in self.path.parent.glob("samples*.jsonl") if _NAME.fullmatch(path.name)):
            for row in AppendLog(path, _KEYS).read():
                if row["run"] != self.run:
                    raise DataError(
                        f"{path} holds a response to {row['id']!r} of another run; use another folder, or force_new to "
                        "begin anew"
                    )
                if not row["error"] or self.rows.get(row["id"], row)["error"]:
                    self.rows[row["id"]] = row

    def answered(self, document: Document) -> bool:
        """Whether a document has its response; an error is none. Raises DataError when the document was another one."""
        row = self.rows.get(document.id)
        if row is None or row["error"]:
            return False
        if row["doc_hash"] != document_hash(document):
            raise DataError(
                f"{self.path.parent} holds a response to another document {document.id!r}: the data have changed; use "
                "another folder, or force_new to begin anew"
            )
        return True

    def check_prompt(self, document_id: str, found: str) -> None:
        """Raise DataError unless the response of a document was given to the prompt with this hash."""
        if self.rows[document_id]["prompt_hash"] not in (found, None):
            raise DataError(
                f"{self.path.parent} holds a response to another prompt of {document_id!r}; use another folder, or "
                "force_new to begin anew"
            )

    def require_all(self, documents: Iterable[Document]) -> None:
        """Raise DataError where documents have no row, although every one was asked: rows were taken away."""
        missing = [document.id for document in documents if document.id not in self.rows]
        if missing:
            raise DataError(
                f"{self.path} was cut or removed: {counted(len(missing), 'document has', 'documents have')} no "
                f"row, the first is {missing[0]!r}; evaluate again to ask these"
            )

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write rows and force them to the disk."""
        made = [{**row, "run": self.run} for row in rows]
        if self.writes:
            self._log.append(made)
        self.rows |= {row["id"]: row for row in made}

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        self._log.close()


def write_documents(path: Path, documents: Sequence[Document]) -> None:
    """Keep the documents of a run beside its responses, so that both can be scored again without the data."""
    lines = [{"id": one.id, "groups": one.groups, "data": one.data} for one in documents]
    # Data may hold NaN, which a strict writer of JSON refuses.
    write_text(path, "".join(json.dumps(plain(line), ensure_ascii=False) + "\n" for line in lines))


def read_documents(path: Path) -> list[Document]:
    """What :func:`write_documents` wrote; raises DataError when it cannot be read."""
    try:
        return [Document(row["id"], row["groups"], row["data"]) for _, row in read_records(path)]
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); it is written by paperhooks.evaluate") from error
