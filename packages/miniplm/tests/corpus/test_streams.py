"""A stream from scores to training: what comes out is what the same rows give when they can be read at any place."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
from paperhooks import DataError
from paperhooks_miniplm import (
    SelectedDataset,
    Shards,
    StreamDataset,
    StreamRows,
    convert,
    diff,
    duplicates_of,
    export,
    load_selection,
    open_rows,
    report,
    score,
    select,
)
from torch.utils.data import DataLoader

ROWS = 90
OPTIONS = {"end": 0, "max_length": 64, "unit_rows": 16, "progress": False}


def records() -> list[dict]:
    return [
        {"input_ids": [int(one) for one in ids], "domain": "ab"[row % 2]}
        for row, ids in enumerate(golden.chunks()[:ROWS])
    ]


def files(folder: Path) -> tuple[Path, Path]:
    """The same records as a stream and as rows at any place."""
    lines = "".join(json.dumps(record) + "\n" for record in records())
    stream, plain = folder / "stream.jsonl.gz", folder / "rows.jsonl"
    with gzip.open(stream, "wt", encoding="utf-8") as handle:
        handle.write(lines)
    plain.write_text(lines, encoding="utf-8")
    return stream, plain


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """The stream, its rows, and the differences of both."""
    folder = tmp_path_factory.mktemp("stream")
    found = []
    for file in files(folder):
        for name in ("teacher", "ref"):
            assert score(golden.fresh(name), open_rows(file), folder / f"{file.name}-{name}", **OPTIONS) is not None
        found += [file, diff(folder / f"{file.name}-teacher", folder / f"{file.name}-ref")]
    return found


def test_scores_are_those_of_the_rows(scored) -> None:
    _, of_stream, _, of_rows = scored
    assert np.array_equal(of_stream.values, of_rows.values)
    assert len(of_stream) == ROWS


@pytest.mark.parametrize("size", [0, 5, 10, 20, 25])
def test_streams_that_end_with_a_unit_or_inside_one(tmp_path: Path, size: int) -> None:
    model, options = golden.fresh("ref"), {**OPTIONS, "unit_rows": 10}
    ids = [ids.tolist() for ids in golden.chunks()[:size]]
    found = [score(model, StreamRows(ids, name="s"), tmp_path, **options) for _ in range(2)]
    assert [len(scores) for scores in found] == [size, size]


def test_a_stream_is_known_by_its_beginning_too(tmp_path: Path) -> None:
    one, two = ([ids.tolist() for ids in golden.chunks()[start : start + 20]] for start in (0, 50))
    score(golden.fresh("ref"), StreamRows(iter(one)), tmp_path, **OPTIONS)
    with pytest.raises(DataError, match=r"of another run: corpus\.begins"):
        score(golden.fresh("ref"), StreamRows(iter(two)), tmp_path, **OPTIONS)
    assert StreamRows(iter(one), name="a").fingerprint() != StreamRows(iter(one), name="b").fingerprint()
    rows = StreamRows(iter(one))
    rows.fingerprint()
    assert [row.ids.tolist() for row in rows] == one, "looking at the beginning takes nothing away"


def test_a_file_is_known_by_its_content_wherever_it_lies(tmp_path: Path, monkeypatch) -> None:
    file, _ = files(tmp_path)
    (tmp_path / "moved").mkdir()
    known = open_rows(file).fingerprint()
    monkeypatch.chdir(tmp_path)
    assert open_rows(file.name).fingerprint() == known
    moved = file.rename(tmp_path / "moved" / "other.jsonl.gz")
    assert open_rows(moved).fingerprint() == known


def test_knowing_a_dataset_does_not_read_over_it() -> None:
    class Source:
        read = 0

        def __init__(self, first: int = 0) -> None:
            self.first = first

        def __iter__(self):
            for n in range(self.first, 5000):
                Source.read += 1
                yield [n]

        def skip(self, count: int):
            return Source(count)

    rows = StreamRows(Source())
    rows.fingerprint()
    assert [row.ids.tolist() for row in rows.iterate(4000, 4002)] == [[4000], [4001]]
    assert Source.read < 400


def test_what_can_be_read_once_is_not_copied() -> None:
    with pytest.raises(TypeError, match="cannot be copied"):
        pickle.dumps(StreamRows(iter([[1], [2]])))


def test_fields_that_are_not_used_may_be_broken(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    with gzip.open(file, "wt", encoding="utf-8") as handle:
        handle.write('{"input_ids": [1, 2], "text": "\\ud800"}\n')
    assert open_rows(file).fingerprint()["begins"]


def test_selections_are_exported_as_from_rows(scored, tmp_path: Path) -> None:
    stream, difference, plain, of_rows = scored
    domains = [open_rows(file).domains() for file in (stream, plain)]
    assert domains[0].tolist() == domains[1].tolist()
    chosen = select(difference, ratio=0.4, domains=domains[0], quota="domain")
    same = select(of_rows, ratio=0.4, domains=domains[0], quota="domain")
    assert chosen.rows.tolist() == same.rows.tolist()
    with pytest.raises(DataError, match="the scores are of another corpus"):
        export(chosen, open_rows(plain), tmp_path / "other")
    assert np.array_equal(duplicates_of(open_rows(stream)), duplicates_of(open_rows(plain)))
    for format in ("jsonl", "shards", "parquet"):
        outs = [
            export(selection, open_rows(file), tmp_path / f"{file.name}.{format}", format)
            for file, selection in ((stream, chosen), (plain, same))
        ]
        if format == "shards":
            assert len(Shards(outs[0])) == len(chosen)
        pairs = zip(*(sorted(out.rglob("*.bin")) if out.is_dir() else [out] for out in outs), strict=True)
        assert all(one.read_bytes() == two.read_bytes() for one, two in pairs)
    index = export(chosen, open_rows(stream), tmp_path / "index")
    assert load_selection(index, open_rows(stream)).rows.tolist() == chosen.rows.tolist()
    html = report(tmp_path / "report", chosen, difference, open_rows(stream))
    assert "Row" in html.read_text()
    pair = [
        list(convert(file, golden.tokenizer(), golden.tokenizer("tok_b"), rows=chosen.rows)) for file in (stream, plain)
    ]
    assert [row.ids.tolist() for row in pair[0]] == [row.ids.tolist() for row in pair[1]]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_trains_without_being_read_to_its_end_first(scored, workers: int) -> None:
    chosen = select(scored[1], ratio=0.3).rows
    data = StreamDataset(open_rows(scored[0]), chosen, block=3)
    with pytest.raises(TypeError):
        len(data.source)
    assert len(data) == len(chosen)
    loader = DataLoader(data, batch_size=None, num_workers=workers, timeout=120 if workers else 0)
    given = [item["input_ids"].tolist() for item in loader]
    assert sorted(given) == sorted(golden.chunks()[row].tolist() for row in chosen)
    if not workers:
        assert given == [golden.chunks()[row].tolist() for row in chosen]
    with pytest.raises(DataError, match="use StreamDataset"):
        SelectedDataset(open_rows(scored[0]), chosen)
    with pytest.raises(DataError, match="ascending"):
        StreamDataset(open_rows(scored[0]), chosen[::-1])
    assert len(StreamDataset(open_rows(scored[0]))) == ROWS
    mask = np.zeros(ROWS, dtype=bool)
    mask[[1, 5]] = True
    assert [item["input_ids"].tolist() for item in StreamDataset(open_rows(scored[0]), mask)] == [
        golden.chunks()[1].tolist(), golden.chunks()[5].tolist()
    ]  # fmt: skip
