"""Levels for other processes: what is offered, as data that can be pickled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from paperhooks.errors import DataError
from paperhooks.hooks.level import Level
from paperhooks.hooks.level_store import LevelStore
from paperhooks.hooks.levels import Levels
from paperhooks.weights.packed_forms import Packed

__all__ = ["portable_offers"]


@dataclass(frozen=True)
class _HeldValues:
    """Packed values that go along."""

    values: dict[str, Packed]

    def __call__(self) -> Mapping[str, Packed]:
        return self.values


@dataclass(frozen=True)
class _StoredValues:
    """Packed values that are read in a folder when they are wanted."""

    folder: Path
    module: str
    label: str

    def __call__(self) -> Mapping[str, Packed]:
        made = LevelStore.reader(self.folder).read(self.module)
        if made is None or self.label not in made:
            raise DataError(
                f"{self.folder} has no values of {self.module} at {self.label!r}; it has to lie where all processes "
                "that read the levels see it, and nothing may be removed from it"
            )
        return made[self.label]


def portable_offers(levels: Levels) -> dict[str, tuple[Level, ...]]:
    """What is offered, without what made it: ``Levels(view, offers)`` of a copy of the model has the same values.

    What :meth:`Levels.prepare` put into a folder is read there; other values are made, and go along. The model has its
    own weights afterwards.
    """
    levels.restore()
    return {name: tuple(_portable(levels, name, level) for level in own) for name, own in levels.items()}


def _portable(levels: Levels, name: str, level: Level) -> Level:
    prepare: _StoredValues | _HeldValues | None = None
    if level.prepare is not None and levels.folder is not None:
        prepare = _StoredValues(levels.folder, name, level.label)
    elif level.prepare is not None:
        prepare = _HeldValues(dict(levels.packed(name, level.label)))
    return replace(level, prepare=prepare, cost=dict(level.cost), options=dict(level.options))
