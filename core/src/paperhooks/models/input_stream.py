"""The stream of what modules read: batches, who receives it, and the hooks that pass it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from paperhooks.errors import DataError
from paperhooks.models.experts import Experts
from paperhooks.models.shared_inputs import SharedInputs
from paperhooks.models.tokenizers import check_ids

__all__ = ["CalibrationBatch", "InputStream", "Receiver", "RoutedReceiver", "check_batch", "hooked", "on_device"]


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


class InputStream:
    """What modules read in one batch after another, handed to receivers by hooks."""

    def __init__(self, receive: Receiver, receive_routed: RoutedReceiver | None, calls: dict[str, int]) -> None:
        self.receive, self.receive_routed = receive, receive_routed
        self.calls = calls
        self.batch: CalibrationBatch | None = None
        self.shared = SharedInputs[str]()
        self.readers: dict[str, str] = {}

    def begin(self, number: int, inputs: Mapping[str, Any]) -> None:
        """The next batch is read."""
        self.shared.clear()
        self.readers = {}
        self.batch = CalibrationBatch(number, inputs, _mask(inputs), self.readers)

    def end(self) -> None:
        """Pass nothing on until the next batch begins."""
        self.shared.clear()
        self.batch = None

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
def hooked(modules: Mapping[str, nn.Module], routed: Mapping[str, Experts], stream: InputStream) -> Iterator[None]:
    """Hooks of a stream on modules and on routed experts, by their names."""
    with ExitStack() as stack:
        hooks = [(module, stream.hook(name)) for name, module in modules.items()]
        hooks += [(experts.module, stream.routed_hook(name, experts)) for name, experts in routed.items()]
        for module, hook in hooks:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


def check_batch(model: Any, number: int, batch: Mapping[str, Any]) -> None:
    """Raise DataError for a batch without tokens, or a token id outside the vocabulary."""
    given = batch.get("input_ids", batch.get("inputs_embeds"))
    if not isinstance(given, Tensor) or not given.numel():
        raise DataError(
            f"calibration batch {number} has no tokens; expected input_ids [B, T] or inputs_embeds [B, T, D]"
        )
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    weight, ids = getattr(embeddings, "weight", None), batch.get("input_ids")
    if isinstance(weight, Tensor) and isinstance(ids, Tensor) and ids.device.type == "cpu" and ids.ndim == 2:
        for row, own in enumerate(ids):
            check_ids(f"row {row} of calibration batch {number}", own, weight.shape[0])


def on_device(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The inputs where the model is, but for one that is offloaded."""
    device = getattr(model, "device", torch.device("cpu"))
    if device.type == "meta":  # offloaded: accelerate moves the inputs
        return dict(batch)
    moved = (v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for v in batch.values())
    return dict(zip(batch, moved, strict=True))


def _mask(inputs: Mapping[str, Any]) -> Tensor | None:
    mask = inputs.get("attention_mask")
    return mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None
