"""SIGKILL at random moments, then the same command: the folder is that of a run that nobody disturbed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from paperhooks.testing import run_python

PROGRAM = Path(__file__).parent / "killed_search.py"


@pytest.mark.timeout(900)
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_a_killed_search_ends_as_an_undisturbed_one(tmp_path: Path, kills: int) -> None:
    done = run_python(PROGRAM, kills, 7, tmp_path, limit=900)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 2 * kills
    assert [one for one in found if one["status"] != 0 or one["differ"]] == []
    for phase in ("database", "search"):
        in_time = [one for one in found if one["killed"] == -9 and one["there"] == phase]
        assert in_time, f"no kill came in the middle of the {phase}: {found}"
