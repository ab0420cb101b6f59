"""Files as people have them, read by everything that reads records: corpora, texts, documents, questions, replays."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paperhooks.data import Selection
from paperhooks.errors import DataError
from paperhooks.generation import ReplayBackend
from paperhooks.io import Corpus, write_json
from paperhooks_hallucination.pope import read_questions
from paperhooks_mathneuro import read_records
from paperhooks_miniplm import pack, read_documents
from PIL import Image

ROWS = [
    {"id": str(i), "text": f"Is there a dog? {i}", "reply": "no", "label": "no", "image": "a.png"} for i in range(3)
]
POPE = [{"question_id": row["id"], **{k: row[k] for k in ("text", "label", "image")}} for row in ROWS]


def lines(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table(rows: list[dict[str, str]], sign: str) -> bytes:
    return "\n".join([sign.join(rows[0]), *(sign.join(row.values()) for row in rows), ""]).encode()


def whole(corpus: Corpus) -> list[str]:
    return [str(example.text) for example in corpus.examples(range(len(corpus)))]


FORMS: dict[str, Callable[[list[dict[str, str]]], bytes]] = {
    "jsonl": lines,
    "ndjson": lines,
    "JSONL": lines,
    "jsonlines": lines,
    "json": lines,
    "jsonl.gz": lambda rows: gzip.compress(lines(rows), mtime=0),
    "json.gz": lambda rows: gzip.compress(json.dumps(rows).encode(), mtime=0),
    "JSON": lambda rows: json.dumps(rows).encode(),
    "tsv": lambda rows: table(rows, "\t"),
    "CSV": lambda rows: table(rows, ","),
}
MARKS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda raw: raw,
    "byte order mark": lambda raw: b"\xef\xbb\xbf" + raw,
    "windows": lambda raw: raw.replace(b"\n", b"\r\n"),
}
READERS: dict[str, Callable[[Path], list[str]]] = {
    "core": lambda file: whole(Corpus(file)),
    "mathneuro": lambda file: [record["text"] for record in read_records(file)],
    "miniplm": lambda file: [document.text for document in read_documents(file)],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("reader", READERS)
def test_records_are_the_same_whatever_the_file_is_called(tmp_path: Path, form: str, mark: str, reader: str) -> None:
    raw = FORMS[form](ROWS)
    if not form.endswith("gz"):
        raw = MARKS[mark](raw)
    (tmp_path / f"rows.{form}").write_bytes(raw)
    assert READERS[reader](tmp_path / f"rows.{form}") == [row["text"] for row in ROWS]


@pytest.mark.parametrize("form", FORMS)
def test_questions_of_pope(tmp_path: Path, form: str) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    raw = FORMS[form](POPE)
    (tmp_path / f"coco_pope_random.{form}").write_bytes(raw if form.endswith("gz") else b"\xef\xbb\xbf" + raw)
    assert [one.data["question"] for one in read_questions(str(tmp_path))] == [row["text"] for row in POPE]


@pytest.mark.parametrize("form", ["jsonl", "ndjson", "JSONL", "jsonl.gz", "json", "tsv"])
def test_stored_responses(tmp_path: Path, form: str) -> None:
    raw = FORMS[form](ROWS)
    (tmp_path / f"r.{form}").write_bytes(raw if form.endswith("gz") else b"\xef\xbb\xbf" + raw)
    assert [one.text for one in ReplayBackend(tmp_path / f"r.{form}").responses.values()] == ["no"] * 3


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x1c", "\x0b"])
@pytest.mark.parametrize("reader", READERS)
def test_separators_inside_of_strings(tmp_path: Path, sign: str, reader: str) -> None:
    rows = [{"text": f"a{sign}b {i}"} for i in range(3)]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(f'{{"text": "{row["text"]}"}}\n'.encode() for row in rows))
    assert READERS[reader](tmp_path / "rows.jsonl") == [row["text"] for row in rows]


@pytest.mark.parametrize("value", [None, 3, 2.5, True, ["a"], {"a": 1}])
@pytest.mark.parametrize("reader", ["core", "mathneuro", "miniplm"])
def test_what_is_no_text_is_refused_with_its_line(tmp_path: Path, value: object, reader: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines([ROWS[0], ROWS[1], {"text": value}]))
    from paperhooks_mathneuro import tokenized

    def tokenizer(text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": list(text.encode())}

    def read() -> object:
        return tokenized(read_records(file), tokenizer) if reader == "mathneuro" else READERS[reader](file)

    with pytest.raises(DataError, match=r"rows\.jsonl:3"):
        read()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.docx", b"PK"), ("a.rst", b"text"), ("noending", b"text"), ("a.csv", b"a,b\n1\n"), ("a.csv", b"a,a\n1,2\n"),
        ("a.jsonl.gz", gzip.compress(lines(ROWS), mtime=0)[:-8]), ("a.jsonl", lines(ROWS) + b"\xff\xfe\n"),
        ("a.jsonl", b"[" * 50_000), ("a.jsonl", b"1" * 5000), ("a.json", b"{"), ("a.jsonl", b'"\0"\n'),
        ("a.parquet", b"PAR1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("reader", READERS)
def test_what_cannot_be_read_is_an_error_that_names_the_file(
    tmp_path: Path, name: str, content: bytes, reader: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        READERS[reader](tmp_path / name)
    assert (tmp_path / name).read_bytes() == content


def test_pack_says_what_it_left_out(tmp_path: Path) -> None:
    from paperhooks_miniplm import byte_tokenizer

    docs = tmp_path / "docs"
    for name in ("a.txt", "b.txt", "c.rst", "d.rst", "e.html", ".ipynb_checkpoints/a.txt", "._a.txt"):
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text("A sentence. Another one.")
    report = pack(str(docs), byte_tokenizer(["A sentence. Another one."]), tmp_path / "out", max_length=32)
    assert (report.documents, report.skipped) == (2, {".html": 1, ".rst": 2})


def test_addresses_are_no_places_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from paperhooks.reports import RunFolder
    from paperhooks_miniplm import write_shards

    monkeypatch.chdir(tmp_path)
    selection = Selection(np.arange(2), 3)
    for write in (lambda: write_shards([[1, 2]], "s3://b/corpus"), lambda: RunFolder("gs://b/run"),
                  lambda: write_json(Path("s3://b/a.json"), 1), lambda: selection.save("gs://b/chosen")):  # fmt: skip
        with pytest.raises(DataError, match="is an address"):
            write()
    assert not list(tmp_path.iterdir())
