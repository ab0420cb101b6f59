"""From statistics to selections: which entries matter for the target and not for the reference."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

import torch
from paperhooks import ArtefactError, DataError, ModelView
from paperhooks.io import choice, class_name, config_entries, hash_json, number, optional, tensor_digests
from paperhooks.models import running_model
from paperhooks.weights import warn_of_config
from torch import Tensor, nn

from paperhooks_mathneuro.algorithm import Top, compat_scores, count, scores, thresholds, top
from paperhooks_mathneuro.matrices import Matrix, plain_weight
from paperhooks_mathneuro.selection.selections import (
    Granularity,
    Masks,
    Recipe,
    Side,
    WeightSelection,
    groups,
    pack,
    ungrouped,
    weights_of,
)
from paperhooks_mathneuro.selection.set_algebra import evaluate_sets, set_names
from paperhooks_mathneuro.statistics.statistics import Aggregate, Statistics

__all__ = ["Combine", "Mode", "SelectionWarning", "check_options", "select", "sweep"]

#: Exact sums of unrounded norms, or the arithmetic of the official code.
Mode: TypeAlias = Literal["exact", "compat"]
#: An entry is taken out when it is important to any reference, or only when it is to all of them.
Combine: TypeAlias = Literal["union", "intersection"]
#: One side, or several by name.
Sides: TypeAlias = Statistics | Mapping[str, Statistics]

_BUCKETS: Final = 1 << 16


class SelectionWarning(UserWarning):
    """A selection is empty, or empty in some matrices."""


def select(
    model: nn.Module, target: Sides, reference: Sides, *, ratio: float = 0.05, **options: Any
) -> WeightSelection:
    """The entries that matter for ``target`` and not for ``reference``, at one ratio; see :func:`sweep`."""
    return sweep(model, target, reference, ratios=[ratio], **options)[ratio]


def sweep(
    model: nn.Module,
    target: Sides,
    reference: Sides,
    *,
    ratios: Sequence[float],
    reference_ratio: float | None = None,
    combine: Combine = "union",
    expression: str | None = None,
    granularity: Granularity = "matrix",
    aggregate: Aggregate = "sum_of_norms",
    mode: Mode = "exact",
    max_isolated: float | None = None,
    force: bool = False,
) -> dict[float, WeightSelection]:
    """Selections at several ratios from one reading of the weights; no forward pass.

    :param model: the model that the statistics come from, with the weights they were collected with.
    :param target, reference: statistics, or several by name, which become the names of sides.
    :param ratios: shares of a matrix that count as its top, each in (0, 1].
    :param reference_ratio: another share for the references; the target's by default.
    :param combine: what several references (and several targets) are together, unless an ``expression`` says.
    :param expression: set algebra over the sides, such as ``"maths - (prose | code)"``.
    :param granularity: within what the top is taken: "matrix" (the paper), "row" (each output, as Wanda), "global".
    :param aggregate: how samples make c; see :class:`paperhooks_mathneuro.Statistics`.
    :param mode: "exact", or "compat" for the official code's rounding, which needs the norms of every sample.
    :param max_isolated: at most this share of each matrix.
    :param force: take statistics of other weights too, such as those of a quantised copy of the model.
    :return: ratio to :class:`Recipe` (exact) or :class:`Masks` (compat).
    :raises ValueError: a ratio outside (0, 1] or an unknown choice. :raises DataError: statistics of other matrices, or
        ratios so small that nothing can be selected. :raises ArtefactError: statistics of other weights.
        :raises ModelError: quantised or offloaded weights. Warns (:class:`SelectionWarning`) where sets are empty.
    """
    model = running_model(model)
    check_options(
        ratios, reference_ratio=reference_ratio, max_isolated=max_isolated, granularity=granularity, mode=mode,
        combine=combine,
    )  # fmt: skip
    targets, references = _named(target, "target"), _named(reference, "reference")
    sides = {**targets, **references}
    if len(sides) != len(targets) + len(references):
        raise DataError(f"sides have one name twice: {sorted(targets)} and {sorted(references)}")
    expression = expression or _difference(targets, references, combine)
    sides = {name: sides[name] for name in set_names(expression, sides)}
    _check_statistics(sides, mode, aggregate)
    digests = tensor_digests(model)
    if not force:
        _check_weights(model, sides, hash_json(digests))
    shares = {
        (name, r): reference_ratio if reference_ratio is not None and name in references else r
        for name in sides
        for r in ratios
    }
    each = list(dict.fromkeys(ratios))
    return _Sweep(model, sides, each, shares, expression, granularity, aggregate, mode, digests, max_isolated).run()


def check_options(
    ratios: Sequence[float],
    *,
    reference_ratio: float | None = None,
    max_isolated: float | None = None,
    granularity: Granularity = "matrix",
    mode: Mode = "exact",
    combine: Combine = "union",
) -> None:
    """Raise ValueError for options of :func:`sweep` that cannot be meant."""
    choice("granularity", granularity, get_args(Granularity))
    choice("mode", mode, get_args(Mode))
    choice("combine", combine, get_args(Combine))
    if not ratios:
        raise ValueError("ratios is empty; give at least one share such as 0.05")
    shares = [("ratio", r) for r in ratios] + [("reference_ratio", reference_ratio), ("max_isolated", max_isolated)]
    for name, share in shares:
        optional(number, name, share, above=0, high=1)


def _named(side: Sides, name: str) -> dict[str, Statistics]:
    named = {name: side} if isinstance(side, Statistics) else dict(side)
    bad = [each for each in named if not each.isidentifier()]
    if bad or not named:
        raise DataError(f"{name}: {bad[0]!r} is no name" if bad else f"no {name} was given")
    return named


def _difference(targets: Mapping[str, Any], references: Mapping[str, Any], combine: Combine) -> str:
    operator = " | " if combine == "union" else " & "
    sides = [operator.join(names) for names in (targets, references)]
    return " - ".join(f"({side})" if operator in side else side for side in sides)


def _check_statistics(sides: Mapping[str, Statistics], mode: Mode, aggregate: Aggregate) -> None:
    names = None
    for name, side in sides.items():
        own = [matrix.name for matrix in side.matrices]
        if names is not None and own != names:
            odd = sorted(set(own) ^ set(names))
            raise DataError(
                f"the statistics of {name!r} are of other matrices than those of {next(iter(sides))!r} "
                f"({odd[0] if odd else 'another order'}); collect all sides with the same head, include and exclude"
            )
        names = own
        if mode == "compat" and side.sums:
            raise DataError(f"compat needs the norms of every sample of {name!r}; collect with keep='samples'")
    if mode == "compat" and aggregate != "sum_of_norms":
        raise DataError(f"compat is the official code, which sums norms; aggregate {aggregate!r} does not go with it")


def _check_weights(model: nn.Module, sides: Mapping[str, Statistics], digest: str) -> None:
    for name, side in sides.items():
        if side.weights and side.weights != digest:
            with contextlib.suppress(AttributeError):  # another architecture
                for _ in weights_of(
                    model, side.matrices
                ):  # where these are quantised or not loaded, that is the reason
                    pass
            raise ArtefactError(
                f"the statistics of {name!r} come from a {side.model_class} with other weights; collect them with this "
                "model (a set may have been applied to it: undo it), or pass force=True"
            )
        warn_of_config(f"statistics of {name!r}", side.config, model)


@dataclass(eq=False)
class _Sweep:
    model: nn.Module
    sides: Mapping[str, Statistics]
    ratios: Sequence[float]
    shares: Mapping[tuple[str, float], float]
    expression: str
    granularity: Granularity
    aggregate: Aggregate
    mode: Mode
    digests: Mapping[str, str]
    max_isolated: float | None = None
    tops: dict[tuple[str, float], dict[str, Top]] = field(default_factory=dict)
    counts: dict[float, dict[str, int]] = field(default_factory=dict)
    packed: dict[float, dict[str, Tensor]] = field(default_factory=dict)

    def run(self) -> dict[float, WeightSelection]:
        self.view = ModelView.from_model(self.model)
        self.matrices = next(iter(self.sides.values())).matrices
        self.channels = {
            name: {own: side.channel_norms(own, self.aggregate) for own in dict.fromkeys(side.inputs.values())}
            for name, side in self.sides.items()
        }
        self.tops = {key: {} for key in self.shares}
        self.counts = {r: {} for r in self.ratios}
        self.packed = {r: {} for r in self.ratios}
        # One tensor for all thresholds: small ones, kept between large scratch buffers, would split the heap.
        self.bars = torch.empty(len(self.matrices), len(self.shares))
        whole = self._global_tops() if self.granularity == "global" else {}
        for place, matrix in enumerate(self.matrices):
            with self.view.onloaded(self.model.get_submodule(matrix.module)):
                tops = self._matrix(matrix, plain_weight(self.view, matrix), whole)
                self._keep(place, matrix, tops)
        self._warn()
        return {r: self._selection(r) for r in self.ratios}

    def _matrix(
        self, matrix: Matrix, weight: Tensor, whole: Mapping[tuple[str, float], Mapping[str, Top]]
    ) -> dict[tuple[str, float], Top]:
        grouped = {name: self._grouped(name, matrix, weight) for name in self.sides}
        tops = {key: whole[key][matrix.name] for key in whole}
        for name, each in grouped.items() if not whole else ():
            ks = [count(each.shape[1], self.shares[name, r]) for r in self.ratios]
            tops |= {(name, r): found for r, found in zip(self.ratios, thresholds(each, ks), strict=True)}
        for r in self.ratios:
            sets = {name: top(each, tops[name, r], zeros=self.mode == "compat") for name, each in grouped.items()}
            self._note(r, matrix, evaluate_sets(self.expression, sets), grouped)
        return tops

    def _keep(self, place: int, matrix: Matrix, tops: Mapping[tuple[str, float], Top]) -> None:
        """What a recipe keeps: thresholds of whole matrices; those of single outputs are found again."""
        for column, (key, found) in enumerate(tops.items()):
            bar = self.bars[place, column : column + 1]
            if self.granularity != "row":
                bar.copy_(found.threshold)
            self.tops[key][matrix.name] = Top(bar, found.k)

    def _note(self, ratio: float, matrix: Matrix, found: Tensor, grouped: Mapping[str, Tensor]) -> None:
        size = int(found.sum(dtype=torch.int32)) if found.numel() < 2**31 else int(found.sum())
        if self.max_isolated is not None and size > (most := count(matrix.numel, self.max_isolated)):
            size = most
            if self.mode == "compat":
                kept = grouped[set_names(self.expression)[0]].masked_fill(~found, 0.0).reshape(1, -1)
                found = top(kept, thresholds(kept, [most])[0]).reshape(found.shape)
        self.counts[ratio][matrix.name] = size
        if self.mode == "compat":
            self.packed[ratio][matrix.name] = pack(ungrouped(found, matrix, self.granularity))

    def _grouped(self, name: str, matrix: Matrix, weight: Tensor) -> Tensor:
        side = self.sides[name]
        if self.mode == "compat":
            found = compat_scores(weight, side.sample_norms(matrix.name), matrix.input_dim)
        else:
            found = scores(weight, self.channels[name][side.inputs[matrix.name]], matrix.input_dim)
        return groups(found, self.granularity, matrix.input_dim)

    # -- one threshold for all matrices -------------------------------------------------------------------------------

    def _global_tops(self) -> dict[tuple[str, float], dict[str, Top]]:
        """Exact thresholds over all matrices from counts of the upper, then the lower half of the scores' bits.

        Scores are not negative, so their bit patterns are in the order of their values, and nothing but two histograms
        has to be kept.
        """
        total = sum(matrix.numel for matrix in self.matrices)
        found = {}
        for (name, ratio), share in self.shares.items():
            k = count(total, share)
            bits = self._kth_bits(name, k) if k else None
            found[name, ratio] = self._shared_out(name, k, bits)
        return found

    def _kth_bits(self, name: str, k: int) -> int:
        upper = torch.zeros(_BUCKETS, dtype=torch.int64)
        for bits in self._bits(name):
            upper += torch.bincount(bits >> 16, minlength=_BUCKETS).cpu()
        bucket, above = _bucket(upper, k)
        lower = torch.zeros(_BUCKETS, dtype=torch.int64)
        for bits in self._bits(name):
            inside = bits[bits >> 16 == bucket]
            lower += torch.bincount(inside & (_BUCKETS - 1), minlength=_BUCKETS).cpu()
        return bucket << 16 | _bucket(lower, k - above)[0]

    def _bits(self, name: str) -> Any:
        for matrix, weight in weights_of(self.model, self.matrices):
            yield self._grouped(name, matrix, weight).float().reshape(-1).view(torch.int32)

    def _shared_out(self, name: str, k: int, bits: int | None) -> dict[str, Top]:
        """The threshold with the number of entries that each matrix has above it, and its part of the ties."""
        if bits is None:
            return {matrix.name: Top(torch.tensor([math.inf]), 0) for matrix in self.matrices}
        above, ties = [], []
        for each in self._bits(name):
            above.append(int((each > bits).sum()))
            ties.append(int((each == bits).sum()))
        left, tops = k - sum(above), {}
        bar = torch.tensor([bits], dtype=torch.int32).view(torch.float32)
        for matrix, larger, equal in zip(self.matrices, above, ties, strict=True):
            own = min(left, equal)
            tops[matrix.name] = Top(bar, larger + own)
            left -= own
        return tops

    # -- results ------------------------------------------------------------------------------------------------------

    def _warn(self) -> None:
        total = sum(matrix.numel for matrix in self.matrices)
        for r in self.ratios:
            if all(each.k == 0 for (name, ratio), tops in self.tops.items() if ratio == r for each in tops.values()):
                largest = max(matrix.numel for matrix in self.matrices)
                raise DataError(
                    f"at ratio {r} no matrix has a top: the largest has {largest} entries; choose a ratio of at least "
                    f"{1 / largest:.2g}"
                )
            first = self.tops[next(iter(self.sides)), r]
            none = sum(each.k == 0 for each in first.values())
            if none and self.granularity != "global":
                _warn(
                    f"at ratio {r}, {none} of {len(first)} matrices are too small to have a top; they stay as they are"
                )
            if not sum(self.counts[r].values()):
                why = "a ratio of 1 makes everything the top of the reference" if r == 1 else "the sides agree in all"
                _warn(f"at ratio {r} the set {self.expression!r} is empty among {total} entries: {why}")

    def _selection(self, ratio: float) -> WeightSelection:
        about = {
            "ratio": ratio,
            "shares": {name: self.shares[name, ratio] for name in self.sides},
            "expression": self.expression,
            "granularity": self.granularity,
            "aggregate": self.aggregate,
            "mode": self.mode,
            "max_isolated": self.max_isolated,
            "counts": self.counts[ratio],
            "samples": {name: len(side) for name, side in self.sides.items()},
            "texts": {name: side.about.get("texts", "") for name, side in self.sides.items()},
            "token_scope": {name: side.about.get("token_scope", "") for name, side in self.sides.items()},
            "tokenizer": {name: side.about.get("tokenizer", "") for name, side in self.sides.items()},
            "model": next(iter(self.sides.values())).about.get("model", ""),
            "unreached": {name: list(side.unreached) for name, side in self.sides.items()},
            "uncovered": [[u.parameter, u.numel, u.reason] for u in next(iter(self.sides.values())).coverage.uncovered],
        }
        label = f"{self.expression} @ {ratio:g}"
        hashes = {matrix.parameter: self.digests[matrix.parameter] for matrix in self.matrices}
        common = (label, self.matrices, hashes, class_name(self.model), config_entries(self.model), about)
        if self.mode == "compat":
            return Masks(*common, packed=self.packed[ratio])
        sides = {
            name: Side(
                dict(side.inputs), self.channels[name], self.shares[name, ratio],
                {} if self.granularity == "row" else self.tops[name, ratio],
            )
            for name, side in self.sides.items()
        }  # fmt: skip
        return Recipe(
            *common, sides=sides, expression=self.expression, granularity=self.granularity,
            max_isolated=self.max_isolated,
        )  # fmt: skip


def _warn(text: str) -> None:
    warnings.warn(text, SelectionWarning, stacklevel=5)


def _bucket(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bucket that holds the k-th largest, and how many lie in buckets above it."""
    from_top = histogram.flip(0).cumsum(0)
    place = int((from_top < k).sum())
    above = int(from_top[place - 1]) if place else 0
    return len(histogram) - 1 - place, above
