"""Sources: every kind that can be named, in order and at any place, and what is said of those that are damaged."""

from __future__ import annotations

import gzip
import json
import pickle
import sys
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from paperhooks import DataError, MissingExtra
from paperhooks.models import tokenizer_digest
from paperhooks_miniplm import (
    MemoryRows,
    Row,
    RowSource,
    Shards,
    StreamRows,
    TextRecord,
    open_rows,
    pack,
    read_documents,
    write_shards,
)
from paperhooks_miniplm.corpus import RecordRows, count_rows
from paperhooks_miniplm.corpus.record_rows import encode

RECORDS = [
    {"text": f"Text {n}. \u00e9\n", "domain": "ab"[n % 2], "meta": {"set": f"s{n}"}, "other": n} for n in range(7)
]
WANTED = [(one["text"], one["domain"]) for one in RECORDS]


def write_lines(path: Path, records=RECORDS) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def write_gzip(path: Path) -> Path:
    with gzip.open(path, "wt", encoding="utf-8") as handle:
        handle.writelines(json.dumps(one) + "\n" for one in RECORDS)
    return path


def write_table(path: Path, records=RECORDS) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(list(records)), path, row_group_size=3)
    return path


def dataset():
    return pytest.importorskip("datasets").Dataset.from_list(RECORDS)


SOURCES = {
    "jsonl": lambda folder: write_lines(folder / "a.jsonl"),
    "gzip": lambda folder: write_gzip(folder / "a.jsonl.gz"),
    "parquet": lambda folder: write_table(folder / "a.parquet"),
    "dataset": lambda folder: dataset(),
    "streamed dataset": lambda folder: dataset().to_iterable_dataset(num_shards=2),
    "list": lambda folder: RECORDS,
    "generator": lambda folder: (one for one in RECORDS),
    "documents": lambda folder: [TextRecord(text, domain) for text, domain in WANTED],
}


# -- documents ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOURCES)
def test_documents_of_every_source(tmp_path: Path, kind: str) -> None:
    found = read_documents(SOURCES[kind](tmp_path))
    assert [(one.text, one.domain) for one in found] == WANTED


def test_fields_may_have_other_names_and_lie_deeper(tmp_path: Path) -> None:
    records = [{"content": "x", "meta": {"set": {"name": "deep"}}}, {"content": "y", "meta": {}}, {"content": "z"}]
    for source in (records, write_lines(tmp_path / "a.jsonl", records)):
        found = list(read_documents(source, text_field="content", domain_field="meta.set.name"))
        assert [(one.text, one.domain) for one in found] == [("x", "deep"), ("y", ""), ("z", "")]
    table = write_table(tmp_path / "a.parquet", RECORDS)
    assert [one.domain for one in read_documents(table, domain_field="meta.set")] == [f"s{n}" for n in range(7)]


def test_folders_are_read_in_the_order_of_names_and_texts_are_documents(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.txt").write_text("\ufeffone\n\ntext", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not read")
    write_lines(tmp_path / "a.jsonl", RECORDS[:1])
    write_gzip(tmp_path / "z.jsonl.gz")
    found = list(read_documents(tmp_path))
    assert [one.text for one in found] == [WANTED[0][0], "one\n\ntext", *(text for text, _ in WANTED)]
    assert found[0].source == f"{tmp_path}/a.jsonl:1"


def test_empty_documents_are_counted_and_blank_lines_are_none(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('"one"\n\n""\n  \n{"text": " \\n"}\n"two"\n')
    found = read_documents(tmp_path / "a.jsonl")
    assert [one.text for one in found] == ["one", "two"]
    assert found.empty == 2
    assert read_documents(found) is found


TABLE = "text\tdomain\n" + "".join(f'"Text {n}. \u00e9\n"\t{"ab"[n % 2]}\n' for n in range(7))
LINES = "".join(json.dumps(one) + "\n" for one in RECORDS)
NAMED = {
    "a.ndjson": LINES, "a.JSONL": LINES, "a.jsonlines": LINES, "a.json": LINES, "a.JSON": json.dumps(RECORDS),
    "a.jsonl.txt": LINES, "a.json.gz": LINES, "a.tsv": TABLE, "a.CSV": TABLE.replace("\t", ","),
    "a.CSV.GZ": TABLE.replace("\t", ","),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_documents_and_rows_of_every_ending(tmp_path: Path, name: str) -> None:
    raw = ("\ufeff" + NAMED[name]).encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.lower().endswith("gz") else raw)
    assert [(one.text, one.domain) for one in read_documents(tmp_path / name)] == WANTED
    rows = open_rows(tmp_path / name, golden.tokenizer())
    assert isinstance(rows, RecordRows if name in ("a.ndjson", "a.JSONL", "a.jsonlines", "a.jsonl.txt") else StreamRows)
    assert plain(rows.read(range(7))) == expected()


def test_files_of_a_folder_that_are_not_read_are_counted(tmp_path: Path) -> None:
    write_lines(tmp_path / "docs" / "a.jsonl")
    for name in ("b.rst", "c.RST", "d", ".e.jsonl", "f.txt"):
        (tmp_path / "docs" / name).write_text("some text")
    found = read_documents(tmp_path / "docs")
    assert (found.files, found.skipped) == (2, {".rst": 2, "no ending": 1})
    report = pack(found, golden.tokenizer(), tmp_path / "packed")
    assert (report.documents, report.files, report.skipped) == (8, 2, {".rst": 2, "no ending": 1})
    assert json.loads((tmp_path / "packed" / "corpus.json").read_text())["report"]["skipped"] == found.skipped


@pytest.mark.parametrize("address", ["s3://bucket/corpus", "gs://bucket/corpus.jsonl"])
def test_addresses_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    ways = {
        "documents": lambda: read_documents(address),
        "shards": lambda: Shards(address),
        "pack": lambda: pack(["a"], golden.tokenizer(), address),
        "write": lambda: write_shards([[1]], address),
    }
    for run in ways.values():
        with pytest.raises(DataError, match="is an address"):
            run()
    assert list(tmp_path.iterdir()) == []


def test_rows_at_addresses_that_nothing_reaches_are_refused() -> None:
    for address, said in (
        ("nowhere://bucket/corpus", "nowhere://bucket/corpus cannot be reached"),
        ("nowhere://bucket/corpus.jsonl", "nowhere://bucket/corpus.jsonl cannot be read"),
        ("memory://nothing/corpus", "is no folder of parts, and ends in none of"),
    ):
        with pytest.raises(DataError, match=said):
            open_rows(address)


ODD = {
    "null": ('{"text": null}', "'text' is null; expected text"),
    "number": ('{"text": 3}', "'text' is int; expected text"),
    "boolean": ('{"text": true}', "'text' is bool; expected text"),
    "list": ('{"text": ["a"]}', "'text' is list; expected text"),
    "domain": ('{"text": "a", "domain": 3}', "'domain' is int; expected text"),
    "half a pair in the domain": ('{"text": "a", "domain": "\\ud800"}', "half of a surrogate pair"),
    "number inside": (
        '{"text": "a", "meta": {"set": 3}}',
        "'meta.set' is int; expected text",
        {"domain_field": "meta.set"},
    ),
    "no object": ('{"text": "a", "meta": "x"}', "'meta' is str; expected an object", {"domain_field": "meta.set"}),
    "null inside": ('{"body": {"text": null}}', "'body.text' is null; expected text", {"text_field": "body.text"}),
    "number outside": ('{"body": 3}', "'body' is int; expected an object", {"text_field": "body.text"}),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_text_where_text_belongs_is_named(tmp_path: Path, kind: str) -> None:
    line, message, *other = ODD[kind]
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"text": "good", "body": {{"text": "good"}}}}\n{line}\n')
    options = other[0] if other else {}
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        list(read_documents(file, **options))
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        open_rows(file, golden.tokenizer(), **options).read([0, 1])


DAMAGED = {
    "not JSON": ("a.jsonl", b'"good"\n{"text": \n', r"a\.jsonl:2: is not JSON"),
    "not UTF-8": ("a.jsonl", b'"good"\n\n"\xff"\n', r"a\.jsonl:3: is not UTF-8"),
    "text not UTF-8": ("a.txt", b"good\ngood\nb\xffd\n", r"a\.txt:3: is not UTF-8"),
    "no text": ("a.jsonl", b'{"content": "x"}\n', r"a\.jsonl:1: has no text in 'text', but the keys \['content'\]"),
    "number": ("a.jsonl", b"7\n", r"a\.jsonl:1: has no text in 'text', but int"),
    "half a pair": ("a.jsonl", b'"ab\\ud800"\n', r"a\.jsonl:1: character 2 is half of a surrogate pair"),
    "not gzip": ("a.jsonl.gz", b"plain", r"a\.jsonl\.gz cannot be read"),
    "cut gzip": ("a.jsonl.gz", gzip.compress(b'"text"\n' * 100)[:-12], r"a\.jsonl\.gz cannot be read"),
    "not parquet": ("a.parquet", b"plain", r"a\.parquet cannot be read"),
    "unknown": ("a.docx", b"plain", r"a\.docx has no ending that is known; expected \.jsonl, \.ndjson"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damage_is_named_with_file_and_line(tmp_path: Path, kind: str) -> None:
    name, content, message = DAMAGED[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / name))


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(read_documents(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match="that can be read"):
        list(read_documents(tmp_path))
    with pytest.raises(DataError, match="holds token ids in shards"):
        read_documents(golden.SHARDS)
    for read in (lambda source: list(read_documents(source)), open_rows):
        with pytest.raises(DataError, match=r"mapping of \['test', 'train'\]; choose one"):
            read({"train": [], "test": []})
    with pytest.raises(DataError, match="record 1: has no text"):
        list(read_documents(["text", 5]))


def test_names_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(*names, **options):
        asked.append((names, options))
        return dataset().to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [one.text for one in read_documents("hub:some/name:train")] == [text for text, _ in WANTED]
    rows = open_rows("hub:some/name:config:test", golden.tokenizer())
    assert isinstance(rows, StreamRows)
    assert asked == [
        (("some/name",), {"split": "train", "streaming": True}),
        (("some/name", "config"), {"split": "test", "streaming": True}),
    ]
    with pytest.raises(DataError, match="names no split"):
        list(read_documents("hub:some/name"))


@pytest.mark.parametrize(("module", "source"), [("datasets", "hub:a:train"), ("pyarrow", "a.parquet")])
def test_missing_libraries_name_the_extra(tmp_path: Path, monkeypatch, module: str, source: str) -> None:
    (tmp_path / "a.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=r"paperhooks\[data\]"):
        list(read_documents(source if source.startswith("hub:") else tmp_path / source))


# -- rows --------------------------------------------------------------------------------------------------------------


def plain(rows: list[Row]) -> list[tuple[list[int], str, int | None]]:
    return [(row.ids.tolist(), row.domain, row.n_bytes) for row in rows]


def expected(eos: bool = True) -> list[tuple[list[int], str, int | None]]:
    ids = encode(golden.tokenizer(), [text for text, _ in WANTED])
    return [(one + [0] * eos, domain, len(text.encode())) for one, (text, domain) in zip(ids, WANTED, strict=True)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "dataset", "list", "documents"])
def test_rows_of_texts_at_any_place(tmp_path: Path, kind: str) -> None:
    rows = open_rows(SOURCES[kind](tmp_path), golden.tokenizer(), add_eos=kind != "list")
    assert isinstance(rows, RecordRows)
    assert isinstance(rows, RowSource)
    wanted = [6, 0, 3, 3, 2]
    assert plain(rows.read(wanted)) == [expected(eos=kind != "list")[row] for row in wanted]
    assert len(rows) == 7
    assert rows.lengths().tolist() == [len(one[0]) for one in expected(eos=kind != "list")]
    assert rows.domains().tolist() == [domain for _, domain in WANTED]
    again = pickle.loads(pickle.dumps(rows))
    assert plain(again.read(wanted)) == plain(rows.read(wanted))
    assert again.fingerprint() == rows.fingerprint()
    with pytest.raises(DataError, match="no row 7; its rows are 0 to 6"):
        rows.read([7])


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "list"])
def test_rows_of_ids(tmp_path: Path, kind: str) -> None:
    records = [{"input_ids": [n] * n, "text": "\u00e9" * n, "n_bytes": 99 if n == 2 else None} for n in range(4)]
    made = {"jsonl": write_lines, "parquet": write_table, "list": lambda path, records: records}[kind]
    rows = open_rows(made(tmp_path / f"a.{kind}", records))
    assert plain(rows.read(range(4))) == [([n] * n, "", 99 if n == 2 else 2 * n) for n in range(4)]
    assert rows.domains() is None


def test_rows_of_ids_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('input_ids,n_bytes,domain\n"[1, 2]",7,code\n[3],,\n')
    assert plain(list(open_rows(tmp_path / "a.csv"))) == [([1, 2], "code", 7), ([3], "", None)]
    for cell, message in (("word", "holds"), ("[1],x", "'n_bytes' is 'x'"), ("[1],-1", "'n_bytes' is '-1'")):
        (tmp_path / "a.csv").write_text(f"input_ids,n_bytes\n{cell if ',' in cell else cell + ','}\n")
        with pytest.raises(DataError, match=rf"a\.csv:2: {message}"):
            list(open_rows(tmp_path / "a.csv"))


def test_many_files_are_one_corpus(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", RECORDS[:2])
    write_lines(tmp_path / "b.jsonl", [])
    write_table(tmp_path / "c.parquet", RECORDS[2:])
    rows = open_rows(tmp_path, golden.tokenizer())
    assert plain(rows.read([5, 0, 2, 1, 6])) == [expected()[row] for row in (5, 0, 2, 1, 6)]
    assert len(rows) == 7


def test_rows_in_memory_shards_and_sources_as_they_are() -> None:
    assert isinstance(open_rows(golden.SHARDS), Shards)
    for given in ([[1, 2], [3]], [np.array([1, 2]), np.array([3])], [Row(np.array([1, 2])), Row(np.array([3]))]):
        rows = open_rows(given)
        assert isinstance(rows, MemoryRows)
        assert [one[0] for one in plain(rows.read([0, 1]))] == [[1, 2], [3]]
    assert len(open_rows([])) == 0
    for source in (rows, StreamRows(iter([]))):
        assert open_rows(source) is source


def test_empty_texts_keep_their_row(tmp_path: Path) -> None:
    rows = open_rows(write_lines(tmp_path / "a.jsonl", ["a", "", "b"]), golden.tokenizer())
    assert [len(row.ids) for row in rows.read([0, 1, 2])] == [2, 1, 2]


def test_fingerprints_change_with_content_tokenizer_and_options(tmp_path: Path) -> None:
    one, two = golden.tokenizer(), golden.tokenizer("tok_b")
    file = write_lines(tmp_path / "a.jsonl")
    found = [open_rows(file, tokenizer).fingerprint() for tokenizer in (one, one, two)]
    found.append(open_rows(file, one, add_eos=False).fingerprint())
    write_lines(file, RECORDS[:6])
    found.append(open_rows(file, one).fingerprint())
    assert found[0] == found[1]
    assert len({json.dumps(one) for one in found}) == 4
    before = tokenizer_digest(one)
    one(["a", "long text"], truncation=True, max_length=1)
    assert tokenizer_digest(one) == before


def test_rows_that_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl:1: is text; pass tokenizer="):
        open_rows(write_lines(tmp_path / "a.jsonl")).read([0])
    with pytest.raises(DataError, match="record 0: holds float64"):
        open_rows([{"input_ids": [0.5]}]).read([0])
    with pytest.raises(DataError, match="add_bos needs a tokenizer with a token bos"):
        open_rows(["text"], golden.tokenizer(), add_bos=True)
    (tmp_path / "b.jsonl").write_text('"a"\n{\n')
    with pytest.raises(DataError, match=r"b\.jsonl:2: is not JSON"):
        open_rows(tmp_path / "b.jsonl", golden.tokenizer()).read([1])


def test_special_tokens_on_request() -> None:
    rows = open_rows(["ab"], golden.tokenizer("tok_b"), add_bos=True, add_eos=True)
    assert rows.read([0])[0].ids.tolist() == [0, *encode(golden.tokenizer("tok_b"), ["ab"])[0], 1]


# -- streams -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gzip", "streamed dataset", "generator"])
def test_streams_are_read_in_order(tmp_path: Path, kind: str) -> None:
    rows = open_rows(SOURCES[kind](tmp_path), golden.tokenizer())
    assert isinstance(rows, StreamRows)
    with pytest.raises(TypeError, match="has no length before it was read to its end"):
        len(rows)
    assert plain(list(rows)) == expected()
    assert len(rows) == 7


@pytest.mark.parametrize("kind", ["gzip", "streamed dataset"])
def test_parts_of_a_stream_and_back(tmp_path: Path, kind: str) -> None:
    made = SOURCES[kind](tmp_path)
    for worker in (0, 1):
        rows = open_rows(made, golden.tokenizer())
        units = [plain(list(rows.iterate(start, start + 2))) for start in range(2 * worker, 8, 4)]
        assert units == [expected()[start : start + 2] for start in range(2 * worker, 8, 4)]
        assert plain(list(rows.iterate(1, 3))) == expected()[1:3]  # back
        assert plain(list(pickle.loads(pickle.dumps(rows)).iterate(6))) == expected()[6:]
    rows = open_rows(made, golden.tokenizer())
    assert list(rows.iterate(50, 60)) == []
    if kind == "streamed dataset":  # it skipped to behind its end, which says nothing about where that is
        with pytest.raises(TypeError, match="no length"):
            len(rows)
    assert plain(list(rows.iterate(5))) == expected()[5:]
    assert len(rows) == 7


def test_skipped_rows_are_not_tokenized_and_not_read_again() -> None:
    class Source:
        skipped, begun = (), 0

        def __init__(self, first: int = 0) -> None:
            self.first = first

        def __iter__(self):
            Source.begun += 1
            return iter([[n] for n in range(self.first, 10)])

        def skip(self, count: int):
            Source.skipped += (count,)
            return Source(count)

    rows = StreamRows(Source())
    assert [row.ids.tolist() for start in (4, 8) for row in rows.iterate(start, start + 2)] == [[4], [5], [8], [9]]
    assert (Source.skipped, Source.begun) == ((4,), 1)
    assert [row.ids.tolist() for row in rows.iterate(9)] == [[9]]
    assert len(rows) == 10
    counted = []

    def tokenizer(texts, **_):
        counted.extend(texts[1:])
        return {"input_ids": [[] for _ in texts]}

    list(StreamRows(map(str, range(600)), tokenizer).iterate(590, 593))
    assert counted == ["590", "591", "592"]


@pytest.mark.parametrize("kind", ["gzip", "streamed dataset"])
def test_rows_of_a_stream_at_any_place(tmp_path: Path, kind: str) -> None:
    rows = open_rows(SOURCES[kind](tmp_path), golden.tokenizer())
    assert isinstance(rows, RowSource)
    assert plain(rows.read([5, 0, 1, 5])) == [expected()[n] for n in (5, 0, 1, 5)]
    with pytest.raises(DataError, match="has no row 7"):
        rows.read([6, 7])
    fresh = open_rows(SOURCES[kind](tmp_path), golden.tokenizer())
    assert count_rows(fresh) == len(fresh) == 7
    assert fresh.lengths().tolist() == [len(row.ids) for row in fresh]
    assert fresh.domains().tolist() == [domain for _, domain in WANTED]
    assert count_rows(MemoryRows([[1], [2]])) == 2


def test_two_readers_of_a_stream_do_not_mix_their_rows() -> None:
    rows = StreamRows([[n] for n in range(600)])
    pairs = list(zip(rows.iterate(0, 300), rows.iterate(300, 600), strict=True))
    assert [(int(one.ids[0]), int(two.ids[0])) for one, two in pairs] == [(n, n + 300) for n in range(300)]


def test_a_generator_cannot_go_back() -> None:
    rows = StreamRows(iter([[1], [2], [3]]))
    assert [row.ids.tolist() for row in rows.iterate(1, 2)] == [[2]]
    with pytest.raises(DataError, match="can be read only once"):
        list(rows.iterate(0, 1))
    with pytest.raises(DataError, match="rows 2 to 1 of"):
        list(rows.iterate(2, 1))


def test_a_packed_corpus_and_its_texts_agree(tmp_path: Path) -> None:
    pack(read_documents(RECORDS), golden.tokenizer(), tmp_path, max_length=512)
    found = {row.domain: row.n_bytes for row in open_rows(tmp_path).read([0, 1])}
    assert found == {name: sum(len(text.encode()) for text, domain in WANTED if domain == name) for name in "ab"}
