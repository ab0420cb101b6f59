"""What edits did to a model, item by item, and what can be concluded from it.

Every edit is measured on the same items as the untouched model, so all comparisons are paired: intervals come from
resampling items (Efron and Tibshirani 1993), p values from flipping the signs of their changes (exact up to 20 items),
accuracies are compared by McNemar's exact test, and p values of one family are corrected after Holm (1979).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from paperhooks import DataError
from paperhooks.io import hash_json, plain, read_json, write_json
from paperhooks.reports import bootstrap_interval, mcnemar, paired_p

__all__ = ["Contrast", "Effects", "Measurement", "ScoreChange", "holm", "pooled"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One edited (or the untouched) model on all items.

    selection, scale
        The edit; an empty name for the untouched model.
    entries, share
        How many entries were edited, and their share of the scored matrices.
    nll
        Side to the items' mean negative log-likelihood a token, in nats.
    correct
        Side to whether each item was answered rightly; None where that is not asked.
    """

    selection: str
    scale: float
    entries: int
    share: float
    nll: Mapping[str, Sequence[float]]
    correct: Mapping[str, Sequence[bool | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """What one edit did to one side: mean change of the NLL (positive is worse) with its 95 % interval, n items.

    accuracy_before, accuracy_after, p_accuracy
        Share answered rightly, and McNemar's exact p; None where no item asks for it.
    """

    selection: str
    scale: float
    side: str
    n: int
    before: float
    after: float
    delta: float
    low: float
    high: float
    p: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    p_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Contrast:
    """One edit against another of the same scale, on one side: change minus change, paired, with a 95 % interval.

    p_holm
        The p value corrected for all contrasts made together.
    """

    selection: str
    against: str
    scale: float
    side: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float = math.nan


@dataclass(eq=False)
class Effects:
    """All measurements of one evaluation, the untouched model's first."""

    base: Measurement
    edited: list[Measurement] = field(default_factory=list)
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sides(self) -> list[str]:
        """Names of the sides, the target first."""
        return list(self.base.nll)

    def find(self, selection: str, scale: float) -> Measurement:
        """One measurement. Raises DataError naming what is there."""
        for one in self.edited:
            if one.selection == selection and one.scale == scale:
                return one
        known = sorted({f"{one.selection!r} at {one.scale:g}" for one in self.edited})
        raise DataError(f"{selection!r} at {scale:g} was not measured; measured were {', '.join(known)}")

    def deltas(self, one: Measurement, side: str) -> np.ndarray[Any, Any]:
        """Change of every item's NLL, float64 [n]."""
        return np.asarray(one.nll[side]) - np.asarray(self.base.nll[side])

    def change(self, one: Measurement, side: str, *, seed: int = 0, resamples: int = 2000) -> ScoreChange:
        """What an edit did to a side."""
        deltas = self.deltas(one, side)
        low, high = bootstrap_interval(_mean, deltas, seed=seed, resamples=resamples)
        accuracies = self._accuracies(one, side)
        return ScoreChange(
            one.selection, one.scale, side, len(deltas), _mean(np.asarray(self.base.nll[side])),
            _mean(np.asarray(one.nll[side])), _mean(deltas), low, high, paired_p(deltas, seed=seed), *accuracies,
        )  # fmt: skip

    def changes(self, *, seed: int = 0, resamples: int = 2000) -> list[ScoreChange]:
        """What every edit did to every side."""
        return [self.change(one, side, seed=seed, resamples=resamples) for one in self.edited for side in self.sides]

    def selectivity(self, one: Measurement, *, seed: int = 0, resamples: int = 2000) -> tuple[float, float, float]:
        """How much more an edit hurts the first side than the others together: difference of mean changes, low, high.

        The sides' items are resampled apart, since they are other texts.
        """
        first, *others = (self.deltas(one, side) for side in self.sides)
        rest = np.concatenate(others) if others else np.zeros(1)
        generator = np.random.default_rng(seed)
        draws = [
            _mean(first[generator.integers(len(first), size=len(first))])
            - _mean(rest[generator.integers(len(rest), size=len(rest))])
            for _ in range(resamples)
        ]
        low, high = np.percentile(draws, [2.5, 97.5])
        return _mean(first) - _mean(rest), float(low), float(high)

    def contrasts(self, against: Sequence[tuple[str, str]], *, seed: int = 0, resamples: int = 2000) -> list[Contrast]:
        """Pairs of edits compared at every scale that both were measured at, on every side; p values after Holm."""
        found = []
        for selection, other in against:
            scales = [one.scale for one in self.edited if one.selection == selection]
            for scale in scales:
                if any(one.selection == other and one.scale == scale for one in self.edited):
                    pair = self.find(selection, scale), self.find(other, scale)
                    found += [self._contrast(*pair, side, seed, resamples) for side in self.sides]
        corrected = holm([each.p for each in found])
        return [Contrast(**{**asdict(each), "p_holm": p}) for each, p in zip(found, corrected, strict=True)]

    def _contrast(self, one: Measurement, other: Measurement, side: str, seed: int, resamples: int) -> Contrast:
        differences = self.deltas(one, side) - self.deltas(other, side)
        low, high = bootstrap_interval(_mean, differences, seed=seed, resamples=resamples)
        return Contrast(
            one.selection, other.selection, one.scale, side, len(differences), _mean(differences), low, high,
            paired_p(differences, seed=seed),
        )  # fmt: skip

    def _accuracies(self, one: Measurement, side: str) -> tuple[float | None, float | None, float | None]:
        pairs = [
            (a, b)
            for a, b in zip(self.base.correct.get(side, ()), one.correct.get(side, ()), strict=False)
            if a is not None and b is not None
        ]
        if not pairs:
            return None, None, None
        lost, won = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
        before, after = (sum(column) / len(pairs) for column in zip(*pairs, strict=True))
        return before, after, mcnemar(lost, won)

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one JSON file with a hash of its content, atomically, and return it."""
        path, content = Path(path), plain(asdict(self))
        write_json(path, {"schema": 1, "sha256": hash_json(content), **content})
        return path

    @classmethod
    def load(cls, path: str | Path) -> Effects:
        """Read what :meth:`save` wrote; raises DataError for any other file, and one that was changed."""
        data = read_json(Path(path), "effects, as evaluate writes them")
        try:
            content = {key: data[key] for key in ("base", "edited", "about")}
            if data["sha256"] != hash_json(content):
                raise DataError(f"{path} was changed after it was written: its hash does not match; delete it")
            return cls(Measurement(**data["base"]), [Measurement(**each) for each in data["edited"]], data["about"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} holds no effects: {error}; evaluate writes them") from error


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for several tests made together (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        corrected[i] = largest
    return corrected


def _mean(values: np.ndarray[Any, Any]) -> float:
    return float(np.mean(values))


def pooled(repeats: Sequence[Effects]) -> Effects:
    """Effects whose items are averaged over repeats of one evaluation, edit by edit.

    Raises DataError for evaluations of other edits or items.
    """
    first = repeats[0]
    keys = [(one.selection, one.scale) for one in first.edited]
    for other in repeats:
        if [(one.selection, one.scale) for one in other.edited] != keys or other.about["items"] != first.about["items"]:
            raise DataError("repeats of other edits or items cannot be put together")
    edited = []
    for name, scale in keys:
        each = [effects.find(name, scale) for effects in repeats]
        nll = {side: np.mean([one.nll[side] for one in each], axis=0).tolist() for side in first.sides}
        entries = round(sum(one.entries for one in each) / len(each))
        share = sum(one.share for one in each) / len(each)
        edited.append(
            replace(each[0], entries=entries, share=share, nll=nll, correct=each[0].correct if len(each) == 1 else {})
        )
    return Effects(first.base, edited, {**first.about, "repeats": len(repeats)})
