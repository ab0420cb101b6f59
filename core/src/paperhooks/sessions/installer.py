"""Putting a session's torch hooks and attributes on a model: each with its way back on the undo stack."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from paperhooks.compat import LOSS_FUNCTION, MASK_MAKER, LayerCall, cache_parameter, keyword_parameters
from paperhooks.errors import HookError
from paperhooks.hooks.call import Site
from paperhooks.models.own_hooks import Hook
from paperhooks.models.view import ModelView
from paperhooks.sessions.chain import Flags
from paperhooks.sessions.generate_guard import CacheGuard, GuardedGenerate, MaskNotes
from paperhooks.sessions.layer_hooks import LayerEnter, LayerExit
from paperhooks.sessions.method_set import MethodSet
from paperhooks.sessions.torch_hooks import (
    CompactLoss,
    DecoderEnter,
    DecoderExit,
    ModelEnter,
    TrainingWatch,
)
from paperhooks.sessions.undo import InstanceAttribute, UndoStack

__all__ = ["Installer"]

log = logging.getLogger("paperhooks.session")


class Installer:
    """What stands between a set of methods and the modules of a model.

    guard
        What stands in for ``generate``, or None.
    attributes
        Attributes of the model instance that were set.
    """

    def __init__(self, view: ModelView, methods: MethodSet, flags: Flags, undo: UndoStack) -> None:
        self.view = view
        self.methods = methods
        self.flags = flags
        self.guard: GuardedGenerate | None = None
        self.attributes: list[InstanceAttribute] = []
        self._undo = undo

    def install(self, entry: ModelEnter, unasked: str) -> None:
        """Put everything behind ``entry`` on the model, after the methods have been set up.

        :param unasked: what to say when the model is trained without the loss of the session's methods; empty when none
            has loss hooks.
        """
        view = self.view
        if entry.starts:
            self._guard_generation(entry)
            base = getattr(view.model, "base_model", view.model)
            if base is not view.model and base is not view.decoder:
                self.hook(base, "forward_pre", ModelEnter(view, keyword_parameters(base), None, True, self.flags))
            names, cache_name = keyword_parameters(view.decoder), cache_parameter(view.decoder.forward)
            chain = self.methods.chain("pre_decoder")
            self.hook(view.decoder, "forward_pre", DecoderEnter(view, names, cache_name, chain, self.flags))
            self._install_layers(self.methods.sites(view))
            self._discard_compiled_code()
        if view.compact_loss:
            previous = view.model.__dict__.get(LOSS_FUNCTION)
            self._set_attribute(LOSS_FUNCTION, CompactLoss(_loss_function(view.model), previous))
        if unasked:
            self.hook(view.model, "forward", TrainingWatch(self.flags, unasked))

    def hook(self, module: nn.Module, kind: str, hook: Hook, *, always: bool = False) -> None:
        """Register a torch hook on a module: ``kind`` is ``"forward_pre"`` or ``"forward"``."""
        if kind == "forward_pre":
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)  # type: ignore[arg-type]
        else:
            handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True, always_call=always)  # type: ignore[arg-type]
        self._undo.push(f"{type(hook).__name__} on {type(module).__name__}", handle.remove)

    def _install_layers(self, sites: list[Site]) -> None:
        hooked = entries = False
        for site, names in zip(sites, LayerCall.of_each(site.layer for site in sites), strict=True):
            entry, leaving = self.methods.chain("pre_attention", site), self.methods.chain("post_layer", site)
            restores = site.selects and site.index == site.n_layers - 1
            if entry or site.selects:
                self.hook(site.layer, "forward_pre", LayerEnter(site, names, entry, self.flags))
                entries = entries or site.attends
            if leaving or restores:
                hook = LayerExit(site, leaving, self.flags, restores, self.view.compact_loss)
                self.hook(site.layer, "forward", hook)
            hooked = hooked or bool(entry or leaving)
        self.hook(self.view.decoder, "forward", DecoderExit(self.flags, hooked, entries), always=True)

    def _discard_compiled_code(self) -> None:
        """Compiled code does not guard on hooks: what was compiled before would silently ignore them."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
            self._undo.push("compiler reset", torch.compiler.reset)
            log.info("compiled code was discarded, since it would not see the hooks")

    def _guard_generation(self, entry: ModelEnter) -> None:
        model, rules = self.view.model, self.methods.rules()
        if hasattr(model, "generate"):
            self.guard = entry.guard = GuardedGenerate(model, model.__dict__.get("generate"), rules)
            self._set_attribute("generate", self.guard)
            self._set_attribute(MASK_MAKER, MaskNotes.around(model))
        self.hook(self.view.decoder, "forward_pre", CacheGuard(rules, cache_parameter(self.view.decoder.forward)))

    def _set_attribute(self, name: str, value: object) -> None:
        attribute = InstanceAttribute(self.view.model, name, value)
        self._undo.push(f"instance attribute {name}", attribute.undo)
        self.attributes.append(attribute)
        attribute.set()


def _loss_function(model: nn.Module) -> Callable[..., Any]:
    inner: Callable[..., Any] | None = getattr(model, "loss_function", None)
    if inner is None:
        raise HookError(f"{type(model).__name__} has no loss_function, so a compact loss cannot be computed")
    return inner
