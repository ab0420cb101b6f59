"""The one reader of records: every form and name, files as people have them, damage that is named."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import zstandard
from paperhooks.errors import DataError
from paperhooks.io import list_cell, open_records, read_records, record_files

ROWS = [{"question": f"What is {i}+{i}?", "answer": str(2 * i)} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
LIST = json.dumps(ROWS, indent=1).encode()
TSV = ("question\tanswer\n" + "".join(f"{row['question']}\t{row['answer']}\n" for row in ROWS)).encode()
CSV = TSV.replace(b"\t", b",")
BOM = b"\xef\xbb\xbf"


def records(file: Path) -> list[object]:
    return [record for _, record in read_records(file)]


@pytest.mark.parametrize(
    ("name", "content", "ordered"),
    [
        ("a.jsonl", LINES, True), ("a.ndjson", LINES, True), ("a.JSONL", LINES, True), ("a.jsonlines", LINES, True),
        ("a.json", LINES, False), ("a.JSON", LIST, False), ("a.jsonl.txt", LINES, True),
        ("a.parquet.jsonl", LINES, True),
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0), False), ("a.json.gz", gzip.compress(LIST, mtime=0), False),
        ("a.NDJSON.GZ", gzip.compress(LINES, mtime=0), False), ("a.jsonl.zst", zstandard.compress(LINES), False),
        ("two frames.jsonl.zst", zstandard.compress(LINES[:50]) + zstandard.compress(LINES[50:]), False),
        ("a.tsv", TSV, False), ("a.csv", CSV, False), ("a.CSV", CSV.replace(b"\n", b"\r\n"), False),
        ("a.csv.gz", gzip.compress(CSV, mtime=0), False), ("mark.jsonl", BOM + LINES, True),
        ("mark.json", BOM + LIST, False),
        ("mark.csv", BOM + CSV, False), ("windows.jsonl", LINES.replace(b"\n", b"\r\n"), True),
        ("blank.jsonl", b"\n" + LINES.replace(b"\n", b"\n\n"), True),
    ],
)  # fmt: skip
def test_every_form_is_read_as_what_it_is(tmp_path: Path, name: str, content: bytes, ordered: bool) -> None:
    (tmp_path / name).write_bytes(content)
    assert records(tmp_path / name) == ROWS
    opened = open_records(tmp_path / name)
    assert (opened is not None) == ordered
    if opened is not None:
        assert [record for _, record in opened.get([2, 0])] == [ROWS[2], ROWS[0]]


def test_parquet(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(ROWS), tmp_path / "a.Parquet", row_group_size=2)
    assert records(tmp_path / "a.Parquet") == ROWS
    opened = open_records(tmp_path / "a.Parquet", columns=["answer"])
    assert opened is not None
    assert opened.get([2]) == [(f"{tmp_path / 'a.Parquet'}, row 2", {"answer": "4"})]
    (tmp_path / "a.Parquet").write_bytes((tmp_path / "a.Parquet").read_bytes()[:-10])
    with pytest.raises(DataError, match=r"a\.Parquet cannot be read"):
        records(tmp_path / "a.Parquet")


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c"])
def test_separators_inside_of_strings_end_no_line(tmp_path: Path, sign: str) -> None:
    text = f"a{sign}b"
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"t": text}, ensure_ascii=False).replace("\\u000b", sign).replace("\\f", sign) + "\n"
    )
    (tmp_path / "a.csv").write_bytes(f"t\n{text}\n".encode())
    assert records(tmp_path / "a.jsonl") == records(tmp_path / "a.csv") == [{"t": text}]


def test_text_is_a_file_or_its_blocks(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(BOM + b"one\r\nmore\r\n\r\ntwo\n")
    assert records(tmp_path / "a.txt") == ["one\r\nmore\r\n\r\ntwo\n"]
    assert [text for _, text in read_records(tmp_path / "a.txt", text="blocks")] == ["one\r\nmore", "two"]


def test_long_cells_are_read_and_the_limit_of_the_process_is_left_alone(tmp_path: Path) -> None:
    import csv

    limit = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("a,b\n" + "x" * 200_000 + ",2\n")
    assert len(records(tmp_path / "a.csv")[0]["a"]) == 200_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "cannot be read"),
        ("a.jsonl.gz", b"not compressed", "cannot be read"),
        ("a.jsonl.zst", zstandard.compress(LINES)[:-4], "ends in the middle of a frame"),
        ("a.jsonl", LINES.decode().encode("utf-16"), "looks like UTF-16; save it as UTF-8"),
        ("a.jsonl", LINES + b"\xff\n", r"a\.jsonl:4: is not UTF-8"),
        ("a.jsonl", LINES + b"{]\n", r"a\.jsonl:4: is not JSON"),
        ("a.jsonl", b"[" * 100_000, "nested too deep"),
        ("a.jsonl", b"1" * 5000, "is not JSON"),
        ("a.jsonl", b'{"a": "\0"}\n', "holds a NUL"),
        ("a.json", b"{\n 1}", "is not JSON"),
        ("a.json", b"7", "holds a int"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3: has 1 cell, the header has 2"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2: has 3 cells"),
        ("a.csv", b"a,a\n1,2\n", "several columns 'a'"),
        ("a.csv", b'a,b\n"x,1\n', "is no row of a table"),
        ("a.csv", b"a,b\nx\0,1\n", r"a\.csv:2: holds a NUL"),
        ("a.rst", b"text", r"no ending that is known; expected \.jsonl"),
        ("a", b"text", "no ending that is known"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        records(tmp_path / name)


def test_folders_leave_hidden_copies_out_and_count_what_is_skipped(tmp_path: Path, caplog) -> None:
    for name in ("b.jsonl", "a.jsonl", "c/d.txt", "page.html", "pic.PNG", ".ipynb_checkpoints/a.jsonl", "._a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('"x"\n')
    found = record_files(tmp_path)
    assert [file.name for file in found.files] == ["a.jsonl", "b.jsonl", "d.txt"]
    assert found.skipped == ((".html", 1), (".png", 1))
    assert "3 files are read; left out are 1 .html, 1 .png" in caplog.text
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.html").touch()
    with pytest.raises(DataError, match=r"holds 1 \.html and no file that can be read"):
        record_files(tmp_path / "empty")
    for source, said in ((tmp_path / "nowhere", "does not exist"), ("s3://b/x.jsonl", "is an address")):
        with pytest.raises(DataError, match=said):
            record_files(source)


@pytest.mark.parametrize(
    ("cell", "wanted"),
    [
        ("['apple' 'brick']", ["apple", "brick"]), ("['a'\n 'b'\n 'c']", ["a", "b", "c"]), ("['a', 'b']", ["a", "b"]),
        ('["a", "b"]', ["a", "b"]), ("""['it\\'s' "x y"]""", ["it's", "x y"]), ("['one']", ["one"]), ("[1, 2]", [1, 2]),
        ("['a' 'b', 'c']", None), ("['a', 'b' 'c']", None), ("['a''b']", None), ("apple", None), ("['a", None),
        ("[" * 9999, None), ("{'a': 1}", None), (["x"], ["x"]), (None, None),
    ],
)  # fmt: skip
def test_lists_in_cells(cell: object, wanted: object) -> None:
    assert list_cell(cell) == wanted
