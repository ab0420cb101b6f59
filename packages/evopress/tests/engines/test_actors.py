"""A search with Ray actors: the choice, fitness and artefact of one process, also where actors are killed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paperhooks.testing import run_python

pytest.importorskip("ray", reason="run with nox -s engines")
pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]
PROGRAM = Path(__file__).parent / "actors_program.py"


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A short path for Ray's sockets, and no reports to its makers."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "MKL_NUM_THREADS": "1"}
    shutil.rmtree(folder, ignore_errors=True)


def searched(environment: dict[str, str], out: Path | str, target: str, actors: str, kills: int) -> list[Any]:
    """What each search found, and how many actors had been killed then."""
    said = run_python(PROGRAM, out, target, actors, kills, environment=environment)
    told = [json.loads(line) for line in said.stdout.splitlines() if line.startswith("{")]
    return [(each["found"], each["killed"]) for each in told]


@pytest.mark.slow  # the next one does as much, with kills
def test_actors_end_as_one_process(environment: dict[str, str]) -> None:
    (wanted, _), (found, _) = searched(environment, "-", "depth=0.4", "0,2", kills=0)
    assert "final" in wanted
    assert found == wanted


def test_actors_that_are_killed_cost_their_shares(environment: dict[str, str], tmp_path: Path) -> None:
    (wanted, _), (found, killed) = searched(environment, tmp_path, "bits=2.5", "0,2", kills=2)
    assert killed == 2
    assert found == wanted
    one, two = (tmp_path / actors / "artefact.safetensors" for actors in "02")
    assert one.read_bytes() == two.read_bytes()
    results = [json.loads((tmp_path / actors / "result.json").read_text()) for actors in "02"]
    assert results[0]["inputs_hash"] == results[1]["inputs_hash"]


@pytest.mark.slow
def test_actors_that_are_killed_for_ever_end_the_search(environment: dict[str, str]) -> None:
    ((found, killed),) = searched(environment, "-", "depth=0.4", "2", kills=1_000)
    assert "killed with one task again and again" in found["error"]
    assert killed > 3
