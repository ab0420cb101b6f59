"""The hidden states that a model's head receives, from a call of the model as it stands: attached, wrapped, offloaded.

The decoder's output is read by a temporary forward hook while the model is called with ``logits_to_keep=1``, so images
are embedded, attached methods run, and the head sees one position instead of T.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from paperhooks.errors import UnsupportedModel
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import running_model

__all__ = ["absolute_positions", "evaluation_mode", "last_hidden_state", "reading_hidden_states", "view_of"]

#: Inputs that would make the model compute a loss over [B, T, V].
_LOSS_INPUTS = ("labels", "shift_labels", "num_items_in_batch")


def view_of(model: nn.Module | ModelView) -> ModelView:
    """A view of a model or of the model inside a wrapper; a view is returned as it is."""
    return model if isinstance(model, ModelView) else ModelView.from_model(running_model(model))


def last_hidden_state(model: nn.Module | ModelView, batch: Mapping[str, Any]) -> Tensor:
    """What the head of ``model`` receives for ``batch``: [B, T, D] in the model's dtype, with gradient if enabled.

    :param model: a model, a wrapped one (DistributedDataParallel), or a view. Mode and gradient are the caller's.
    :param batch: inputs of the model; labels are left out.
    :raises UnsupportedModel: the decoder did not run, or more than once. Compiled models run uncompiled here.
    """
    view = view_of(model)
    called = view.model if isinstance(model, ModelView) else model
    inputs = {name: value for name, value in batch.items() if name not in _LOSS_INPUTS}
    accepted = inspect.signature(view.model.forward).parameters
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = 1
    if "position_ids" in accepted:
        inputs |= absolute_positions(view, inputs)
    with reading_hidden_states(view) as seen, _eagerly():
        called(**inputs, use_cache=False)
    if len(seen) != 1:
        raise UnsupportedModel(
            f"the decoder of {type(view.model).__name__} ran {len(seen)} times in one call, where once was expected; "
            "this model cannot be used here"
        )
    return seen[0]


@contextmanager
def reading_hidden_states(view: ModelView) -> Iterator[list[Tensor]]:
    """Collect the decoder's outputs [B, T, D] of calls that this thread makes inside the block."""
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def read(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            seen.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handle = view.decoder.register_forward_hook(read)
    try:
        yield seen
    finally:
        handle.remove()


def _eagerly() -> AbstractContextManager[Any]:
    """Run compiled models uncompiled: compiled code would not see the hook, or keep it for good."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def absolute_positions(view: ModelView, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """``position_ids`` [B, T] from the first real token on, for models whose absolute positions padding would move.

    Empty for models with rotary positions, and for inputs without a 2-D mask or with positions of their own.
    """
    mask = inputs.get("attention_mask")
    if view.rotary is not None or not isinstance(mask, Tensor) or mask.ndim != 2 or "position_ids" in inputs:
        return {}
    return {"position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


@contextmanager
def evaluation_mode(*models: nn.Module) -> Iterator[None]:
    """``model.eval()`` for the block; every module gets its own mode back."""
    training = [module for model in models for module in model.modules() if module.training]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
