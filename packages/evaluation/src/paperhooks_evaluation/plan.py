"""What a run is about: a task with its modes, the documents of the data, and the share of them that is answered."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean
from paperhooks.generation import Request, arrange, check_layout, in_shard
from paperhooks.info import TaskInfo
from paperhooks.io import hash_json, plain

from paperhooks_evaluation.scoring import check_modes
from paperhooks_evaluation.task import Document, DocumentList, Task, load_task

__all__ = [
    "COLUMNS",
    "AskOptions",
    "Plan",
    "ask_options",
    "check_numbers",
    "checked_documents",
    "share",
]

#: The columns of ``scores.csv`` beside those of the groupings.
COLUMNS: Final = ("id", "unit", "mode", "score", "value", "rule", "fallback", "truncated")


@dataclass(frozen=True, slots=True)
class AskOptions:
    """What the user decides about requests; None leaves it to the task."""

    layout: str
    max_pixels: int | None = None
    max_new_tokens: int | None = None
    stop: tuple[str, ...] | None = None

    def apply(self, request: Request) -> Request:
        """The request with limit and stop strings replaced and its images laid out; pictures are not opened yet."""
        changes: dict[str, Any] = {}
        if self.max_new_tokens is not None:
            changes["max_new_tokens"] = self.max_new_tokens
        if self.stop is not None:
            changes["stop"] = self.stop
        return arrange(dataclasses.replace(request, **changes), self.layout, self.max_pixels, opened=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """A task, its modes, and the documents of the data: all of them, and those wanted."""

    name: str
    task: Task
    modes: tuple[str, ...]
    source: str
    everything: Sequence[Document]
    wanted: Sequence[Document]
    about: Mapping[str, Any]
    keep_reasoning: bool = False

    @classmethod
    def make(
        cls, task: str | TaskInfo | Task, options: Mapping[str, Any] | None, modes: Sequence[str] | None,
        source: str, groups: Sequence[str] | None, limit: int | None, keep_reasoning: bool = False,
        limit_per: str | None = None,
    ) -> Plan:  # fmt: skip
        """Load the task and the data; raises what either of them raises, and DataError for an unknown group or mode.

        ``limit`` counts within each group of the grouping ``limit_per``, or else in all.
        """
        name, loaded = load_task(task, options)
        if not source.strip():
            raise DataError(f"the task {name!r} needs data; name its folder, file or hub data set")
        found = loaded.documents(source)
        documents = checked_documents(name, found)
        told = found if isinstance(found, DocumentList) else DocumentList()
        about = {
            "source": source,
            "documents": len(documents),
            "fingerprint": hash_json([[one.id, one.groups, one.data] for one in documents]),
            "revision": told.revision,
            "notes": list(told.notes),
        }
        wanted = _limited(name, documents, _of_groups(name, documents, groups), limit, limit_per)
        chosen = check_modes(name, loaded, modes)
        return cls(name, loaded, chosen, source, documents, wanted, about, keep_reasoning)

    def inputs(self) -> dict[str, Any]:
        """What of it determines the responses; what decides their scores as well is told by :meth:`scoring`."""
        return {
            "task": self.name,
            "version": str(self.task.version),
            "options": plain(self.task.options()),
            "fingerprint": self.task.fingerprint(),
        }

    def scoring(self) -> dict[str, Any]:
        """What decides the scores of each mode, besides the responses."""
        return {mode: plain(self.task.scoring(mode)) for mode in self.modes}


def checked_documents(name: str, documents: Sequence[Document]) -> list[Document]:
    """The documents with their data as JSON gives it back; raises DataError when there is none or two share an id."""
    if not documents:
        raise DataError(f"the data of task {name!r} has no documents")
    seen: set[str] = set()
    for document in documents:
        _check_groups(name, document)
        for text in (document.id, *document.groups.values()):
            if not isinstance(text, str) or "\0" in text or text.encode(errors="replace").decode() != text:
                raise DataError(f"the data of task {name!r} has the id or group {text!r}; expected a text")
        if document.id in seen:
            raise DataError(f"the data of task {name!r} has two documents with the id {document.id!r}")
        seen.add(document.id)
    # Scoring again reads documents from a file; tuples and the like must not make a difference then.
    return [
        dataclasses.replace(
            one,
            groups={grouping: group for grouping, group in one.groups.items() if group},
            data=json.loads(json.dumps(plain(one.data))),
        )
        for one in documents
    ]


def _check_groups(name: str, document: Document) -> None:
    """Raise DataError unless the groups are by grouping, under names that can head a column of ``scores.csv``."""
    if not isinstance(document.groups, Mapping):
        raise DataError(
            f"the data of task {name!r} has groups {document.groups!r} at {document.id!r}; expected them by grouping, "
            "such as {'subject': 'Design'}"
        )
    for grouping in document.groups:
        if not isinstance(grouping, str) or not grouping.isidentifier() or grouping in COLUMNS:
            raise DataError(
                f"the data of task {name!r} has the grouping {grouping!r}; expected a name as of a variable, other "
                f"than {', '.join(COLUMNS)}"
            )


def _of_groups(name: str, documents: Sequence[Document], groups: Sequence[str] | None) -> list[Document]:
    """The documents of the wanted groups: of any group of one grouping, and of all groupings that are named."""
    known: dict[str, set[str]] = {}
    for document in documents:
        for grouping, group in document.groups.items():
            known.setdefault(grouping, set()).add(group)
    wanted: dict[str, set[str]] = {}
    for text in [groups] if isinstance(groups, str) else groups or ():
        grouping, group = _named_group(name, text, known)
        wanted.setdefault(grouping, set()).add(group)
    return [one for one in documents if all(one.groups.get(key) in names for key, names in wanted.items())]


def _limited(
    name: str, everything: Sequence[Document], wanted: Sequence[Document], limit: int | None, limit_per: str | None
) -> list[Document]:
    """The first documents; of each group of a grouping where that is named, those without one being a group too."""
    if limit_per is None:
        return list(wanted[:limit])
    known = {grouping for document in everything for grouping in document.groups}
    if limit_per not in known:
        raise DataError(f"the data of task {name!r} have no grouping {limit_per!r}; {did_you_mean(limit_per, known)}")
    if limit is None:
        raise DataError(f"limit_per = {limit_per!r} says of what limit counts; give limit, such as limit=10")
    counts: Counter[str] = Counter()
    kept = []
    for document in wanted:
        group = document.groups.get(limit_per, "")
        counts[group] += 1
        if counts[group] <= limit:
            kept.append(document)
    return kept


def _named_group(name: str, text: str, known: Mapping[str, set[str]]) -> tuple[str, str]:
    """Grouping and group of ``"subset=CA"``, or of ``"CA"`` where one grouping alone has such a group."""
    grouping, equals, group = text.partition("=")
    if equals and group in known.get(grouping, ()):
        return grouping, group
    having = [each for each, names in known.items() if text in names]
    if len(having) == 1:
        return having[0], text
    every = [f"{each}={one}" for each, names in known.items() for one in sorted(names)]
    if having:
        both = " or ".join(f"{each}={text}" for each in having)
        raise DataError(f"several groupings of the data of task {name!r} have the group {text!r}; say {both}")
    alone = sorted(set().union(*known.values()))
    near = did_you_mean(text, every if equals else alone)
    raise DataError(f"the data of task {name!r} has no group {text!r}; {near}")


def check_numbers(**numbers: int | None) -> None:
    """Raise DataError for a number that is given and below 1."""
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise DataError(f"{name} = {value} must be at least 1")


def ask_options(
    task: Task, layout: str | None, max_pixels: int | None, max_new_tokens: int | None, stop: Sequence[str] | None
) -> AskOptions:
    """How requests are asked, by the user's wishes and the task's; raises DataError for an unknown layout."""
    if isinstance(stop, str) or (stop is not None and not all(stop)):
        raise DataError(f"stop = {stop!r} must be a list of strings that are not empty")
    chosen = check_layout(task.layout if layout is None else layout)
    return AskOptions(chosen, max_pixels, max_new_tokens, None if stop is None else tuple(stop))


def share(documents: Iterable[Document], shard: tuple[int, int] | None) -> list[Document]:
    """The documents of a shard: those whose id hashes to it, in any order of the data and on any machine."""
    return [one for one in documents if in_shard(one.id, shard)]
