"""What the checks of the task contract work with: a task, its data, replies of every kind, runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from paperhooks.generation import Backend, Prompt, Request, Response, arrange
from paperhooks.io import hash_json, plain

__all__ = ["ById", "TaskMaterial"]

#: Replies that a task has to read in some way: nothing, other scripts, what no file can hold, far too much.
_REPLIES: Final = (
    "A", "B.", "yes", "No, there is none.", "", " \n\t\r\n", "答えはBです。", "いいえ", "是的", "Да", "نعم", "हाँ", "🙂",
    "\0", "A\0B", "\ud800", "A\udfff", "\ufeffyes", "\u202eA", "e\u0301" * 40, "３", "12,5", "1e400", "-inf", "NaN",
    "[1, 2", '{"answer": "A"}', "<think>A</think>B", "<think>A", "$\\boxed{A}$", "**A**", "%s {0} \\1", "A" * 30_000,
    "no yes " * 4_000, "((" * 8_000, "猫。" * 10_000,
)  # fmt: skip
#: Of the documents, those that every reply is given to; more of them would be alike.
_SOME: Final = 6


class ById(Backend):
    """Answers a document by its id, with one of some replies; ``asked`` lists the ids."""

    def __init__(self, replies: Sequence[str]) -> None:
        self.replies, self.asked = replies, list[str]()

    def describe(self) -> dict[str, Any]:
        """The same for all."""
        return {"backend": "contract"}

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """The request as it is."""
        return Prompt(document_id, request.text, request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """The n-th reply, n being the hash of the id."""
        self.asked += [prompt.id for prompt in prompts]
        return [Response(self.replies[_number(prompt.id) % len(self.replies)]) for prompt in prompts]


def _number(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)


class TaskMaterial(ABC):
    """Base of the contract's checks; what a subclass may set is told by :class:`paperhooks.testing.TaskContract`."""

    others: ClassVar[Mapping[str, Any]] = {}
    places: ClassVar[tuple[str, ...]] = ()
    replies: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def make(self) -> Any:
        """A fresh task, the same at every call."""

    @abstractmethod
    def source(self, folder: Path) -> str | Path:
        """Write a small data set into ``folder``, which is there, and return what the task takes as its source."""

    def every_reply(self) -> tuple[str, ...]:
        """Those of the class, and odd ones."""
        return (*self.replies, *_REPLIES)

    def material(self, folder: Path) -> tuple[Any, list[Any]]:
        """A fresh task, and its documents of data written into a new folder ``data``."""
        task = self.make()
        return task, task.documents(str(self.written(folder / "data")))

    def written(self, folder: Path) -> str | Path:
        """The source in a folder that is made for it."""
        folder.mkdir(parents=True)
        return self.source(folder)

    def some(self, documents: Sequence[Any]) -> list[Any]:
        """A few of the documents, evenly spread, as a run has them."""
        return self.as_run(documents[:: -(-len(documents) // _SOME)])

    def as_run(self, documents: Sequence[Any]) -> list[Any]:
        """The documents as a run has them: data as JSON gives them back."""
        return [dataclasses.replace(one, data=json.loads(json.dumps(plain(one.data)))) for one in documents]

    def asked(self, task: Any, document: Any) -> str:
        """Hash of everything in a document's request that the reply depends on."""
        placed = arrange(task.request(document), task.layout, opened=False)
        images = [getattr(image, "key", None) or _pixels(image) for image in placed.images]
        return hash_json([placed.prompt, placed.messages, images, placed.max_new_tokens, list(placed.stop)])

    def run(self, task: Any, source: str | Path, out: Path, backend: ById | None = None, **options: Any) -> Any:
        """A run whose replies go by the documents' ids, so that every run of the same data gets the same.

        :raises MissingExtra: without the evaluation toolkit.
        """
        from paperhooks import evaluate

        options = {"batch_size": 4, "report": False, **options}
        return evaluate(backend or ById(self.every_reply()), None, task, data=str(source), out=out, **options)


def _pixels(image: Any) -> str:
    return hashlib.sha256(f"{image.mode} {image.size}".encode() + image.tobytes()).hexdigest()
