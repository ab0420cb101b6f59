"""Block types of GGUF files by rounding to the nearest value: Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from paperhooks import CompressionRequest, DataError, Level, ModelView, Traits, hookimpl
from paperhooks.io import choice
from paperhooks.weights import Packed, Quantised, packed_bytes
from torch import Tensor, nn

from paperhooks_evopress.levels.matrices import Weight, cost_of, find_weights

__all__ = ["BLOCK", "TYPES", "Gguf"]

#: Weights of a block.
BLOCK: Final = 32
#: Bits of a code in each type.
TYPES: Final = {"Q4_0": 4, "Q4_1": 4, "Q5_0": 5, "Q5_1": 5, "Q8_0": 8}
_CENTRED: Final = ("Q4_0", "Q5_0")
#: Significant bits of half precision.
_HALF: Final = 11


@dataclass(eq=False)
class Gguf:
    """Offers block types of GGUF for every linear layer and all experts of a mixture, without calibration.

    types
        Among Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0.

    Blocks are 32 neighbouring inputs. Values are exactly those that a reader of the file computes: scales are numbers
    of half precision, and offsets of Q4_1 and Q5_1 are whole multiples of the scale that half precision holds. Modules
    that the types cannot hold are left out: inputs that 32 does not divide, and matrices stored as [inputs, outputs].
    """

    types: tuple[str, ...] = tuple(TYPES)
    traits = Traits(writes=frozenset({"weights"}))

    def __post_init__(self) -> None:
        given = [self.types] if isinstance(self.types, str) else list(self.types)
        self.types = tuple(dict.fromkeys(choice("types", each, tuple(TYPES)) for each in given))

    @hookimpl
    def compression_levels(
        self, view: ModelView, modules: Mapping[str, nn.Module], request: CompressionRequest
    ) -> dict[str, list[Level]]:
        """Levels of all matrices that blocks divide."""
        return {
            name: [
                Level("gguf", each, _cost(view, name, weights, each), partial(_rounded, name, weights, each),
                      {"type": each})
                for each in self.types
            ]
            for name, weights in find_weights(modules).items()
            if all(weight.inputs % BLOCK == 0 and not weight.transposed for weight in weights)
        }  # fmt: skip


def _cost(view: ModelView, name: str, weights: Sequence[Weight], kind: str) -> dict[str, float]:
    told = [packed_bytes(w.shape, width=TYPES[kind], group=BLOCK, itemsize=w.parameter.element_size()) for w in weights]
    return cost_of(view, name, weights, told)


@torch.no_grad()
def _rounded(name: str, weights: Sequence[Weight], kind: str) -> Mapping[str, Packed]:
    """The parameters of a module in blocks of a type."""
    found: dict[str, Packed] = {}
    for weight in weights:
        values = weight.parameter.detach()
        if not bool(values.isfinite().all()):
            raise DataError(f"{name}.{weight.name} has entries that are not finite")
        blocks = values.float().unflatten(-1, (-1, BLOCK))
        scales, zeros = _grid(blocks, kind, weight.dtype)
        divided = blocks / torch.where(scales == 0, 1, scales)[..., None]
        codes = (divided + zeros[..., None]).round().clamp(0, 2 ** TYPES[kind] - 1)
        found[weight.name] = Quantised.of(
            codes.flatten(-2).int(), scales.to(weight.dtype), zeros.int(), TYPES[kind], BLOCK
        )
    return found


def _grid(blocks: Tensor, kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Scale and zero of blocks [..., n, 32]."""
    width = TYPES[kind]
    if kind == "Q8_0":
        scales = blocks.abs().amax(-1) / 127
        return _half(scales, _HALF, dtype), torch.full_like(scales, 128)
    if kind in _CENTRED:  # the largest magnitude is code 0
        largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scales = _half(largest / -(2 ** (width - 1)), _HALF, dtype)
        return scales, torch.full_like(scales, 2 ** (width - 1))
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    scales = _half((high - low) / (2**width - 1), _HALF - width, dtype)
    zeros = (-low / torch.where(scales == 0, 1, scales)).round().clamp(0, 2**width - 1)
    return scales, zeros


def _half(scales: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Scales rounded to ``bits`` significant ones, as float16 and ``dtype`` both hold them.

    So many as leave room for a product with a code, where that has to be a number of half precision too.
    """
    bits = min(bits, 8) if dtype == torch.bfloat16 else bits  # what that holds
    mantissa, exponent = torch.frexp(scales)
    rounded = torch.ldexp((mantissa * 2**bits).round(), exponent - bits)
    # Below its normal numbers half precision has whole multiples of 2 ** -24 alone, which all of these types hold.
    step = 2.0**-24
    rounded = torch.where(rounded.abs() < 2.0**-14, (rounded / step).round() * step, rounded)
    if bool((rounded.abs() > 65504).any()):
        raise DataError("a block of weights is too large for scales of half precision")
    return rounded
