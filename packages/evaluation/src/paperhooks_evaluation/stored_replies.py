"""Whether stored responses were given to the documents that the data hold now, by what is stored of these."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from paperhooks.errors import DataError, counted
from paperhooks.generation import Backend, StoredDocument
from paperhooks.io import shown

from paperhooks_evaluation.plan import Plan
from paperhooks_evaluation.samples import document_hash
from paperhooks_evaluation.task import Document

__all__ = ["check_answering"]

#: How many documents a message names.
_NAMED: Final = 3
#: What stands for a picture: the name of a file, which may lie elsewhere, or what a harness writes of an opened one.
_PICTURE: Final = re.compile(r"<PIL\b.*|[^\n]*\.(?:jpe?g|png|gif|webp|bmp|tiff?)", re.IGNORECASE | re.DOTALL)


def check_answering(backend: Backend, plan: Plan) -> None:
    """Raise DataError where a backend cannot answer the documents, or has responses to others of the same ids.

    Of these are compared the document's hash, and otherwise texts and numbers that both know under one name, but for
    case, blanks and full stops at the end. What is not stored, and where pictures lie, is not compared.
    """
    backend.check([document.id for document in plan.everything])
    told = backend.told()
    faults: dict[str, str] = {}
    files: dict[str, None] = {}
    for document in plan.everything if told else ():
        for stored in told.get(document.id, ()):
            if fault := _difference(stored, document):
                faults.setdefault(document.id, fault)
                files[stored.file] = None
    if faults:
        raise DataError(_message(faults, list(files), counted(len(told), "reply", "replies"), plan))


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
        if _read(there) != _read(here):
            return f"its {name} is {shown(there)} there, and {shown(here)} here"
    return ""


def _pairs(stored: StoredDocument, document: Document) -> Iterator[tuple[str, Any, Any]]:
    """What is stored and what the data have under the same name, of one kind."""
    known = dict(stored.values)
    if stored.target and stored.target != document.id:  # exported tasks have the id in its place
        known.setdefault("answer", stored.target)
    for name, there in known.items():
        here = document.data.get(name)
        if (_text(there) and _text(here)) or (_number(there) and _number(here)):
            yield name, there, here


def _text(value: Any) -> bool:
    return isinstance(value, str) and not _PICTURE.fullmatch(value)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _read(value: Any) -> Any:
    """A value as it is compared."""
    return " ".join(value.split()).casefold().rstrip(". ") if isinstance(value, str) else value
