"""The demo runs, and what it says of its model is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paperhooks.authoring import DemoContext
from paperhooks_sso.demo import run

pytest.importorskip("matplotlib")


def test_the_demo_learns_from_pairs_that_nobody_labelled(tmp_path: Path) -> None:
    said: list[str] = []
    run(DemoContext(out=tmp_path, echo=said.append, quick=True))
    (told,) = [line for line in said if line.startswith("iteration 1")]
    good, bad, plain = (int(share) for share in re.findall(r"(\d+)%", told))
    assert good > plain > bad
    assert (tmp_path / "report.html").is_file()
    run(DemoContext(out=tmp_path, quick=True))  # again, in the same folder
