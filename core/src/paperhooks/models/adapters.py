"""The adapters that PEFT put into a model: which there are, and a model without them or with another one for a while.

They are asked layer by layer, so that it does not matter which wrapper holds the model, or whether transformers itself
has put them there. What PEFT changes beside the choice, the flags of what learns, is put back too.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from paperhooks.errors import PluginIncompatible

__all__ = ["active_adapters", "adapter_names", "learning_beside_adapters", "with_adapter", "without_adapters"]


def adapter_names(model: nn.Module) -> list[str]:
    """Names of the adapters in the layers of a model, sorted; none where it has none."""
    found: set[str] = set()
    for layer in _layers(model):
        for name in (*layer.adapter_layer_names, *layer.other_param_names):
            held: Any = getattr(layer, name, None)
            found.update(held.keys() if hasattr(held, "keys") else ())
    return sorted(found)


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that act, in their order; none where they are disabled."""
    acting = [layer for layer in _layers(model) if not layer.disable_adapters]
    return list(dict.fromkeys(name for layer in acting for name in layer.active_adapters))


def learning_beside_adapters(model: nn.Module) -> str | None:
    """The name of a parameter that learns and is of no adapter; None where adapters alone learn."""
    added = {id(p) for layer in _layers(model) for p in layer.parameters()}
    own = {id(p) for layer in _layers(model) for p in _covered(layer).parameters()}
    return next((n for n, p in model.named_parameters() if p.requires_grad and id(p) not in added - own), None)


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model without its adapters; afterwards each acts, and learns, as before."""
    _check_apart(model)
    with _flags(model):
        acting = [layer for layer in _layers(model) if not layer.disable_adapters]
        try:
            for layer in acting:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in acting:
                layer.enable_adapters(True)


@contextmanager
def with_adapter(model: nn.Module, name: str) -> Iterator[None]:
    """The model with one adapter in place of those that act; afterwards as before. They must not be disabled."""
    _check_apart(model)
    chosen: Any = importlib.import_module("peft.functional").set_adapter
    before = active_adapters(model)
    with _flags(model):
        try:
            chosen(model, name)
            yield
        finally:
            chosen(model, before)


def _layers(model: nn.Module) -> list[Any]:
    """The layers that hold adapters, or stand in for a module that learns as a whole."""
    if "peft" not in sys.modules:
        return []  # nobody has used what nobody has loaded
    layer = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    whole = importlib.import_module("peft.utils").AuxiliaryTrainingWrapper
    return [module for module in model.modules() if isinstance(module, layer | whole)]


def _covered(layer: Any) -> nn.Module:
    """What the model had there before."""
    found: nn.Module = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.original_module
    return found


def _check_apart(model: nn.Module) -> None:
    merged = sorted({name for layer in _layers(model) for name in layer.merged_adapters})
    if merged:
        raise PluginIncompatible(
            f"adapters of {type(model).__name__} are merged into its weights ({', '.join(merged)}), and taking them "
            "out rounds these; call unmerge_adapter() first"
        )


@contextmanager
def _flags(model: nn.Module) -> Iterator[None]:
    """Which parameters learn is afterwards as before."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        yield
    finally:
        for parameter, learns in before:
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)
