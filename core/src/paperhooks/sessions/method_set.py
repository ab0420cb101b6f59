"""The methods of one session: named, validated, ordered, and asked where they act.

pluggy holds the methods and does names, signatures, validation and order. :meth:`MethodSet.implementations` reads that
order out as plain functions, which the session then freezes into chains.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import pluggy

from paperhooks import compat
from paperhooks.errors import PluginConflict, PluginIncompatible, did_you_mean
from paperhooks.hooks.call import Site
from paperhooks.hooks.specs import CHAINED, PROJECT, OfflineHooks, RuntimeHooks
from paperhooks.info import PARALLEL, Traits
from paperhooks.models.view import ModelView
from paperhooks.sessions.chain import Chain
from paperhooks.sessions.method_options import option_texts

__all__ = ["Implementation", "Method", "MethodSet", "traits_of"]

Method: TypeAlias = object

#: Hooks that run inside a forward, and so are subject to the generation guards.
FORWARD: Final = frozenset({"pre_decoder", "pre_attention", "post_layer"})


#: Hooks that never run in a session, and the function that runs them.
_OFFLINE: Final = {
    "compression": "paperhooks.compress",
    "compression_levels": "paperhooks.compress",
    "score_examples": "paperhooks.score or paperhooks.select",
}


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


class MethodSet:
    """Configured methods in the user's order.

    ``methods`` maps names to instances; ``manager`` is their pluggy manager.

    :raises PluginIncompatible: an object that is no method, or one whose hooks do not fit their specifications.
    :raises PluginConflict: a method twice, or two that exclude each other.
    """

    def __init__(self, methods: Sequence[str | Method]) -> None:
        if not methods:
            raise PluginIncompatible("expected at least one method, as a plugin's name or a method instance")
        self.methods = _named(methods)
        self.manager = _manager(self.methods)
        _check_conflicts(self)

    def hooks(self, method: str) -> set[str]:
        """Names of the hooks that ``method`` implements."""
        callers = self.manager.get_hookcallers(self.methods[method]) or []
        return {caller.name for caller in callers}

    def in_forward(self) -> list[str]:
        """The methods with hooks inside the forward."""
        return [name for name in self.methods if self.hooks(name) & FORWARD]

    def check_attachable(self) -> None:
        """Raise PluginIncompatible for a method none of whose hooks runs in a session."""
        for name in self.methods:
            offline = self.hooks(name) & set(_OFFLINE)
            if offline == self.hooks(name):
                verbs = ", ".join(sorted({_OFFLINE[hook] for hook in offline}))
                raise PluginIncompatible(
                    f"{name} has no hooks that run while it is attached (it implements {', '.join(sorted(offline))}); "
                    f"use {verbs} with it"
                )

    def rules(self) -> tuple[tuple[str, Traits], ...]:
        """Name and traits of the methods that the generation guards must ask.

        Without the layer selector, which may be a lambda: the guards stay on copies and in pickles of the model.
        """
        return tuple((n, dataclasses.replace(traits_of(self.methods[n]), layers="all")) for n in self.in_forward())

    def traits(self) -> dict[str, Traits]:
        """Every method's declarations, by its name."""
        return {name: traits_of(method) for name, method in self.methods.items()}

    def spreads(self) -> list[str]:
        """How a model may be spread for all methods alike."""
        return [kind for kind in PARALLEL if all(kind in each.parallel for each in self.traits().values())]

    def options(self) -> dict[str, dict[str, str]]:
        """Every method's options, as texts that are equal in all processes which attached the same."""
        return {name: option_texts(method) for name, method in self.methods.items()}

    def implementations(self, hook: str) -> tuple[Implementation, ...]:
        """The implementations of ``hook`` in call order.

        :raises LookupError: there is no such hook; names the nearest.
        """
        caller = getattr(self.manager.hook, hook, None)
        if caller is None:
            names = [n for spec in (RuntimeHooks, OfflineHooks) for n in vars(spec) if not n.startswith("_")]
            raise LookupError(f"there is no hook {hook!r}; {did_you_mean(hook, names)}")
        offered = caller.spec.argnames
        return tuple(
            Implementation(impl.plugin_name, _bound(impl.function, impl.argnames, offered))
            for impl in reversed(caller.get_hookimpls())
        )

    def chain(self, hook: str, site: Site | None = None) -> Chain:
        """The frozen chain of ``hook``: of all methods, or of those that act at ``site``."""
        chosen = [i for i in self.implementations(hook) if site is None or self.selected(i.method, site)]
        return Chain(hook, tuple(i.method for i in chosen), tuple(i.function for i in chosen))

    def selected(self, method: str, site: Site) -> bool:
        """Whether ``method`` acts at ``site``: its traits' layers, narrowed by its own ``selects_layer(site)``."""
        instance = self.methods[method]
        layers = traits_of(instance).layers
        if layers == "attention":
            chosen = site.attends
        elif isinstance(layers, str):
            chosen = True
        else:
            chosen = bool(layers(site)) if callable(layers) else site.index in layers
        refine = getattr(instance, "selects_layer", None)
        return chosen and (refine is None or bool(refine(site)))

    def sites(self, view: ModelView) -> list[Site]:
        """The decoder's layers; those where tokens may be missing, for some method drops them, are marked."""
        total = len(view.layers)
        for name, method in self.methods.items():
            _check_layers(name, traits_of(method).layers, view)
        pairs = zip(view.layers, view.layer_types, strict=True)
        sites = [Site(i, layer, total, kind, view) for i, (layer, kind) in enumerate(pairs)]
        droppers = [n for n, m in self.methods.items() if "tokens" in traits_of(m).writes]
        first = min((s.index for s in sites if any(self.selected(n, s) for n in droppers)), default=total)
        for site in sites:
            self._check_order(site)
        causal = [compat.causal(view.attention(s.index)) for s in sites]
        return [dataclasses.replace(s, selects=s.index >= first, causal=causal[s.index]) for s in sites]

    def _check_order(self, site: Site) -> None:
        """Refuse a method that drops tokens behind one that has counted positions by those alive, at one layer."""
        writers = [n for n, m in self.methods.items() if "tokens" in traits_of(m).writes and self.selected(n, site)]
        for first, then in itertools.pairwise(writers):
            if "positions" in traits_of(self.methods[first]).writes:
                raise PluginConflict(
                    f"{then} drops tokens at layer {site.index} after {first} has counted positions there; write "
                    f"{first} last, or let them act at layers of their own"
                )

    def table(self, view: ModelView) -> str:
        """Decoder layers against methods: which hooks run where. One line a run of equal layers."""
        names, per_layer = list(self.methods), {"pre_attention", "post_layer"}
        merged: list[list[str]] = []
        for site in self.sites(view):
            hooks = [self.hooks(n) & per_layer if self.selected(n, site) else set() for n in names]
            row = [str(site.index), site.kind, *map(_listed, hooks)]
            if merged and merged[-1][1:] == row[1:]:
                merged[-1][0] = f"{merged[-1][0].split('-')[0]}-{site.index}"
            else:
                merged.append(row)
        whole = ["model", "", *(_listed(self.hooks(n) - per_layer) for n in names)]
        lines = [["layer", "kind", *names], whole, *merged]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def _check_layers(name: str, layers: Any, view: ModelView) -> None:
    """Refuse indices that are no layers of this decoder: the method would silently be idle there."""
    outside = (
        [] if isinstance(layers, str) or callable(layers) else [i for i in layers if not 0 <= i < len(view.layers)]
    )
    if outside:
        raise PluginIncompatible(
            f"{name}: traits.layers names {outside}, but this {view.family} has layers 0 to {len(view.layers) - 1}"
        )


def _listed(hooks: set[str]) -> str:
    declared = [name for name in vars(RuntimeHooks) | vars(OfflineHooks) if name in hooks]
    return ", ".join(declared) or "-"


def _named(methods: Sequence[str | Method]) -> dict[str, Method]:
    from paperhooks.plugins.installed import catalog

    named: dict[str, Method] = {}
    for method in methods:
        if isinstance(method, str):
            name, instance = method, catalog().create_method(method)
        else:
            name, instance = _name_of(method), method
        if name in named:
            raise PluginConflict(f"{name} was given twice; a session takes each method once")
        named[name] = instance
    return named


def _name_of(method: Method) -> str:
    """The catalogue's name for an instance's class, or the class name in lower case for one that is not installed."""
    from paperhooks.plugins.installed import catalog

    cls = type(method)
    target = f"{cls.__module__}:{cls.__qualname__}"
    for status in catalog().healthy:
        for name, where in (status.info.methods if status.info else {}).items():
            if where == target:
                return name if name == status.name else f"{status.name}/{name}"
    return cls.__name__.lower()


def traits_of(method: Method) -> Traits:
    """The declarations of a method. Raises PluginIncompatible for an object that is none."""
    if isinstance(method, type):
        raise PluginIncompatible(f"{method.__name__} is a class; give an instance of it: {method.__name__}(...)")
    traits = getattr(method, "traits", None)
    if not isinstance(traits, Traits):
        raise PluginIncompatible(
            f"{type(method).__name__} is not a method: expected an attribute `traits` of type paperhooks.Traits, found "
            f"{type(traits).__name__}"
        )
    return traits


def _manager(methods: dict[str, Method]) -> pluggy.PluginManager:
    """One pluggy manager a session; registered in reverse, since pluggy calls the last registered first."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(RuntimeHooks)
    manager.add_hookspecs(OfflineHooks)
    for name, method in reversed(methods.items()):
        traits_of(method)
        try:
            manager.register(method, name)
            manager.check_pending()
        except pluggy.PluginValidationError as exc:
            raise PluginIncompatible(f"{name}: {exc}") from exc
        if not manager.get_hookcallers(method):
            raise PluginIncompatible(f"{name} implements no hook; mark its methods with @paperhooks.hookimpl")
    for hook in CHAINED:
        for impl in getattr(manager.hook, hook).get_hookimpls():
            if impl.wrapper or impl.hookwrapper:
                raise PluginIncompatible(
                    f"{impl.plugin_name} implements {hook} as a wrapper; {hook} is a chained hook, where each "
                    "implementation already receives the previous one's result: return the changed inputs instead"
                )
    return manager


def _check_conflicts(chosen: MethodSet) -> None:
    for kind in ("objective", "positions"):
        writers = [n for n, m in chosen.methods.items() if kind in traits_of(m).writes]
        if len(writers) > 1:
            raise PluginConflict(f"{' and '.join(writers)} both write the {kind}; attach only one of them")
    replacing = [i.method for i in chosen.implementations("compute_loss")]
    if len(replacing) > 1:
        raise PluginConflict(f"{' and '.join(replacing)} both replace the loss (compute_loss); attach only one of them")


def _bound(function: Callable[..., Any], wanted: Sequence[str], offered: Sequence[str]) -> Callable[..., Any]:
    if tuple(wanted) == tuple(offered):
        return function
    return _Picked(function, tuple(offered.index(name) for name in wanted))
