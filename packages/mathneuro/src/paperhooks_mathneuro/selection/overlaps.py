"""How far two selections agree: overall, by layer and by kind of module."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from paperhooks import DataError
from paperhooks.models import running_model
from torch import nn

from paperhooks_mathneuro.matrices import Matrix
from paperhooks_mathneuro.selection.selections import WeightSelection, weights_of

__all__ = ["Overlap", "Shares", "overlap", "shares"]


@dataclass(slots=True)
class Overlap:
    """Sizes of two sets and of what they share; of one group of matrices, or of all.

    groups
        By layer (``"layer 3"``) and by kind (``"down_proj"``), each an overlap of its own.
    """

    first: int = 0
    second: int = 0
    common: int = 0
    groups: dict[str, Overlap] = field(default_factory=dict)

    @property
    def jaccard(self) -> float:
        """Shared entries over entries in either; 1 for two empty sets."""
        either = self.first + self.second - self.common
        return self.common / either if either else 1.0

    @property
    def found_again(self) -> float:
        """Share of the first set's entries that the second has too; 1 for an empty first set."""
        return self.common / self.first if self.first else 1.0

    def add(self, first: int, second: int, common: int) -> None:
        """Count one more matrix."""
        self.first, self.second, self.common = self.first + first, self.second + second, self.common + common

    def __str__(self) -> str:
        return (
            f"{self.first} and {self.second} entries, {self.common} in both: Jaccard {self.jaccard:.3f}, "
            f"{self.found_again:.1%} of the first found again"
        )


def overlap(model: nn.Module, first: WeightSelection, second: WeightSelection) -> Overlap:
    """Compare two selections of one model, such as those of two languages, seeds or references.

    Raises DataError when they are of other matrices.
    """
    if [m.name for m in first.matrices] != [m.name for m in second.matrices]:
        raise DataError(f"{first.label!r} and {second.label!r} are of other matrices; make both with the same options")
    found = Overlap()
    for matrix, weight in weights_of(running_model(model), first.matrices):
        one, two = first.mask(matrix, weight), second.mask(matrix, weight)
        sizes = int(one.sum()), int(two.sum()), int((one & two).sum())
        found.add(*sizes)
        for group in _groups(matrix):
            found.groups.setdefault(group, Overlap()).add(*sizes)
    return found


@dataclass(frozen=True, slots=True)
class Shares:
    """Share of the entries that a selection has, by (layer, kind), with None for the head's layer; and overall."""

    cells: Mapping[tuple[int | None, str], float]
    by_kind: Mapping[str, float]
    by_layer: Mapping[int | None, float]
    total: float


def shares(matrices: Iterable[Matrix], counts: Mapping[str, int]) -> Shares:
    """Shares from counts by matrix name, as a recipe's ``about["counts"]`` has them."""
    sizes: dict[tuple[int | None, str], list[int]] = {}
    for matrix in matrices:
        cell = sizes.setdefault((matrix.layer, matrix.kind), [0, 0])
        cell[0] += counts[matrix.name]
        cell[1] += matrix.numel
    return Shares(
        cells={key: _share([cell]) for key, cell in sizes.items()},
        by_kind={
            k: _share(c for (_, kind), c in sizes.items() if kind == k) for k in dict.fromkeys(k for _, k in sizes)
        },
        by_layer={i: _share(c for (n, _), c in sizes.items() if n == i) for i in dict.fromkeys(n for n, _ in sizes)},
        total=_share(sizes.values()),
    )


def _share(cells: Iterable[list[int]]) -> float:
    found = list(cells)
    return sum(cell[0] for cell in found) / max(1, sum(cell[1] for cell in found))


def _groups(matrix: Matrix) -> list[str]:
    layer = "head" if matrix.layer is None else f"layer {matrix.layer}"
    return [layer, matrix.kind]
