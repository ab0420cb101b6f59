"""Shards: the official rows and files, any order and process, and every kind of damage."""

from __future__ import annotations

import errno
import filecmp
import os
import pickle
import shutil
import struct
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from paperhooks import DataError
from paperhooks_miniplm import Row, RowSource, Shards, write_shards
from paperhooks_miniplm.corpus import ShardWriter
from paperhooks_miniplm.corpus.shard_files import best_dtype, holds_shards


def ids_of(source: Shards) -> list[list[int]]:
    return [row.ids.tolist() for row in source.read(range(len(source)))]


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A copy of the first three official shards, to be damaged."""
    for number in range(3):
        for kind in ("bin", "idx"):
            shutil.copy(golden.SHARDS / f"data_{number}.{kind}", tmp_path)
    return tmp_path


# -- the official reader and writer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", golden.reader(), ids=lambda case: str(case[0]))
def test_official_limits(case) -> None:
    arguments, length, items = case
    source = Shards(golden.SHARDS, **{name.replace("state", "shard"): value for name, value in arguments.items()})
    assert isinstance(source, RowSource)
    assert len(source) == len(source.lengths()) == length
    assert {row: source.read([row])[0].ids.tolist() for row in items} == items


def test_all_official_rows() -> None:
    source = Shards(golden.SHARDS)
    assert ids_of(source) == golden.packing()["a_no_bos"]["chunks"]
    assert source.lengths().tolist() == golden.scores()["lengths"].tolist()
    assert source.read([3])[0].ids.dtype == np.int64
    assert source.domains() is None
    assert source.read([3])[0].n_bytes is None


def test_a_last_bin_without_index_is_ignored() -> None:
    source = Shards(golden.SHARDS_INT32)
    assert [len(ids) for ids in ids_of(source)] == source.lengths().tolist() == [16, 16, 6, 16]


@pytest.mark.parametrize(("folder", "vocabulary", "size"), [("SHARDS", 512, 100), ("SHARDS_INT32", None, 2)])
def test_written_files_are_the_official_ones(tmp_path: Path, folder: str, vocabulary: int | None, size: int) -> None:
    official: Path = getattr(golden, folder)
    rows = ids_of(Shards(official))
    written = write_shards(map(np.array, rows), tmp_path / "new", vocabulary=vocabulary, rows_per_shard=size)
    names = [file.name for file in official.iterdir() if file.stat().st_size]
    assert sorted(names) == sorted(file.name for file in (tmp_path / "new").iterdir())
    assert filecmp.cmpfiles(official, tmp_path / "new", names, shallow=False)[1:] == ([], [])
    assert written == [tmp_path / "new" / f"data_{number}.bin" for number in range(len(names) // 2)]


def test_official_dtypes() -> None:
    for vocabulary, name in golden.quirks()["best_fitting_dtype"].items():
        assert best_dtype(None if vocabulary == "None" else int(vocabulary)) == np.dtype(name)


# -- access ------------------------------------------------------------------------------------------------------------


def test_backwards_and_repeated_and_in_another_process() -> None:
    source = Shards(golden.SHARDS, min_shard=2)
    wanted = [1305, 0, 700, 700, 5]
    expected = [golden.packing()["a_no_bos"]["chunks"][200 + row] for row in wanted]
    assert [row.ids.tolist() for row in source.read(wanted)] == expected
    again = pickle.loads(pickle.dumps(source))
    assert [row.ids.tolist() for row in again.read(wanted)] == expected
    assert len(pickle.dumps(source)) < 10_000


def test_few_shards_are_open_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperhooks_miniplm.corpus.shards._OPEN", 2)
    source = Shards(golden.SHARDS)
    assert ids_of(source) == golden.packing()["a_no_bos"]["chunks"]
    assert len(source._opened) == 2


@pytest.mark.parametrize("row", [-1, 1506])
def test_rows_that_do_not_exist(row: int) -> None:
    with pytest.raises(DataError, match=f"no row {row}; its rows are 0 to 1505"):
        Shards(golden.SHARDS).read([row])


def test_limits_beyond_the_end_and_senseless_ones() -> None:
    assert len(Shards(golden.SHARDS, min_offset=5000)) == 0
    assert len(Shards(golden.SHARDS, min_offset=10, max_offset=5)) == 0
    for wrong in ({"min_offset": -1}, {"max_shard": 0}, {"min_ratio": 0.5, "max_ratio": 0.2}, {"max_ratio": 1.5}):
        with pytest.raises(DataError):
            Shards(golden.SHARDS, **wrong)
    with pytest.raises(DataError, match="not both"):
        Shards(golden.SHARDS, min_offset=1, max_ratio=0.5)
    with pytest.raises(DataError, match=r"no data_99\.idx"):
        Shards(golden.SHARDS, min_shard=99)


def test_fingerprints_change_with_ids_limits_and_facts(shards: Path) -> None:
    before = Shards(shards).fingerprint()
    assert before == Shards(shards).fingerprint() != Shards(shards, min_offset=1).fingerprint()
    with (shards / "data_1.bin").open("r+b") as handle:
        handle.seek(1000)
        handle.write(b"\x01\x01")
    assert Shards(shards).fingerprint() != before


# -- damage ------------------------------------------------------------------------------------------------------------


def patch(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(offset)
        handle.write(data)


DAMAGE = {
    "missing shard": (lambda f: [(f / f"data_1.{kind}").unlink() for kind in ("bin", "idx")], "data_2.idx"),
    "bin without idx": (lambda f: (f / "data_1.idx").unlink(), r"data_1\.idx is missing"),
    "idx without bin": (lambda f: (f / "data_2.bin").unlink(), r"no data_2\.bin"),
    "cut bin": (lambda f: os.truncate(f / "data_2.bin", 1001), r"data_2\.bin has 1001 bytes, its rows take"),
    "empty bin": (lambda f: os.truncate(f / "data_0.bin", 0), r"data_0\.bin has 0 bytes"),
    "cut idx": (lambda f: os.truncate(f / "data_1.idx", 300), r"data_1\.idx has 300 bytes, its 100 rows take 1242"),
    "cut header": (lambda f: os.truncate(f / "data_1.idx", 12), r"data_1\.idx does not begin with MMIDIDX"),
    "magic": (lambda f: patch(f / "data_1.idx", 0, b"X"), r"data_1\.idx does not begin with MMIDIDX"),
    "version": (lambda f: patch(f / "data_1.idx", 9, b"\x02"), "has version 2; expected 1"),
    "floats": (lambda f: patch(f / "data_1.idx", 17, b"\x06"), "says dtype 6, which is no integer"),
    "rows": (lambda f: patch(f / "data_1.idx", 18, struct.pack("<Q", 1 << 60)), r"data_1\.idx has 1242 bytes"),
    "negative length": (lambda f: patch(f / "data_1.idx", 34, struct.pack("<i", -3)), "negative lengths"),
    "far offset": (lambda f: patch(f / "data_1.idx", 434, struct.pack("<q", 2**63 - 2)), r"data_1\.bin has"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(shards: Path, kind: str) -> None:
    damage, message = DAMAGE[kind]
    damage(shards)
    with pytest.raises(DataError, match=message):
        Shards(shards)


def test_folders_without_shards(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data_0\.idx"):
        Shards(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        Shards(tmp_path / "nothing")


def test_the_first_gap_may_end_the_corpus(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    (shards / "data_1.idx").unlink()
    assert len(Shards(shards, allow_gap=True)) == 100
    assert "later shards are not read" in caplog.text
    assert len(Shards(shards, max_shard=1)) == 100
    assert len(Shards(shards, min_shard=2)) == 100


# -- writing -----------------------------------------------------------------------------------------------------------

ROWS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 70_000), max_size=6),
        st.sampled_from(["", "code", "pr\u00f6sa"]),
        st.none() | st.integers(0, 10**12),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, size=st.integers(1, 5), seed=st.none() | st.integers(0, 9))
def test_rows_come_back_with_what_is_known_of_them(tmp_path_factory, rows, size: int, seed: int | None) -> None:
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, vocabulary=70_001, rows_per_shard=size, shuffle_seed=seed) as writer:
        for ids, domain, n_bytes in rows:
            writer.add(ids, domain, n_bytes)
    source = Shards(folder)
    found = [(row.ids.tolist(), row.domain, row.n_bytes) for row in source.read(range(len(source)))]
    pieces = range(0, len(rows), size)
    order = (lambda part: sorted(part, key=repr)) if seed is not None else list
    assert [order(found[start : start + size]) for start in pieces] == [order(rows[s : s + size]) for s in pieces]
    domains = source.domains()
    assert (domains.tolist() if domains is not None else [""] * len(rows)) == [one[1] for one in found]
    assert source.lengths().tolist() == [len(one[0]) for one in found]


def test_shuffling_is_within_shards_and_repeatable(tmp_path: Path) -> None:
    for name in ("one", "two"):
        with ShardWriter(tmp_path / name, rows_per_shard=50, shuffle_seed=233) as writer:
            for number in range(100):
                writer.add([number])
    one, two = (np.concatenate(ids_of(Shards(tmp_path / name))) for name in ("one", "two"))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, np.arange(100))
    assert sorted(one[:50]) == list(range(50))
    assert not np.array_equal(one[:50] + 50, one[50:])


def test_rows_with_facts_and_plain_arrays_can_be_written(tmp_path: Path) -> None:
    write_shards([Row(np.array([1, 2]), "code", 7), np.array([3])], tmp_path, vocabulary=10)
    first, second = Shards(tmp_path).read([0, 1])
    assert (first.domain, first.n_bytes) == ("code", 7)
    assert (second.domain, second.n_bytes, second.ids.tolist()) == ("", None, [3])


def test_facts_that_do_not_fit_the_rows(shards: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    write_shards([Row(np.array([1, 2]), "code", 7)], other, vocabulary=10)
    shutil.copy(other / "rows_0.safetensors", shards)
    with pytest.raises(DataError, match=r"rows_0\.safetensors does not fit the 100 rows"):
        Shards(shards)
    (shards / "rows_0.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"rows_0\.safetensors was not written by paperhooks, or is damaged"):
        Shards(shards)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1, 512], "row 1 holds the id 512; expected 0 to 511"),
        ([-1], "row 1 holds the id -1"),
        ([0.5], "row 1: holds float64"),
        ([[1]], r"row 1: holds int64 \[1, 1\]"),
    ],
)
def test_rows_that_cannot_be_written_leave_nothing(tmp_path: Path, row, message: str) -> None:
    folder = tmp_path / "new"
    with pytest.raises(DataError, match=message):
        write_shards([[1, 2], row], folder, vocabulary=512, rows_per_shard=1)
    assert list(folder.iterdir()) == []


def test_nothing_can_be_opened_before_all_is_written(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, rows_per_shard=1)
    for number in range(3):
        writer.add([number])
        assert not holds_shards(tmp_path)
    writer.close()
    assert ids_of(Shards(tmp_path)) == [[0], [1], [2]]


def test_an_interrupted_move_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []

    def replace(source, target) -> None:
        if len(moved) == 5:
            raise OSError("no space left")
        moved.append(target)
        shutil.move(source, target)

    monkeypatch.setattr("paperhooks_miniplm.corpus.stage.os.replace", replace)
    with pytest.raises(DataError, match="cannot be written: no space"):
        write_shards([[0], [1], [2]], tmp_path, rows_per_shard=1)
    with pytest.raises(DataError, match=r"data_0\.idx is missing"):
        Shards(tmp_path)
    monkeypatch.undo()
    with pytest.raises(DataError, match="holds a corpus already"):
        write_shards([[7]], tmp_path)
    assert ids_of(Shards(tmp_path)) == [[0], [1], [2]], "whoever comes next puts the rest in place"


# -- what stands beside them -------------------------------------------------------------------------------------------


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """Three shards that say what they are made from and what their files were."""
    rows = [Row(np.array([number, 5]), "code", 7) for number in range(3)]
    write_shards(rows, tmp_path / "made", rows_per_shard=1, identity={"from": {"rows": 3}})
    return tmp_path / "made"


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip(f / "data_1.bin"), r"data_1\.bin was changed or damaged"),
        (lambda f: flip(f / "data_2.idx"), r"data_2\.idx was changed or damaged"),
        (lambda f: flip(f / "rows_1.safetensors"), r"rows_1\.safetensors was changed or damaged"),
        (lambda f: (f / "rows_1.safetensors").unlink(), r"rows_1\.safetensors is missing"),
        (lambda f: [(f / f"data_2.{kind}").unlink() for kind in ("bin", "idx")], r"data_2\.bin is missing"),
        (lambda f: [shutil.copy(f / f"data_2.{kind}", f / f"data_3.{kind}") for kind in ("bin", "idx")], "came after"),
        (lambda f: flip(f / "corpus.json"), r"corpus\.json"),
        (lambda f: (f / "corpus.json").write_text(
            (f / "corpus.json").read_text().replace('"rows": 3', '"rows": 4')), r"corpus\.json was changed"),
        (lambda f: (f / "corpus.json").write_text("[]"), r"corpus\.json describes no corpus"),
    ],
)  # fmt: skip
def test_files_that_are_not_what_they_were_are_refused_by_name(described: Path, damage, message: str) -> None:
    before = Shards(described).fingerprint()
    damage(described)
    with pytest.raises(DataError, match=message):
        Shards(described).fingerprint()
    with pytest.raises(DataError, match=message if "after" not in message else "came after"):
        write_shards([[1]], described, identity={"from": {"rows": 3}})
    (described / "corpus.json").unlink()
    if "corpus" in message:
        assert Shards(described).fingerprint() == before, "shards are read without it"


def test_the_same_is_left_alone_and_what_differs_is_named(described: Path) -> None:
    times = {file.name: file.stat().st_mtime_ns for file in described.iterdir()}
    found = write_shards([[9]], described, identity={"from": {"rows": 3}})
    assert found == [described / f"data_{number}.bin" for number in range(3)]
    assert {file.name: file.stat().st_mtime_ns for file in described.iterdir()} == times
    with pytest.raises(DataError, match=r"made otherwise \(from\.rows = 3, not 4\)"):
        write_shards([[9]], described, identity={"from": {"rows": 4}})
    with pytest.raises(DataError, match="holds a corpus already; name a new folder"):
        write_shards([[9]], described)
    assert len(Shards(described, min_shard=1, max_shard=2)) == 1
    assert Shards(described).packed_with is None


def test_two_writers_in_one_folder(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "a") as writer:
        writer.add([1])
        with pytest.raises(DataError, match=rf"is used by another run \(process {os.getpid()} on "):
            ShardWriter(tmp_path / "a")
    assert ids_of(Shards(tmp_path / "a")) == [[1]]
    assert not list((tmp_path / "a").glob("*.lock"))


def test_a_folder_that_was_removed_meanwhile(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a", rows_per_shard=1)
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(DataError, match=r"a cannot be written: No such file|was removed"), writer:
        writer.add([1])


@pytest.mark.parametrize("when", [1, 2])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: int) -> None:
    """While rows are added, and at the end."""
    calls = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == when:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="new cannot be written: No space left"):
        write_shards([[1], [2]], tmp_path / "new", rows_per_shard=1 if when == 1 else 2)
    assert list((tmp_path / "new").iterdir()) == []


def test_domains_that_nobody_named_are_none(tmp_path: Path) -> None:
    write_shards([Row(np.array([1, 2]), "", 3), Row(np.array([3]), "", 4)], tmp_path / "a")
    assert Shards(tmp_path / "a").domains() is None
    assert [row.n_bytes for row in Shards(tmp_path / "a").read([0, 1])] == [3, 4]


def test_what_a_killed_writer_left_is_deleted(tmp_path: Path) -> None:
    left = tmp_path / "a" / ".shards.part"
    left.mkdir(parents=True)
    (left / "data_0.bin").write_bytes(b"half")
    write_shards([[1, 2]], tmp_path / "a")
    assert not left.exists()
    assert len(Shards(tmp_path / "a")) == 1


def test_no_row_leaves_no_file(tmp_path: Path) -> None:
    assert write_shards([], tmp_path / "new") == []
    assert list((tmp_path / "new").iterdir()) == []


def test_rows_without_ids(tmp_path: Path) -> None:
    write_shards([[], [], [4], []], tmp_path, rows_per_shard=2)
    assert ids_of(Shards(tmp_path)) == [[], [], [4], []]


def test_corpora_are_not_overwritten_and_types_are_checked(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds a corpus already"):
        write_shards([[1]], shards)
    with pytest.raises(DataError, match="cannot be stored as float32"):
        write_shards([[1]], tmp_path / "new", dtype=np.float32)
    with pytest.raises(DataError, match="rows_per_shard is 0"):
        write_shards([[1]], tmp_path / "new", rows_per_shard=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_shards([[1]], tmp_path / "file")
    write_shards([[70_000]], tmp_path / "wide", dtype=np.int64)
    assert (tmp_path / "wide" / "data_0.bin").stat().st_size == 8
