"""Counts in messages."""

from __future__ import annotations

import pytest
from paperhooks.errors import counted


@pytest.mark.parametrize(
    ("number", "words", "said"),
    [
        (1, ("fault",), "1 fault"),
        (0, ("fault",), "0 faults"),
        (1, ("reply", "replies"), "1 reply"),
        (2, ("document has", "documents have"), "2 documents have"),
    ],
)
def test_one_is_no_plural(number: int, words: tuple[str, ...], said: str) -> None:
    assert counted(number, *words) == said
