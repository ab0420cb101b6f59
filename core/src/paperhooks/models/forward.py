"""The hidden states that a model's head receives, from a call of the model as it stands: attached, wrapped, offloaded.

The decoder's output is read by a temporary forward hook while the model is called with ``logits_to_keep=1``, so images
are embedded, attached methods run, and the head sees one position instead of T. A head whose weights are whole only
while it runs (FSDP2) does its work then: :func:`run_in_head`.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paperhooks.errors import UnsupportedModel
from paperhooks.models.engines import starts_at_outputs
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import running_model

__all__ = [
    "absolute_positions",
    "evaluation_mode",
    "last_hidden_state",
    "ordinary_tokens",
    "reading_hidden_states",
    "run_in_head",
    "uncompiled",
    "view_of",
]

_T = TypeVar("_T")

#: Inputs that would make the model compute a loss over [B, T, V].
_LOSS_INPUTS = ("labels", "shift_labels", "num_items_in_batch")


def view_of(model: nn.Module | ModelView) -> ModelView:
    """A view of a model or of the model inside a wrapper; a view is returned as it is."""
    return model if isinstance(model, ModelView) else ModelView.from_model(running_model(model))


def last_hidden_state(
    model: nn.Module | ModelView, batch: Mapping[str, Any], *, view: ModelView | None = None
) -> Tensor:
    """What the head of ``model`` receives for ``batch``: [B, T, D] in the model's dtype, with gradient if enabled.

    :param model: a model, a wrapped one (DistributedDataParallel), or a view. Mode and gradient are the caller's.
    :param batch: inputs of the model; labels are left out. :param view: of the model, where there is one already.
    :raises UnsupportedModel: the decoder did not run, or more than once. Compiled models run uncompiled here.
    """
    view = view or view_of(model)
    with reading_hidden_states(view) as seen:
        output = _call(model, view, batch, keep=1)
    if len(seen) != 1:
        raise UnsupportedModel(
            f"the decoder of {type(view.model).__name__} ran {len(seen)} times in one call, where once was expected; "
            "this model cannot be used here"
        )
    return _through(output, seen[0]) if starts_at_outputs(_called(model, view)) else seen[0]


def _through(output: Any, hidden: Tensor) -> Tensor:
    """``hidden``, whose backward pass also comes through what the call returned, by a sum of nothing."""
    logits = output[0] if isinstance(output, tuple) else output.logits
    return hidden + logits.reshape(-1)[:0].sum().to(hidden) if hidden.requires_grad else hidden


def run_in_head(
    model: nn.Module | ModelView,
    batch: Mapping[str, Any],
    module: nn.Module,
    work: Callable[[Tensor, Callable[[Tensor], Tensor]], _T],
    *,
    view: ModelView | None = None,
) -> _T:
    """``work(hidden, forward)`` in place of what ``module`` computes while ``model`` is called with ``batch``.

    For output embeddings that FSDP2 shards: it gathers them before ``module`` runs, and again before the backward pass
    reaches what ``module`` and the model have returned; that is the work's result then. What the family does with
    logits behind its head does not touch it.

    :param module: the output embeddings. :param work: receives what they do, [B, T, D], and their own forward, which
        works inside of the call, and again while the backward pass goes through the result. Gives a tensor or a tuple
        of them, each of the same graph. :param view: of the model, where there is one already.
    :raises UnsupportedModel: ``module`` did not run, ran more than once, or received something else.
    """
    view, thread = view or view_of(model), threading.get_ident()
    own: Callable[[Tensor], Tensor] = module.forward
    seen: list[_T] = []

    def run(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return own(hidden, *args, **kwargs)
        if seen or args or kwargs or hidden.ndim != 3:
            raise UnsupportedModel(
                f"{type(view.model).__name__} does not make its logits by one call of its output embeddings with "
                "hidden states [B, T, D]; sharded by FSDP2 it cannot be used here"
            )
        seen.append(work(hidden, own))
        return seen[0]

    def stand_in(_: nn.Module, args: tuple[Tensor], output: Any) -> Any:
        """One position of logits, for the family to scale and cap; called after FSDP2 has seen the result."""
        if threading.get_ident() != thread:
            return output
        return args[0].new_zeros(len(args[0]), 1, int(getattr(module, "out_features", 1)))

    def put(_: nn.Module, args: Any, output: Any) -> Any:
        """The result where FSDP2 will look for what its backward pass begins with."""
        if threading.get_ident() != thread or not seen:
            return output
        if isinstance(output, tuple):
            return (seen[0], *output[1:])
        output.logits = seen[0]
        return output

    with ExitStack() as stack:
        stack.callback(module.register_forward_hook(stand_in).remove)
        stack.callback(view.model.register_forward_hook(put, prepend=True).remove)
        stack.enter_context(_replaced(module, run))
        _call(model, view, batch, keep=0)
    if not seen:
        raise UnsupportedModel(f"{type(view.model).__name__} did not call its output embeddings; it gives no logits")
    return seen[0]


@contextmanager
def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another ``forward`` on the module itself, in front of what patches may have put there."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


def _called(model: nn.Module | ModelView, view: ModelView) -> nn.Module:
    return view.model if isinstance(model, ModelView) else model


def _call(model: nn.Module | ModelView, view: ModelView, batch: Mapping[str, Any], keep: int) -> Any:
    """Call the model without what would make it compute a loss, for the logits of the last ``keep`` positions (0: all),
    where it can be told so."""
    inputs = {name: value for name, value in batch.items() if name not in _LOSS_INPUTS}
    accepted = inspect.signature(view.model.forward).parameters
    if "logits_to_keep" in accepted:
        inputs["logits_to_keep"] = keep
    if "position_ids" in accepted:
        inputs |= absolute_positions(view, inputs)
    with uncompiled():
        return _called(model, view)(**inputs, use_cache=False)


@contextmanager
def reading_hidden_states(view: ModelView) -> Iterator[list[Tensor]]:
    """Collect the decoder's outputs [B, T, D] of calls that this thread makes inside the block."""
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def read(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            states = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
            if states is None:
                raise UnsupportedModel(
                    f"{type(module).__name__}, taken for the decoder, returns {type(output).__name__} without hidden "
                    "states, so that none can be read of this family"
                )
            seen.append(states)

    handle = view.decoder.register_forward_hook(read)
    try:
        yield seen
    finally:
        handle.remove()


def uncompiled() -> AbstractContextManager[Any]:
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


def ordinary_tokens(view: ModelView, count: int) -> Tensor:
    """Ids of ``count`` tokens that stand for no image, int64 [count], to try a model with."""
    vocabulary = view.text_config.vocab_size
    return torch.tensor([i for i in range(min(64, vocabulary)) if i not in view.image_token_ids][-count:])


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
