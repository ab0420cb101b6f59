"""Rows that are only added: torn ends, changed lines, files of others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paperhooks.errors import DataError
from paperhooks.io import AppendLog

ROWS = [{"id": "a", "reply": "x\u2028y"}, {"id": "b", "reply": "half \ud83d"}, {"id": "c", "reply": None}]


def log(file: Path) -> AppendLog:
    return AppendLog(file, ("id", "reply"))


def test_rows_come_back_and_a_torn_end_is_dropped_by_who_appends(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    log(file).append(ROWS)
    assert [row["reply"] for row in log(file).read()] == [row["reply"] for row in ROWS]
    assert [json.loads(line)["id"] for line in file.read_bytes().split(b"\n")[:-1]] == ["a", "b", "c"]
    whole = file.read_bytes()
    for cut in range(1, 40):
        file.write_bytes(whole[:-cut])
        assert len(log(file).read()) == 2
        assert file.read_bytes() == whole[:-cut], "reading repairs nothing"
        log(file).append(ROWS[2:])
        assert file.read_bytes() == whole


def test_a_changed_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    log(file).append(ROWS)
    file.write_bytes(file.read_bytes().replace(b"half", b"whole"))
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: was changed after it was written"):
        log(file).read()


def test_what_says_when_is_not_covered_by_the_checksum(tmp_path: Path) -> None:
    lines = []
    for seconds in (1, 2):
        AppendLog(tmp_path / f"{seconds}.jsonl", ("id",), ("seconds",)).append([{"id": "a", "seconds": seconds}])
        lines.append((tmp_path / f"{seconds}.jsonl").read_text())
    assert lines[0].replace('"seconds": 1', '"seconds": 2') == lines[1]
    assert AppendLog(tmp_path / "2.jsonl", ("id",), ("seconds",)).read() == [{"id": "a", "seconds": 2}]
    (tmp_path / "2.jsonl").write_text('{"id": "a", "seconds": 2}\n')
    with pytest.raises(DataError, match="was changed after it was written"):
        AppendLog(tmp_path / "2.jsonl", ("id",)).read()


@pytest.mark.parametrize(
    "content",
    [b"notes of mine, without an end", b'{"question": "mine"}\n{"question"', b'{"id": "a", "reply": "b"}\nand notes'],
)
@pytest.mark.parametrize("link", [False, True])
def test_a_file_of_the_user_is_never_touched(tmp_path: Path, content: bytes, link: bool) -> None:
    own, file = tmp_path / "own.txt", tmp_path / "rows.jsonl"
    own.write_bytes(content)
    if link:
        file.symlink_to(own)
    else:
        file = own
    with pytest.raises(DataError):
        log(file).append(ROWS)
    assert own.read_bytes() == content


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    one, two = log(tmp_path / "rows.jsonl"), log(tmp_path / "rows.jsonl")
    one.append(ROWS[:1])
    with pytest.raises(DataError, match="is being written by another process"):
        two.append(ROWS[1:])
    one.close()
    two.append(ROWS[1:])
    assert len(one.read()) == 3
