"""Methods crossed with ways to spread or wrap a model, attached before and after, and which of it runs by default."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable
from typing import Any

import pytest

__all__ = ["crossed"]


def crossed(
    methods: Iterable[str],
    ways: Iterable[str],
    chosen: Collection[tuple[str, str, str]],
    possible: Callable[[str, str, str], bool],
) -> Any:
    """Gives a test ``method``, ``way`` and ``when``: the chosen cases, and all other possible ones marked slow."""
    found = [case for case in itertools.product(methods, ways, ("before", "after")) if possible(*case)]
    assert set(chosen) <= set(found), f"no such cases: {set(chosen) - set(found)}"
    cases = [pytest.param(*c, marks=() if c in chosen else (pytest.mark.slow,), id="-".join(c)) for c in found]
    return pytest.mark.parametrize(("method", "way", "when"), cases)
