"""Controls: sets that differ from a selection in one respect only.

Pruning anything hurts. Whether a selection is special shows beside random entries, random entries of the same
magnitudes, entries that rank just below the selected ones, the selection of the reversed contrast, and the whole top.
All but the whole top have as many entries of each matrix as the selection (the reversed contrast where both sides have
one ratio; the next important as far as there are enough).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from paperhooks import DataError
from torch import Tensor

from paperhooks_mathneuro.algorithm import count, thresholds, top
from paperhooks_mathneuro.matrices import Matrix
from paperhooks_mathneuro.selection.selections import Recipe, WeightSelection, groups, ungrouped
from paperhooks_mathneuro.selection.set_algebra import evaluate_sets, set_names, sides_of

__all__ = ["CONTROLS", "MatchedRandom", "NextImportant", "SameMagnitude", "control", "controls"]

#: Names of the controls, in the order of reports.
CONTROLS: Final = ("reversed", "random", "same magnitude", "next important", "top only")
_BINS: Final = 16


@dataclass(frozen=True, eq=False)
class MatchedRandom(WeightSelection):
    """As many entries of each matrix as ``of`` has, drawn at random from all (the official baseline, seeded)."""

    of: WeightSelection
    seed: int = 0

    def mask(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """See :class:`WeightSelection`."""
        size = len(self.of.index(matrix, weight))
        return _drawn(torch.ones(matrix.numel, dtype=torch.bool), size, self._seed(matrix), matrix, weight)

    def _seed(self, matrix: Matrix) -> int:
        digest = hashlib.sha256(f"{self.seed} {matrix.name}".encode()).digest()
        return int.from_bytes(digest[:8], "big")


@dataclass(frozen=True, eq=False)
class SameMagnitude(MatchedRandom):
    """Random entries with the magnitudes |W| of the selected ones: as many in each of 16 bins of equal width in
    log |W|, none of them selected, as far as a bin has that many."""

    def mask(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """See :class:`WeightSelection`."""
        chosen = self.of.mask(matrix, weight).reshape(-1)
        bins = _magnitude_bins(weight.reshape(-1))
        found = torch.zeros_like(chosen)
        for number in range(_BINS):
            inside = bins == number
            wanted = int((chosen & inside).sum())
            if wanted:
                pool = (inside & ~chosen).cpu()
                drawn = _drawn(pool, min(wanted, int(pool.sum())), self._seed(matrix) + number, matrix, weight)
                found |= drawn.reshape(-1)
        return found.reshape(matrix.shape)


@dataclass(frozen=True, eq=False)
class NextImportant(MatchedRandom):
    """Random entries that rank between k + 1 and 2 k for the target and are outside the reference's top: they differ
    from the selected ones in their rank for the target alone."""

    def mask(self, matrix: Matrix, weight: Tensor) -> Tensor:
        """See :class:`WeightSelection`."""
        if not isinstance(self.of, Recipe):
            raise DataError("the next most important entries need a recipe; masks have no scores")
        kept, taken = sides_of(self.of.expression)
        sets = {name: self.of.top(name, matrix, weight) for name in set_names(self.of.expression)}
        pool = self._doubled(set_names(kept)[0], matrix, weight) & ~evaluate_sets(kept, sets)
        if taken:
            pool &= ~evaluate_sets(taken, sets)
        flat = pool.reshape(-1).cpu()
        size = min(len(self.of.index(matrix, weight)), int(flat.sum()))
        return _drawn(flat, size, self._seed(matrix), matrix, weight)

    def _doubled(self, side: str, matrix: Matrix, weight: Tensor) -> Tensor:
        """The top of a side with twice as many entries."""
        recipe: Any = self.of
        grouped = groups(recipe.scores(side, matrix, weight), recipe.granularity, matrix.input_dim)
        known = recipe.sides[side].tops.get(matrix.name)
        k = known.k if known is not None else count(grouped.shape[1], recipe.sides[side].ratio)
        wide = top(grouped, thresholds(grouped, [min(2 * k, grouped.shape[1])])[0])
        return ungrouped(wide, matrix, recipe.granularity)


def control(selection: WeightSelection, name: str, *, seed: int = 0) -> WeightSelection:
    """One control of a selection, by its name in :data:`CONTROLS`.

    Raises DataError for an unknown name, and for controls that need scores of masks, which have none.
    """
    makers = {"random": MatchedRandom, "same magnitude": SameMagnitude, "next important": NextImportant}
    if name in makers:
        kind = makers[name]
        if kind is NextImportant and not isinstance(selection, Recipe):
            raise DataError(f"{name!r} needs a recipe, not {type(selection).__name__}")
        return kind(
            name, selection.matrices, selection.hashes, selection.model_class, selection.config,
            {"control": name, "of": selection.label, "seed": seed}, of=selection, seed=seed,
        )  # fmt: skip
    if name not in CONTROLS:
        raise DataError(f"there is no control {name!r}; known: {', '.join(CONTROLS)}")
    if not isinstance(selection, Recipe):
        raise DataError(f"{name!r} needs a recipe, not {type(selection).__name__}")
    kept, taken = sides_of(selection.expression)
    if name == "top only":
        return selection.with_expression(kept, name)
    if not taken:
        raise DataError(f"the set {selection.expression!r} takes nothing away, so there is nothing to reverse")
    return selection.with_expression(f"({taken}) - ({kept})", name)


def controls(selection: WeightSelection, *, seed: int = 0) -> Mapping[str, WeightSelection]:
    """All controls that a selection allows, by name: masks, which have no scores, allow those that are random."""
    names = CONTROLS if isinstance(selection, Recipe) else ("random", "same magnitude")
    difference = isinstance(selection, Recipe) and sides_of(selection.expression)[1]
    return {name: control(selection, name, seed=seed) for name in names if difference or name != "reversed"}


def _drawn(pool: Tensor, size: int, seed: int, matrix: Matrix, weight: Tensor) -> Tensor:
    """``size`` entries of ``pool`` (bool [numel]) as a mask of the matrix, on the weight's device."""
    import numpy as np

    places: Any = np.flatnonzero(pool.numpy()) if not bool(pool.all()) else matrix.numel
    mask = torch.zeros(matrix.numel, dtype=torch.bool)
    drawn = np.random.default_rng(seed).choice(places, size=size, replace=False, shuffle=False)
    mask[torch.from_numpy(np.asarray(drawn, dtype=np.int64))] = True
    return mask.reshape(matrix.shape).to(weight.device)


def _magnitude_bins(flat: Tensor) -> Tensor:
    """The bin of every entry, int64 [numel]; zeros share the lowest."""
    logs = flat.abs().float().log2().clamp(min=-64)
    low, high = logs.aminmax()
    width = (high - low).clamp(min=1e-6) / _BINS
    return ((logs - low) / width).long().clamp(max=_BINS - 1)
