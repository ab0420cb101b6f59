"""The responses of a run: ``samples.jsonl``, or ``samples-0-of-2.jsonl`` for a process that does a share of the work.

One line a document, appended with a checksum and forced to the disk after every batch: ``id``, ``groups``,
``doc_hash``, ``prompt_hash``, ``reply`` (the response; users' files and scripts know it by this key), ``reasoning``
(what the model wrote in front of it), ``finish``, ``tokens``, ``prompt_tokens``, ``seconds``, ``error``. Scores are
not here, since they can be made again from what is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paperhooks.errors import DataError
from paperhooks.generation import Reply, ReplyFile, reply_columns
from paperhooks.io import hash_json, plain, read_records, write_text

from paperhooks_evaluation.task import Document

__all__ = ["SampleFile", "document_hash", "read_documents", "sample_row", "total_cost", "write_documents"]


def document_hash(document: Document) -> str:
    """SHA-256 of a document's id, groups and data; not of its place."""
    return hash_json([document.id, document.groups, document.data])


def sample_row(document: Document, reply: Reply) -> dict[str, Any]:
    """A line of the file."""
    about = {"id": document.id, "groups": dict(document.groups), "doc_hash": document_hash(document)}
    return about | reply_columns(reply.response, reply.digest, reply.seconds)


def total_cost(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Tokens of the prompts and of the answers of rows; older rows do not have the former."""
    costs = [(row.get("prompt_tokens") or 0, row.get("tokens") or 0) for row in rows]
    return {"prompt_tokens": sum(prompt for prompt, _ in costs), "answer_tokens": sum(answer for _, answer in costs)}


class SampleFile(ReplyFile):
    """The rows of one run by document id; see :class:`paperhooks.generation.ReplyFile`."""

    stem = "samples"
    columns = ("id", "groups", "doc_hash", "prompt_hash", "reply", "error", "run")
    noun = "document"
    advice = "use another folder, or force_new to begin anew"
    again = "evaluate again"

    def answered(self, document: Document) -> bool:
        """Whether a document has its response; an error is none. Raises DataError when the document was another one."""
        if not self.has_reply(document.id):
            return False
        if self.rows[document.id]["doc_hash"] != document_hash(document):
            raise DataError(
                f"{self.path.parent} holds a response to another document {document.id!r}: the data have changed; "
                f"{self.advice}"
            )
        return True


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
