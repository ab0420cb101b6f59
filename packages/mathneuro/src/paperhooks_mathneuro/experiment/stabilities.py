"""How much of a selection is signal: the same with other samples, and the same contrast with nothing to contrast.

Both need no forward pass: everything is made from the norms of single samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from paperhooks import DataError
from torch import nn
from tqdm import tqdm

from paperhooks_mathneuro.selection.overlaps import overlap, shares
from paperhooks_mathneuro.selection.ratio_sweep import select
from paperhooks_mathneuro.statistics.statistics import Statistics

__all__ = ["NoiseFloor", "Stability", "noise_floor", "stability"]


@dataclass(frozen=True, slots=True)
class Stability:
    """Selections from two disjoint halves of the samples, ``n`` a side in each.

    found_again, jaccard
        Share of one half's set found in the other's, and their Jaccard index: one value a split.
    """

    ratio: float
    n: int
    found_again: tuple[float, ...]
    jaccard: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """What "isolating" one half of a side against its other half selects, where there is nothing to isolate.

    isolated
        Share of the entries that the contrast selects from as many samples a side, ``n``; one value a split.
    target, reference
        The same of the target's halves, and of the reference's.
    """

    ratio: float
    n: int
    isolated: tuple[float, ...]
    target: tuple[float, ...]
    reference: tuple[float, ...]

    @property
    def share(self) -> float:
        """Mean noise (of both sides) over the mean isolated share."""
        noise = fmean([*self.target, *self.reference])
        return noise / fmean(self.isolated) if any(self.isolated) else 1.0


def stability(
    model: nn.Module,
    target: Statistics,
    reference: Statistics,
    *,
    ratio: float = 0.05,
    sizes: Sequence[int] | None = None,
    splits: int = 3,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> list[Stability]:
    """Stability against the number of samples, over disjoint halves.

    :param sizes: samples a side and half; by default powers of four up to half of the smaller side.
    :param splits: random splits for each size.
    :param options: further options of :func:`paperhooks_mathneuro.select`.
    :raises DataError: a size for which the samples do not suffice.
    """
    most = min(len(target), len(reference)) // 2
    chosen = list(sizes) if sizes is not None else [n for n in (4**i for i in range(12)) if n < most] + [most]
    if most < 1 or max(chosen) > most:
        raise DataError(f"two disjoint halves of {max(chosen)} samples need twice as many a side; there are {2 * most}")
    found: dict[int, list[tuple[float, float]]] = {n: [] for n in chosen}
    work = [(n, split) for n in chosen for split in range(splits)]
    for n, split in tqdm(work, desc="stability", unit="split", disable=not progress):
        halves = [side.halves(seed=seed + split, size=n) for side in (target, reference)]
        one, two = (select(model, *pair, ratio=ratio, **options) for pair in zip(*halves, strict=True))
        both = overlap(model, one, two)
        found[n].append((both.found_again, both.jaccard))
    return [Stability(ratio, n, *(tuple(column) for column in zip(*found[n], strict=True))) for n in chosen]


def noise_floor(
    model: nn.Module,
    target: Statistics,
    reference: Statistics,
    *,
    ratio: float = 0.05,
    splits: int = 3,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> NoiseFloor:
    """Selections of halves against halves of the same side, beside that of target halves against reference halves."""
    n = min(len(target), len(reference)) // 2
    if n < 1:
        raise DataError("a noise floor needs at least two samples a side")
    columns: dict[str, list[float]] = {"isolated": [], "target": [], "reference": []}
    for split in tqdm(range(splits), desc="noise floor", unit="split", disable=not progress):
        one, two = (side.halves(seed=seed + split, size=n) for side in (target, reference))
        for name, pair in (("isolated", (one[0], two[0])), ("target", one), ("reference", two)):
            found = select(model, *pair, ratio=ratio, **options)
            columns[name].append(shares(found.matrices, found.about["counts"]).total)
    return NoiseFloor(ratio, n, **{name: tuple(values) for name, values in columns.items()})
