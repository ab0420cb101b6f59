"""Faults of data, listed together."""

from __future__ import annotations

import pytest
from paperhooks.errors import DataError
from paperhooks_evaluation.sources import raise_faults


def test_faults_are_listed_together():
    """All of a few, the first of many."""
    with pytest.raises(DataError, match=r"it has 2 faults:\n  one\n  two$"):
        raise_faults("the data", ["one", "two"])
    with pytest.raises(DataError, match="and 5 more"):
        raise_faults("the data", [str(i) for i in range(25)])
    raise_faults("the data", [])
