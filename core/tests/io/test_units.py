"""The store of units, its files and what runs ahead of the work."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from paperhooks.errors import DataError
from paperhooks.io import UnitStore, ahead, atomic_path, local_path, read_manifest, read_tensors, write_tensors
from paperhooks.io import files as files_module


def store(folder: Path) -> UnitStore:
    return UnitStore(folder, "squares")


def flip(file: Path, place: int = -5) -> None:
    """Change one bit of a file."""
    raw = bytearray(file.read_bytes())
    raw[place] ^= 1
    file.write_bytes(raw)


def test_units_are_kept_and_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with store(tmp_path / name).begin({"rows": 2}, costly=lambda: {"corpus": "c"}) as one:
            assert one.read("u") is None
            one.write("u", {"x": np.arange(3), "y": torch.ones(2, dtype=torch.bfloat16)}, {"b": 1, "a": [2]})
            header, tensors = one.read("u")
            assert (header, tensors["x"].tolist(), tensors["y"].dtype) == (
                {"a": [2], "b": 1},
                [0, 1, 2],
                torch.bfloat16,
            )
            assert one.names() == ["u"]
    assert len({(tmp_path / name / "units" / "u.safetensors").read_bytes() for name in ("a", "b")}) == 1
    assert not list(tmp_path.rglob("*.lock"))


def test_a_unit_in_the_place_of_another_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with store(tmp_path).begin({"rows": 2}) as one:
        for name in ("a", "b"):
            one.write(name, {"x": np.array([len(name)])})
        shutil.copy(one.file("a"), one.file("b"))
        assert one.read("a") is not None
        assert one.read("b") is None
    assert "is another unit of it, and is made again" in caplog.text


def test_another_run_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    with store(tmp_path).begin({"rows": 2, "method": {"name": "m", "scale": 1}}):
        pass
    other = {"rows": 2, "method": {"name": "m", "scale": 2}, "seed": 3}
    with pytest.raises(DataError, match=r"method\.scale = 1, not 2; seed = None, not 3"), store(tmp_path).begin(other):
        pass
    with pytest.raises(DataError, match="is no manifest of cubes"), UnitStore(tmp_path, "cubes").begin({"rows": 2}):
        pass
    changed = json.loads((tmp_path / "manifest.json").read_text()) | {"rows": 7}
    (tmp_path / "manifest.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match="was changed after it was written"):
        read_manifest(tmp_path, "squares")


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other run", "header"])
def test_a_unit_that_is_not_whole_or_not_its_own_is_made_again(tmp_path: Path, damage: str, caplog) -> None:
    with store(tmp_path).begin({"rows": 2}) as one:
        one.write("u", {"x": np.arange(3)}, {"note": "seven"})
        file = one.file("u")
        if damage == "bit":
            flip(file)
        elif damage == "header":
            file.write_bytes(file.read_bytes().replace(b"seven", b"eight"))
        elif damage == "other run":
            write_tensors(file, {"x": np.arange(3)}, {"run": "other"})
        else:
            file.write_bytes(file.read_bytes()[: 40 if damage == "cut" else 0])
        assert one.read("u") is None
    assert "made again" in caplog.text


def test_a_worker_of_a_run_that_was_replaced_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    with store(folder).begin({"rows": 2}) as old:
        shutil.rmtree(folder)
        with store(folder).begin({"rows": 3}) as new:
            new.write("u", {"x": np.zeros(1)})
            with pytest.raises(DataError, match="belongs to another run by now"):
                old.write("u", {"x": np.ones(1)})
            assert old.read("u") is None
            assert new.read("u") is not None
    with pytest.raises(DataError, match="is not held by this run"):
        new.write("u", {"x": np.zeros(1)})


def test_a_run_that_did_nothing_does_not_claim_its_folder(tmp_path: Path) -> None:
    def fail(rows: int, write: bool) -> None:
        with store(tmp_path).begin({"rows": rows}) as one:
            if write:
                one.write("u", {"x": np.zeros(1)})
            raise KeyError(rows)

    for rows in (1, 2):
        with pytest.raises(KeyError):
            fail(rows, write=rows == 2)
    with pytest.raises(DataError, match="rows = 2, not 3"):
        fail(3, write=False)


def test_half_written_files_are_removed_by_the_next_run(tmp_path: Path) -> None:
    left = [tmp_path / ".manifest.json.part", tmp_path / "units" / ".u.safetensors.abc.part"]
    left[1].parent.mkdir()
    for file in left:
        file.write_bytes(b"half")
    with store(tmp_path).begin({"rows": 2}):
        assert not any(file.exists() for file in left)


@pytest.mark.parametrize("address", ["s3://bucket/run", "gs://b/r", "https://host/run", "hub:name:train"])
def test_addresses_are_no_paths(address: str) -> None:
    with pytest.raises(DataError, match="is an address"):
        local_path(address)


# -- files -------------------------------------------------------------------------------------------------------------


def test_tensors_come_back_and_any_flipped_bit_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "t.safetensors"
    write_tensors(file, {"x": np.arange(4.0)}, {"about": {"ü": '"sha256": "' + "0" * 64}})
    header, tensors = read_tensors(file)
    assert (header["about"]["ü"][:9], tensors["x"].tolist()) == ('"sha256":', [0, 1, 2, 3])
    size = file.stat().st_size
    for place in range(0, size, max(1, size // 40)):
        flip(file, place)
        with pytest.raises(DataError, match=r"t\.safetensors"):
            read_tensors(file)
        flip(file, place)
    assert read_tensors(file)[0] == header
    torch.save({"x": 1}, file)
    with pytest.raises(DataError, match="was not written by paperhooks, or is damaged"):
        read_tensors(file)


def test_a_full_disk_leaves_the_old_file_and_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fill_the_disk() -> None:
        with atomic_path(file) as temporary:
            temporary.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"a\.txt cannot be written: No space left"):
        fill_the_disk()
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.txt", "old")]


def test_the_part_of_a_killed_writer_is_used_again_and_that_of_a_living_one_is_not(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.part").write_text("left by a kill, and longer than what comes now")
    with atomic_path(tmp_path / "a.txt") as first, atomic_path(tmp_path / "a.txt") as second:
        assert first.name == ".a.txt.part"
        assert second != first
        first.write_text("one")
        second.write_text("two")
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a.txt", "one")]


def test_a_link_in_the_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("mine")
    (tmp_path / ".a.txt.part").symlink_to(tmp_path / "own.txt")
    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert ((tmp_path / "a.txt").read_text(), (tmp_path / "own.txt").read_text()) == ("new", "mine")


def test_json_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    for raw, said in (
        (b"[" * 100_000, "nested too deep"),
        (b"1" * 5000, "is no JSON"),
        ('{"a": 1}'.encode("utf-16"), "save it as UTF-8"),
        (b"\xff", "is not UTF-8"),
    ):
        file.write_bytes(raw)
        with pytest.raises(DataError, match=said):
            files_module.read_json(file)
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert files_module.read_json(file) == {"a": 1}


# -- ahead -------------------------------------------------------------------------------------------------------------


def test_items_come_in_order_with_one_made_ahead_and_errors_in_their_place() -> None:
    made: list[int] = []

    def items():
        for number in range(4):
            made.append(number)
            yield number
        raise KeyError("end")

    work = ahead(items())
    for number in range(4):
        assert next(work) == number
        assert len(made) <= number + 3
    with pytest.raises(KeyError, match="end"):
        next(work)


def test_who_stops_early_leaves_no_thread_behind() -> None:
    for item in ahead(iter(range(10**9))):
        if item > 3:
            break
    assert not [thread for thread in threading.enumerate() if thread.name == "paperhooks-ahead"]


def test_the_name_of_a_written_file_s_temporary_is_another_s_at_once(tmp_path: Path, monkeypatch) -> None:
    """Two processes that end together write the same file: the second begins when the first has put it in place."""
    replace = os.replace

    def replaced(source, target) -> None:
        replace(source, target)
        Path(source).write_text("of the other")

    monkeypatch.setattr(os, "replace", replaced)
    with atomic_path(tmp_path / "result") as temporary:
        temporary.write_text("of this one")
    assert (tmp_path / "result").read_text() == "of this one"
    assert temporary.read_text() == "of the other"


def test_what_the_preparing_process_fails_with_reaches_those_that_wait(tmp_path: Path, monkeypatch) -> None:
    """It may live on, as in a notebook: they learn of it by what it announces and not by its end."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_PORT", "1")
    first, second = UnitStore(tmp_path, "lengths"), UnitStore(tmp_path, "lengths")
    told = []

    def wait() -> None:
        try:
            with second.begin({}):
                told.append("begun")
        except DataError as error:
            told.append(str(error))

    def costly() -> dict[str, str]:
        waiting.start()
        time.sleep(0.5)
        raise DataError("no digest")

    waiting = threading.Thread(target=wait)
    with pytest.raises(DataError, match="no digest"), first.begin({}, costly=costly):
        pass
    waiting.join(10)
    assert told == ["another process of this launch failed: no digest"]
