"""Method classes: importing them by dotted path, checking the contract, building instances.

A method is a ``@dataclass(eq=False)`` with a class attribute ``traits`` of type :class:`paperhooks.Traits` and at least
one hook implementation. ``eq=False`` because pluggy compares plugins with ``==`` and needs them hashable: two methods
with equal options must stay two methods.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from typing import Any

from paperhooks.errors import PluginBroken, PluginError, did_you_mean
from paperhooks.hooks.specs import PROJECT
from paperhooks.info import Traits
from paperhooks.plugins.containment import contained

__all__ = [
    "build_method",
    "describe_method",
    "implemented_hooks",
    "import_target",
    "known_hooks",
    "method_options",
    "validate_method",
]


def import_target(target: str) -> Any:
    """The object that ``"package.module:Name"`` points at, or the module that ``"package.module"`` names.

    :raises AttributeError: the module lacks the name, with a did-you-mean.
    :raises PluginBroken: the import ends the program (SystemExit and its like).
    :raises Exception: whatever else the import raises.
    """
    module_name, _, attribute = target.partition(":")
    with contained(f"the import of {module_name}"):
        module = importlib.import_module(module_name)
        if not attribute:
            return module
        try:
            return getattr(module, attribute)
        except AttributeError:
            public = [name for name in vars(module) if not name.startswith("_")]
            near = did_you_mean(attribute, public).partition("Known:")[0]
            raise AttributeError(f"module {module_name!r} has no {attribute!r} {near}".rstrip()) from None


def known_hooks(*groups: str) -> tuple[str, ...]:
    """Names of all hooks of the given spec classes (default: all three), in the order of their declaration."""
    from paperhooks.hooks import specs

    found: list[str] = []
    for group in groups or ("RuntimeHooks", "OfflineHooks", "CatalogHooks"):
        members = vars(getattr(specs, group))
        found += [name for name, value in members.items() if hasattr(value, f"{PROJECT}_spec")]
    return tuple(found)


def implemented_hooks(owner: object) -> tuple[str, ...]:
    """Hooks that a method class, an instance or a module implements, in the order of their declaration.

    Implementations of hooks that do not exist come last.
    """
    found = set()
    for name in dir(owner):
        options = getattr(inspect.getattr_static(owner, name, None), f"{PROJECT}_impl", None)
        if options is not None:
            found.add(options.get("specname") or name)
    known = known_hooks()
    return tuple(name for name in known if name in found) + tuple(sorted(found - set(known)))


def validate_method(cls: object, where: str) -> type:
    """Return ``cls`` if it keeps the contract of a method class, else raise PluginBroken with the fix."""
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise PluginBroken(f"{where} is {cls!r}; a method must be a class decorated with @dataclass(eq=False)")
    if cls.__hash__ is None or cls.__eq__ is not object.__eq__:
        raise PluginBroken(f"{where}: {cls.__name__} compares by value; decorate it with @dataclass(eq=False)")
    if not isinstance(getattr(cls, "traits", None), Traits):
        raise PluginBroken(f"{where}: {cls.__name__} needs a class attribute `traits = paperhooks.Traits(...)`")
    hooks = implemented_hooks(cls)
    if not hooks:
        raise PluginBroken(f"{where}: {cls.__name__} implements no hook; mark a method with @paperhooks.hookimpl")
    allowed = known_hooks("RuntimeHooks", "OfflineHooks")
    for hook in hooks:
        if hook not in allowed:
            raise PluginBroken(
                f"{where}: {cls.__name__} implements the unknown hook {hook!r}; {did_you_mean(hook, allowed)}"
            )
    return cls


def method_options(cls: type) -> tuple[str, ...]:
    """Names of the fields that a method's constructor takes."""
    return tuple(field.name for field in dataclasses.fields(cls) if field.init)


def describe_method(method: object) -> dict[str, Any]:
    """Class and options of a method instance as plain data, for records of runs.

    Fields of a dataclass with ``compare=False`` are none: they decide nothing, as where work is done.
    """
    from paperhooks.io.files import plain

    fields = dataclasses.fields(method) if dataclasses.is_dataclass(method) else ()
    options = {field.name: plain(getattr(method, field.name)) for field in fields if field.init and field.compare}
    return {"class": f"{type(method).__module__}:{type(method).__qualname__}", "options": options}


def build_method(cls: type, name: str, options: dict[str, Any]) -> Any:
    """``cls(**options)``; unknown options raise PluginError with a did-you-mean.

    What the class itself raises about a value (ValueError, TypeError) is passed on with a note that names the method.
    """
    allowed = method_options(cls)
    for option in options:
        if option not in allowed:
            raise PluginError(f"method {name!r} has no option {option!r}; {did_you_mean(option, allowed)}")
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        error.add_note(f"while creating the method {name!r} ({cls.__module__}.{cls.__qualname__}) with {options}")
        raise
