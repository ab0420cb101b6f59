"""What can answer a task besides a transformers model: a function, stored replies, a server.

>>>
>>> backend = CallableBackend(lambda request: "yes")
>>> paperhooks.evaluate(backend, None, "pope", data="pope/", out="run/")  # doctest: +SKIP
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from paperhooks.errors import DataError
from paperhooks.generation.requests import Backend, Prompt, Reply, Request
from paperhooks.generation.server_backend import prompt_text
from paperhooks.io.hashing import hash_file

__all__ = ["CallableBackend", "ReplayBackend"]


class CallableBackend(Backend):
    """A function from a :class:`~paperhooks.generation.Request` to a reply.

    ``name`` goes into the record of the run; runs under another name are not continued. What the function raises is the
    error of that document.
    """

    def __init__(self, function: Callable[[Request], str], name: str = "callable") -> None:
        self.function, self.name = function, name

    def describe(self) -> dict[str, Any]:
        """The name."""
        return {"backend": "callable", "name": self.name}

    def prompt(self, document_id: str, request: Request) -> Prompt:
        """The messages as JSON."""
        return Prompt(document_id, prompt_text(request), request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """One call a prompt."""
        return [self._answer(prompt.request) for prompt in prompts]

    def _answer(self, request: Request) -> Reply:
        try:
            reply = self.function(request)
        except Exception as error:
            return Reply("", error=f"{type(error).__name__}: {error}")
        if not isinstance(reply, str):
            return Reply("", error=f"the function returned {type(reply).__name__}, not a text")
        return Reply(reply)


class ReplayBackend(Backend):
    """Replies from a file: ``samples.jsonl`` of a run, or JSON lines with ``id`` (or ``doc_id``) and ``reply``.

    In the place of ``reply`` may stand ``resps``, a list whose first entry counts, as in the sample files of lm-eval
    and lmms-eval. ``finish`` is taken over where it is there. Neither requests nor pictures are made. Raises DataError
    for a line that holds neither.
    """

    asks: ClassVar[bool] = False

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.replies = _read_replies(self.file)

    def describe(self) -> dict[str, Any]:
        """The hash of the file."""
        return {"backend": "replay", "replies": hash_file(self.file)}

    def about(self) -> dict[str, Any]:
        """Where the file lies."""
        return {"class": "replay", "name": str(self.file)}

    def answer(self, prompts: Sequence[Prompt]) -> list[Reply]:
        """The stored replies; a missing one is an error of its document."""
        missing = Reply("", error=f"{self.file} has no reply to this document")
        return [self.replies.get(prompt.id, missing) for prompt in prompts]


def _read_replies(file: Path) -> dict[str, Reply]:
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    found = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            key, reply = _stored_reply(f"{file}:{number}", line)
            found[key] = reply
    return found


def _stored_reply(where: str, line: bytes) -> tuple[str, Reply]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: is not JSON: {error}") from error
    key = row.get("id", row.get("doc_id")) if isinstance(row, Mapping) else None
    if key is None:
        raise DataError(f"{where}: expected an object with 'id' or 'doc_id'")
    if row.get("error"):
        return str(key), Reply("", error=str(row["error"]))
    text = row["reply"] if "reply" in row else row.get("resps")
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a text in 'reply', or in 'resps'")
    return str(key), Reply(text, int(row.get("tokens") or 0), str(row.get("finish") or ""))
