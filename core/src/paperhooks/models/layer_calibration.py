"""Calibration a layer at a time: the inputs of one layer's modules over all batches, before the next layer runs.

What is collected of one layer can be used and let go before the next: Hessians take the memory of one block. And what
is changed in a layer meanwhile is what the next layers read, as sequential GPTQ wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from paperhooks.errors import DataError
from paperhooks.models.calibration import find_experts, find_module
from paperhooks.models.experts import Experts
from paperhooks.models.forward import evaluation_mode
from paperhooks.models.input_stream import InputStream, Receiver, RoutedReceiver, check_batch, hooked, on_device
from paperhooks.models.layer_calls import LayerCalls
from paperhooks.models.view import ModelView

__all__ = ["calibrate_by_layer"]


def calibrate_by_layer(
    view: ModelView,
    batches: Iterable[Mapping[str, Any]],
    modules: Iterable[str],
    receive: Receiver,
    *,
    routed: Iterable[str] = (),
    receive_routed: RoutedReceiver | None = None,
    sequential: bool = True,
    progress: bool = True,
) -> Iterator[tuple[int, list[str]]]:
    """As :func:`~paperhooks.models.calibrate`, but all batches go through one layer before any goes through the next.

    >>> for index, names in calibrate_by_layer(view, batches, modules, receive):  # doctest: +SKIP
    ...     compress(names)  # from what was received of them; their weights may be changed

    Memory: the hidden states, masks and tables of all batches, beside what ``receive`` keeps. What is kept of a layer
    can be let go when the next one is asked for.

    :param modules, routed: qualified names of modules in the decoder's layers.
    :param sequential: run a layer again after its names were given, so that later layers read what it gives with the
        weights that it has then; False: they read what it gave at first, at half the work.
    :return: for each layer in order its index and those of the names that are in it, received completely.
    :raises LookupError: no such module. :raises DataError: no batch, a token id outside the vocabulary, or a module
        that is in no layer. :raises UnsupportedModel: experts that cannot be read, or layers that cannot be run one by
        one, see :class:`LayerCalls`.
    """
    chosen = {name: find_module(view.model, name) for name in modules}
    experts = {name: find_experts(view.model, name) for name in routed}
    layers = _by_layer(view, [*chosen, *experts])
    stream = InputStream(receive, receive_routed, dict.fromkeys([*chosen, *experts], 0))
    with evaluation_mode(view.model), torch.no_grad():
        inputs = [_inputs(view, number, batch) for number, batch in enumerate(batches)]
        if not inputs:
            raise DataError("there is no calibration batch; give at least one")
        calls = [LayerCalls.of(view, each) for each in inputs]
    states = [each.embeddings for each in calls]
    for index, names in enumerate(tqdm(layers, desc="calibrate", unit="layer", disable=not progress)):
        here = {name: chosen[name] for name in names if name in chosen}
        there: dict[str, Experts] = {name: experts[name] for name in names if name in experts}
        given: list[Tensor] = []
        with evaluation_mode(view.model), torch.no_grad(), hooked(here, there, stream):
            for number, (each, state) in enumerate(zip(calls, states, strict=True)):
                stream.begin(number, inputs[number])
                given.append(each.run(state, index, index + 1))
        stream.end()
        yield index, names
        if sequential and index + 1 < len(layers):
            with evaluation_mode(view.model), torch.no_grad():
                given = [each.run(state, index, index + 1) for each, state in zip(calls, states, strict=True)]
        states = given


def _by_layer(view: ModelView, names: Sequence[str]) -> list[list[str]]:
    """The names in each layer; raises DataError for one that is in none."""
    within = {id(module): index for index, layer in enumerate(view.layers) for module in layer.modules()}
    found: list[list[str]] = [[] for _ in view.layers]
    for name in names:
        place = within.get(id(find_module(view.model, name)))
        if place is None:
            raise DataError(f"{name} is in no layer of the decoder; calibrate() hands on what it reads")
        found[place].append(name)
    return found


def _inputs(view: ModelView, number: int, batch: Mapping[str, Any]) -> dict[str, Any]:
    check_batch(view.model, number, batch)
    return on_device(batch, view.model)
