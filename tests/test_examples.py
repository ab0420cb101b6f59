"""Every example runs to its end, in a process of its own, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from paperhooks.testing import run_python
from repository import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    done = run_python(script, cwd=tmp_path, environment={"HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip(), "an example shows something"


def test_there_are_examples() -> None:
    assert {script.name for script in EXAMPLES} >= {"use_a_plugin.py", "compose.py", "write_a_plugin.py"}
