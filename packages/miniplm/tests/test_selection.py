"""Choosing rows by their difference: the official selection, duplicates, files that are mapped."""

from __future__ import annotations

from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from paperhooks.testing import resident
from paperhooks_miniplm import Difference, MemoryRows, duplicates_of, select
from paperhooks_miniplm.corpus import kept_duplicates

STORED = golden.selection()
DIFF = golden.scores()["diff"].numpy()


@pytest.mark.parametrize("ratio", [r for r in STORED["ratios"] if float(r) > 0])
def test_the_official_selection(ratio: str) -> None:
    stored = STORED["ratios"][ratio]
    found = select(DIFF, ratio=float(ratio))
    wanted = stored["stable_indices"]
    assert len(found) == stored["k"]
    assert found.rows.tolist() == (stored["indices"] if isinstance(wanted, str) else wanted)
    assert found.cut == pytest.approx(stored["cut_score"], abs=1e-7)


def test_duplicates_are_kept_in_a_file_and_made_anew_where_it_is_no_good(tmp_path: Path) -> None:
    rows, other = MemoryRows([[1, 2], [3], [1, 2]]), MemoryRows([[1, 2], [3], [4]])
    file = tmp_path / "kept.safetensors"
    for source, wanted in ((rows, [False, False, True]), (rows, [False, False, True]), (other, [False] * 3)):
        assert kept_duplicates(source, file).tolist() == wanted
    file.write_bytes(b"damaged")
    assert kept_duplicates(rows, file).tolist() == [False, False, True]
    assert kept_duplicates(rows, file / "below").tolist() == [False, False, True], "a file is only for speed"


def test_duplicates_are_the_later_ones() -> None:
    rows = MemoryRows([[1, 2], [3], [1, 2], [2, 1], [3], []])
    assert duplicates_of(rows, batch=2).tolist() == [False, False, True, False, True, False]
    known = MemoryRows([[3], [7]])
    assert duplicates_of(rows, known=known).tolist() == [False, True, True, False, True, False]
    whole = duplicates_of(MemoryRows(golden.packing()["a_no_bos"]["chunks"]))
    unique = {tuple(row) for row in golden.packing()["a_no_bos"]["chunks"]}
    assert int((~whole).sum()) == len(unique)


def test_differences_of_a_file_are_mapped_and_not_read(tmp_path: Path) -> None:
    size = 4_000_000
    values = np.random.default_rng(0).standard_normal(size).astype(np.float32)
    file = Difference(values, np.zeros(size), np.zeros(size)).save(tmp_path / "difference")
    before = resident("VmRSS")
    found = Difference.load(file)
    assert resident("VmRSS") - before < 8 * 2**20 < 20 * size
    assert select(found, count=1000).rows.tolist() == np.sort(np.argsort(-values, kind="stable")[:1000]).tolist()
