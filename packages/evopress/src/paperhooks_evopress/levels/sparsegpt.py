"""SparseGPT (arXiv 2301.00774): levels of unstructured sparsity, all of a matrix from one Hessian and one sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from paperhooks import CompressionRequest, DataError, Level, ModelView, Traits, hookimpl
from paperhooks.io import number, number_list, optional, whole
from paperhooks.models import module_cost
from paperhooks.weights import Masked, Packed, packed_bytes
from torch import Tensor, nn

from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.matrices import Weight, cost_of, find_weights, in_layers
from paperhooks_evopress.levels.preparation import LayerwisePreparation, calibration_batches
from paperhooks_evopress.levels.pruned import PrunedColumns
from paperhooks_evopress.levels.sweep import sweep

__all__ = ["SparseGPT", "prune"]


def prune(
    weight: Tensor, feedback: Feedback, zeros: Sequence[int], *, block: int = 128
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Prune a matrix to several numbers of zeros.

    :param weight: [inputs, outputs]. :param zeros: how many of its entries go, for each level.
    :param block: inputs among which entries compete.
    :return: for each level the values, and which entries are kept (bool), both as ``weight``.
    """
    order = feedback.order
    alive = torch.where(feedback.dead[:, None], 0, weight)[order]
    rule = PrunedColumns(zeros, feedback.factor, weight.shape[1], block)
    settled = sweep(alive, feedback.factor, len(zeros), rule, block)
    back = torch.argsort(order)
    return [(values[back], kept[back]) for values, kept in zip(settled, rule.kept, strict=True)]


@dataclass(eq=False)
class SparseGPT:
    """Offers sparsities of every linear layer, and of all experts of a mixture together.

    sparsities
        Shares of zeros. 0 leaves the module as it is.
    around, step, steps
        With ``around``, levels that lie ``step`` weights apart on both sides of this sparsity, at most ``steps`` on
        each: any two matrices may then trade a level, and the number of zeros stays. In place of ``sparsities``.
    damping, block
        Share of the mean of a Hessian's diagonal that is added to it, and inputs among which entries compete.
    max_length
        Tokens that are read of a calibration text.

    All Hessians are of the dense model, as in EvoPress. Exactly round(n s) of n entries are pruned, the same share of
    each block of inputs; where an input was always 0, what is kept of its weights is 0 too.
    """

    sparsities: tuple[float, ...] = (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    around: float | None = None
    step: int = 1_000_000
    steps: int = 8
    damping: float = 0.01
    block: int = 128
    max_length: int = 2048
    traits = Traits(writes=frozenset({"weights"}), devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        self.sparsities = tuple(dict.fromkeys(number_list("sparsities", self.sparsities, low=0, high=1)))
        self.around = optional(number, "around", self.around, low=0, high=1)
        self.step, self.steps = whole("step", self.step, at_least=1), whole("steps", self.steps, at_least=0)
        self.damping = number("damping", self.damping, above=0)
        self.block, self.max_length = (
            whole("block", self.block, at_least=1), whole("max_length", self.max_length, at_least=1)
        )  # fmt: skip

    @hookimpl
    def compression_levels(
        self, view: ModelView, modules: Mapping[str, nn.Module], request: CompressionRequest
    ) -> dict[str, list[Level]]:
        """Levels of all matrices in the decoder's layers; their values are made from one pass over the data."""
        units = find_weights({name: modules[name] for name in in_layers(view, modules)})
        if not units:
            return {}
        zeros = {name: self._zeros(sum(each.parameter.numel() for each in own)) for name, own in units.items()}
        shares = {name: {label: _shares(units[name], n) for label, n in own.items()} for name, own in zeros.items()}

        def make(
            name: str, weight: Weight, feedback: Sequence[Feedback], labels: Sequence[str]
        ) -> dict[str, Packed]:  # fmt: skip
            own = [shares[name][label][weight.name] for label in labels]
            made = [
                prune(weight.matrix(index), known, [share[index] for share in own], block=self.block)
                for index, known in enumerate(feedback)
            ]
            return {label: _masked(weight, [each[at] for each in made]) for at, label in enumerate(labels)}

        labels = {name: [label for label, n in own.items() if n] for name, own in zeros.items()}
        batches = calibration_batches(view, request, self.max_length)
        preparation = LayerwisePreparation(view, units, batches, labels, make, damping=self.damping)
        found: dict[str, list[Level]] = {}
        for name, weights in units.items():
            found[name] = []
            for label, n in zeros[name].items():
                options = {"zeros": n, "damping": self.damping, "block": self.block}
                if n:
                    cost = _cost(view, name, weights, shares[name][label])
                    level = Level("sparsegpt", label, cost, partial(preparation.values, name, label), options)
                else:
                    level = Level("sparsegpt", label, {**module_cost(view, name), "zeros": 0}, options=options)
                found[name].append(level)
        return found

    def _zeros(self, entries: int) -> dict[str, int]:
        """Label to the zeros of a module with so many entries, fewest first."""
        if self.around is None:
            return {f"sparsity {share:g}": round(entries * share) for share in sorted(self.sparsities)}
        middle = round(entries * self.around)
        below, above = min(middle // self.step, self.steps), min((entries - middle) // self.step, self.steps)
        return {
            f"sparsity {self.around:g}" + (f" {at:+d}" if at else ""): middle + at * self.step
            for at in range(-below, above + 1)
        }


def _shares(weights: Sequence[Weight], zeros: int) -> dict[str, list[int]]:
    """The zeros of a module, shared among its matrices by their sizes: by parameter, one number a matrix."""
    entries, before = sum(each.parameter.numel() for each in weights), 0
    found: dict[str, list[int]] = {}
    for weight in weights:
        size = weight.parameter.numel() // weight.count
        bounds = [round(zeros * (before + size * at) / entries) for at in range(weight.count + 1)]
        found[weight.name] = [high - low for low, high in pairwise(bounds)]
        before += size * weight.count
    return found


def _cost(
    view: ModelView, name: str, weights: Sequence[Weight], shares: Mapping[str, Sequence[int]]
) -> dict[str, float]:  # fmt: skip
    kept = {each.name: each.parameter.numel() - sum(shares[each.name]) for each in weights}
    told = [packed_bytes(w.shape, kept=kept[w.name], itemsize=w.parameter.element_size()) for w in weights]
    zeros = sum(map(sum, shares.values()))
    return {**cost_of(view, name, weights, told, sum(kept.values())), "zeros": zeros}


def _masked(weight: Weight, matrices: Sequence[tuple[Tensor, Tensor]]) -> Masked:
    """Pruned matrices and what is kept of them, in the form in which the parameter is stored."""
    values = weight.stored([values for values, _ in matrices]).to(weight.dtype)
    if not bool(values.isfinite().all()):
        raise DataError(f"pruned, it has entries that {weight.dtype} cannot hold; use more damping or more data")
    return Masked.of(values, weight.stored([kept for _, kept in matrices]))
