"""The demo on SmolLM2-135M-Instruct: it searches, exports and reads back. Takes a minute."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from paperhooks.authoring import DemoContext
from paperhooks_evopress.demo import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_the_demo_runs_twice_in_one_folder(tmp_path: Path) -> None:
    pytest.importorskip("paperhooks_testbed")
    (tmp_path / "own.txt").write_text("stays")
    for seed in (0, 1):
        lines: list[str] = []
        run(DemoContext(tmp_path, lines.append, quick=True, seed=seed))
        told = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
        assert (told["status"], told["seed"]) == ("finished", seed)
        assert len(told["results"]["skipped"]) == 6
        differences = [float(found[1]) for line in lines if (found := re.search(r"differ by (\S+) at most", line))]
        assert len(differences) == 2
        assert max(differences) < 1e-3
        assert "undone: the same answer" in lines
        assert (tmp_path / "report.html").is_file()
        assert (tmp_path / "own.txt").is_file()
        assert not list(tmp_path.glob("tmp*"))
