"""Selections as files: byte for byte as the official script writes them, and back again."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from paperhooks import DataError
from paperhooks_miniplm import (
    MemoryRows,
    Row,
    Shards,
    diff,
    export,
    load_selection,
    open_rows,
    pack,
    read_index,
    score,
    select,
)
from paperhooks_miniplm.algorithm import Array

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
    file = export(SELECTION, ROWS, tmp_path / "chosen", format)
    assert file.suffix == ".safetensors"
    assert read_index(file).tolist() == SELECTION.rows.tolist()
    again = load_selection(file, ROWS)
    assert again.rows.tolist() == SELECTION.rows.tolist()
    assert (again.total, again.about["ratio"]) == (20, 0.4)
    with pytest.raises(DataError, match="selects from another corpus"):
        read_index(file, MemoryRows([[1]] * 20))
    before = file.stat().st_mtime_ns
    assert export(SELECTION, ROWS, tmp_path / "chosen", format).stat().st_mtime_ns == before, "the same is left alone"
    with pytest.raises(DataError, match="exists already with other rows"):
        export(select(VALUES, ratio=0.5), ROWS, tmp_path / "chosen", format)
    file.write_bytes(b"no")
    with pytest.raises(DataError, match="expected a selection of rows"):
        read_index(file)


def test_rows_of_ids_are_one_corpus_whatever_tokenizer_comes_along(tmp_path: Path) -> None:
    file = tmp_path / "ids.jsonl"
    file.write_text("".join(json.dumps({"input_ids": [n, n + 1, 3]}) + "\n" for n in range(20)))
    index = export(SELECTION, open_rows(file), tmp_path / "index")
    assert len(load_selection(index, open_rows(file, golden.tokenizer()))) == len(SELECTION)


def test_selections_of_scores_of_another_corpus_are_refused(tmp_path: Path) -> None:
    rows = MemoryRows(golden.chunks()[:20])
    found = score(golden.fresh("ref"), rows, tmp_path / "scores", end=0, max_length=64, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = select(diff(found, found), ratio=0.4)
    export(chosen, rows, tmp_path / "own")
    with pytest.raises(DataError, match="the scores are of another corpus than in memory"):
        export(chosen, MemoryRows(golden.chunks()[1:21]), tmp_path / "other")
    assert load_selection(tmp_path / "own.safetensors", rows).about["corpus"] == rows.fingerprint()


def test_shards_keep_the_type_of_their_ids_and_copies_what_was_known(tmp_path: Path) -> None:
    tokenizer = golden.tokenizer()
    pack(golden.corpus()[:40], tokenizer, tmp_path / "packed", max_length=64)
    rows = Shards(tmp_path / "packed")
    assert rows.dtype == np.uint16
    chosen = select(np.arange(len(rows), dtype=np.float32), ratio=0.5)
    assert Shards(export(chosen, rows, tmp_path / "shards", "shards")).dtype == np.uint16
    for format in ("jsonl", "parquet"):
        out = export(chosen, rows, tmp_path / f"copy.{format}", format, tokenizer=tokenizer)
        again, read = open_rows(out), rows.read(chosen.rows.tolist())
        assert [row.n_bytes for row in again.read(range(len(chosen)))] == [row.n_bytes for row in read]
    texts = [json.loads(line)["text"] for line in (tmp_path / "copy.jsonl").read_text().splitlines()]
    inner = [number for number, row in enumerate(read) if (row.ids[:-1] == 0).any()]
    assert inner, "no row holds the end of a document"
    for number in inner:
        assert texts[number].count(tokenizer.eos_token) == int((read[number].ids == 0).sum())


def test_the_cut_is_known_again_and_folders_are_no_files(tmp_path: Path) -> None:
    file = export(SELECTION, ROWS, tmp_path / "index")
    assert load_selection(file, ROWS).cut == SELECTION.cut
    (tmp_path / "folder").mkdir()
    for format in ("parquet", "jsonl"):
        with pytest.raises(DataError, match="exists already"):
            export(SELECTION, ROWS, tmp_path / "folder", format)
    for format in ("index", "jsonl", "parquet", "shards"):
        with pytest.raises(DataError, match="cannot be written"):
            export(SELECTION, ROWS, file / "below", format)


def test_copies_for_readers(tmp_path: Path) -> None:
    from pyarrow import parquet

    lines = export(SELECTION, ROWS, tmp_path / "a.jsonl", "jsonl")
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
