"""Attach methods to a model, describe what they do there, and undo everything.

>>> with paperhooks.attach(model, "pyramiddrop") as session:  # doctest: +SKIP
...     model.generate(**inputs)

After the block the model is bit for bit what it was.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Self

import torch
from packaging.specifiers import SpecifierSet
from torch import nn

from paperhooks.errors import HookError, PluginConflict, UnsupportedModel
from paperhooks.generation import MASK_MAKER, CacheGuard, GuardedGenerate, MaskNotes
from paperhooks.hookspecs import LOSS_HOOKS
from paperhooks.inputs import shape_text
from paperhooks.methodset import Implementation, Method, MethodSet
from paperhooks.modelview import LayerCall, ModelView
from paperhooks.runtime import Flags, Hook, Site
from paperhooks.torchhooks import CompactLoss, DecoderEnter, DecoderExit, LayerEnter, LayerExit, ModelEnter, StateExit

__all__ = ["Implementation", "Session", "active_session", "attach", "strip"]

log = logging.getLogger("paperhooks.session")

_LOCK = threading.RLock()
_MISSING: Final = object()

#: transformers versions whose layer calls the test suite has seen.
TESTED_TRANSFORMERS: Final = ">=5.23,<6"


class _Traced:
    """Logs one line a call; used while :meth:`Session.trace` is on."""

    __slots__ = ("function", "label")

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        self.function = function
        self.label = label

    def __call__(self, *args: Any) -> Any:
        result = self.function(*args)
        where = f" layer {args[0].index}" if isinstance(args[0], Site) else ""
        logging.getLogger("paperhooks.trace").info("%s%s -> %s", self.label, where, shape_text(result))
        return result


class Session:
    """The methods attached to one model. Made by :func:`attach`; also a context manager.

    view
        What core found in the model.
    methods
        Name to configured method instance, in the user's order.
    """

    def __init__(self, model: nn.Module, methods: MethodSet) -> None:
        self.view = ModelView.from_model(model)
        self.methods: dict[str, Method] = methods.methods
        self.closed = False
        self._set = methods
        self._flags = Flags()
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._open()

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        begun: list[str] = []
        try:
            for implementation in self._set.implementations("setup"):
                begun.append(implementation.method)
                self.view.writer = implementation.method
                implementation.function(self.view)
                self._take_deferred()
            self._register()
        except BaseException as exc:
            self.closed = True
            for error in self._teardown(begun) + self._unwind():
                exc.add_note(f"paperhooks: while undoing: {error!r}")
            raise

    def _take_deferred(self) -> None:
        self._undo.extend(("deferred callback", undo) for undo in self.view.deferred)
        self.view.deferred.clear()

    def _register(self) -> None:
        view, methods = self.view, self._set
        in_forward = bool(methods.in_forward())
        names = _parameters(view.model) if in_forward else ()
        self._hook(view.model, "forward_pre", ModelEnter(view, names, self, in_forward, self._flags))
        if in_forward:
            self._guard()
            base = getattr(view.model, "base_model", view.model)
            if base is not view.model and base is not view.decoder:
                self._hook(base, "forward_pre", ModelEnter(view, _parameters(base), None, in_forward, self._flags))
            entry = methods.chain("pre_decoder")
            self._hook(view.decoder, "forward_pre", DecoderEnter(view, _parameters(view.decoder), entry, self._flags))
            if entry:
                self._hook(view.decoder, "forward", StateExit())
            self._register_layers(methods.sites(view))
            self._discard_compiled_code()
        if view.compact_loss:
            self._instance_attribute("_loss_function", CompactLoss(_loss_function(view.model)))

    def _register_layers(self, sites: list[Site]) -> None:
        hooked = False
        for site in sites:
            names = LayerCall.of(site.layer)
            entry, leaving = self._set.chain("pre_attention", site), self._set.chain("post_layer", site)
            restores = site.selects and site.index == site.n_layers - 1
            if entry or site.selects:
                self._hook(site.layer, "forward_pre", LayerEnter(site, names, entry, self._flags))
            if leaving or restores:
                hook = LayerExit(site, leaving, self._flags, restores, self.view.compact_loss)
                self._hook(site.layer, "forward", hook)
            hooked = hooked or bool(entry or leaving)
        if hooked:
            self._hook(self.view.decoder, "forward", DecoderExit(self._flags))

    def _discard_compiled_code(self) -> None:
        """Compiled code does not guard on hooks: what was compiled before would silently ignore them."""
        if "torch._dynamo" in sys.modules:
            torch.compiler.reset()
            self._undo.append(("compiler reset", torch.compiler.reset))
            log.info("compiled code was discarded, since it would not see the hooks")

    def _guard(self) -> None:
        model, rules = self.view.model, self._set.rules()
        if hasattr(model, "generate"):
            self._instance_attribute("generate", GuardedGenerate(model, model.__dict__.get("generate"), rules))
            self._instance_attribute(MASK_MAKER, MaskNotes.around(model))
        self._hook(self.view.decoder, "forward_pre", CacheGuard(rules))

    def _hook(self, module: nn.Module, kind: str, hook: Hook) -> None:
        if kind == "forward_pre":
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)  # type: ignore[arg-type]
        else:
            handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)  # type: ignore[arg-type]
        self._undo.append((f"{type(hook).__name__} on {type(module).__name__}", handle.remove))

    def _instance_attribute(self, name: str, value: object) -> None:
        model = self.view.model
        before = model.__dict__.get(name, _MISSING)
        model.__dict__[name] = value

        def undo() -> None:
            if before is _MISSING:
                model.__dict__.pop(name, None)
            else:
                model.__dict__[name] = before

        self._undo.append((f"instance attribute {name}", undo))

    # -- looking ---------------------------------------------------------------------------------------------------

    def implementations(self, hook: str) -> tuple[Implementation, ...]:
        """The implementations of ``hook`` in call order, each taking all of the hook's arguments by position.

        :raises LookupError: there is no such hook; names the nearest.
        """
        return self._set.implementations(hook)

    def describe(self) -> str:
        """A table of decoder layers against methods: which hooks run where. One line a run of equal layers."""
        state = "closed" if self.closed else "attached"
        return f"{type(self.view.model).__name__} ({self.view.family}), {state}\n{self._set.table(self.view)}"

    @contextlib.contextmanager
    def trace(self) -> Iterator[None]:
        """While the context is open, log every runtime hook call as one line to ``paperhooks.trace`` (level INFO)."""
        chains = [h.chain for h in _own_hooks(self.view.model) if hasattr(h, "chain")]
        before = [chain.functions for chain in chains]
        try:
            for chain in chains:
                chain.functions = tuple(
                    _Traced(f, f"{chain.hook} {n}") for n, f in zip(chain.names, chain.functions, strict=True)
                )
            yield
        finally:
            for chain, functions in zip(chains, before, strict=True):
                chain.functions = functions

    def _with_loss_hooks(self) -> list[str]:
        return list(dict.fromkeys(i.method for name in LOSS_HOOKS for i in self._set.implementations(name)))

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo everything, last in first out. Closing twice is fine.

        Every entry runs even if one raises; errors of ``teardown`` and of undo entries are raised together as an
        ExceptionGroup. Warns when no hook ever ran, and when the model was trained without its loss hooks.
        """
        with _LOCK:
            if self.closed:
                return
            self.closed = True
            errors = self._teardown(list(self.methods)) + self._unwind()
        if not self._flags.fired and self._set.in_forward():
            warnings.warn(_never_fired(self.methods), stacklevel=2)
        if self._flags.trained and not self._flags.asked and (left_out := self._with_loss_hooks()):
            warnings.warn(_never_asked(left_out), stacklevel=2)
        if errors:
            raise ExceptionGroup("paperhooks: errors while detaching; everything else was undone", errors)

    def _teardown(self, begun: list[str]) -> list[Exception]:
        errors = []
        for implementation in reversed([i for i in self._set.implementations("teardown") if i.method in begun]):
            try:
                implementation.function(self.view)
            except Exception as exc:
                exc.add_note(f"paperhooks: raised in teardown of {implementation.method!r}")
                errors.append(exc)
        return errors

    def _unwind(self) -> list[Exception]:
        self._take_deferred()
        if self.view._journal is not None:
            self._undo.append(("weight journal", self.view._journal.undo))
        errors = []
        while self._undo:
            label, undo = self._undo.pop()
            try:
                undo()
            except Exception as exc:
                exc.add_note(f"paperhooks: raised while undoing: {label}")
                errors.append(exc)
        return errors

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None:
            self.close()
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an error came first; that hooks did not run is no news
            try:
                self.close()
            except ExceptionGroup as group:
                exc.add_note(f"paperhooks: while detaching: {group.exceptions!r}")

    def __repr__(self) -> str:
        return f"<Session of {', '.join(self.methods)} on {type(self.view.model).__name__}>"


def attach(model: nn.Module, *methods: str | Method) -> Session:
    """Attach methods to a stock transformers model.

    :param model: any supported model, on any device, before ``torch.compile``.
    :param methods: plugin names (``"pyramiddrop"``, ``"plugin/method"``) or configured method instances, in the order
        in which their hooks shall run.
    :return: the open session; close it, or use it as a context manager.
    :raises PluginNotFound: an unknown name. :raises PluginConflict: methods that exclude each other, or a model that is
        attached already. :raises PluginIncompatible: an object that is no method. :raises UnsupportedModel: core or a
        method cannot work with this model. Whatever is raised, nothing stays attached.
    """
    _warn_untested_transformers()
    chosen = MethodSet(methods)
    with _LOCK:
        if _own_hooks(model):
            raise PluginConflict(
                f"{type(model).__name__} is attached already; close that session first, or pass all methods to one "
                "attach(model, first, second) so that their order is defined (paperhooks.strip(model) clears a copy)"
            )
        session = Session(model, chosen)
    log.info("attached %s to %s", ", ".join(session.methods), type(model).__name__)
    return session


def active_session(model: nn.Module) -> Session | None:
    """The open session of ``model``, or None. A copy of an attached model has hooks but no session."""
    return next((h.session for h in model._forward_pre_hooks.values() if isinstance(h, ModelEnter) and h.session), None)


def strip(model: nn.Module) -> int:
    """Remove every trace of paperhooks from ``model``, for example from a copy of an attached model.

    An open session of the model is closed first. Returns how many hooks and instance attributes were removed.
    """
    session = active_session(model)
    if session is not None:
        removed = len(_own_hooks(model))
        session.close()
        return removed
    removed = 0
    for module in model.modules():
        for table in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, h in table.items() if isinstance(h, Hook)]:
                del table[key]
                for flags in _hook_flags(module):
                    flags.pop(key, None)
                removed += 1
    guard = model.__dict__.get("generate")
    if isinstance(guard, GuardedGenerate):
        del model.__dict__["generate"]
        if guard.inner is not None:
            model.__dict__["generate"] = guard.inner
        removed += 1
    maker = model.__dict__.get(MASK_MAKER)
    if isinstance(maker, MaskNotes):
        del model.__dict__[MASK_MAKER]
        if maker.previous is not None:
            model.__dict__[MASK_MAKER] = maker.previous
        removed += 1
    return removed + _strip_loss(model)


def _strip_loss(model: nn.Module) -> int:
    loss = model.__dict__.get("_loss_function")
    if not isinstance(loss, CompactLoss):
        return 0
    del model.__dict__["_loss_function"]
    if getattr(type(model), "loss_function", None) is None or model.loss_function is not loss.inner:
        model.__dict__["_loss_function"] = loss.inner
    return 1


def _hook_flags(module: nn.Module) -> list[dict[int, Any]]:
    names = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    return [getattr(module, n) for n in names if hasattr(module, n)]


def _own_hooks(model: nn.Module) -> list[Any]:
    tables = (t for m in model.modules() for t in (m._forward_pre_hooks, m._forward_hooks))
    return [hook for table in tables for hook in table.values() if isinstance(hook, Hook)]


def _parameters(module: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(module.forward).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UnsupportedModel(
            f"{type(module).__name__}.forward takes no **kwargs, so per-forward state cannot reach the layers"
        )
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _loss_function(model: nn.Module) -> Callable[..., Any]:
    inner: Callable[..., Any] | None = getattr(model, "loss_function", None)
    if inner is None:
        raise HookError(f"{type(model).__name__} has no loss_function, so a compact loss cannot be computed")
    return inner


@functools.cache
def _warn_untested_transformers() -> None:
    """Once a process: the layer call that hooks rely on is held by tests for these versions only."""
    version = importlib.metadata.version("transformers")
    if not SpecifierSet(TESTED_TRANSFORMERS, prereleases=True).contains(version):
        warnings.warn(
            f"paperhooks is tested with transformers {TESTED_TRANSFORMERS}, this is {version}; hooks may not run as "
            "described, so compare a few outputs",
            stacklevel=3,
        )


def _never_asked(methods: Iterable[str]) -> str:
    return (
        f"{', '.join(methods)}: the model was trained, but nobody asked for this session's loss, so it was trained as "
        "without it. Put HooksTrainerMixin before Trainer (class MyTrainer(HooksTrainerMixin, Trainer)), or call "
        "paperhooks.loss.compute_loss in a loop of your own"
    )


def _never_fired(methods: dict[str, Method]) -> str:
    return (
        f"{', '.join(methods)}: the session was closed but none of its hooks ever ran. Either the model was not "
        "called, or model.forward(...) was called directly instead of model(...), or code compiled before attach() "
        "ran, or only a copy of the model was used"
    )
