"""What a harness asks of an exported task: the text and the pictures of a document, and what a response is worth."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import DataError
from paperhooks.generation import PendingImage, Request, split_reasoning
from paperhooks.info import TaskInfo
from paperhooks.io import json_text, plain, read_json

from paperhooks_evaluation.plan import AskOptions, Plan
from paperhooks_evaluation.samples import document_hash
from paperhooks_evaluation.scoring import score_response
from paperhooks_evaluation.task import Document, Task

__all__ = ["PLACEHOLDER", "RECORD", "UNPARSABLE", "Bridge", "open_folder", "opened", "unparsable_share"]

#: The file of an exported folder that says what was exported.
RECORD: Final = "export.json"
#: Where a picture stands in a text, as both harnesses write it.
PLACEHOLDER: Final = "<image>"
#: The metric that counts responses that could not be read, and carries for each document what was read.
UNPARSABLE: Final = "unparsable"


@dataclass(frozen=True)
class Bridge:
    """A task with its documents by id, in one mode.

    :param metric: what the harness calls the score.
    :param limit, stop: the number of tokens and the stop strings that the folder's files hold for all documents.
    :param shows: whether documents have pictures.
    """

    task: Task
    mode: str
    metric: str
    asking: AskOptions
    limit: int
    stop: tuple[str, ...]
    documents: Mapping[str, Document]
    shows: bool

    def request(self, row: Mapping[str, Any]) -> Request:
        """The request of a row of the data, laid out; see :meth:`pictures` for its images.

        :raises DataError: the data have no such document, or the folder's files do not hold for this one.
        """
        document = self._document(row)
        request = self.task.request(document)
        if request.prompt and request.images:
            raise DataError(
                f"document {document.id!r} has a finished prompt with pictures, whose places only its own model knows; "
                "export tasks that ask by messages"
            )
        request = self.asking.apply(request)
        if (request.max_new_tokens, tuple(request.stop)) != (self.limit, self.stop):
            raise DataError(
                f"document {document.id!r} is asked with max_new_tokens = {request.max_new_tokens} and stop = "
                f"{list(request.stop)}, and the folder's files hold {self.limit} and {list(self.stop)} for all; export "
                "with a limit and stop strings of your own"
            )
        if request.images and not self.shows:
            raise DataError(f"document {document.id!r} has pictures, and was exported as text; export the task again")
        return request

    def pictures(self, row: Mapping[str, Any]) -> list[Any]:
        """The opened images of a row, in the order in which its request shows them."""
        return opened(self.request(row).images)

    def text(self, row: Mapping[str, Any], placeholders: bool) -> str:
        """The question in one text, messages apart by an empty line, with or without :data:`PLACEHOLDER`."""
        request = self.request(row)
        if request.prompt:
            return request.prompt
        shown = PLACEHOLDER if placeholders else ""
        return "\n\n".join(
            "".join(shown if part["type"] == "image" else part["text"] for part in message["content"])
            for message in request.messages
        )

    def score(self, row: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Any]:
        """What the first result is worth, and what was read from it, by the names of the folder's metrics.

        As in a run of this toolkit, reasoning in tags and blanks around the answer are no part of it.
        """
        document = self._document(row)
        result: Any = results
        while isinstance(result, list | tuple) and result:
            result = result[0]
        answer = split_reasoning(result)[1].strip() if isinstance(result, str) else ""
        record = score_response(self.task, document, answer, self.mode)
        parsed = record.parsed
        known = {"id": document.id, "doc_hash": document_hash(document)}  # replays tell by it which data it was
        about = {"value": plain(parsed.value), "rule": parsed.rule, "fallback": parsed.fallback}
        return {self.metric: record.score, UNPARSABLE: known | about}

    def _document(self, row: Mapping[str, Any]) -> Document:
        if row["id"] not in self.documents:
            raise DataError(f"the data have no document {row['id']!r}; export the task again")
        return self.documents[row["id"]]


def unparsable_share(items: Sequence[Mapping[str, Any]]) -> float:
    """The share of documents whose response could not be read; nan without any."""
    return sum(item["fallback"] for item in items) / len(items) if items else float("nan")


def opened(images: Sequence[Any]) -> list[Any]:
    """Images of a request that is laid out, opened where they are not yet."""
    return [image.open() if isinstance(image, PendingImage) else image for image in images]


def open_folder(folder: Path) -> Bridge:
    """The task of an exported folder, its documents read from where the folder says that they are.

    A folder is opened once, unless it is written again.

    :raises DataError: the folder is no export, or task or data are others than those that were exported.
    """
    return _opened_folder(folder, json_text(read_json(folder / RECORD, "an exported task")))


@lru_cache(maxsize=8)
def _opened_folder(folder: Path, text: str) -> Bridge:
    try:
        return _bridge(folder, json.loads(text))
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / RECORD} is damaged ({error!r}); export the task again") from error


def _bridge(folder: Path, record: Mapping[str, Any]) -> Bridge:
    info = TaskInfo(name=record["task"], summary="an exported task", task=record["class"])
    source = str(folder / record["data"]["path"]) if "path" in record["data"] else record["data"]["name"]
    plan = Plan.make(info, record["options"], [record["mode"]], source, None, None)
    for called, found, exported in (
        ("task", plan.task.fingerprint(), record["fingerprint"]),
        ("data", plan.about["fingerprint"], record["data"]["fingerprint"]),
    ):
        if found != exported:
            raise DataError(f"the {called} of {folder} changed since the export; export the task again")
    asking = AskOptions(**record["asking"])
    limit, stop = record["generation"]["max_new_tokens"], tuple(record["generation"]["stop"])
    documents = {document.id: document for document in plan.everything}
    return Bridge(plan.task, record["mode"], record["metric"], asking, limit, stop, documents, record["shows_pictures"])
