"""Checks of options: each returns the value as plain Python or raises a ValueError in one voice.

A method calls them in ``__post_init__`` and keeps what they return, so that an option that makes no sense is refused
where it was written, and records of runs hold plain data whatever it came as:

>>> whole("samples", 0, at_least=1)
Traceback (most recent call last):
ValueError: samples is 0; expected a whole number of at least 1

Scalars of numpy and torch count as the numbers they hold. A bool is no number, a number is no bool, and NaN and
infinity are refused. Nothing here imports numpy or torch.
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

__all__ = [
    "choice",
    "flag",
    "function_or_choice",
    "number",
    "number_list",
    "optional",
    "pattern",
    "refused",
    "shown",
    "text",
    "whole",
    "whole_list",
]

T = TypeVar("T")
N = TypeVar("N", int, float)

_LONGEST = 100


def refused(name: str, value: object, expected: str) -> ValueError:
    """The error to raise: what the option is called, what it is, and what was expected."""
    return ValueError(f"{name} is {shown(value)}; expected {expected}")


def shown(value: object) -> str:
    """A value for a message: its ``repr`` on one line, cut where it is long."""
    try:
        found = " ".join(repr(value).split())
    except Exception:
        found = f"a {type(value).__name__}"
    return found if len(found) <= _LONGEST else f"{found[: _LONGEST - 3]}..."


def optional(check: Callable[..., T], name: str, value: object, *args: Any, **limits: Any) -> T | None:
    """None as it is, anything else by ``check(name, value, ...)``.

    >>> optional(whole, "samples", None, at_least=1)
    """
    if value is None:
        return None
    try:
        return check(name, value, *args, **limits)
    except ValueError as error:
        raise ValueError(f"{error}, or None") from None


def whole(name: str, value: object, *, at_least: int | None = None, at_most: int | None = None) -> int:
    """A whole number between two bounds, both allowed. 4.0 is none."""
    found = _index(value)
    if found is None or (at_least is not None and found < at_least) or (at_most is not None and found > at_most):
        raise refused(name, value, f"a whole number{_bounds(at_least, None, at_most)}")
    return found


def number(
    name: str, value: object, *, low: float | None = None, above: float | None = None, high: float | None = None
) -> float:
    """A finite number of at least ``low``, larger than ``above``, and at most ``high``."""
    found = _real(value)
    if (
        found is None
        or (low is not None and found < low)
        or (above is not None and found <= above)
        or (high is not None and found > high)
    ):
        bounded = high is not None and (low is not None or above is not None)
        raise refused(name, value, f"a {'' if bounded else 'finite '}number{_bounds(low, above, high)}")
    return found


def flag(name: str, value: object) -> bool:
    """True or False; numbers and words are neither."""
    found = _scalar(value)
    if not isinstance(found, bool):
        raise refused(name, value, "True or False")
    return found


def text(name: str, value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise refused(name, value, "text")
    return str(value)


def pattern(name: str, value: object) -> str:
    """The text of a regular expression."""
    found = text(name, value)
    try:
        re.compile(found)
    except re.error as error:
        raise refused(name, value, f"a regular expression, and this is none ({error})") from None
    return found


def choice(name: str, value: T, allowed: Sequence[str], *, also: str = "") -> T:
    """One of the words ``allowed``. ``also`` says in the message what else the option takes.

    >>> choice("scope", "sampel", ("sample", "segment"))
    Traceback (most recent call last):
    ValueError: scope is 'sampel'; expected 'sample' or 'segment' (did you mean 'sample'?)
    """
    if isinstance(value, str) and value in allowed:
        return next(word for word in allowed if word == value)
    *first, last = [*map(repr, allowed), *([also] if also else [])]
    near = difflib.get_close_matches(value, allowed, n=1) if isinstance(value, str) else []
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise refused(name, value, (f"{', '.join(first)} or {last}" if first else last) + hint)


def function_or_choice(name: str, value: T, allowed: Sequence[str]) -> T:
    """Anything that can be called (functions, partials, objects with ``__call__``), or one of the words ``allowed``."""
    return value if callable(value) else choice(name, value, allowed, also="a function")


def whole_list(name: str, value: object, *, at_least: int | None = None, empty: bool = False) -> list[int]:
    """Whole numbers of at least ``at_least``, in any iterable but text and mappings; ``empty`` allows none of them."""
    return _listed(name, value, _index, "whole numbers", at_least, None, empty)


def number_list(
    name: str, value: object, *, low: float | None = None, high: float | None = None, empty: bool = False
) -> list[float]:
    """Finite numbers between two bounds, both allowed, in any iterable but text and mappings."""
    return _listed(name, value, _real, "finite numbers", low, high, empty)


def _listed(
    name: str,
    value: Any,
    read: Callable[[object], N | None],
    what: str,
    low: float | None,
    high: float | None,
    empty: bool,
) -> list[N]:
    # Arrays of no dimensions call themselves iterable, and raise.
    listed = isinstance(value, Iterable) and getattr(value, "ndim", 1) != 0
    found = [read(item) for item in value] if listed and not isinstance(value, str | bytes | Mapping) else None
    fitting = [x for x in found or () if x is not None and (low is None or x >= low) and (high is None or x <= high)]
    if found is None or len(fitting) < len(found) or not (found or empty):
        raise refused(name, value, f"a list of {'' if empty else 'one or more '}{what}{_bounds(low, None, high)}")
    return fitting


def _scalar(value: object) -> object:
    """What an array of no dimensions (or a numpy scalar) holds; anything else as it is."""
    if getattr(value, "ndim", None) != 0:
        return value
    try:
        return value.item()  # type: ignore[attr-defined]
    except Exception:  # an array of another kind, or without data, such as a meta tensor: it holds no number
        return value


def _index(value: object) -> int | None:
    found: Any = _scalar(value)
    if isinstance(found, bool) or hasattr(found, "ndim"):
        return None
    try:
        return operator.index(found)
    except TypeError:
        return None


def _real(value: object) -> float | None:
    found = _scalar(value)
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        return None
    try:
        real = float(found)
    except OverflowError:
        return None
    return real if math.isfinite(real) else None


def _bounds(low: float | None, above: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f" from {low} to {high}"
    least = f" of at least {low}" if low is not None else f" above {above}" if above is not None else ""
    most = f"{' and' if least else ' of'} at most {high}" if high is not None else ""
    return least + most
