"""Every example runs to its end, in a process of its own, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from paperhooks.testing import run_python, run_ranks
from repository import ROOT

EXAMPLES = [*sorted((ROOT / "examples").glob("*.py")), ROOT / "examples" / "several_gpus" / "serve_device_map.py"]
LAUNCHED = ("train_fsdp2.py", "evaluate_replicas.py")


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.name)
def test_examples_run(script: Path, tmp_path: Path) -> None:
    done = run_python(script, cwd=tmp_path, environment={"HF_HUB_OFFLINE": "1"})
    assert done.stdout.strip(), "an example shows something"


@pytest.mark.parametrize("name", LAUNCHED)
def test_examples_for_several_processes_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_ranks(ROOT / "examples" / "several_gpus" / name, launcher="torchrun", limit=120)


def test_there_are_examples() -> None:
    found = {script.name for script in EXAMPLES}
    assert found >= {"use_a_plugin.py", "compose.py", "write_a_plugin.py", "offer_levels.py"}
    several = {script.name for script in (ROOT / "examples" / "several_gpus").glob("*.py")}
    assert several == {*LAUNCHED, "serve_device_map.py"}
