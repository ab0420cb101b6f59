"""Memory that was let go goes back to the system, also between blocks that are still held."""

from __future__ import annotations

import json
import platform
from pathlib import Path

import pytest
from paperhooks.io.memory import trim_memory
from paperhooks.testing import run_python

PROGRAM = """
import json
from paperhooks.io.memory import trim_memory
from paperhooks.testing import resident

blocks = [bytearray(100_000) for _ in range(1000)]
held = blocks[::10] + blocks[-1:]
del blocks
before = resident("VmRSS")
trim_memory()
print(json.dumps({"freed": before - resident("VmRSS"), "same": all(not any(each) for each in held)}))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_between_held_ones_are_given_back(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    # Small blocks lie side by side, as they do after large ones were freed once.
    done = run_python(tmp_path / "program.py", environment={"MALLOC_MMAP_THRESHOLD_": str(2**20)})
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same"]
    assert found["freed"] > 50_000_000


def test_without_it_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperhooks.io.memory._trim", lambda: None)
    trim_memory()
