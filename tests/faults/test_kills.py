"""SIGKILL at random moments, then the same command: the products are those of an undisturbed run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from paperhooks.testing import run_python

PROGRAM = Path(__file__).parent / "kill_program.py"
#: Kills of each operation: `nox -s faults` asks for 20.
KILLS = int(os.environ.get("PAPERHOOKS_KILLS", "2"))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("operation", ["score", "export", "pack", "collect", "compress", "evaluate", "select", "diff"])
def test_a_killed_run_ends_as_an_undisturbed_one(tmp_path: Path, operation: str, record_property) -> None:
    done = run_python(PROGRAM, operation, KILLS, 7, tmp_path / "work", limit=900)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    held = [one for one in found if one["status"] == 0 and not one["differ"]]
    record_property("checks", [len(held), KILLS])
    assert len(found) == KILLS
    assert held == found
    if KILLS >= 10 and operation != "diff":  # which is over in a moment
        assert any(one["killed"] == -9 and one["there"] for one in found), "no kill came in the middle of the work"
