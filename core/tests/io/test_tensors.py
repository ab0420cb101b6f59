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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.complex64])
def test_tensors_may_be_strided_or_share_their_memory(tmp_path: Path, dtype: torch.dtype) -> None:
    """Among others of all sizes of an entry, by which a file is ordered; reading compares the checksum."""
    whole = torch.arange(24.0).view(4, 6).to(dtype)
    given = {str(kind): torch.ones(3, dtype=kind) for kind in (torch.bool, torch.int16, torch.int64, torch.uint8)}
    given |= {
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
    for name, tensor in given.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert bytes(read[name].reshape(-1).view(torch.uint8)) == bytes(tensor.reshape(-1).view(torch.uint8))
