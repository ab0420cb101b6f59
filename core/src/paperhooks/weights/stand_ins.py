"""What stands where a layer, its attention or its MLP is skipped.

A stand-in takes the calls of the module whose place it has, and holds it where ``parameters()`` does not look. It is of
that module's class, since transformers finds layers and attentions by their classes, and has its hooks: who reads what
a layer gives goes on reading.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from paperhooks.compat import CHECKPOINTING, count_tokens, is_cache
from paperhooks.errors import UnsupportedModel
from paperhooks.io.hashing import state_is_read
from paperhooks.weights.compat import share_hooks

__all__ = ["SkippedLayer", "SkippedSublayer", "StandIn", "stand_in"]


class StandIn(nn.Module):
    """Has the place of a module, and answers its calls without running it. Made by :func:`stand_in`."""

    def take_place(self, module: nn.Module, outputs: int | None, cache_layer: int | None) -> None:
        """Stand for ``module`` from now on."""
        parameters = inspect.signature(module.forward).parameters.values()
        self._held = [module]  # in a list, so that it is no submodule
        self._names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        self._outputs, self._cache_layer = outputs, cache_layer
        first = next((p for p in module.parameters() if p.is_floating_point() and not p.is_meta), None)
        # Follows the model to other devices and dtypes, so that the module can be brought there when it comes back.
        self.register_buffer("_place", torch.empty(0) if first is None else first.new_empty(0), persistent=False)
        self._before = self._place.dtype, self._place.device
        share_hooks(self, module)
        self.register_state_dict_pre_hook(_warn)  # type: ignore[no-untyped-call]

    @property
    def stands_for(self) -> nn.Module:
        """The module that is skipped."""
        return self._held[0]

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Those of the module, although they are not among ``modules()``.

        So what is done to all parts of a model reaches them: moved, cast, put in another mode, and hooked where
        transformers captures outputs, which it does once and for all at the first call that asks for some.
        """
        return self.stands_for.named_children()

    @property
    def training(self) -> bool:
        """The mode of the module, which has it when it comes back."""
        return bool(self._held[0].training)

    @training.setter
    def training(self, mode: bool) -> None:
        """Sets the mode of all in the module."""
        if "_held" in vars(self) and self.stands_for.training != mode:
            self.stands_for.train(mode)

    def released(self) -> nn.Module:
        """The module, in the dtype and on the device that the model has got meanwhile."""
        module, place = self.stands_for, cast(Tensor, self._place)
        if (place.dtype, place.device) != self._before:
            module.to(device=place.device, dtype=place.dtype)
        vars(module).update({name: value for name, value in vars(self).items() if name in CHECKPOINTING})
        return module

    def _hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The hidden states among the arguments of a call, of which a cache is told, and all arguments by name."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        hidden = given.get(self._names[0])
        if not isinstance(hidden, Tensor):
            raise UnsupportedModel(
                f"{type(self.stands_for).__name__} is skipped, and was called without hidden states as "
                f"{self._names[0]!r}; it cannot be skipped in this model"
            )
        if self._cache_layer is not None:
            count_tokens(given, hidden, self._cache_layer)
        return hidden, given

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Its class is made on the way, so that copies and pickles have to say from what.
        kind = SkippedLayer if isinstance(self, SkippedLayer) else SkippedSublayer
        return _blank, (kind, type(self.stands_for)), dict(vars(self))

    def extra_repr(self) -> str:
        """Nothing of what the module would say of itself."""
        return ""


class SkippedSublayer(StandIn):
    """Stands where the attention or the MLP of a layer is skipped, and adds nothing to the residual stream."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros of the hidden states' shape [B, T, D], in the form in which the sublayer returns its output.

        Weights of an attention that does not run have no heads and no keys, so that those of others keep their places.
        """
        hidden, _ = self._hidden(args, kwargs)
        zeros = torch.zeros_like(hidden)
        if self._outputs is None:
            return zeros
        none = hidden.new_empty((len(hidden), 0, *hidden.shape[1:-1], 0))
        return (zeros, none, *[None] * self._outputs)[: self._outputs]


class SkippedLayer(StandIn):
    """Stands where a whole layer is skipped, and hands on its hidden states."""

    def take_attention(self, attention: StandIn) -> None:
        """What stands for the layer's attention: called, so that caches and captured outputs keep their places."""
        self._attention = [attention]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The hidden states [B, T, D] that came in, in the form in which the layer returns them."""
        hidden, given = self._hidden(args, kwargs)
        for attention in vars(self).get("_attention", ()):
            attention(hidden, **{name: value for name, value in given.items() if is_cache(value)})
        return hidden if self._outputs is None else (hidden, *[None] * (self._outputs - 1))


def stand_in(module: nn.Module, *, layer: bool, outputs: int | None, cache_layer: int | None) -> StandIn:
    """What takes the place of a module.

    :param module: what it stands for. :param layer: whether that is a whole layer, and not a part of one.
    :param outputs: how many things it returns; None where it is one tensor and not a tuple.
    :param cache_layer: which layer of a cache its attention writes to; None where it has none.
    """
    made: StandIn = _blank(SkippedLayer if layer else SkippedSublayer, type(module))
    nn.Module.__init__(made)
    own = vars(made)
    # Decoders read some of a layer's attributes, such as the kind of its attention; accelerate's are the module's own.
    own |= {name: value for name, value in vars(module).items() if name not in own and not _is_accelerate(name)}
    made.take_place(module, outputs, cache_layer)
    return made


def _is_accelerate(name: str) -> bool:
    return name in ("forward", "_hf_hook", "_old_forward")


_CLASSES: Final[dict[tuple[type, type], type[StandIn]]] = {}


def _blank(kind: type[StandIn], base: type[nn.Module]) -> Any:
    """An object without attributes of a class that is of both kinds."""
    if (kind, base) not in _CLASSES:
        _CLASSES[kind, base] = type(f"{kind.__name__}Of{base.__name__}", (kind, base), {"__module__": __name__})
    return object.__new__(_CLASSES[kind, base])


def _warn(module: nn.Module, prefix: str, keep_vars: bool) -> None:
    """A checkpoint looks whole, and loads with random weights where something is skipped."""
    if not state_is_read():
        warnings.warn(
            "layers, attentions or MLPs of this model are skipped, and their weights are not in its state dict: a "
            "checkpoint of it loads with new, random ones there. Keep the artefact beside the original weights, or put "
            "the modules back before saving",
            stacklevel=2,
        )
