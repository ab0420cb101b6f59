"""Killed at any moment and called again, the loop leaves what an undisturbed one leaves, and asks nothing twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from paperhooks.testing import run_python
from paperhooks_sso.loop.round_folder import STAGES

TESTS = Path(__file__).parent


def kills(folder: Path, number: int, seed: int, *stages: str, limit: float = 240) -> list[dict[str, Any]]:
    path = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    done = run_python(
        TESTS / "killed_align.py", number, seed, folder, *stages, limit=limit, environment={"PYTHONPATH": path}
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found: list[dict[str, Any]]) -> None:
    for kill in found:
        assert kill["again"] == 0, kill
        assert kill["differ"] == [], kill
        assert kill["twice"] == [], kill
    assert sum(kill["killed"] == -9 for kill in found) >= 0.7 * len(found), found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_in_its_longest_stages_it_goes_on(tmp_path: Path) -> None:
    found = kills(tmp_path, 1, 3, "samples", "references", "train")
    assert len(found) == 3
    check(found)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("stage", STAGES)
def test_killed_at_twenty_moments_of_every_stage_it_goes_on(stage: str, tmp_path: Path) -> None:
    found = kills(tmp_path, 20, 7, stage, limit=1500)
    assert len(found) == 20
    check(found)
