"""Feeds every option of a method values that it cannot mean, and sees whether construction refuses them by name.

What is wrong follows from the field's annotation alone. A value that some method might take to mean something (-1 for
an ``int``, an empty list for a sequence) is not tried, nor is anything for a field of type ``Any``: bounds of its own a
method tests itself.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import math
import re
import sys
import types
import typing
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final

from paperhooks.errors import PaperhooksError
from paperhooks.io.options import shown

__all__ = ["check_options", "wrong_values"]


class _Bare:
    """An object that is nothing an option could take."""

    def __repr__(self) -> str:
        return "object()"


_BARE: Final = _Bare()
_WORD: Final = "no such word"
_NAN: Final = float("nan")
#: What is tried; lists and mappings stand for every container.
_CANDIDATES: Final[tuple[object, ...]] = (
    None, _BARE, True, 2, -1, 1.5, _NAN, math.inf, "", _WORD, [], {}, [_BARE], [True], [1.5], [_NAN], {_BARE: _BARE},
)  # fmt: skip


def check_options(make: Callable[[], object]) -> list[str]:
    """Complaints about a method's options; none when every wrong value is refused in a text that names its field.

    :param make: gives the method, a dataclass instance. Each value is tried alone, beside the fields without a default.
    :return: one sentence a field and kind of fault, with the values that show it: they are accepted, or raise an error
        of another kind than ValueError, TypeError and PaperhooksError, or one that does not name the option.
    """
    method: Any = make()
    if not dataclasses.is_dataclass(method) or isinstance(method, type):
        return [f"{shown(method)} is no dataclass instance, so it has no options to check"]
    fields = [field for field in dataclasses.fields(method) if field.init]
    needed = {field.name: getattr(method, field.name) for field in fields if _default(field) is dataclasses.MISSING}
    complaints = []
    for field in fields:
        faults: dict[str, list[str]] = {}
        for value in wrong_values(field, _default(field), type(method)):
            if fault := _fault(type(method), needed, field.name, value):
                faults.setdefault(fault, []).append(shown(value))
        complaints += [_complaint(type(method), field.name, fault, values) for fault, values in faults.items()]
    return complaints


def wrong_values(
    field: dataclasses.Field[Any], default: object = dataclasses.MISSING, owner: type | None = None
) -> list[object]:
    """Values that cannot be meant for a dataclass field, by its annotated type.

    :param field: of ``dataclasses.fields``. :param default: its default value, which is not tried; nor is infinity
        where this is infinite. :param owner: the dataclass, in whose modules an annotation that is text is read. One
        that cannot be read (a name imported for type checkers alone) has no wrong values.
    """
    hint = _annotation(field, owner)
    endless = isinstance(default, float) and math.isinf(default)
    allowed = (default, math.inf) if endless else (default,)
    return [v for v in _CANDIDATES if not _may_mean(v, hint) and not any(v is each for each in allowed)]


def _complaint(cls: type, name: str, fault: str, values: list[str]) -> str:
    return f"{cls.__name__}({name}=...) {fault} with {', '.join(values)}; expected a ValueError that names {name!r}"


def _fault(cls: type, needed: dict[str, object], name: str, value: object) -> str | None:
    """What is wrong with how a class takes a wrong value; None when it refuses it by name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cls(**{**needed, name: value})
    except (ValueError, TypeError, PaperhooksError) as error:
        named = re.search(rf"\b{re.escape(name)}\b", str(error))
        return None if named else f"raises a {type(error).__name__} without the option's name"
    except Exception as error:
        return f"raises {type(error).__name__}"
    return "is accepted"


def _default(field: dataclasses.Field[Any]) -> object:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _annotation(field: dataclasses.Field[Any], owner: type | None) -> Any:
    """The type of a field. Each is read alone: ``get_type_hints`` gives up at the first name that it does not know."""
    if not isinstance(field.type, str):
        return field.type
    for cls in _definers(field.name, owner):
        names = vars(sys.modules.get(cls.__module__, typing))
        alone = types.SimpleNamespace(__annotations__={field.name: field.type})
        try:
            return typing.get_type_hints(alone, dict(names), dict(vars(cls)), include_extras=True)[field.name]
        except Exception:  # whatever reading it raises, it says nothing about wrong values
            break
    return Any


def _definers(name: str, owner: type | None) -> Iterator[type]:
    return (cls for cls in (owner.__mro__ if owner else ()) if name in inspect.get_annotations(cls))


def _may_mean(value: object, hint: Any) -> bool:
    """Whether a method could take ``value`` to mean something, by the annotation alone."""
    hint = _plain(hint)
    origin, arguments = typing.get_origin(hint) or hint, typing.get_args(hint)
    if hint is Any:
        return True
    if hint is None or hint is types.NoneType:
        return value is None
    if origin in (typing.Union, types.UnionType):
        return any(_may_mean(value, each) for each in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(word) and value == word for word in arguments)
    if origin in _SCALARS:
        return _SCALARS[origin](value)
    if origin is collections.abc.Callable:
        return callable(value)
    if isinstance(origin, type) and origin is not object and not getattr(origin, "_is_protocol", False):
        return _may_be(value, origin, arguments)
    return True


def _plain(hint: Any) -> Any:
    """An annotation without what only wraps it: ``Annotated``, ``NewType``, ``type X = ...``."""
    while True:
        if typing.get_origin(hint) is typing.Annotated:
            hint = typing.get_args(hint)[0]
        elif hasattr(hint, "__supertype__"):
            hint = hint.__supertype__
        elif type(hint).__name__ == "TypeAliasType":
            hint = hint.__value__
        else:
            return hint


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_SCALARS: Final[dict[Any, Callable[[object], bool]]] = {
    bool: lambda value: isinstance(value, bool),
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: _number,
    str: lambda value: isinstance(value, str),
}


def _may_be(value: object, kind: type, arguments: tuple[Any, ...]) -> bool:
    """The same for a class: containers are told apart, of any other only None and a bare object are known not to be."""
    if issubclass(kind, collections.abc.Mapping):
        return isinstance(value, dict) and _items_may_be(value, arguments[:1])
    if not issubclass(kind, collections.abc.Iterable) or kind.__module__ not in ("builtins", "collections.abc"):
        return value is not None and value is not _BARE
    if isinstance(value, dict):  # iterating one gives keys; a sequence it is not
        return not issubclass(kind, collections.abc.Sequence)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        return isinstance(value, list) and len(value) == len(arguments) and _items_may_be(value, arguments)
    letters = isinstance(value, str) and _may_mean("", arguments[0] if arguments else Any)
    return letters or (isinstance(value, list) and _items_may_be(value, arguments))


def _items_may_be(items: Any, arguments: tuple[Any, ...]) -> bool:
    """Elements are judged where they are numbers, words or choices of those."""
    hint = _plain(arguments[0]) if arguments else Any
    judged = hint in _SCALARS or typing.get_origin(hint) in (typing.Literal, typing.Union, types.UnionType)
    return not judged or all(_may_mean(item, hint) for item in items)
