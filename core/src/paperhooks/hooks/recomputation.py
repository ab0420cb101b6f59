"""A layer that is computed again in the backward pass: its hooks run once, and what they made is given again.

A checkpoint (torch's ``checkpoint`` and ``CheckpointWrapper``, transformers' own before 5.23) throws away what a layer
needs for its gradient and calls the layer once more when the gradient is asked for. Hooks that ran again would find
what later layers have left, and draw other random numbers. So they run in the first call only, with a graph that no
checkpoint cuts, and the second call gets their results out of the :class:`~paperhooks.Call`.

A checkpoint that is not reentrant goes back through the graph of the first call, and needs values alone from the
second. A reentrant one makes its first call without gradient and goes back through the graph of the second: there the
results are joined to the graph that the hooks have made of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.compiler import is_compiling

from paperhooks.hooks.compat import recomputed, without_selective_checkpoint

__all__ = ["in_checkpoint", "once"]


class Forward(Protocol):
    """What of a :class:`~paperhooks.Call` is needed here: whether hooks look for checkpoints, and what they made."""

    graded: bool
    remembered: dict[Hashable, Any]


def in_checkpoint() -> bool:
    """Whether what runs now will be computed again in the backward pass, or is being so.

    In a model that was called with gradient, which a reentrant checkpoint inside takes away at first.
    """
    return not is_compiling() and (not torch.is_grad_enabled() or recomputed())


def once(call: Forward, place: Hashable, hidden: Tensor, run: Callable[[Tensor], Any]) -> Any:
    """``run(hidden)`` at the first call of a place in a forward; at later ones what it returned then.

    :param place: which hook it is. :param run: takes hidden states and returns tensors, alone or in tuples and dicts.
    """
    found = call.remembered.get(place)
    if found is not None:
        with without_selective_checkpoint():
            return found.again(hidden)
    start = None if torch.is_grad_enabled() else hidden.detach().requires_grad_()
    call.graded = False  # the hooks themselves go on as ever
    try:
        with torch.enable_grad(), saved_tensors_hooks(_same, _same), without_selective_checkpoint():
            result = run(hidden if start is None else start)
    finally:
        call.graded = True
    kept = call.remembered[place] = _Kept(start, result, hidden)
    return result if start is None else kept.again(hidden)


def _same(tensor: Tensor) -> Tensor:
    return tensor


class _Unchanged:
    """Among the results, the hidden states as they were given."""


class _Part:
    """A tensor with gradient among the results: its ``value``, and in a reentrant checkpoint the tensor itself.

    The graph of other checkpoints leads to the Call, which must not lead back to it: nobody could free that circle.
    """

    __slots__ = ("source", "value")

    def __init__(self, tensor: Tensor, start: Tensor | None) -> None:
        self.value = tensor.detach()
        self.source = tensor if start is not None else None


class _Kept:
    """What the hooks of one place made in the first call.

    start
        The hidden states that they saw in a reentrant checkpoint, a leaf of their own graph; else None.
    result
        What was returned, with a :class:`_Part` in place of every tensor with gradient.
    """

    __slots__ = ("result", "start")

    def __init__(self, start: Tensor | None, result: Any, hidden: Tensor) -> None:
        def kept(tensor: Tensor) -> Any:
            if tensor is hidden:
                return _Unchanged()
            return _Part(tensor, start) if tensor.requires_grad else tensor

        self.start = start
        self.result = _replaced(result, Tensor, kept)

    def again(self, hidden: Tensor) -> Any:
        """The result, joined to the graph of ``hidden`` where there is one."""
        result = _replaced(self.result, _Unchanged, lambda _: hidden)
        if not any(True for _ in self.parts()):
            return result
        anchor = torch.zeros((), requires_grad=True)  # so that results of a method's own parameters have a gradient too
        made = iter(_Again.apply(self, hidden, anchor))  # type: ignore[no-untyped-call]  # torch has no types here
        return _replaced(result, _Part, lambda _: next(made))

    def parts(self) -> Iterator[_Part]:
        """The tensors with gradient, in order."""
        found: list[_Part] = []
        _replaced(self.result, _Part, found.append)
        return iter(found)


class _Again(torch.autograd.Function):
    """Values that are known already; the gradient goes through the graph that made them."""

    @staticmethod
    def forward(ctx: Any, kept: _Kept, hidden: Tensor, anchor: Tensor) -> tuple[Tensor, ...]:
        ctx.kept = kept
        return tuple(part.value.detach() for part in kept.parts())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        kept = ctx.kept
        asked = [(part.source, g) for part, g in zip(kept.parts(), gradients, strict=True) if g is not None]
        torch.autograd.backward([s for s, _ in asked], [g for _, g in asked], retain_graph=True)
        gradient, kept.start.grad = kept.start.grad, None
        return None, gradient, None


def _replaced(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """``value`` with every member of a type changed, in tuples and dicts too."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_replaced(each, kind, change) for each in value)
    if isinstance(value, dict):
        return {name: _replaced(each, kind, change) for name, each in value.items()}
    return value
