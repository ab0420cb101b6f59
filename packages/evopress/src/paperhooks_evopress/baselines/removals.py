"""What a depth can leave out: attentions and MLPs one by one, or whole layers, and how many of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from paperhooks import DataError

from paperhooks_evopress.algorithm import State
from paperhooks_evopress.baselines.comparison import Setting

__all__ = ["Removals"]


@dataclass(frozen=True)
class Removals:
    """Groups of units that are left out together.

    setting
        Its problem is a depth.
    groups
        Numbers of the units in each, in the order of the layers.
    layers
        The index of the layer that each group is, or is part of.
    counts
        Exchange class to how many of its units have to go.
    whole_layers
        Whether groups are whole layers.
    """

    setting: Setting
    groups: tuple[tuple[int, ...], ...]
    layers: tuple[int, ...]
    counts: Mapping[str, int]
    whole_layers: bool

    @classmethod
    def of(cls, setting: Setting, *, whole_layers: bool) -> Removals:
        """The groups of a problem.

        :param whole_layers: leave out the attention and the MLP of a layer together. A problem whose units are whole
            layers has no others.
        :raises DataError: another target than a depth, or whole layers where attentions and MLPs differ in number.
        """
        space, target = setting.problem.space, setting.problem.target
        if target.kind != "depth":
            raise DataError(f"the target is {target}; what leaves out sublayers one after another needs a depth")
        classes = [unit.exchange for unit in space.units]
        counts = {name: classes.count(name) - int(keep) for name, keep in space.budgets.items()}
        layer_of = [setting.view.sublayers[unit.name].layer for unit in space.units]
        by_layer = {n: tuple(i for i, own in enumerate(layer_of) if own == n) for n in sorted(set(layer_of))}
        if not whole_layers:
            order = [i for own in by_layer.values() for i in own]
            return cls(setting, tuple((i,) for i in order), tuple(layer_of[i] for i in order), counts, False)
        if len(set(counts.values())) > 1:
            raise DataError(f"{target} leaves out {dict(counts)}, which are not whole layers")
        full = {n: own for n, own in by_layer.items() if len(own) == len(counts)}
        return cls(setting, tuple(full.values()), tuple(full), counts, True)

    @property
    def number(self) -> int:
        """How many groups have to go."""
        return max(self.counts.values(), default=0) if self.whole_layers else sum(self.counts.values())

    def state(self, places: Iterable[int]) -> State:
        """The state without the groups at these places."""
        units = self.setting.problem.space.units
        out = {i for place in places for i in self.groups[place]}
        return tuple(len(unit.choices) - 1 if i in out else 0 for i, unit in enumerate(units))

    def open(self, places: Sequence[int]) -> list[int]:
        """The groups that can go as well, in order."""
        units, left = self.setting.problem.space.units, dict(self.counts)
        for place in places:
            for i in self.groups[place]:
                left[units[i].exchange] -= 1
        return [
            place
            for place, group in enumerate(self.groups)
            if place not in places and all(left[units[i].exchange] > 0 for i in group)
        ]

    def first(self, order: Iterable[int]) -> tuple[int, ...]:
        """As many groups as have to go, the first of an order that can.

        :raises DataError: there are not as many.
        """
        places: list[int] = []
        for place in order:
            if place in self.open(places):
                places.append(place)
        return self.checked(places)

    def checked(self, places: Sequence[int]) -> tuple[int, ...]:
        """The places, where they are as many as have to go; raises DataError otherwise."""
        if len(places) < self.number:
            what = "layers" if self.whole_layers else "attentions and MLPs"
            raise DataError(
                f"{self.setting.problem.target} leaves out {self.number} {what}, and {len(places)} of "
                f"{len(self.groups)} that may go fit"
            )
        return tuple(places)

    def names(self, place: int) -> str:
        """The modules of a group."""
        units = self.setting.problem.space.units
        return "+".join(units[i].name for i in self.groups[place])
