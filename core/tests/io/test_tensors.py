"""Files of tensors: what writing them takes beside the tensors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from paperhooks.io import read_tensors, write_tensors
from paperhooks.testing import fresh_process
from safetensors.torch import load_file

SCRIPT = """
import sys
from pathlib import Path
import torch
from paperhooks.io import write_tensors
from paperhooks.testing import print_peak

write_tensors(Path(sys.argv[1], "small"), {"x": torch.zeros(1)}, {})
tensors = {str(n): torch.full((1 << 20,), float(n)) for n in range(24)}
print_peak(lambda: write_tensors(Path(sys.argv[1], "large"), tensors, {}))
"""


def test_writing_holds_no_copy_of_the_tensors(tmp_path: Path) -> None:
    """96 MiB in tensors of 4, in a process of its own."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    found = fresh_process(script, str(tmp_path))
    if not found["reset"]:
        pytest.skip("the system does not set the peak back")
    assert found["mib"] < 8
    read = load_file(tmp_path / "large")
    assert {name: float(tensor.max()) for name, tensor in read.items()} == {str(n): n for n in range(24)}


def test_tensors_may_be_strided_or_share_their_memory(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    given = {
        "whole": whole,
        "again": whole,
        "row": whole[2],
        "turned": whole.t(),
        "none": whole[:0],
        "one": whole[1, 1],
    }
    write_tensors(tmp_path / "a", given, {})
    write_tensors(tmp_path / "b", {name: tensor.clone() for name, tensor in given.items()}, {})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = read_tensors(tmp_path / "a")[1]
    assert all(torch.equal(read[name], tensor) for name, tensor in given.items())
