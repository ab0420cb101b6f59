"""Whether stored responses were given to the documents that the data hold now, by what is stored of these."""

from __future__ import annotations

import ast
import json
import logging
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from paperhooks.errors import DataError, counted
from paperhooks.generation import Backend, ReplayBackend, StoredDocument
from paperhooks.io import shown
from paperhooks.reports import RunFolder

from paperhooks_evaluation.plan import Plan
from paperhooks_evaluation.samples import document_hash
from paperhooks_evaluation.task import Document

__all__ = ["check_answering"]

log = logging.getLogger("paperhooks.evaluation")

#: Under which names data have what is asked, and what is right.
_ASKED: Final = ("question", "prompt", "text")
_RIGHT: Final = ("answer", "label", "target")
#: How many documents a message names.
_NAMED: Final = 3
#: What stands for a picture: the name of a file, which may lie elsewhere, or what a harness writes of an opened one.
_PICTURE: Final = re.compile(r"<PIL\b.*|[^\n]*\.(?:jpe?g|png|gif|webp|bmp|tiff?)", re.IGNORECASE | re.DOTALL)


def check_answering(backend: Backend, plan: Plan) -> None:
    """Raise DataError where a backend cannot answer the documents, or has responses to others of the same ids.

    Of these are compared the document's hash, or else what is asked and what is right, where both sides know it, but
    for case, blanks, full stops at the end and forms of Unicode. What is not stored, and where pictures lie, is not
    compared. A run's own folder also tells with which options of the task it was asked. Responses to further documents
    are left out where none is missing.
    """
    known = {document.id for document in plan.everything}
    told = backend.told()
    further = [key for key in told if key not in known]
    if further and known <= told.keys():
        log.warning(
            "%s: %s to documents that the data do not have, such as %s, not read",
            plan.name, counted(len(further), "reply is", "replies are"), ", ".join(map(repr, further[:_NAMED])),
        )  # fmt: skip
    else:
        backend.check([document.id for document in plan.everything])
    _check_run_of(backend, plan)
    faults: dict[str, str] = {}
    files: dict[str, None] = {}
    for document in plan.everything if told else ():
        for stored in told.get(document.id, ()):
            if fault := _difference(stored, document):
                faults.setdefault(document.id, fault)
                files[stored.file] = None
    if faults:
        raise DataError(_message(faults, list(files), counted(len(told), "reply", "replies"), plan))


def _check_run_of(backend: Backend, plan: Plan) -> None:
    """Raise DataError where replies of a run were given under other options of the task."""
    files = backend.files if isinstance(backend, ReplayBackend) else ()
    for folder in dict.fromkeys(file.parent for file in files):
        if not (folder / "result.json").is_file():
            continue
        try:
            inputs = RunFolder.open(folder, "evaluate").result["inputs"]
        except DataError:
            continue  # the folder of something else
        mine = plan.inputs()["options"]
        other = {name: value for name, value in inputs.get("options", {}).items() if mine.get(name) != value}
        if inputs.get("task") == plan.name and other:
            listed = ", ".join(f"{name} = {value!r}" for name, value in other.items())
            raise DataError(
                f"the replies in {folder} were given with {listed}; give the task these options, or name other replies"
            )


def _message(faults: Mapping[str, str], files: Sequence[str], all_replies: str, plan: Plan) -> str:
    others = f" and {counted(len(files) - 1, 'more file')}" if len(files) > 1 else ""
    lines = [f"{key!r}: {fault}" for key, fault in list(faults.items())[:_NAMED]]
    lines += [f"... and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
    return (
        f"{len(faults)} of {all_replies} in {files[0]}{others} answer other documents than those that the task "
        f"{plan.name!r} reads from {plan.source}: it is another revision of the data, or the task has other options; "
        "give the data and options that the replies are for, or ask the model again (of records with 'id' and 'reply' "
        "alone nothing is compared):" + "".join(f"\n  {line}" for line in lines)
    )


def _difference(stored: StoredDocument, document: Document) -> str:
    """In which words a document is another than the stored one; ``""`` where nothing tells."""
    if stored.digest:  # it covers all that could be compared
        return "" if stored.digest == document_hash(document) else "its doc_hash is another one"
    for name, there, here in _pairs(stored, document):
        if _comparable(there, here) and _read(there) != _read(here):
            return f"its {name} is {shown(there)} there, and {shown(here)} here"
    return ""


def _pairs(stored: StoredDocument, document: Document) -> Iterator[tuple[str, Any, Any]]:
    """What is asked and what is right, as it is stored and in the data."""
    here = document.data
    yield from ((name, stored.values[name], here[name]) for name in _ASKED if name in stored.values and name in here)
    own, other = (_listed(each.get("options")) for each in (stored.values, here))
    if own and other and not any(map(_is_picture, [*own, *other])):
        yield "options", own, other
    target = stored.target if stored.target != document.id else ""  # exported tasks have the id in its place
    told, right = (next((each[name] for name in _RIGHT if name in each), None) for each in (stored.values, here))
    if told is not None or target:
        yield "answer", target if told is None else told, right


def _listed(value: Any) -> list[Any] | None:
    """A list, or what a text says as one in Python or JSON."""
    for read in (ast.literal_eval, json.loads) if isinstance(value, str) and value.lstrip().startswith("[") else ():
        try:
            value = read(value)
            break
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return value if isinstance(value, list) else None


def _comparable(one: Any, other: Any) -> bool:
    """Whether two values are of one kind, and neither stands for a picture."""
    kinds = (lambda value: isinstance(value, str) and not _is_picture(value)), _number, _texts
    return any(kind(one) and kind(other) for kind in kinds)


def _is_picture(value: Any) -> bool:
    return isinstance(value, str) and _PICTURE.fullmatch(value) is not None


def _texts(value: Any) -> bool:
    return isinstance(value, list)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(value: Any) -> Any:
    """A value as it is compared."""
    if isinstance(value, list):
        return [_read(str(each)) for each in value]
    if not isinstance(value, str):
        return value
    return " ".join(unicodedata.normalize("NFKC", value).split()).casefold().rstrip(". ")
