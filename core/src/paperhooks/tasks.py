"""What an evaluation task is: a light description, items, requests, scores. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from paperhooks.catalog import catalog
from paperhooks.errors import DataError, PluginBroken, PluginConflict, PluginNotFound, did_you_mean
from paperhooks.methods import import_target

if TYPE_CHECKING:
    from paperhooks.engine import Request

__all__ = ["Item", "Score", "Task", "TaskInfo", "available_tasks", "checked_items", "load_task"]


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as a plugin offers it by the hook ``evaluation_tasks``.

    name, summary
        Kebab-case name for :func:`paperhooks.evaluate`, and one line.
    task
        ``"package.module:Class"`` of a :class:`Task` that is created without arguments.
    """

    name: str
    summary: str
    task: str


@dataclass(frozen=True, slots=True)
class Item:
    """One question. ``id`` is unique in the task; ``group`` sorts items into lines of the report."""

    id: str
    data: Mapping[str, Any] = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What a reply is worth, usually 0 or 1, and what was read from it; ``parsed`` None: nothing could be read."""

    value: float
    parsed: str | None


@runtime_checkable
class Task(Protocol):
    """What a task class offers. All methods are pure: the same arguments give the same result."""

    #: Changes whenever prompts, parsing or scores change; results of other versions are not continued.
    version: str

    def items(self, data: str) -> Sequence[Item]:
        """The items of the data in a folder, file or hub name; raises DataError naming what is wrong."""
        ...

    def request(self, item: Item) -> Request:
        """What the model is asked."""
        ...

    def score(self, item: Item, reply: str) -> Score:
        """What a reply is worth."""
        ...


def available_tasks() -> dict[str, TaskInfo]:
    """Task name to description over all healthy plugins; raises PluginConflict when two plugins offer one name."""
    found: dict[str, tuple[str, TaskInfo]] = {}
    for plugin, infos in catalog().process_hooks.collect("evaluation_tasks"):
        for info in infos:
            if info.name in found:
                other = found[info.name][0]
                raise PluginConflict(
                    f"the plugins {other!r} and {plugin!r} both offer the task {info.name!r}; block one"
                )
            found[info.name] = (plugin, info)
    return {name: info for name, (_, info) in sorted(found.items())}


def load_task(task: str | TaskInfo | Task) -> tuple[str, Task]:
    """Name and object of a task given by name, by description, or as an object.

    Raises PluginNotFound for an unknown name, PluginBroken when the class cannot be made.
    """
    if isinstance(task, str):
        known = available_tasks()
        if task not in known:
            raise PluginNotFound(f"no installed plugin offers the task {task!r}; {did_you_mean(task, known)}")
        task = known[task]
    if not isinstance(task, TaskInfo):
        return getattr(task, "name", type(task).__name__), task
    try:
        made = import_target(task.task)()
    except Exception as error:
        raise PluginBroken(f"the task {task.name!r} ({task.task}) cannot be made: {error}") from error
    if not isinstance(made, Task):
        raise PluginBroken(f"{task.task} lacks version, items(), request() or score(), so it is no task")
    return task.name, made


def checked_items(name: str, items: Sequence[Item]) -> list[Item]:
    """The items as a list; raises DataError when there is none or two share an id."""
    if not items:
        raise DataError(f"the data of task {name!r} has no items")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"the data of task {name!r} has two items with the id {item.id!r}")
        seen.add(item.id)
    return list(items)
