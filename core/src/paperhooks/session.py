"""Attach methods to a model, describe what they do there, and undo everything.

with paperhooks.attach(model, "pyramiddrop") as session:
    model.generate(**inputs)
# the model is bit for bit what it was
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias

import pluggy
from torch import nn

from paperhooks.errors import HookError, PluginConflict, PluginIncompatible, UnsupportedModel, did_you_mean
from paperhooks.generation import GuardedGenerate, check_cache
from paperhooks.hookspecs import CHAINED, OfflineHooks, RuntimeHooks
from paperhooks.info import Traits
from paperhooks.markers import PROJECT
from paperhooks.modelview import LayerCall, ModelView
from paperhooks.runtime import (
    Chain,
    CompactLoss,
    DecoderEnter,
    DecoderExit,
    Flags,
    Hook,
    LayerEnter,
    LayerExit,
    ModelEnter,
    Site,
)

__all__ = ["Implementation", "Session", "active_session", "attach", "strip"]

log = logging.getLogger("paperhooks.session")

Method: TypeAlias = object
_FORWARD: Final = ("pre_decoder", "pre_attention", "post_layer")
_LOCK = threading.RLock()
_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class Implementation:
    """One method's implementation of one hook; ``function`` takes all the hook's arguments, by position."""

    method: str
    function: Callable[..., Any]


class _Picked:
    """Calls an implementation that asked for only some of its hook's arguments."""

    __slots__ = ("function", "picks")

    def __init__(self, function: Callable[..., Any], picks: tuple[int, ...]) -> None:
        self.function = function
        self.picks = picks

    def __call__(self, *args: Any) -> Any:
        return self.function(*[args[i] for i in self.picks])


class _Traced:
    """Logs one line a call; used while :meth:`Session.trace` is on."""

    __slots__ = ("function", "label")

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        self.function = function
        self.label = label

    def __call__(self, *args: Any) -> Any:
        result = self.function(*args)
        where = f" layer {args[0].index}" if isinstance(args[0], Site) else ""
        logging.getLogger("paperhooks.trace").info("%s%s -> %s", self.label, where, _brief(result))
        return result


class Session:
    """The methods attached to one model. Made by :func:`attach`; also a context manager.

    view
        What core found in the model.
    methods
        Name to configured method instance, in the user's order.
    """

    def __init__(self, model: nn.Module, methods: Sequence[tuple[str, Method]]) -> None:
        self.view = ModelView.from_model(model)
        self.methods: dict[str, Method] = dict(methods)
        self.manager = _manager(methods)
        self.closed = False
        self._flags = Flags()
        self._undo: list[tuple[str, Callable[[], object]]] = []
        self._traced = False
        self._open()

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        _check_conflicts(self.methods)
        ready: list[str] = []
        try:
            for implementation in self._each("setup"):
                ready.append(implementation.method)
                implementation.function(self.view)
                self._take_deferred()
            self._register()
        except BaseException as exc:
            self.closed = True
            errors = self._teardown(ready) + self._unwind()
            for error in errors:
                exc.add_note(f"paperhooks: while undoing: {error!r}")
            raise

    def _take_deferred(self) -> None:
        self._undo.extend(("deferred callback", undo) for undo in self.view.deferred)
        self.view.deferred.clear()

    def _register(self) -> None:
        view, model, decoder = self.view, self.view.model, self.view.decoder
        entry = Chain("pre_decoder", *self._frozen("pre_decoder"))
        sites = self._sites()
        entered = [(s, Chain("pre_attention", *self._frozen("pre_attention", s))) for s in sites]
        left = [(s, Chain("post_layer", *self._frozen("post_layer", s))) for s in sites]
        entered = [(s, c) for s, c in entered if c or s.selects]
        restores = sites[-1].index if sites[-1].selects else None
        left = [(s, c) for s, c in left if c or s.index == restores]
        self._hook(model, "forward_pre", ModelEnter(view, _parameters(model), self))
        if entry or entered or left:
            self._guard()
            self._hook(decoder, "forward_pre", DecoderEnter(view, _parameters(decoder), entry, self._flags))
            names = {s.index: LayerCall.of(s.layer) for s in sites}
            for site, chain in entered:
                self._hook(site.layer, "forward_pre", LayerEnter(site, names[site.index], chain, self._flags))
            for site, chain in left:
                hook = LayerExit(site, chain, self._flags, site.index == restores, view.compact_loss)
                self._hook(site.layer, "forward", hook)
            if entered or left:
                self._hook(decoder, "forward", DecoderExit(self._flags))
        if view.compact_loss:
            self._instance_attribute("_loss_function", CompactLoss(_loss_function(model)))
        if "torch._dynamo" in sys.modules and (entry or entered or left):
            import torch

            # Compiled code does not guard on hooks: what was compiled before would silently ignore them.
            torch.compiler.reset()
            self._undo.append(("compiler reset", torch.compiler.reset))
            log.info("compiled code was discarded, since it would not see the hooks")

    def _sites(self) -> list[Site]:
        view, total = self.view, len(self.view.layers)
        sites = [Site(i, layer, total, view.layer_types[i], view) for i, layer in enumerate(view.layers)]
        selecting = [n for n, m in self.methods.items() if "tokens" in _traits(m).writes]
        first = min((s.index for s in sites if any(self._selected(n, s) for n in selecting)), default=total)
        return [Site(s.index, s.layer, total, s.kind, view, selects=True) if s.index >= first else s for s in sites]

    def _selected(self, method: str, site: Site) -> bool:
        instance = self.methods[method]
        layers = _traits(instance).layers
        if layers == "attention":
            chosen = site.kind.endswith("attention")
        elif isinstance(layers, str):
            chosen = True
        else:
            chosen = bool(layers(site)) if callable(layers) else site.index in layers
        refine = getattr(instance, "selects_layer", None)
        return chosen and (refine is None or bool(refine(site)))

    def _guard(self) -> None:
        # Without the layer selector, which may be a lambda: the guards stay on copies and in pickles of the model.
        rules = [
            (n, dataclasses.replace(_traits(m), layers="all"))
            for n, m in self.methods.items()
            if _hooks_of(self.manager, n) & set(_FORWARD)
        ]
        model = self.view.model
        if rules and hasattr(model, "generate"):
            inner = model.__dict__.get("generate")
            self._instance_attribute("generate", GuardedGenerate(model, inner, rules))
        if any(not t.static_cache for _, t in rules):
            self._hook(self.view.decoder, "forward_pre", _CacheGuard(tuple(rules)))

    def _hook(self, module: nn.Module, kind: str, hook: Hook) -> None:
        if kind == "forward_pre":
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
        else:
            handle = module.register_forward_hook(hook, with_kwargs=True, prepend=True)
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

    # -- implementations -------------------------------------------------------------------------------------------

    def implementations(self, hook: str) -> tuple[Implementation, ...]:
        """The implementations of ``hook`` in call order, each taking all of the hook's arguments by position.

        Raises LookupError with the nearest name for a hook that does not exist.
        """
        caller = getattr(self.manager.hook, hook, None)
        if caller is None:
            names = [n for c in (RuntimeHooks, OfflineHooks) for n in vars(c) if not n.startswith("_")]
            raise LookupError(f"there is no hook {hook!r}; {did_you_mean(hook, names)}")
        return self._each(hook)

    def _each(self, hook: str) -> tuple[Implementation, ...]:
        caller = getattr(self.manager.hook, hook)
        specified = caller.spec.argnames
        return tuple(
            Implementation(impl.plugin_name, _bound(impl.function, impl.argnames, specified))
            for impl in reversed(caller.get_hookimpls())
        )

    def _frozen(self, hook: str, site: Site | None = None) -> tuple[tuple[str, ...], tuple[Callable[..., Any], ...]]:
        chosen = [i for i in self._each(hook) if site is None or self._selected(i.method, site)]
        return tuple(i.method for i in chosen), tuple(i.function for i in chosen)

    # -- looking ---------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """A table of decoder layers against methods: which hooks run where. One line a run of equal layers."""
        columns = list(self.methods)
        rows = [(str(s.index), s.kind, [self._cell(n, s) for n in columns]) for s in self._sites()]
        merged: list[tuple[str, str, list[str]]] = []
        for index, kind, cells in rows:
            if merged and merged[-1][1:] == (kind, cells):
                merged[-1] = (merged[-1][0].split("-")[0] + f"-{index}", kind, cells)
            else:
                merged.append((index, kind, cells))
        model = [
            (
                "model",
                "",
                [", ".join(sorted(_hooks_of(self.manager, n) - {"pre_attention", "post_layer"})) for n in columns],
            )
        ]
        table = [("layer", "kind", columns), *model, *merged]
        lines = [[i, k, *(c or "-" for c in cells)] for i, k, cells in table]
        widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))]
        text = ["  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        state = "closed" if self.closed else "attached"
        return "\n".join([f"{type(self.view.model).__name__} ({self.view.family}), {state}", *text])

    def _cell(self, method: str, site: Site) -> str:
        if not self._selected(method, site):
            return ""
        return ", ".join(h for h in ("pre_attention", "post_layer") if h in _hooks_of(self.manager, method))

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

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo everything, last in first out. Closing twice is fine.

        Every entry runs even if one raises; errors of ``teardown`` and of undo entries are raised together as an
        ExceptionGroup. Warns when no hook ever ran.
        """
        with _LOCK:
            if self.closed:
                return
            self.closed = True
            errors = self._teardown(list(self.methods)) + self._unwind()
        if not self._flags.fired and any(_hooks_of(self.manager, n) & set(_FORWARD) for n in self.methods):
            warnings.warn(_never_fired(self.methods), stacklevel=2)
        if errors:
            raise ExceptionGroup("paperhooks: errors while detaching; everything else was undone", errors)

    def _teardown(self, ready: list[str]) -> list[Exception]:
        errors = []
        for implementation in reversed(self._each("teardown")):
            if implementation.method in ready or not self.methods:
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


class _CacheGuard(Hook):
    """Forward pre-hook of the decoder that refuses preallocated caches."""

    def __init__(self, rules: tuple[tuple[str, Traits], ...]) -> None:
        self.rules = rules

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if cache is not None:
            check_cache(self.rules, cache)


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
    if not methods:
        raise PluginIncompatible("attach() needs at least one method, as a plugin's name or a method instance")
    named = _named(methods)
    with _LOCK:
        if _own_hooks(model):
            raise PluginConflict(
                f"{type(model).__name__} is attached already; close that session first, or pass all methods to one "
                "attach(model, first, second) so that their order is defined (paperhooks.strip(model) clears a copy)"
            )
        session = Session(model, named)
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


def _named(methods: Sequence[str | Method]) -> list[tuple[str, Method]]:
    """Resolve names through the catalogue and name instances after their class's catalogue entry or class."""
    from paperhooks.catalog import catalog

    named: list[tuple[str, Method]] = []
    for method in methods:
        if isinstance(method, str):
            name, instance = method, catalog().create_method(method)
        else:
            name, instance = _name_of(method), method
        if any(n == name for n, _ in named):
            raise PluginConflict(f"{name} was given twice; a session takes each method once")
        named.append((name, instance))
    return named


def _name_of(method: Method) -> str:
    """The catalogue's name for an instance's class, or the class name in lower case for one that is not installed."""
    from paperhooks.catalog import catalog

    cls = type(method)
    target = f"{cls.__module__}:{cls.__qualname__}"
    for status in catalog().healthy:
        for name, where in (status.info.methods if status.info else {}).items():
            if where == target:
                return name if name == status.name else f"{status.name}/{name}"
    return cls.__name__.lower()


def _traits(method: Method) -> Traits:
    traits = getattr(method, "traits", None)
    if not isinstance(traits, Traits):
        raise PluginIncompatible(
            f"{type(method).__name__} is not a method: expected an attribute `traits` of type paperhooks.Traits, found "
            f"{type(traits).__name__}"
        )
    return traits


def _manager(methods: Sequence[tuple[str, Method]]) -> pluggy.PluginManager:
    """One pluggy manager a session; registered in reverse, since pluggy calls the last registered first."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RuntimeHooks)
    manager.add_hookspecs(OfflineHooks)
    for name, method in reversed(methods):
        _traits(method)
        try:
            manager.register(method, name)
        except pluggy.PluginValidationError as exc:
            raise PluginIncompatible(f"{name}: {exc}") from exc
        if not manager.get_hookcallers(method):
            raise PluginIncompatible(f"{name} implements no hook; mark its methods with @paperhooks.hookimpl")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as exc:
        raise PluginIncompatible(str(exc)) from exc
    for hook in CHAINED:
        for impl in getattr(manager.hook, hook).get_hookimpls():
            if impl.wrapper or impl.hookwrapper:
                raise PluginIncompatible(
                    f"{impl.plugin_name} implements {hook} as a wrapper; {hook} is a chained hook, where each "
                    "implementation already receives the previous one's result: return the changed inputs instead"
                )
    return manager


def _check_conflicts(methods: dict[str, Method]) -> None:
    for kind in ("objective", "positions"):
        writers = [n for n, m in methods.items() if kind in _traits(m).writes]
        if len(writers) > 1:
            raise PluginConflict(f"{' and '.join(writers)} both write the {kind}; attach only one of them")


def _hooks_of(manager: pluggy.PluginManager, method: str) -> set[str]:
    callers = manager.get_hookcallers(manager.get_plugin(method)) or []
    return {caller.name for caller in callers}


def _bound(function: Callable[..., Any], wanted: Sequence[str], offered: Sequence[str]) -> Callable[..., Any]:
    if tuple(wanted) == tuple(offered):
        return function
    return _Picked(function, tuple(offered.index(name) for name in wanted))


def _parameters(module: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(module.forward).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UnsupportedModel(
            f"{type(module).__name__}.forward takes no **kwargs, so per-forward state cannot reach the layers"
        )
    return tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))


def _loss_function(model: nn.Module) -> Callable[..., Any]:
    inner = getattr(model, "loss_function", None)
    if not callable(inner):
        raise HookError(f"{type(model).__name__} has no loss_function, so a compact loss cannot be computed")
    return inner


def _never_fired(methods: dict[str, Method]) -> str:
    return (
        f"{', '.join(methods)}: the session was closed but none of its hooks ever ran. Either the model was not "
        "called, or model.forward(...) was called directly instead of model(...), or code compiled before attach() "
        "ran, or only a copy of the model was used"
    )


def _brief(value: Any) -> str:
    from paperhooks.inputs import _shape

    return repr(value) if hasattr(value, "FIELDS") else _shape(value)
