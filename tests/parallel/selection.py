"""Which cases of a product run by default."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

__all__ = ["selected"]


def selected(cases: Iterable[tuple[str, ...]], chosen: Collection[tuple[str, ...]]) -> list[Any]:
    """Parameters of a test: the chosen cases, and all others marked slow; each is named by its parts."""
    found = list(cases)
    assert set(chosen) <= set(found), f"no such cases: {set(chosen) - set(found)}"
    return [pytest.param(*c, marks=() if c in chosen else (pytest.mark.slow,), id="-".join(c)) for c in found]
