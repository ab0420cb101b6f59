"""A corpus in parts: the rows it was made from, at any place; damage and other corpora are named."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks_miniplm import FlatIds, MemoryRows, Parts, Row, byte_tokenizer, open_rows, write_parts
from paperhooks_miniplm.corpus.storage import Storage

RNG = np.random.default_rng(0)
ROWS = [
    Row(RNG.integers(0, 60, RNG.integers(0, 9)), "ab"[number % 2], None if number % 3 else 7 * number)
    for number in range(50)
]


@pytest.fixture(params=["local", "memory"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "parts") if request.param == "local" else f"memory://{tmp_path.name}/parts"


def written(address: str, rows: list[Row] = ROWS, **options) -> Parts:
    return write_parts(rows, address, **{"unit_rows": 4, "part_units": 3} | options)


def test_parts_are_the_rows_they_were_made_from(address: str) -> None:
    source = MemoryRows(ROWS)
    for parts in (written(address), pickle.loads(pickle.dumps(Parts(address))), open_rows(address)):
        assert (len(parts), parts.units, parts.unit_rows) == (50, 13, 4)
        assert parts.fingerprint() == source.fingerprint()
        assert parts.lengths().tolist() == source.lengths().tolist()
        assert list(parts.domains()) == list(source.domains())
        wanted = [49, 0, 13, 12, 0]
        for one, other in zip(parts.read(wanted), source.read(wanted), strict=True):
            assert (one.ids.tolist(), one.domain, one.n_bytes) == (other.ids.tolist(), other.domain, other.n_bytes)
        names: list[str] = []
        parts.check(names.append)
        assert names == [f"part-{number:06d}.parquet" for number in range(5)]


def test_units_hold_every_row_once(address: str) -> None:
    parts = written(address)
    units = [parts.unit(number) for number in range(parts.units)]
    assert [row.tolist() for unit in units for row in unit.ids.rows] == [row.ids.tolist() for row in ROWS]
    assert [unit.first for unit in units] == list(range(0, 50, 4))
    assert np.concatenate([unit.n_bytes for unit in units]).tolist() == [
        -1 if row.n_bytes is None else row.n_bytes for row in ROWS
    ]
    with pytest.raises(DataError, match="has no unit 13; its units are 0 to 12"):
        parts.unit(13)


@pytest.mark.parametrize("rows", [[], ROWS[:12], ROWS[:13]])
def test_any_number_of_rows_ends_well(address: str, rows: list[Row]) -> None:
    parts = written(address, rows)
    assert (len(parts), len(Parts(address).lengths())) == (len(rows), len(rows))
    assert sum(len(parts.unit(number).ids) for number in range(parts.units)) == len(rows)


def test_a_stream_of_texts_becomes_parts(tmp_path: Path) -> None:
    texts = ("one", "", "three and more", "four")
    tokenizer = byte_tokenizer(texts)

    def records():
        return ({"text": text, "domain": "d"} for text in texts)

    parts = write_parts(records(), tmp_path / "parts", tokenizer=tokenizer, unit_rows=2, part_units=1)
    stream = open_rows([{"text": text, "domain": "d"} for text in texts], tokenizer)
    assert [row.ids.tolist() for row in parts.read(range(4))] == [row.ids.tolist() for row in stream.read(range(4))]
    assert [row.n_bytes for row in parts.read(range(4))] == [3, 0, 14, 4]
    assert parts.packed_with[0] == stream.made_with["tokenizer"]["digest"]


def test_files_at_an_address_become_parts(tmp_path: Path) -> None:
    """As JSON Lines compressed, several of them, and as Parquet; an address of nothing is named."""
    memory = fsspec.filesystem("memory")
    bucket = f"memory://{tmp_path.name}-source"
    for number in range(2):
        lines = [json.dumps({"input_ids": [number, each], "domain": "d", "n_bytes": 3}) for each in range(3)]
        memory.pipe(f"{bucket}/{number}.jsonl.gz", gzip.compress("\n".join(lines).encode()))
    pq.write_table(pa.table({"input_ids": [[7, 8], [9]]}), tmp_path / "x.parquet")
    memory.put(str(tmp_path / "x.parquet"), f"{bucket}/x.parquet")
    parts = write_parts(f"{bucket}/*.jsonl.gz", tmp_path / "lines", unit_rows=2)
    assert [row.ids.tolist() for row in parts.read(range(6))] == [
        [number, each] for number in range(2) for each in range(3)
    ]
    assert (parts.read([4])[0].domain, parts.read([4])[0].n_bytes) == ("d", 3)
    parts = write_parts(f"{bucket}/x.parquet", f"{bucket}/parts", unit_rows=2)
    assert [row.ids.tolist() for row in parts.read(range(2))] == [[7, 8], [9]]
    with pytest.raises(DataError, match=r"nothing.jsonl cannot be read"):
        write_parts(f"{bucket}/nothing.jsonl", tmp_path / "none")
    with pytest.raises(DataError, match=r"rows is no folder of parts, and ends in none of .jsonl, .json"):
        write_parts(f"{bucket}/rows", tmp_path / "none")


def test_files_at_an_address_that_changed_are_another_corpus(tmp_path: Path) -> None:
    def put(number: int, ids: range) -> None:
        lines = "\n".join(json.dumps({"input_ids": [each, number]}) for each in ids)
        memory.pipe(f"{bucket}/{number}.jsonl", lines.encode())

    memory, bucket = fsspec.filesystem("memory"), f"memory://{tmp_path.name}-changing"
    put(0, range(40))
    source = f"{bucket}/*.jsonl"
    for _ in range(2):
        assert len(write_parts(source, tmp_path / "parts", unit_rows=4)) == 40
    put(1, range(3))
    with pytest.raises(DataError, match="holds parts of another corpus"):
        write_parts(source, tmp_path / "parts", unit_rows=4)
    memory.rm(f"{bucket}/1.jsonl")
    put(0, range(1, 41))  # behind the beginning that is looked at, and in front of it
    with pytest.raises(DataError, match="holds parts of another corpus"):
        write_parts(source, tmp_path / "parts", unit_rows=4)


def test_parts_at_an_address_with_a_dot_are_found(tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}-v1.2"
    written(address)
    assert len(open_rows(address)) == 50


class Interrupted(Exception):
    """Stops a run on the way."""


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    def stop(rows: int) -> None:
        if rows >= 20:
            raise Interrupted

    with pytest.raises(Interrupted):
        written(str(tmp_path / "stopped"), progress=stop)
    (part,) = (tmp_path / "stopped").iterdir()
    before = part.stat().st_mtime_ns
    told: list[int] = []
    written(str(tmp_path / "stopped"), progress=told.append)
    written(str(tmp_path / "whole"))
    assert (told[0], told[-1], part.stat().st_mtime_ns) == (12, 50, before)
    for file in (tmp_path / "whole").glob("*.parquet"):
        assert (tmp_path / "stopped" / file.name).read_bytes() == file.read_bytes()
    indices = [json.loads((tmp_path / each / "parts.json").read_text()) for each in ("stopped", "whole")]
    assert indices[0]["parts"] == indices[1]["parts"]


def test_a_folder_of_another_corpus_is_refused(address: str) -> None:
    written(address)
    written(address)  # the same again does nothing
    for rows, options in ((ROWS[:49], {}), (ROWS, {"unit_rows": 5})):
        with pytest.raises(DataError, match="holds parts of another corpus, or of other sizes"):
            written(address, rows, **options)
    assert len(Parts(address)) == 50


def test_what_is_no_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    with pytest.raises(DataError, match=r"some holds no parts.json; write parts with"):
        Parts(tmp_path / "some")
    (tmp_path / "some" / "parts.json").write_text('{"kind": "other"}')
    with pytest.raises(DataError, match="is no index of parts"):
        Parts(tmp_path / "some")
    (tmp_path / "some" / "parts.json").write_text("{")
    with pytest.raises(DataError, match="is no index of parts"):
        Parts(tmp_path / "some")
    with pytest.raises(DataError, match="nowhere://bucket cannot be reached"):
        Parts("nowhere://bucket")


def test_a_part_of_another_corpus_of_the_same_size_is_named(tmp_path: Path) -> None:
    """As two that write to one folder at the same moment may leave."""
    for name, seed in (("one", 0), ("other", 1)):
        draw = np.random.default_rng(seed)
        write_parts([draw.integers(0, 2**31, 64) for _ in range(12)], tmp_path / name, unit_rows=6)
    one, other = (tmp_path / name / "part-000000.parquet" for name in ("one", "other"))
    assert one.stat().st_size == other.stat().st_size
    shutil.copy(other, one)
    with pytest.raises(
        DataError, match=r"part-000000.parquet \(rows 0 to 11\) is a part of another corpus; write"
    ) as info:
        Parts(tmp_path / "one").unit(1)
    assert "cannot be read" not in str(info.value)


@pytest.mark.parametrize("damage", ["cut", "missing", "changed", "swapped"])
def test_a_damaged_part_is_named_with_its_rows(tmp_path: Path, damage: str) -> None:
    written(str(tmp_path))
    file = tmp_path / "part-000001.parquet"
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "missing":
        file.unlink()
    elif damage == "changed":  # in the pages, behind the first bytes
        raw[60:64] = bytes(255 - each for each in raw[60:64])
        file.write_bytes(raw)
    else:
        file.write_bytes((tmp_path / "part-000002.parquet").read_bytes())
    parts = Parts(tmp_path)
    assert parts.unit(0).first == 0
    with pytest.raises(DataError, match=r"part-000001.parquet \(rows 1\d to \d+\)"):
        [parts.unit(number) for number in (3, 4, 5)]
    with pytest.raises(DataError, match=r"part-000001.parquet \(rows 12 to 23\)"):
        parts.check()


@pytest.mark.parametrize("lost", [[0], [1, 3], [4]])
def test_parts_that_were_lost_or_cut_are_written_again(address: str, lost: list[int]) -> None:
    storage = written(address).storage
    names = [f"part-{number:06d}.parquet" for number in range(5)]
    before = {name: storage.digest(name) for name in names}
    for number in lost:
        with storage.staged(names[number]) as file:
            file.write_bytes(b"PAR1")
    written(address).check()
    assert {name: storage.digest(name) for name in names} == before


@pytest.mark.parametrize("typed", ["s3//bucket/corpus", "s3:/bucket/corpus", "memory:bucket"])
def test_a_mistyped_address_is_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"neither a path nor an address; write (s3|memory)://"):
        written(typed)
    assert list(tmp_path.iterdir()) == []
    assert len(written("s3")) == 50  # a folder may have the name


def test_ids_that_no_tokenizer_makes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 5 has an id below 0 or above 2147483647"):
        write_parts([*ROWS[:5], Row(np.array([2**31]))], tmp_path / "parts")


def test_a_store_that_cannot_be_written_keeps_what_was_there(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write_json("x.json", {"a": 1})

    def fail() -> None:
        with storage.staged("x.json") as file:
            file.write_text("half")
            raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        fail()
    assert storage.read_json("x.json", "a test") == {"a": 1}
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6))
@settings(max_examples=50, deadline=None)
def test_flat_ids_are_the_rows_behind_one_another(rows: list[list[int]]) -> None:
    arrays = [np.array(row, dtype=np.int64) for row in rows]
    column = pa.chunked_array([pa.array(rows[:2], pa.list_(pa.int32())), pa.array(rows[2:], pa.list_(pa.int32()))])
    for flat in (FlatIds.joined(arrays), FlatIds.from_arrow(column), FlatIds.from_arrow(column.combine_chunks())):
        assert [row.tolist() for row in flat.rows] == rows
        assert len(flat) == len(rows)


def test_what_is_no_flat_ids_is_refused() -> None:
    values = np.arange(5)
    for offsets in ([0, 6], [3, 2], [-1, 2], []):
        with pytest.raises(DataError, match="offsets of ids do not ascend from 0 to 5"):
            FlatIds(values, np.array(offsets, dtype=np.int64))
    with pytest.raises(DataError, match="values of ids are float64"):
        FlatIds(values * 0.5, np.array([0, 5]))
    for column, said in ((pa.array([1]), "int64 holds no ids"), (pa.array([[1], None]), "has nulls")):
        with pytest.raises(DataError, match=said):
            FlatIds.from_arrow(column)
    with pytest.raises(DataError, match="has nulls"):
        FlatIds.from_arrow(pa.array([[1, None]]))
