"""Calibration: streaming the inputs of chosen modules to a method while the model reads calibration data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from tqdm import tqdm

from paperhooks.errors import DataError, UnsupportedModel
from paperhooks.models.experts import Experts
from paperhooks.models.forward import absolute_positions, evaluation_mode
from paperhooks.models.shared_inputs import SharedInputs
from paperhooks.models.tokenizers import check_ids
from paperhooks.models.view import ModelView
from paperhooks.weights.structure import containing, module_at, skipped_modules

__all__ = ["CalibrationBatch", "Receiver", "RoutedReceiver", "calibrate", "find_module"]


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationBatch:
    """The batch that the model reads: its ``number`` from 0, its ``inputs``, and ``mask`` bool [B, T] of real tokens.

    ``mask`` is None when the batch has no 2-D attention mask: then every token is real.

    ``readers`` tells for every module that has run in this batch which one was the first to read the same tensor: q, k
    and v have one, gate and up another, and what is made of the input has to be made once.
    """

    number: int
    inputs: Mapping[str, Any]
    mask: Tensor | None
    readers: Mapping[str, str] = field(default_factory=dict)


#: Receives a module's name, the module, its input [..., D] without gradient, and the batch. Called during the forward.
Receiver: TypeAlias = Callable[[str, nn.Module, Tensor, CalibrationBatch], object]
#: Receives the name of a module with routed experts, these, the rows [N, D] that they read and the experts int64 [N, K]
#: of every row, and the batch; :meth:`Experts.inputs` gives what each of them reads.
RoutedReceiver: TypeAlias = Callable[[str, Experts, Tensor, Tensor, CalibrationBatch], object]


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
    experts = {name: _experts(view.model, name) for name in routed}
    stream = _Stream(receive, receive_routed, dict.fromkeys([*chosen, *experts], 0))
    accepted = inspect.signature(view.model.forward).parameters
    options: dict[str, Any] = {"use_cache": False}
    head = getattr(view.model, "get_output_embeddings", lambda: None)()
    if "logits_to_keep" in accepted:
        options["logits_to_keep"] = 0 if any(module is head for module in chosen.values()) else 1
    with evaluation_mode(view.model), torch.no_grad(), _hooked(chosen, experts, stream):
        for number, batch in enumerate(tqdm(batches, desc="calibrate", unit="batch", disable=not progress)):
            _check_ids(view.model, number, batch)
            inputs = _on_device(batch, view.model)
            if "position_ids" in accepted:
                inputs |= absolute_positions(view, inputs)
            stream.begin(number, inputs)
            view.model(**inputs, **options)
            stream.shared.clear()
    if stream.batch is None:
        raise DataError("there is no calibration batch; give at least one")
    return stream.calls


class _Stream:
    def __init__(self, receive: Receiver, receive_routed: RoutedReceiver | None, calls: dict[str, int]) -> None:
        self.receive, self.receive_routed = receive, receive_routed
        self.calls = calls
        self.batch: CalibrationBatch | None = None
        self.shared = SharedInputs[str]()
        self.readers: dict[str, str] = {}

    def begin(self, number: int, inputs: Mapping[str, Any]) -> None:
        self.shared.clear()
        self.readers = {}
        self.batch = CalibrationBatch(number, inputs, _mask(inputs), self.readers)

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A forward pre-hook that passes on the module's first argument."""

        def pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.batch is None:
                return
            given = args[0] if args else next(iter(kwargs.values()))
            self.calls[name] += 1
            first = self.shared.known(given)
            if first is None:
                first = name
                self.shared.keep(given, name)
            self.readers[name] = first
            with _named(name, self.batch.number):
                self.receive(name, module, given.detach(), self.batch)

        return pass_on

    def routed_hook(self, name: str, experts: Experts) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """A forward pre-hook that passes on the rows that experts read, and which of them read each."""

        def pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.batch is None or self.receive_routed is None:
                return
            hidden, index, *_ = (*args, *kwargs.values())
            self.calls[name] += 1
            with _named(name, self.batch.number):
                self.receive_routed(name, experts, hidden.detach(), index, self.batch)

        return pass_on


@contextmanager
def _named(name: str, number: int) -> Iterator[None]:
    """Errors inside get a note on where they come from."""
    try:
        yield
    except Exception as error:
        error.add_note(f"paperhooks: raised on the input of {name} in calibration batch {number}")
        raise


@contextmanager
def _hooked(modules: Mapping[str, nn.Module], routed: Mapping[str, Experts], stream: _Stream) -> Iterator[None]:
    with ExitStack() as stack:
        hooks = [(module, stream.hook(name)) for name, module in modules.items()]
        hooks += [(experts.module, stream.routed_hook(name, experts)) for name, experts in routed.items()]
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def _experts(model: nn.Module, name: str) -> Experts:
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


def _check_ids(model: Any, number: int, batch: Mapping[str, Any]) -> None:
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    weight, ids = getattr(embeddings, "weight", None), batch.get("input_ids")
    if isinstance(weight, Tensor) and isinstance(ids, Tensor) and ids.device.type == "cpu" and ids.ndim == 2:
        for row, own in enumerate(ids):
            check_ids(f"row {row} of calibration batch {number}", own, weight.shape[0])


def _on_device(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    device = getattr(model, "device", torch.device("cpu"))
    if device.type == "meta":  # offloaded: accelerate moves the inputs
        return dict(batch)
    moved = (v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in batch.values())
    return dict(zip(batch, moved, strict=True))


def _mask(inputs: Mapping[str, Any]) -> Tensor | None:
    mask = inputs.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
