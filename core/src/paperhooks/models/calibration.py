"""Calibration: streaming the inputs of chosen modules to a method while the model reads calibration data."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from paperhooks.errors import DataError, UnsupportedModel
from paperhooks.models.experts import Experts
from paperhooks.models.forward import absolute_positions, evaluation_mode
from paperhooks.models.input_stream import InputStream, Receiver, RoutedReceiver, check_batch, hooked, on_device
from paperhooks.models.view import ModelView
from paperhooks.weights.structure import containing, module_at, skipped_modules

__all__ = ["calibrate", "find_experts", "find_module"]


def calibrate(
    view: ModelView,
    batches: Iterable[Mapping[str, Any]],
    modules: Iterable[str],
    receive: Receiver,
    *,
    routed: Iterable[str] = (),
    receive_routed: RoutedReceiver | None = None,
    progress: bool = True,
) -> dict[str, int]:
    """Run the model over ``batches`` and hand the inputs of ``modules`` to ``receive``.

    The model is in eval mode, without gradient and without cache; mode and hooks are as before afterwards, also after
    an error. Nothing is kept between batches, so memory is bounded by what ``receive`` keeps.

    Only the last position reaches the head, unless the head itself is among ``modules``. Batches padded on the
    left may come without positions.

    :param modules: qualified names, such as those of the Linear layers to compress.
    :param routed, receive_routed: qualified names of modules that hold the experts of a mixture, and who gets what
        these read.
    :return: how often each module ran, 0 for one that was never reached (an expert without tokens, a vision tower).
    :raises LookupError: no such module. :raises UnsupportedModel: experts that cannot be read. :raises DataError: no
        batch, or a token id outside the vocabulary. What ``receive`` raises gets a note that names the module and the
        batch.
    """
    chosen = {name: find_module(view.model, name) for name in modules}
    experts = {name: find_experts(view.model, name) for name in routed}
    stream = InputStream(receive, receive_routed, dict.fromkeys([*chosen, *experts], 0))
    accepted = inspect.signature(view.model.forward).parameters
    options: dict[str, Any] = {"use_cache": False}
    head = getattr(view.model, "get_output_embeddings", lambda: None)()
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 0 if any(module is head for module in chosen.values()) else 1
    with evaluation_mode(view.model), torch.no_grad(), hooked(chosen, experts, stream):
        for number, batch in enumerate(tqdm(batches, desc="calibrate", unit="batch", disable=not progress)):
            check_batch(view.model, number, batch)
            inputs = on_device(batch, view.model)
            if "position_ids" in accepted:
                inputs |= absolute_positions(view, inputs)
            stream.begin(number, inputs)
            view.model(**inputs, **options)
            stream.shared.clear()
    if stream.batch is None:
        raise DataError("there is no calibration batch; give at least one")
    return stream.calls


def find_experts(model: nn.Module, name: str) -> Experts:
    """The routed experts in a module; raises LookupError for no such module, UnsupportedModel for unknown ones."""
    found = Experts.of(find_module(model, name))
    if found is None:
        raise UnsupportedModel(f"the experts of {name} cannot be read: it holds none, or none of a known layout")
    return found


def find_module(model: nn.Module, name: str) -> nn.Module:
    """The module of that qualified name; raises LookupError with the nearest one, and for one that is skipped."""
    found = module_at(model, name)
    skipped = skipped_modules(model)
    if outer := name if name in skipped else containing(name, skipped):
        raise LookupError(f"{name} is skipped in this model" + (f", with {outer}" if outer != name else ""))
    return found
