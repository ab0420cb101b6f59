"""Doubles that stand in the places of a decoder's layers while it is called."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

__all__ = ["doubles_in_place", "returned"]

#: What a double does: called with the layer's index, the layer, and the arguments.
_Work: TypeAlias = Callable[[int, nn.Module, tuple[Any, ...], dict[str, Any]], Any]

#: What torch keeps about every module and a double shares with its layer, so that decoders may read the layer's parts.
_PARTS: Final = ("_parameters", "_buffers", "_modules")


@contextmanager
def doubles_in_place(layers: nn.ModuleList, forward: _Work) -> Iterator[None]:
    """Doubles in the places of the layers, for this thread; ``forward(index, layer, args, kwargs)`` is what they do.

    The whole table of the list is exchanged at once, so that an interrupt finds all doubles or none.
    """
    thread = threading.get_ident()

    def double(index: int, layer: nn.Module) -> nn.Module:
        def call(*args: Any, **kwargs: Any) -> Any:
            if threading.get_ident() != thread:
                return layer(*args, **kwargs)
            return forward(index, layer, args, kwargs)

        return _double(layer, call)

    attributes = vars(layers)
    before = attributes["_modules"]
    doubles = {str(index): double(index, layer) for index, layer in enumerate(layers)}
    try:
        attributes["_modules"] = doubles
        yield
    finally:
        attributes["_modules"] = before


def _double(layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
    """A module of the layer's class with its attributes and parts and without its hooks, and another forward.

    Hooks that transformers registers while it stands there are the layer's.
    """
    made = object.__new__(type(layer))
    nn.Module.__init__(made)
    own = [name for name in vars(made) if name not in _PARTS]
    attributes = {name: value for name, value in vars(layer).items() if name not in own}
    attributes |= {"training": layer.training, "gradient_checkpointing": False, "_compiled_call_impl": None}
    attributes |= {"forward": forward, "register_forward_hook": layer.register_forward_hook}
    vars(made).update(attributes)
    return made


def returned(states: Tensor, tuples: bool) -> Any:
    """As a layer returns it; what stands beside it in a tuple must not be used."""
    return (states, torch.full_like(states, torch.nan)) if tuples else states
