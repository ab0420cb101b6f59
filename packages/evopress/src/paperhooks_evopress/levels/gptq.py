"""GPTQ (arXiv 2210.17323): levels of bits of a weight, all of a matrix from one Hessian and one sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from paperhooks import CompressionRequest, DataError, Level, ModelView, Traits, hookimpl
from paperhooks.io import flag, number, optional, whole, whole_list
from paperhooks.weights import Packed, Quantised, packed_bytes
from torch import Tensor, nn

from paperhooks_evopress.levels.feedback import Feedback
from paperhooks_evopress.levels.grids import Grid, InputGroups, OutputGroups
from paperhooks_evopress.levels.matrices import Weight, cost_of, find_weights, in_layers
from paperhooks_evopress.levels.preparation import LayerwisePreparation, calibration_batches
from paperhooks_evopress.levels.sweep import sweep

__all__ = ["GPTQ", "Codes", "quantise"]


@dataclass(frozen=True, eq=False)
class Codes:
    """A quantised matrix: (code - zero) scale.

    codes
        uint8 [inputs, outputs].
    scales, zeros
        [groups, outputs], or [inputs, groups] where groups are of outputs.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def quantise(
    weight: Tensor,
    feedback: Feedback,
    widths: Sequence[int],
    grid: Grid,
    *,
    group: int | None = None,
    block: int = 128,
    of_outputs: bool = False,
) -> list[Codes]:
    """Quantise a matrix to several widths.

    :param weight: [inputs, outputs]. :param widths: bits of a code, for each level.
    :param group: neighbouring inputs that share a scale in each output, or, ``of_outputs``, outputs that share one at
        each input; None for all of them. :param block: inputs whose errors reach later ones together.
    :return: for each level the codes, in the order of ``weight`` whatever the order of work.
    """
    order, (inputs, outputs) = feedback.order, weight.shape
    alive = torch.where(feedback.dead[:, None], 0, weight)[order]
    rule = (
        OutputGroups(widths, (inputs, outputs), group or outputs, grid, alive)
        if of_outputs
        else InputGroups(widths, (inputs, outputs), group or inputs, order, grid, alive)
    )
    sweep(alive, feedback.factor, len(widths), rule, block)
    back = torch.argsort(order)
    found = []
    for codes, scales, zeros in zip(rule.codes, rule.scales, rule.zeros, strict=True):
        own = (scales[back], zeros[back]) if of_outputs else (scales, zeros)
        found.append(Codes(codes[back], *own))
    return found


@dataclass(eq=False)
class GPTQ:
    """Offers bit widths of every linear layer, and of all experts of a mixture together.

    widths
        Bits of a code, 1 to 8.
    group
        Neighbouring inputs that share a scale and a zero in each output; the last group may be smaller. None for one
        group of all inputs. In matrices stored as [inputs, outputs] (GPT-2), outputs that share one at each input.
    symmetric
        Ranges from -m to m, with the zero in the middle of the codes.
    act_order
        Quantise inputs from the largest second moment to the smallest. Groups stay those of neighbouring inputs.
    calibration_width
        At how many bits a layer stands while the next ones read the data, as in sequential GPTQ. None for the dense
        model.
    range_includes_zero
        Widen the range of each group to 0. Without it, as in EvoPress, groups whose weights have one sign have a zero
        that codes cannot hold, and are refused where they occur.
    damping, block
        Share of the mean of a Hessian's diagonal that is added to it, and inputs whose errors reach later ones
        together. Groups are fitted when their first input is met, to weights without the feedback of the same block.
    max_length
        Tokens that are read of a calibration text.

    Scales are rounded to the dtype of the weights before anything is rounded to them.
    """

    widths: tuple[int, ...] = (2, 3, 4, 5, 6)
    group: int | None = 128
    symmetric: bool = False
    act_order: bool = False
    calibration_width: int | None = 3
    range_includes_zero: bool = True
    damping: float = 0.01
    block: int = 128
    max_length: int = 2048
    traits = Traits(writes=frozenset({"weights"}), devices=("cpu", "cuda"), dtypes=("float32", "bfloat16", "float16"))

    def __post_init__(self) -> None:
        widths = whole_list("widths", self.widths, at_least=1)
        self.widths = tuple(dict.fromkeys(whole("widths", each, at_most=8) for each in widths))
        self.group = optional(whole, "group", self.group, at_least=1)
        self.calibration_width = optional(whole, "calibration_width", self.calibration_width, at_least=1, at_most=8)
        self.symmetric, self.act_order = flag("symmetric", self.symmetric), flag("act_order", self.act_order)
        self.range_includes_zero = flag("range_includes_zero", self.range_includes_zero)
        self.damping, self.block = number("damping", self.damping, above=0), whole("block", self.block, at_least=1)
        self.max_length = whole("max_length", self.max_length, at_least=1)

    @hookimpl
    def compression_levels(
        self, view: ModelView, modules: Mapping[str, nn.Module], request: CompressionRequest
    ) -> dict[str, list[Level]]:
        """Levels of all matrices in the decoder's layers; their values are made from one pass over the data."""
        units = find_weights({name: modules[name] for name in in_layers(view, modules)})
        if not units:
            return {}
        labels = {_label(width): width for width in sorted(self.widths)}
        known = labels | ({} if (sequential := self.calibration_width) is None else {_label(sequential): sequential})

        def make(
            name: str, weight: Weight, feedback: Sequence[Feedback], wanted: Sequence[str]
        ) -> dict[str, Packed]:  # fmt: skip
            return self._made(weight, feedback, {label: known[label] for label in wanted})

        batches = calibration_batches(view, request, self.max_length)
        preparation = LayerwisePreparation(
            view, units, batches, {name: list(labels) for name in units}, make, damping=self.damping,
            by_size=self.act_order, stand_in=None if sequential is None else _label(sequential),
        )  # fmt: skip
        return {
            name: [
                Level(
                    "gptq", label, self._cost(view, name, weights, width), partial(preparation.values, name, label),
                    {"width": width, **self._settings()},
                )
                for label, width in labels.items()
            ]
            for name, weights in units.items()
        }  # fmt: skip

    def _settings(self) -> dict[str, object]:
        """What else decides the values."""
        return {
            "group": self.group, "symmetric": self.symmetric, "act_order": self.act_order,
            "calibration_width": self.calibration_width, "range_includes_zero": self.range_includes_zero,
            "damping": self.damping, "block": self.block,
        }  # fmt: skip

    def _group(self, weight: Weight) -> int:
        columns = weight.shape[-1]
        return columns if self.group is None else min(self.group, columns)

    def _cost(self, view: ModelView, name: str, weights: Sequence[Weight], width: int) -> dict[str, float]:
        told = [
            packed_bytes(w.shape, width=width, group=self._group(w), itemsize=w.parameter.element_size())
            for w in weights
        ]
        return cost_of(view, name, weights, told)

    def _made(self, weight: Weight, feedback: Sequence[Feedback], widths: Mapping[str, int]) -> dict[str, Packed]:
        grid, group = Grid(self.symmetric, self.range_includes_zero, weight.dtype), self._group(weight)
        matrices = [
            quantise(weight.matrix(i), own, list(widths.values()), grid, group=group, block=self.block,
                     of_outputs=weight.transposed)
            for i, own in enumerate(feedback)
        ]  # fmt: skip
        return {
            label: _packed(weight, [each[at] for each in matrices], width, group)
            for at, (label, width) in enumerate(widths.items())
        }


def _label(width: int) -> str:
    return f"{width} bit" if width == 1 else f"{width} bits"


def _packed(weight: Weight, matrices: Sequence[Codes], width: int, group: int) -> Quantised:
    """Quantised matrices in the form in which the parameter is stored."""
    codes, scales, zeros = (
        weight.stored([getattr(each, part) for each in matrices]) for part in ("codes", "scales", "zeros")
    )
    if not 0 <= int(zeros.min()) <= int(zeros.max()) < 2**width:
        raise DataError(
            f"a group of weights of one sign has a zero outside of {width} bits; use range_includes_zero=True"
        )
    return Quantised.of(codes.int(), scales.to(weight.dtype), zeros.int(), width, group)
