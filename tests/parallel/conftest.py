"""Processes that the cases share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from paperhooks.testing import RankPool


@pytest.fixture(scope="session")
def ranks() -> Iterator[RankPool]:
    """Two processes that form a group for one case after another."""
    with RankPool(count=2) as pool:
        yield pool


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[RankPool]:
    """Four of them."""
    with RankPool(count=4) as pool:
        yield pool
