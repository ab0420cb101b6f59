"""Files of tensors: what writing them takes beside the tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from paperhooks.io import read_tensors, tensor_columns, write_tensors
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


COLUMNS = {"nll": np.dtype("f8"), "count": np.dtype("i8"), "cut": np.dtype("?"), "n_bytes": np.dtype("i8")}


def test_columns_in_pieces_give_the_bytes_of_a_whole_file(tmp_path: Path) -> None:
    """Pieces in any order; what was written can be read back before the file is done."""
    values = {name: np.arange(1001).astype(dtype) for name, dtype in COLUMNS.items()}
    write_tensors(tmp_path / "whole", values, {"run": "x"})
    with tensor_columns(tmp_path / "pieces", COLUMNS, 1001, {"run": "x"}) as columns:
        for start in range(900, -1, -100):
            for name, column in columns.items():
                column.write(start, values[name][start : start + 101])
        assert columns["nll"].read(13, 17).tolist() == [13, 14, 15, 16]
    assert (tmp_path / "pieces").read_bytes() == (tmp_path / "whole").read_bytes()
    assert read_tensors(tmp_path / "pieces")[1]["n_bytes"].tolist() == list(range(1001))


def test_columns_that_end_in_an_error_leave_the_old_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "file", {"nll": torch.ones(3)}, {})
    before = (tmp_path / "file").read_bytes()
    refused = pytest.raises(ValueError, match="is no part of float64")
    with refused, tensor_columns(tmp_path / "file", COLUMNS, 3, {}) as columns:
        columns["nll"].write(2, np.ones(2))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", before)]


def test_no_columns_of_no_rows(tmp_path: Path) -> None:
    with tensor_columns(tmp_path / "file", COLUMNS, 0, {}):
        pass
    assert {len(each) for each in read_tensors(tmp_path / "file")[1].values()} == {0}
