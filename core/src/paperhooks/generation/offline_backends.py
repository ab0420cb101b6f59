"""What can answer a task besides a transformers model: a function, stored responses, a server.

>>>
>>> backend = CallableBackend(lambda request: "yes")
>>> paperhooks.evaluate(backend, None, "pope", data="pope/", out="run/")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from paperhooks.errors import DataError, counted
from paperhooks.generation.reply_file import stored_ids
from paperhooks.generation.requests import Backend, Prompt, Request, Response, StoredDocument
from paperhooks.io.append_log import AppendLog
from paperhooks.io.harmless import error_text
from paperhooks.io.hashing import hash_file, hash_json
from paperhooks.io.records import read_records

__all__ = ["CallableBackend", "ReplayBackend"]

#: How many ids a message names.
_NAMED: Final = 3
#: What lmms-eval stores in the place of a response that it never got.
_FAILED: Final = ("[LMMS_EVAL_REQUEST_FAILED", "[LMMS_EVAL_BUDGET_EXCEEDED")


class CallableBackend(Backend):
    """A function from a :class:`~paperhooks.generation.Request` to a text, or to a whole response with its token ids.

    ``name`` goes into the record of the run; runs under another name are not continued. What the function raises is the
    error of that document, and so is what is no text, such as None.
    """

    def __init__(self, function: Callable[[Request], str | Response], name: str = "callable") -> None:
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
        if isinstance(response, Response):
            return response
        if not isinstance(response, str):
            return Response("", error=f"the function returned {type(response).__name__}, not a text")
        return Response(response)


class ReplayBackend(Backend):
    """Responses from files: ``samples.jsonl`` of a run, sample files of lm-eval or lmms-eval, or records of your own.

    A record has its document's id in ``id``, in ``id`` of its ``doc`` or of what it says under the name of a metric
    (lmms-eval 0.7.3 leaves documents out), or in ``doc_id``, whichever of them comes first (the harnesses count
    ``doc_id`` from 0 in each of their files). Its response is in ``reply``, ``resps`` or ``filtered_resps``; lists
    stand for their first entry, and blanks around what a harness stored are no part of it. ``finish``, ``reasoning``
    and numbers of tokens are taken over where they are there. Neither requests nor images are made. What records say of
    their documents is handed on by :meth:`told`.

    :param files: files, or folders of them: in a folder those whose name holds "samples", or else all, of the first
        level that has any.
    :param model: the model that gave the responses, for the record; the files without it.
    :raises DataError: a record that holds neither; documents with two responses that differ; no file at all.
    """

    asks: ClassVar[bool] = False

    def __init__(self, *files: str | Path, model: str = "") -> None:
        self.files = [found for each in files for found in _sample_files(Path(each))]
        if not self.files:
            raise DataError("there are no files of responses to replay; name one or more")
        self.model = model
        self.responses, self._told = _read_responses(self.files)

    def describe(self) -> dict[str, Any]:
        """The hash of the files."""
        hashes = [hash_file(file) for file in self.files]
        return {"backend": "replay", "replies": hashes[0] if len(hashes) == 1 else hash_json(sorted(hashes))}

    def about(self) -> dict[str, Any]:
        """Where the responses came from."""
        return {"class": "replay", "name": self.model or self._named}

    def check(self, ids: Sequence[str]) -> None:
        """Raise DataError for responses to documents that the data do not have."""
        known = set(ids)
        unknown = [one for one in self.responses if one not in known]
        if unknown:
            raise DataError(
                f"{self._named} holds responses to {counted(len(unknown), 'document')} that the data do not have, "
                f"such as {', '.join(map(repr, unknown[:_NAMED]))}: it is of another revision of the data, or of "
                "another task"
            )

    def told(self) -> Mapping[str, Sequence[StoredDocument]]:
        """What the records say of their documents: ``doc_hash``, texts and numbers in ``doc``, ``target``."""
        return self._told

    def answer(self, prompts: Sequence[Prompt]) -> list[Response]:
        """The stored responses; a missing one is an error of its document."""
        missing = Response("", error=f"{self._named} has no response to this document")
        return [self.responses.get(prompt.id, missing) for prompt in prompts]

    @property
    def _named(self) -> str:
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def _sample_files(place: Path) -> list[Path]:
    if not place.is_dir():
        return [place]
    found = sorted(path for path in place.rglob("*.jsonl") if path.is_file())
    found = [path for path in found if "samples" in path.name] or found
    level = min((len(path.parts) for path in found), default=0)
    if not found:
        raise DataError(f"the folder {place} has no .jsonl files of responses; name the files, or another folder")
    return [path for path in found if len(path.parts) == level]


def _read_responses(files: Sequence[Path]) -> tuple[dict[str, Response], dict[str, list[StoredDocument]]]:
    """Responses by id, with what is said of their documents; an error gives way to a response.

    Two responses that differ are refused.
    """
    found: dict[str, Response] = {}
    told: dict[str, list[StoredDocument]] = {}
    places: dict[str, str] = {}
    twice: list[str] = []
    for name, where, row in ((str(file), *pair) for file in files for pair in _rows(file)):
        key, response = _stored_response(where, row)
        document = _stored_document(name, row)
        if not response.error and document not in told.setdefault(key, []):
            told[key].append(document)
        known = found.get(key)
        if known is not None and not (known.error or response.error) and known.text != response.text:
            twice.append(f"{key!r} ({places[key]}; {where})")
        if known is None or (known.error and not response.error):
            found[key], places[key] = response, where
    if twice:
        raise DataError(
            f"{counted(len(twice), 'id has', 'ids have')} two responses that differ, such as "
            f"{', '.join(twice[:_NAMED])}; replay one run at a time, and records whose ids tell their documents apart"
        )
    return found, told


def _rows(file: Path) -> Iterator[tuple[str, Any]]:
    if AppendLog.holds(file):  # of a run, which may be under way
        return ((f"{file}, {row['id']!r}", row) for row in AppendLog(file, ("id",)).read())
    return iter(read_records(file))


def _stored_response(where: str, row: Any) -> tuple[str, Response]:
    key = next((key for key in _keys(row) if key is not None), None) if isinstance(row, Mapping) else None
    if key is None:
        raise DataError(f"{where}: expected an object with 'id', 'doc' with an 'id', or 'doc_id'")
    if row.get("error"):
        return str(key), Response("", error=str(row["error"]))
    text = next((row[name] for name in ("reply", "resps", "filtered_resps") if name in row), None)
    while isinstance(text, list) and text:
        text = text[0]
    if text in (None, []) and any(name in row for name in ("reply", "resps", "filtered_resps")):
        return str(key), Response("", error=f"{where} has no response")
    if not isinstance(text, str):
        raise DataError(f"{where}: expected a text in 'reply', or in 'resps' or 'filtered_resps'")
    if "reply" not in row:
        text = text.strip()
        if text.startswith(_FAILED):
            return str(key), Response("", error=text)
    told = str(row.get("finish") or ""), "", str(row.get("reasoning") or "")
    return str(key), Response(text, _count(row, "tokens"), *told, _count(row, "prompt_tokens"), *stored_ids(row))


def _stored_document(file: str, row: Mapping[str, Any]) -> StoredDocument:
    """What a record says of its document: a run by itself, an exported task under the name of a metric.

    The ``doc_hash`` of a harness' own record is of its rows, not of ours.
    """
    document, target = row.get("doc"), row.get("target")
    telling = [row] if "reply" in row and "run" in row else [one for one in _holders(row) if one is not document]
    digest = next((one["doc_hash"] for one in telling if isinstance(one.get("doc_hash"), str) and "id" in one), "")
    plain = document if isinstance(document, Mapping) else {}
    values = {
        name: value for name, value in plain.items() if isinstance(value, str | int | float | list) and name != "id"
    }
    return StoredDocument(file, digest, values, target if isinstance(target, str) else "")


def _keys(row: Mapping[str, Any]) -> Iterator[Any]:
    """What may be the id of a record's document, the likeliest first."""
    yield row.get("id")
    for holder in _holders(row):
        yield holder.get("id")
    yield row.get("doc_id")


def _holders(row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """What may tell of a record's document: its ``doc``, then what it says under the names of metrics."""
    for holder in (row.get("doc"), *(value for name, value in row.items() if name != "doc")):
        if isinstance(holder, Mapping):
            yield holder


def _count(row: Mapping[str, Any], name: str) -> int:
    return value if isinstance(value := row.get(name), int) else 0
