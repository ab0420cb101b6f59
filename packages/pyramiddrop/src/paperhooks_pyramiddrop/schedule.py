"""When to drop how much, and what that saves.

A schedule is a list of drop layers r_1 < r_2 < ... (0-based; a drop happens at the entry of layer r) and the share of
the original visual tokens that is still there behind each (cumulative). The formulas stand in
:mod:`paperhooks_pyramiddrop.algorithm`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from paperhooks.io import number, number_list, refused, shown, whole, whole_list

from paperhooks_pyramiddrop.algorithm import even_layers, kept_tokens, layer_flops, stage_ratios

__all__ = ["DecoderShape", "Savings", "Schedule", "checked_stages", "explicit_schedule", "solve_ratio"]


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """Sizes of a decoder: ``layers``, ``hidden``, ``intermediate`` and ``kv_width`` (key heads x head_dim).

    ``kv_width`` None means as wide as ``hidden`` (multi-head attention, as the paper's formula assumes).
    """

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 11008
    kv_width: int | None = None

    @property
    def kv(self) -> int:
        """Width of the keys, and of the values."""
        return self.hidden if self.kv_width is None else self.kv_width

    def flops(self, tokens: int) -> float:
        """Multiply-adds of one layer at ``tokens`` tokens (section 3.3)."""
        return layer_flops(tokens, self.hidden, self.intermediate, self.kv)


@dataclass(frozen=True, slots=True)
class Savings:
    """What a schedule leaves of the cost of the visual tokens."""

    tokens_per_layer: tuple[int, ...]
    average_tokens: float
    flops: float
    flops_before: float
    kv_bytes: int
    kv_bytes_before: int

    @property
    def flops_ratio(self) -> float:
        """FLOPs left, as a share of those before."""
        return self.flops / self.flops_before if self.flops_before else 1.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Drop ``layers`` and cumulative keep ``ratios``; checked when it is made.

    >>> Schedule((8, 16, 24), (0.5, 0.25, 0.125)).keep(576)
    (288, 144, 72)
    >>> Schedule.even(32, stages=4, ratio=0.5)
    Schedule(layers=(8, 16, 24), ratios=(0.5, 0.25, 0.125))
    """

    layers: tuple[int, ...]
    ratios: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(whole_list("layers", self.layers)))
        object.__setattr__(self, "ratios", tuple(number_list("ratios", self.ratios, low=0, high=1)))
        if self.layers[0] < 1:
            raise ValueError(
                f"the first drop layer is {self.layers[0]}; layer 0 must see every token, so it has to be 1 or later"
            )
        if any(b <= a for a, b in itertools.pairwise(self.layers)):
            raise ValueError(f"drop layers must increase strictly, got {list(self.layers)}")
        if len(self.ratios) != len(self.layers):
            raise ValueError(f"{len(self.layers)} drop layers need as many keep ratios, got {len(self.ratios)}")
        if any(b > a for a, b in itertools.pairwise(self.ratios)):
            raise ValueError(f"keep ratios are cumulative and must not increase, got {list(self.ratios)}")

    @classmethod
    def powers(cls, layers: Sequence[int], ratio: float) -> Schedule:
        """The given layers with ratios ``ratio``, ``ratio**2``, ... (the paper's lambda)."""
        chosen, share = whole_list("layers", layers), number("ratio", ratio, low=0, high=1)
        return cls(tuple(chosen), stage_ratios(share, len(chosen)))

    @classmethod
    def even(cls, n_layers: int, stages: int = 4, ratio: float = 0.5) -> Schedule:
        """Drops at multiples of ``n_layers // stages``, with ratios ``ratio``, ``ratio**2``, ...

        :raises ValueError: fewer than 2 stages, or more than the layers allow.
        """
        if not 2 <= whole("stages", stages) <= n_layers:
            raise ValueError(f"stages must be between 2 and the number of layers ({n_layers}), got {stages}")
        return cls.powers(even_layers(n_layers, stages), ratio)

    def check(self, n_layers: int) -> None:
        """:raises ValueError: a drop layer lies outside a decoder of ``n_layers`` layers."""
        if self.layers[-1] > n_layers - 1:
            raise ValueError(
                f"drop layer {self.layers[-1]} is outside this decoder: it has layers 0 to {n_layers - 1}, and a drop "
                "happens at a layer's entry"
            )

    def keep(self, tokens: int) -> tuple[int, ...]:
        """How many of ``tokens`` visual tokens each stage keeps."""
        return tuple(kept_tokens(tokens, ratio) for ratio in self.ratios)

    def tokens_per_layer(self, tokens: int, n_layers: int) -> tuple[int, ...]:
        """Visual tokens that each layer computes on."""
        self.check(n_layers)
        counts = [tokens, *self.keep(tokens)]
        edges = [0, *self.layers, n_layers]
        return tuple(c for c, (a, b) in zip(counts, itertools.pairwise(edges), strict=True) for _ in range(b - a))

    def average_tokens(self, tokens: int, n_layers: int) -> float:
        """Visual tokens a layer computes on, averaged over layers (the "token budget" of comparisons)."""
        return math.fsum(self.tokens_per_layer(tokens, n_layers)) / n_layers

    def savings(self, tokens: int, shape: DecoderShape, *, text_tokens: int = 0, kv_element_bytes: int = 2) -> Savings:
        """Tokens, multiply-adds and KV-cache bytes with and without this schedule.

        :param tokens: visual tokens of the prompt. :param text_tokens: added to every layer; 0 as in the paper.
        :param kv_element_bytes: 2 for fp16 and bf16.
        """
        counts = self.tokens_per_layer(tokens, shape.layers)
        kv = shape.kv * 2 * kv_element_bytes
        return Savings(
            tokens_per_layer=counts,
            average_tokens=math.fsum(counts) / shape.layers,
            flops=math.fsum(shape.flops(c + text_tokens) for c in counts),
            flops_before=shape.layers * shape.flops(tokens + text_tokens),
            kv_bytes=kv * (sum(counts) + shape.layers * text_tokens),
            kv_bytes_before=kv * shape.layers * (tokens + text_tokens),
        )


def checked_stages(stages: Any) -> dict[int, float] | int:
    """The option ``stages`` as plain numbers: drop layers with their keep ratios, or a number of stages.

    :raises ValueError: it is neither; names the value.
    """
    if isinstance(stages, Mapping):
        drops = {
            whole("a drop layer of stages", layer, at_least=1): number("a keep ratio of stages", ratio, low=0, high=1)
            for layer, ratio in stages.items()
        }
        if drops and len(drops) == len(stages):
            return drops
        raise refused("stages", stages, "at least one drop layer, and each once")
    try:
        return whole("stages", stages, at_least=2)
    except ValueError as error:
        raise ValueError(f"{error}, or {{layer: ratio}}") from None


def explicit_schedule(
    stages: Mapping[int, float] | int, ratio: float, layers: Sequence[int] | None, ratios: Sequence[float] | None
) -> Schedule | None:
    """The schedule that these options spell out; None where they ask for an even split, which needs the model's depth.

    :raises ValueError: options that contradict one another or make no schedule; names them and their values.
    """
    if layers is None and ratios is None:
        if not isinstance(stages, Mapping):
            return None
        given = f"stages is {shown(stages)}"
    elif isinstance(stages, Mapping):
        raise ValueError("give drop layers either in stages={layer: ratio} or in layers=[...], not both")
    elif layers is None:
        raise ValueError(f"ratios is {ratios}; they need layers=[...] of the same length")
    else:
        given = f"layers is {shown(layers)}" + (f", ratios is {shown(ratios)}" if ratios is not None else "")
    try:
        if isinstance(stages, Mapping):
            return Schedule(tuple(stages), tuple(stages.values()))
        return Schedule.powers(layers or (), ratio) if ratios is None else Schedule(tuple(layers or ()), tuple(ratios))
    except ValueError as error:
        raise ValueError(f"{given}: {error}") from None


def solve_ratio(layers: Sequence[int], n_layers: int, average: float, tokens: int = 576) -> float:
    """The lambda for which drops at ``layers`` leave ``average`` visual tokens a layer, to 1e-6.

    Counts are whole tokens, so the average moves in steps: the largest lambda that stays within ``average`` is given.

    >>> round(solve_ratio([2, 8, 16], 32, 62.95), 2)
    0.19

    :raises ValueError: no lambda between 0 and 1 reaches the average; the message names the range.
    """

    def reached(ratio: float) -> float:
        return Schedule.powers(layers, ratio).average_tokens(tokens, n_layers)

    low, high = 0.0, 1.0
    if not reached(low) <= average <= reached(high):
        raise ValueError(
            f"drops at {list(layers)} of {n_layers} layers reach averages from {reached(low):.1f} to "
            f"{reached(high):.1f} of {tokens} tokens, not {average}; move the first drop to an earlier layer"
        )
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if reached(middle) <= average else (low, middle)
    return low
