"""Checks of what metrics and tasks are given: lists that belong together, counts, texts of data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean

__all__ = ["MODES", "check_count", "check_mode", "check_same_ids", "check_same_length", "no_texts"]

#: Ways of reading responses and captions: as the published scripts do, with their quirks, or with these repaired.
MODES: Final = ("official", "strict")


def check_count(name: str, value: object, least: int) -> None:
    """Raise DataError unless ``value`` is a whole number of at least ``least``."""
    if not isinstance(value, int) or value < least:
        raise DataError(f"{name} is {value!r}; expected a whole number of at least {least}")


def check_mode(benchmark: str, mode: str) -> None:
    """Raise DataError for a mode that is not in ``MODES``."""
    if mode not in MODES:
        raise DataError(f"{benchmark} has no mode {mode!r}; {did_you_mean(mode, MODES)}")


def check_same_length(name: str, one: Sequence[Any], other_name: str, other: Sequence[Any]) -> None:
    """Raise DataError unless both have the same number of items."""
    if len(one) != len(other):
        raise DataError(f"there are {len(one)} {name} but {len(other)} {other_name}; give exactly one each")


def check_same_ids(
    name: str, one: Sequence[object] | None, other_name: str, other: Sequence[object] | None, *, n: int
) -> None:
    """Raise DataError unless the ids, where given, are ``n`` each and equal in order; names the first difference."""
    if one is None and other is None:
        return
    if one is None or other is None:
        raise DataError(f"only the ids of the {name if other is None else other_name} are given; give both or none")
    check_same_length(f"ids of {name}", one, f"ids of {other_name}", other)
    if len(one) != n:
        raise DataError(f"there are {len(one)} ids but {n} {name}; give exactly one each")
    for place, (first, second) in enumerate(zip(one, other, strict=True)):
        if first != second:
            raise DataError(
                f"{name} and {other_name} differ at place {place}: the id is {first!r} there and {second!r} here; "
                "put both into the same order"
            )


def no_texts(where: str, row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The faults of a row whose entries should be texts that say something."""
    wrong = [(name, row[name]) for name in names if not isinstance(row[name], str) or not row[name].strip()]
    return [f"{where}: the {name} is {value!r}; expected a text" for name, value in wrong]
