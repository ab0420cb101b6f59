"""The torch hooks a session puts on the model and its decoder: what runs at every forward; those of layers stand apart.

Each reads the :class:`~paperhooks.hooks.Call` out of the keyword arguments, runs a frozen chain, and writes changed
arguments back. They are ordinary forward hooks; a copy of an attached model carries copies of them.
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperhooks.compat import (
    find_cache,
    returned_cache,
    strange_caches,
    token_count,
)
from paperhooks.errors import HookError, UnsupportedModel
from paperhooks.hooks.call import CALL, OWN_ARGUMENTS, Call
from paperhooks.hooks.inputs import DecoderInputs
from paperhooks.hooks.recomputation import in_checkpoint
from paperhooks.models.own_hooks import Hook
from paperhooks.models.spread import spread_mark
from paperhooks.sessions.chain import Chain, Flags, Function, Owner
from paperhooks.sessions.layer_check import unknown_call
from paperhooks.sessions.layer_hooks import expect, named_arguments
from paperhooks.sessions.threads import in_stack
from paperhooks.tokens.compat import in_backward
from paperhooks.tokens.row_state import bound_owners, left_alone
from paperhooks.tokens.track import compact_labels

if TYPE_CHECKING:
    from paperhooks.models.view import ModelView
    from paperhooks.sessions.generate_guard import GuardedGenerate

__all__ = [
    "CompactLoss",
    "DecoderEnter",
    "DecoderExit",
    "ModelEnter",
    "ModelExit",
    "TrainingWatch",
]


class ModelEnter(Hook):
    """Forward pre-hook of the model: starts the :class:`Call`, and leads from a model to its session.

    A copy of an attached model (deepcopy, pickle) keeps its hooks but belongs to no session. A session without hooks
    inside the forward leaves every call as it is (``starts`` False). A second one stands on the model without its head,
    which some callers use directly; inside a call of the whole model it finds the Call and does nothing. A call that
    begins while the session is being closed runs without it, unless it belongs to a ``generate`` under way.

    Before a call of a model that was wrapped, sharded or offloaded since the last one the session has its say.
    """

    def __init__(
        self, view: ModelView, names: tuple[str, ...], session: Owner | None, starts: bool, flags: Flags
    ) -> None:
        self.mark: object = None
        self.guard: GuardedGenerate | None = None  # known once the model's generate is guarded
        self.view = view
        self.names = names
        self.session = session
        self.starts = starts
        self.flags = flags

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "session": None, "mark": None}

    def _began_before(self, module: nn.Module) -> bool:
        """Whether a forward without notes belongs to a ``generate`` that began before: it ends as it began."""
        return self.guard is not None and not torch.compiler.is_compiling() and in_stack(module, ("generate",))

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.flags.closing and not (self.guard is not None and self.guard.inside()):
            return None
        if self.session is not None and not torch.compiler.is_compiling():
            training = module.training and torch.is_grad_enabled()
            self.flags.calls += 1
            mark = training, *spread_mark(module, self.view.layers)
            if mark != self.mark or self.session.disturbed:
                self.session.meet(training)
                self.mark = mark
        if module.training and torch.is_grad_enabled():
            self.flags.trained = True
        if not self.starts or CALL in kwargs:
            return None
        notes = self.guard.notes() if self.guard is not None else None
        if notes is None and self._began_before(module):
            return None
        inputs = named_arguments(args, kwargs, self.names)
        call = _begun(self.view, inputs, module, notes, self.flags)
        kwargs = {name: value for name, value in kwargs.items() if name not in OWN_ARGUMENTS}
        kwargs[CALL] = call
        return args, kwargs


def _noted(flags: Flags, step: int) -> None:
    """Count this thread in or out of the decoder."""
    if torch.compiler.is_compiling():
        return
    thread = threading.get_ident()
    count = flags.inside.get(thread, 0) + step
    if count > 0:
        flags.inside[thread] = count
    else:
        flags.inside.pop(thread, None)


def _begun(view: ModelView, inputs: dict[str, Any], module: nn.Module, notes: Any, flags: Flags) -> Call:
    """The Call of a forward that begins.

    :raises UnsupportedModel: it begins in a backward pass, where nothing is known of the forward that it repeats.
    """
    if not torch.compiler.is_compiling() and torch.is_grad_enabled() and in_backward():
        raise _checkpointed_whole(module)
    return Call(view, inputs, module.training, notes, flags)


def _checkpointed_whole(module: nn.Module) -> UnsupportedModel:
    return UnsupportedModel(
        f"{type(module).__name__} is under a checkpoint as a whole, and would run its methods a second time in the "
        "backward pass; put checkpoints around its decoder layers, alone or in groups"
    )


class DecoderEnter(Hook):
    """Forward pre-hook of the decoder: lengths, cache, and the ``pre_decoder`` chain."""

    def __init__(self, view: ModelView, names: tuple[str, ...], cache_name: str, chain: Chain, flags: Flags) -> None:
        self.view = view
        self.names = names
        self.cache_name = cache_name
        self.chain = chain
        self.flags = flags

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = named_arguments(args, kwargs, self.names)
        call = given.get(CALL)
        if call is None:  # the decoder was called without the model around it
            if self.flags.closing or (not torch.compiler.is_compiling() and in_stack(self.view.model, ("generate",))):
                return None  # the generate around it began before the session
            call = given[CALL] = _begun(self.view, dict(given), module, None, self.flags)
            for name in OWN_ARGUMENTS:
                given.pop(name, None)
        cache = find_cache(given, self.cache_name)
        tokens = given.get("inputs_embeds")
        tokens = given.get("input_ids") if tokens is None else tokens
        if tokens is None:
            return None
        if not self.flags.arrived and (strange := strange_caches(given, self.cache_name)):
            raise unknown_call(module, f"a cache arrives as {strange[0]!r}, a name that is not known")
        if call.graded and in_checkpoint():
            raise _checkpointed_whole(module)
        call.enter(tokens, cache, token_count(cache) if cache is not None else 0)
        _noted(self.flags, 1)
        if self.chain:
            self.flags.fired = True
            self._run(call, given, cache)
        return (), given

    def _run(self, call: Call, given: dict[str, Any], cache: Any) -> None:
        inputs = start = DecoderInputs(
            given.get("input_ids"),
            given.get("inputs_embeds"),
            given.get("attention_mask"),
            given.get("position_ids"),
            cache,
        )
        done = 0
        try:
            for function in self.chain.functions:
                result = function(self.view, call, inputs)
                if result is not None:
                    inputs = expect(result, DecoderInputs, self.chain, done)
                done += 1
        except Exception as exc:
            self.chain.blame(exc, done, "at the decoder")
            raise
        for f in DecoderInputs.FIELDS:
            if getattr(inputs, f) is not getattr(start, f):
                if f not in self.names:
                    raise unknown_call(self.view.decoder, f"it takes no {f!r}, which {self.chain.names} have changed")
                given[f] = getattr(inputs, f)


class DecoderExit(Hook):
    """Forward hook of the decoder, called after errors too: what a forward leaves behind is put in order.

    State goes over to a cache that the decoder made itself. A decoder that does not hand keyword arguments to its
    layers, or a cache that no layer showed, is noticed: there every hook would silently be idle or wrong. So is a cache
    whose state no method of this session asked for.
    """

    def __init__(self, flags: Flags, layers: bool, entries: bool) -> None:
        self.flags = flags
        self.layers = layers  # whether any layer has hooks
        self.entries = entries  # whether hooks look at what a layer with attention is called with

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call = kwargs.get(CALL)
        if call is None:
            return
        call.attendance.end()
        _noted(self.flags, -1)
        if output is None:  # an error is on its way
            return
        if call.remembered and isinstance(output[0], Tensor) and output[0].requires_grad:
            output[0].register_hook(self.notice)
        if self.layers and not self.flags.arrived:
            raise UnsupportedModel(
                f"{type(module).__name__} does not hand keyword arguments down to its layers, so no layer hook ran; "
                "this model is not supported, nor is torch.compile around layers under checkpoints"
            )
        if call.cache is None:
            self._take(module, call, returned_cache(output))
            return
        call.settle(call.cache)  # what was noted before the first layer showed a cache that the decoder made
        if (owners := bound_owners(call.cache)) and (missing := [o for o in owners if o not in call.attendance.served]):
            raise left_alone(call.cache, missing)

    def notice(self, gradient: Tensor) -> None:
        """The backward pass begins, which computes layers again.

        :raises HookError: the session is closed, so that they would be computed without it.
        """
        if self.flags.closed:
            raise HookError(
                "a checkpoint computes layers again that ran in a session, and the session is closed: they would get "
                "other hidden states than before; call backward() before the session closes"
            )

    def _take(self, module: nn.Module, call: Call, cache: Any) -> None:
        if cache is None:
            return
        if self.entries:
            raise unknown_call(module, "it returns a cache that it handed to none of its layers under a known name")
        call.settle(cache)


class ModelExit(Hook):
    """Forward hook of a model that ranks call in step, called after errors: lets them learn of this rank's error."""

    def __init__(self, fail: Callable[[BaseException, bool], None]) -> None:
        self.fail = fail

    def __getstate__(self) -> dict[str, Any]:
        return {"fail": _alone}

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if output is None and (error := sys.exc_info()[1]) is not None:
            self.fail(error, module.training and torch.is_grad_enabled())


def _alone(error: BaseException, training: bool) -> None:
    """Nobody is told: a copy of a model is in no session."""


class TrainingWatch(Hook):
    """Forward hook of the model in a session with loss hooks: notices the first backward pass without them.

    A stock Trainer, or a loop of the user's own, takes the model's loss and would train as without the method.
    """

    def __init__(self, flags: Flags, message: str) -> None:
        self.flags = flags
        self.message = message

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.flags.asked or self.flags.warned or not (module.training and torch.is_grad_enabled()):
            return
        found = (getattr(output, name, None) for name in ("logits", "loss", "last_hidden_state"))
        tensor = next((t for t in found if isinstance(t, Tensor) and t.requires_grad), None)
        if tensor is not None:
            tensor.register_hook(self.notice)

    def notice(self, gradient: Tensor) -> None:
        """Warn, once a session."""
        if not self.flags.asked and not self.flags.warned:
            self.flags.warned = True
            warnings.warn(self.message, stacklevel=2)


class CompactLoss(Hook):
    """The model's loss function while a method asked for the loss on kept tokens only."""

    def __init__(self, inner: Function, previous: Function | None) -> None:
        self.inner = inner
        self.previous = previous  # what the instance itself had there

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = kwargs.pop(CALL, None)
        if call is not None and call.track is not None and kwargs.get("labels") is not None:
            kwargs["shift_labels"] = compact_labels(kwargs["labels"], call.track)
        return self.inner(*args, **kwargs)
