"""What stands where a layer, its attention or its MLP is skipped.

A stand-in takes the calls of the module whose place it has, and holds it where ``parameters()`` does not look.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from paperhooks.compat import CHECKPOINTING, GradientCheckpointingLayer, count_tokens
from paperhooks.errors import UnsupportedModel
from paperhooks.io.hashing import state_is_read

__all__ = ["SkippedLayer", "SkippedSublayer", "StandIn"]


class StandIn(nn.Module):
    """Has the place of a module, and answers its calls without running it.

    :param module: what it stands for. :param outputs: how many things that returns; None where it is one tensor and
        not a tuple. :param cache_layer: which layer of a cache its attention writes to; None where it has none.
    """

    def __init__(self, module: nn.Module, outputs: int | None, cache_layer: int | None) -> None:
        super().__init__()
        parameters = inspect.signature(module.forward).parameters.values()
        self._held = [module]  # in a list, so that it is no submodule
        self._names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        self._outputs, self._cache_layer = outputs, cache_layer
        self.train(module.training)
        first = next((p for p in module.parameters() if p.is_floating_point() and not p.is_meta), None)
        # Follows the model to other devices and dtypes, so that the module can be brought there when it comes back.
        self.register_buffer("_place", torch.empty(0) if first is None else first.new_empty(0), persistent=False)
        for name, value in vars(module).items():
            plain = not isinstance(value, nn.Module | Tensor) and not name.startswith("_")
            if plain and name not in ("forward", "training") and not hasattr(self, name):
                setattr(self, name, value)  # decoders read some, such as the kind of a layer's attention
        self._checkpointing(module, self)
        self.register_state_dict_pre_hook(_warn)  # type: ignore[no-untyped-call]
        self._before = self.training, self._place.dtype, self._place.device

    @property
    def stands_for(self) -> nn.Module:
        """The module that is skipped."""
        return self._held[0]

    def released(self) -> nn.Module:
        """The module, in the mode and dtype and on the device that the model has got meanwhile."""
        module, place = self.stands_for, cast(Tensor, self._place)
        training, dtype, device = self._before
        if self.training != training:
            module.train(self.training)
        if (place.dtype, place.device) != (dtype, device):
            module.to(device=place.device, dtype=place.dtype)
        self._checkpointing(self, module)
        return module

    @staticmethod
    def _checkpointing(source: nn.Module, target: nn.Module) -> None:
        if isinstance(target, GradientCheckpointingLayer):
            for name in CHECKPOINTING:
                if name in vars(source):
                    setattr(target, name, getattr(source, name))

    def _hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states among the arguments of a call, of which a cache is told."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        hidden = given.get(self._names[0])
        if not isinstance(hidden, Tensor):
            raise UnsupportedModel(
                f"{type(self.stands_for).__name__} is skipped, and was called without hidden states as "
                f"{self._names[0]!r}; it cannot be skipped in this model"
            )
        if self._cache_layer is not None:
            count_tokens(given, hidden, self._cache_layer)
        return hidden

    def _returned(self, hidden: Tensor) -> Any:
        return hidden if self._outputs is None else (hidden, *[None] * (self._outputs - 1))

    def extra_repr(self) -> str:
        """What is skipped."""
        return type(self.stands_for).__name__


def _warn(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """A checkpoint looks whole, and loads with random weights where something is skipped."""
    if not state_is_read():
        warnings.warn(
            "layers, attentions or MLPs of this model are skipped, and their weights are not in its state dict: a "
            "checkpoint of it loads with new, random ones there. Keep the artefact beside the original weights, or put "
            "the modules back before saving",
            stacklevel=2,
        )


class SkippedSublayer(StandIn):
    """Stands where the attention or the MLP of a layer is skipped, and adds nothing to the residual stream."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the hidden states' shape [B, T, D], in the form in which the sublayer returns its output."""
        return self._returned(torch.zeros_like(self._hidden(args, kwargs)))


class SkippedLayer(StandIn, GradientCheckpointingLayer):  # type: ignore[misc]
    """Stands where a whole layer is skipped, and hands on its hidden states."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states [B, T, D] that came in, in the form in which the layer returns them."""
        return self._returned(self._hidden(args, kwargs))
