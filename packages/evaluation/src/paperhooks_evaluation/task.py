"""What an evaluation task is: documents, requests, how responses are read and scored. Imports nothing heavy.

A task is a frozen dataclass derived from :class:`Task`; its fields are its options. All its methods are pure: the same
arguments give the same result, in any order, in any process. The engine asks the model once; every mode of a task reads
and scores the same responses, so that a mode can be added, or repaired, without asking again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from paperhooks.errors import DataError, PluginBroken, PluginConflict, PluginNotFound, did_you_mean
from paperhooks.info import TaskInfo
from paperhooks.io import hash_json
from paperhooks.plugins import catalog, import_target
from paperhooks.reports import Table, mean_interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from paperhooks.generation import Request

__all__ = [
    "Document",
    "DocumentList",
    "FigureSpec",
    "Metric",
    "Parsed",
    "Record",
    "Summary",
    "Task",
    "available_tasks",
    "grouped",
    "load_task",
    "mean_metric",
    "mean_metrics",
    "part_text",
]


@dataclass(frozen=True, slots=True)
class Document:
    """One question.

    :param id: unique among the documents of the data.
    :param groups: the groups it is reported under, by grouping, such as ``{"subject": "Design", "subset": "CA"}``.
        Groupings are names as of a Python variable; a document may lack any of them.
    :param data: plain JSON data: what the question is. It is hashed, and written beside the responses.
    :param place: where what belongs to it lies in the source, such as the file of an image. It is neither hashed nor
        written, so that a run goes on where the data were moved; empty when a run is scored again.
    """

    id: str
    groups: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    place: Mapping[str, Any] = field(default_factory=dict)


class DocumentList(list[Document]):
    """The documents of a source, with what a reader of their scores has to know about it.

    :param notes: sentences for the record and the report, such as which rows were left out.
    :param revision: the commit of the hub that the data are of; ``""`` for others.
    """

    def __init__(self, documents: Iterable[Document] = (), notes: Iterable[str] = (), revision: str = "") -> None:
        super().__init__(documents)
        self.notes = tuple(notes)
        self.revision = revision


@dataclass(frozen=True, slots=True)
class Parsed:
    """What was read from a response.

    :param value: the answer, as plain data.
    :param rule: which rule found it.
    :param fallback: True: nothing could be read, and ``value`` is what the mode makes of that (None, a guess, ...).
    """

    value: Any
    rule: str = ""
    fallback: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A document with the model's response, what was read from it and what that is worth."""

    document: Document
    response: str
    parsed: Parsed
    score: float
    truncated: bool = False


def part_text(grouping: str, group: str) -> str:
    """``"subset=CA"``; the group alone, or ``""`` for all, without a grouping."""
    return f"{grouping}={group}" if grouping else group


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure with what is needed to judge it.

    :param value: None where it is not defined, such as for an empty group.
    :param n: how many documents (or images, captions, ...) it rests on.
    :param low, high, interval: 95 % interval and how it was made: ``"wilson"``, ``"wilson over clusters"`` (n counts
        units that belong together), ``"normal"``, ``"bootstrap"``, or ``""`` without one.
    :param group, grouping: the part of the data it is about, such as ``"CA"`` of the grouping ``"subset"``; both
        ``""`` for all.
    :param scale: the largest possible value: 1 for shares, 200 for a category of MME.
    """

    name: str
    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    group: str = ""
    interval: str = ""
    scale: float = 1.0
    higher_is_better: bool = True
    grouping: str = ""

    @property
    def part(self) -> str:
        """The part of the data in one text: ``"subset=CA"``, or ``""`` for all."""
        return part_text(self.grouping, self.group)

    @property
    def bounds(self) -> tuple[float, float]:
        """Low and high for whiskers; where there is no interval, the value itself (0 where that is not defined)."""
        value = self.value or 0.0
        return value if self.low is None else self.low, value if self.high is None else self.high


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """A figure of the report: file name without ending, what it shows in words, and a function that draws it.

    ``draw`` is called only where figures are wanted; see :mod:`paperhooks.reports.figures` for helpers.
    """

    name: str
    alt: str
    caption: str
    draw: Callable[[], Figure]


@dataclass(frozen=True, slots=True)
class Summary:
    """What one mode makes of all records; the first metric is the headline. ``extra`` is plain data for the files."""

    metrics: Sequence[Metric]
    tables: Sequence[Table] = ()
    figures: Sequence[FigureSpec] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Task:
    """Base of all tasks.

    :cvar version: changes whenever prompts or scores change; runs of other versions are neither continued nor
        compared.
    :cvar modes: ways of reading responses; the first is the default. All are scored from the same responses. A property
        where they depend on the options.
    :cvar scoring_options: names of the options that change scores and never responses, such as a parser or the seed of
        a guess: they may change from call to call, and when a run is scored again.
    :cvar layout: where images go unless the user says otherwise, see :func:`paperhooks.evaluate`.
    :cvar metric: name of the mean score that the default :meth:`aggregate` reports.
    """

    version: ClassVar[str]
    modes: ClassVar[tuple[str, ...]] = ("official",)
    layout: ClassVar[str] = "prepend"
    metric: ClassVar[str] = "score"
    scoring_options: ClassVar[tuple[str, ...]] = ()

    def documents(self, source: str) -> Sequence[Document]:
        """The questions in a folder, file or hub name, in a fixed order; raises DataError naming what is wrong.

        A :class:`DocumentList` tells of the data what belongs into the report.
        """
        raise _missing(self, "documents")

    def request(self, document: Document) -> Request:
        """What the model is asked. May open images; called in a worker thread ahead of the model."""
        raise _missing(self, "request")

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        """Read a response."""
        raise _missing(self, "parse")

    def score(self, document: Document, parsed: Parsed) -> float:
        """What the answer is worth, usually 0 or 1."""
        raise _missing(self, "score")

    def settle(self, records: Sequence[Record], mode: str) -> Sequence[Record]:
        """The records again, for modes in which an answer depends on others; called before :meth:`aggregate`.

        An example is one generator that draws an answer for every unreadable response in turn. ``records`` are in the
        order of the documents; the same number must come back, in the same order.
        """
        return records

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        """The figures of a run; here the mean score of all and of each group, with intervals."""
        return Summary(mean_metrics(self.metric, records))

    def leaderboard(self, summary: Summary) -> Mapping[str, Any] | None:
        """The row of a published table that a run gives, by column; written as ``leaderboard.json`` and ``.csv``.

        ``summary`` is that of the first mode, over all documents of the data; a part of them gives no row. None, as
        here, where there is no such table.
        """
        return None

    def unit(self, document: Document) -> str:
        """What is drawn as a whole when runs are compared by resampling, such as the image of several questions."""
        return document.id

    def fingerprint(self) -> str:
        """SHA-256 of what the task asks: class, version, and the options that change responses."""
        return hash_json([type(self).__module__, type(self).__qualname__, self.version, self.options()])

    def options(self) -> dict[str, Any]:
        """The values of the fields that change responses, as they go into the record of a run."""
        return {name: getattr(self, name) for name in _option_names(type(self)) if name not in self.scoring_options}

    def scoring(self, mode: str) -> dict[str, Any]:
        """What else than the responses decides the scores of a mode, as plain data: recorded, and compared.

        By default the values of all ``scoring_options``.
        """
        return {name: getattr(self, name) for name in self.scoring_options}


def _option_names(cls: type) -> list[str]:
    return [one.name for one in dataclasses.fields(cls) if one.init] if dataclasses.is_dataclass(cls) else []


def _missing(task: Task, method: str) -> PluginBroken:
    return PluginBroken(f"the task {type(task).__name__} defines no method {method}()")


def mean_metrics(name: str, records: Sequence[Record]) -> list[Metric]:
    """The mean score of all records, then of the groups of each grouping, each with its 95 % interval.

    Groupings in the order in which they first occur, their groups in alphabetical order. Wilson's interval where all
    scores are 0 or 1, the normal one otherwise; None and n = 0 without records.
    """
    metrics = [mean_metric(name, [record.score for record in records])]
    for (grouping, group), members in grouped(records).items():
        metrics.append(mean_metric(name, [record.score for record in members], group, grouping))
    return metrics


def grouped(records: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The records of every group, by grouping and group, in the order of :func:`mean_metrics`."""
    found: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        for grouping, group in record.document.groups.items():
            found.setdefault(grouping, {}).setdefault(group, []).append(record)
    return {(grouping, group): groups[group] for grouping, groups in found.items() for group in sorted(groups)}


def mean_metric(name: str, scores: Sequence[float], group: str = "", grouping: str = "") -> Metric:
    """The mean of scores with its 95 % interval, as in :func:`mean_metrics`; that of shares stays within 0 and 1."""
    if not scores:
        return Metric(name, None, 0, group=group, grouping=grouping)
    low, high = mean_interval(scores)
    if all(0 <= score <= 1 for score in scores):
        low, high = max(0.0, low), min(1.0, high)
    kind = "wilson" if all(score in (0, 1) for score in scores) else "normal"
    return Metric(name, fmean(scores), len(scores), low, high, group, kind, grouping=grouping)


def available_tasks() -> dict[str, TaskInfo]:
    """Task name to description over all healthy plugins, without those that several plugins offer by one name."""
    offers = catalog().process_hooks.tasks()
    return {name: info for name, by_plugin in offers.items() for info in by_plugin.values() if len(by_plugin) == 1}


def load_task(task: str | TaskInfo | Task, options: Mapping[str, Any] | None = None) -> tuple[str, Task]:
    """Name and object of a task given by name, by description, or as an object.

    :raises PluginNotFound: an unknown name. :raises PluginConflict: several plugins offer it.
    :raises PluginBroken: when the class cannot be imported or is no task.
    :raises DataError: options that it does not take.
    """
    if isinstance(task, str):
        known = available_tasks()
        offering = list(catalog().process_hooks.tasks().get(task, ()))
        if len(offering) > 1:
            names = " and ".join(map(repr, offering))
            raise PluginConflict(f"the plugins {names} both offer the task {task!r}; block one (PAPERHOOKS_BLOCK)")
        if task not in known:
            raise PluginNotFound(f"no installed plugin offers the task {task!r}; {did_you_mean(task, known)}")
        task = known[task]
    if isinstance(task, TaskInfo):
        return task.name, _create(task, options or {})
    if not isinstance(task, Task):
        raise DataError(f"{task!r} is no task: give the name of one, or an object of a class derived from Task")
    if options:
        raise DataError(f"options = {dict(options)} goes with the name of a task; this one is an object already")
    return str(getattr(task, "name", type(task).__name__)), _checked(task, type(task).__qualname__)


def _create(info: TaskInfo, options: Mapping[str, Any]) -> Task:
    try:
        found = import_target(info.task)
    except Exception as error:
        raise PluginBroken(f"the task {info.name!r} ({info.task}) cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise PluginBroken(f"the task {info.name!r} ({info.task}) is no class derived from paperhooks_evaluation.Task")
    known = _option_names(found)
    for option in options:
        if option not in known:
            raise DataError(f"the task {info.name!r} has no option {option!r}; {did_you_mean(option, known)}")
    try:
        return _checked(found(**options), info.task)
    except (TypeError, ValueError) as error:
        raise DataError(f"the task {info.name!r} cannot be made with {dict(options)}: {error}") from error


def _checked(task: Task, where: str) -> Task:
    missing = [name for name in ("documents", "request", "parse", "score") if _inherited(task, name)]
    if not getattr(task, "version", ""):
        missing.insert(0, "version")
    if not task.modes:
        missing.append("modes")
    if missing:
        raise PluginBroken(f"the task {where} lacks {', '.join(missing)}")
    known = _option_names(type(task))
    for name in task.scoring_options:
        if name not in known:
            raise PluginBroken(f"scoring_options of the task {where} names {name!r}, which is no option of it")
    return task


def _inherited(task: Task, name: str) -> bool:
    return getattr(type(task), name) is getattr(Task, name)
