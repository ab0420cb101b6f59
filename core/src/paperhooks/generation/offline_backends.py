"""What can answer a task besides a transformers model: a function, stored responses, a server.

>>>
>>> backend = CallableBackend(lambda request: "yes")
>>> paperhooks.evaluate(backend, None, "pope", data="pope/", out="run/")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from paperhooks.errors import DataError
from paperhooks.generation.requests import Backend, Prompt, Request, Response
from paperhooks.io.append_log import AppendLog
from paperhooks.io.harmless import error_text
from paperhooks.io.hashing import hash_file
from paperhooks.io.records import read_records

__all__ = ["CallableBackend", "ReplayBackend"]


class CallableBackend(Backend):
    """A function from a :class:`~paperhooks.generation.Request` to a response.

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
        return Prompt(document_id, request.text, request)

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """One call a prompt."""
        return [self._answer(prompt.request) for prompt in prompts]

    def _answer(self, request: Request) -> Response:
        try:
            response = self.function(request)
        except Exception as error:
            return Response("", error=error_text(error))
        if not isinstance(response, str):
            return Response("", error=f"the function returned {type(response).__name__}, not a text")
        return Response(response)


class ReplayBackend(Backend):
    """Responses from a file: ``samples.jsonl`` of a run, or records with ``id`` (or ``doc_id``) and ``reply``.

    In the place of ``reply`` may stand ``resps``, a list whose first entry counts, as in the sample files of lm-eval
    and lmms-eval. ``finish`` and ``reasoning`` are taken over where they are there. Neither requests nor images are
    made.

    :raises DataError: a line that holds neither.
    """

    asks: ClassVar[bool] = False

    def __init__(self, file: str | Path) -> None:
        self.file = Path(file)
        self.responses = _read_responses(self.file)

    def describe(self) -> dict[str, Any]:
        """The hash of the file."""
        return {"backend": "replay", "replies": hash_file(self.file)}

    def about(self) -> dict[str, Any]:
        """Where the file lies."""
        return {"class": "replay", "name": str(self.file)}

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """The stored responses; a missing one is an error of its document."""
        missing = Response("", error=f"{self.file} has no response to this document")
        return [self.responses.get(prompt.id, missing) for prompt in prompts]


def _read_responses(file: Path) -> dict[str, Response]:
    if AppendLog.holds(file):  # of a run, which may be under way
        rows = [(f"{file}, {row['id']!r}", row) for row in AppendLog(file, ("id",)).read()]
    else:
        rows = list(read_records(file))
    return dict(_stored_response(where, row) for where, row in rows)


def _stored_response(where: str, row: Any) -> tuple[str, Response]:
    key = row.get("id", row.get("doc_id")) if isinstance(row, Mapping) else None
    if key is None:
        raise DataError(f"{where}: expected an object with 'id' or 'doc_id'")
    if row.get("error"):
        return str(key), Response("", error=str(row["error"]))
    text = row["reply"] if "reply" in row else row.get("resps")
    while isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a text in 'reply', or in 'resps'")
    tokens = row.get("tokens")
    told = str(row.get("finish") or ""), "", str(row.get("reasoning") or "")
    return str(key), Response(text, tokens if isinstance(tokens, int) else 0, *told)
