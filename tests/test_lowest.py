"""The script that finds the lowest versions for the session ``floors``."""

from __future__ import annotations

import pytest
from lowest import lowest
from packaging.requirements import Requirement


def floors(*lines: str) -> dict[str, str]:
    """Name to version, as text."""
    return {name: str(version) for name, version in lowest(map(Requirement, lines)).items()}


def test_the_highest_of_several_floors_holds() -> None:
    assert floors("torch>=2.6", "torch>=2.9", "a>=1,<2", "B_c>=3") == {"torch": "2.9", "a": "1", "b-c": "3"}


def test_first_party_extras_need_no_floor() -> None:
    assert floors("paperhooks[cli]", "paperhooks>=0.1,<2") == {"paperhooks": "0.1"}


def test_a_requirement_without_a_floor_is_refused() -> None:
    with pytest.raises(ValueError, match="numpy has no lower bound"):
        floors("numpy")
