"""The tasks and groups that a harness is told of: a task for each group of the first grouping, and groups above them.

A harness averages tasks into groups, so a grouping becomes groups where each of its groups is a union of groups of the
grouping below it (subjects make up domains, and these subsets). Another grouping that all documents of a task agree in
becomes a tag, by which its tasks can be asked for together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from paperhooks_evaluation.task import Document

__all__ = ["Bundle", "Harness", "Leaf", "Outline", "make_outline"]

Harness: TypeAlias = Literal["lm-eval", "lmms-eval"]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A task of the harness.

    :param tags: names by which it is asked for together with others.
    """

    name: str
    alias: str
    documents: Sequence[Document]
    tags: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A group of the harness, of tasks or of other groups, by their names."""

    name: str
    alias: str
    members: Sequence[str]


@dataclass(frozen=True, slots=True)
class Outline:
    """All tasks, in the order of the documents, and all groups, the whole last; no group where there is one task."""

    leaves: Sequence[Leaf]
    bundles: Sequence[Bundle]


def make_outline(name: str, documents: Sequence[Document]) -> Outline:
    """Tasks and groups for the documents of a data set; the whole has the name that is given."""
    groupings = list(dict.fromkeys(grouping for one in documents for grouping in one.groups))
    first = groupings[0] if groupings else ""
    parts: dict[str, list[Document]] = {}
    for document in documents:
        parts.setdefault(document.groups.get(first, ""), []).append(document)
    if len(parts) == 1:
        return Outline([Leaf(name, name, documents)], [])
    names = _Names(name)
    common = {part: _common(members, groupings[1:]) for part, members in parts.items()}
    agreed = [one for one in groupings[1:] if all(one in groups for groups in common.values())]
    levels = _levels(agreed, common)
    tagged = [one for one in agreed if one not in levels]
    leaf_names = {part: names.of(first, part or "others") for part in parts}
    tags = {
        part: [f"{name}_tasks", *(names.of(one, groups[one]) for one in tagged if groups[one])]
        for part, groups in common.items()
    }
    leaves = [Leaf(leaf_names[part], part or "others", parts[part], tags[part]) for part in parts]
    return Outline(leaves, _bundles(name, names, levels, common, leaf_names))


def _common(documents: Sequence[Document], groupings: Sequence[str]) -> dict[str, str]:
    """The groups that all of the documents share, by grouping; ``""`` where none of them has one."""
    found = {grouping: {one.groups.get(grouping, "") for one in documents} for grouping in groupings}
    return {grouping: groups.pop() for grouping, groups in found.items() if len(groups) == 1}


def _levels(groupings: Sequence[str], common: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Groupings from fine to coarse, each of them a coarser division of what the one before it divides."""
    sizes = {grouping: len({groups[grouping] for groups in common.values()}) for grouping in groupings}
    levels: list[str] = []
    below = {part: ("", part) for part in common}
    for grouping in sorted(groupings, key=lambda one: -sizes[one]):
        pairs = {(below[part], groups[grouping]) for part, groups in common.items()}
        if 1 < sizes[grouping] < len(set(below.values())) == len(pairs):
            levels.append(grouping)
            below = {part: (grouping, groups[grouping]) if groups[grouping] else below[part]
                     for part, groups in common.items()}  # fmt: skip
    return levels


def _bundles(
    name: str, names: _Names, levels: Sequence[str], common: Mapping[str, Mapping[str, str]], leaves: Mapping[str, str]
) -> list[Bundle]:
    """The groups, those of the finest level first; what has no group of a level belongs to the level above."""
    bundles: list[Bundle] = []
    current = {part: leaves[part] for part in common}
    for level in levels:
        members: dict[str, list[str]] = {}
        for part, groups in common.items():
            if groups[level]:
                members.setdefault(groups[level], []).append(current[part])
        called = {group: names.of(level, group) for group in members}
        bundles += [Bundle(called[group], group, list(dict.fromkeys(each))) for group, each in members.items()]
        current = {part: called.get(common[part][level], below) for part, below in current.items()}
    return [*bundles, Bundle(name, name, list(dict.fromkeys(current.values())))]


class _Names:
    """Names of letters, digits and underscores, each given to one thing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.given: dict[str, tuple[str, str]] = {name: ("", ""), f"{name}_tasks": ("", "")}

    def of(self, grouping: str, group: str) -> str:
        """The name of a group: with its grouping where another one has such a name, and numbered where that has."""
        word = re.sub(r"\W+", "_", group)
        tries = [f"{self.name}_{word}", f"{self.name}_{grouping}_{word}"]
        tries += [f"{tries[1]}_{number}" for number in range(2, len(self.given) + 3)]
        return next(one for one in tries if self.given.setdefault(one, (grouping, group)) == (grouping, group))
