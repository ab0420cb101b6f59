"""Selections as files: byte for byte as the official script writes them, and back again."""

from __future__ import annotations

import json
from pathlib import Path

import golden
import numpy as np
import pytest
from paperhooks import DataError
from paperhooks_miniplm.exporting import export, load_selection, read_index
from paperhooks_miniplm.ranking import Array
from paperhooks_miniplm.rows import MemoryRows, Row
from paperhooks_miniplm.selecting import select
from paperhooks_miniplm.shards import Shards

ROWS = MemoryRows([Row(np.array([i, i + 1, 3]), domain="ab"[i % 2]) for i in range(20)])
VALUES: Array = np.array([i % 7 for i in range(20)], dtype=np.float32)
SELECTION = select(VALUES, ratio=0.4)


def test_the_half_of_the_stored_corpus_is_written_as_shards(tmp_path: Path) -> None:
    source = Shards(golden.SHARDS)
    selection = select(golden.scores()["diff"].numpy(), ratio=0.5)
    out = export(selection, source, tmp_path / "half", "shards", vocabulary=512)
    again = Shards(out)
    assert len(again) == 753
    rows = golden.stable_indices("0.5")
    wanted = [golden.chunks()[row] for row in rows]
    assert all(np.array_equal(a.ids, b) for a, b in zip(again.read(range(753)), wanted, strict=True))
    assert sorted(file.name for file in out.iterdir() if file.suffix in (".bin", ".idx")) == [
        "data_0.bin",
        "data_0.idx",
    ]
    raw = np.concatenate(wanted).astype("<u2").tobytes()
    assert (out / "data_0.bin").read_bytes() == raw


@pytest.mark.parametrize("format", ["index", "bitmap"])
def test_rows_are_found_again(tmp_path: Path, format: str) -> None:
    file = export(SELECTION, ROWS, tmp_path / "chosen", format, scores=VALUES)
    assert file.suffix == ".safetensors"
    assert read_index(file).tolist() == SELECTION.rows.tolist()
    again = load_selection(file, ROWS)
    assert again.rows.tolist() == SELECTION.rows.tolist()
    assert (again.total, again.about["ratio"]) == (20, 0.4)
    with pytest.raises(DataError, match="selects from another corpus"):
        read_index(file, MemoryRows([[1]] * 20))
    with pytest.raises(DataError, match="exists already"):
        export(SELECTION, ROWS, tmp_path / "chosen", format)
    file.write_bytes(b"no")
    with pytest.raises(DataError, match="holds no selection"):
        read_index(file)


def test_copies_for_readers(tmp_path: Path) -> None:
    from pyarrow import parquet

    lines = export(SELECTION, ROWS, tmp_path / "a.jsonl", "jsonl", scores=VALUES)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [record["row"] for record in records] == SELECTION.rows.tolist()
    assert records[0] == {
        "row": int(SELECTION.rows[0]), "input_ids": ROWS.read([SELECTION.rows[0]])[0].ids.tolist(),
        "domain": "ab"[SELECTION.rows[0] % 2], "score": float(VALUES[SELECTION.rows[0]]),
    }  # fmt: skip
    table = parquet.read_table(export(SELECTION, ROWS, tmp_path / "a.parquet", "parquet")).to_pylist()
    assert [record["row"] for record in table] == SELECTION.rows.tolist()
    assert table[0]["domain"] == records[0]["domain"]
    tokenizer = golden.tokenizer()
    text = export(SELECTION, ROWS, tmp_path / "b.jsonl", "jsonl", tokenizer=tokenizer).read_text().splitlines()
    first = json.loads(text[0])
    assert first["text"] == tokenizer.decode(first["input_ids"], skip_special_tokens=True)


def test_exports_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="format is 'csv'"):
        export(SELECTION, ROWS, tmp_path / "a", "csv")
    with pytest.raises(DataError, match="the selection is of 20 rows, in memory has 1: another corpus"):
        export(SELECTION, MemoryRows([[1]]), tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="exists already"):
        export(SELECTION, ROWS, tmp_path / "full", "shards")
    assert (tmp_path / "full" / "mine.txt").read_text() == "kept"


def test_an_empty_selection_is_a_valid_one(tmp_path: Path) -> None:
    nothing = select(VALUES, count=0)
    for format in ("index", "bitmap"):
        assert read_index(export(nothing, ROWS, tmp_path / format, format)).tolist() == []
    assert export(nothing, ROWS, tmp_path / "a.jsonl", "jsonl").read_text() == ""
    assert export(nothing, ROWS, tmp_path / "a.parquet", "parquet").exists()
