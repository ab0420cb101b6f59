"""The matrices in a module: the one of a linear layer, or those of all experts of a mixture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from paperhooks import ModelView, UnsupportedModel
from paperhooks.models import Experts, module_cost
from torch import Tensor, nn

__all__ = ["Weight", "cost_of", "find_weights", "in_layers"]

_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Weight:
    """A parameter that holds a matrix, or one for every expert.

    name, parameter
        Its name in its module, and itself: [rows, columns], or [experts, rows, columns].
    transposed
        Whether matrices are stored as [inputs, outputs] and not as [outputs, inputs].
    """

    name: str
    parameter: nn.Parameter
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As it is stored."""
        return tuple(self.parameter.shape)

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.parameter.dtype

    @property
    def count(self) -> int:
        """How many matrices it holds."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def inputs(self) -> int:
        """How many inputs each of them reads."""
        return self.shape[-2 if self.transposed else -1]

    def matrix(self, index: int) -> Tensor:
        """One of the matrices, [inputs, outputs], in float32 (float64 where it has that)."""
        stored = self.parameter.detach()
        stored = stored[index] if stored.ndim == 3 else stored
        wide = stored.to(torch.promote_types(self.dtype, torch.float32))
        return wide if self.transposed else wide.T

    def stored(self, matrices: Sequence[Tensor]) -> Tensor:
        """Matrices [inputs, outputs], one for each that it holds, in the form in which it is stored."""
        parts = [each if self.transposed else each.T for each in matrices]
        return (parts[0] if len(self.shape) == 2 else torch.stack(parts)).contiguous()


def find_weights(modules: Mapping[str, nn.Module]) -> dict[str, list[Weight]]:
    """Module name to its matrices, for linear layers, GPT-2's transposed ones, and experts of a known layout.

    Weights that are packed already are none.

    :raises UnsupportedModel: weights that are not there, as those of offloaded models.
    """
    found: dict[str, list[Weight]] = {}
    for name, module in modules.items():
        weights = [each for each in _weights(module) if each.dtype in _DTYPES]
        if any(each.parameter.is_meta for each in weights):
            raise UnsupportedModel(f"the weights of {name} are on the device meta; load the model without offloading")
        if weights:
            found[name] = weights
    return found


def _weights(module: nn.Module) -> list[Weight]:
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear | Conv1D) and isinstance(module.weight, nn.Parameter):
        return [Weight("weight", module.weight, isinstance(module, Conv1D))]
    if not any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
        return []
    experts = Experts.of(module)
    if experts is None:
        return []
    return [Weight(each, getattr(module, each), experts.transposed) for each in (experts.up, experts.down)]


def in_layers(view: ModelView, names: Iterable[str]) -> list[str]:
    """Those of the modules that are in a layer of the decoder, in the order of the layers."""
    known = {id(module): name for name, module in view.model.named_modules(remove_duplicate=False)}
    inside = (known.get(id(module), "") for layer in view.layers for module in layer.modules())
    wanted = set(names)
    return [name for name in inside if name in wanted]


def cost_of(
    view: ModelView, name: str, weights: Sequence[Weight], told: Sequence[Mapping[str, int]], kept: int | None = None
) -> dict[str, float]:  # fmt: skip
    """What a module costs with its matrices packed; all else in it, such as a bias, as it is.

    :param told: of each matrix, from :func:`paperhooks.weights.packed_bytes`.
    :param kept: how many of their entries stay; without it all of them.
    """
    cost = module_cost(view, name)
    entries = sum(each.parameter.numel() for each in weights)
    own = sum(each.parameter.numel() * each.parameter.element_size() for each in weights)
    kept = entries if kept is None else kept
    return {
        "bytes": cost["bytes"] - own + sum(each["bytes"] for each in told),
        "codes": sum(each["codes"] for each in told),
        "parameters": cost["parameters"] - entries + kept,
        "flops": cost["flops"] * kept / max(1, entries),
    }
