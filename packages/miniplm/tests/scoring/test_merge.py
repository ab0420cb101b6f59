"""Scores in parts put together: every row once, or an error that names file and row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from paperhooks import DataError
from paperhooks.testing import fresh_process, tiny_llama
from paperhooks_miniplm import (
    Parts,
    Scores,
    ScoringRun,
    ScoringSpec,
    ScoringWarning,
    diff,
    merge_parts,
    score,
    write_parts,
)
from paperhooks_miniplm.corpus.storage import Storage

RNG = np.random.default_rng(1)
ROWS = [RNG.integers(3, 60, RNG.integers(1, 20)) for _ in range(40)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of seven units."""
    folder = tmp_path_factory.mktemp("merge")
    tiny_llama().save_pretrained(folder / "model")
    write_parts(ROWS, folder / "parts", unit_rows=6, part_units=2)
    run = ScoringRun.begin(ScoringSpec(str(folder / "model"), end=2, max_length=64), folder / "parts", folder / "out")
    [run.score(number) for number in range(run.units)]
    return folder


@pytest.fixture
def scores(done: Path, tmp_path: Path) -> Path:
    """A copy of its scores, to be damaged."""
    folder = tmp_path / "scores"
    folder.mkdir()
    for file in (done / "out").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def unit(scores: Path, number: int) -> Path:
    (found,) = scores.glob(f"scores-{number:06d}-*.parquet")
    return found


def rewritten(file: Path, change: Callable[[pa.Table], pa.Table], to: Path | None = None) -> None:
    table = pq.read_table(file)
    pq.write_table(change(table).replace_schema_metadata(table.schema.metadata), to or file)


def shifted(by: float, column: str = "nll") -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_numpy() + by
        return table.set_column(
            table.column_names.index(column), column, pa.array(values.astype(table[column].type.to_pandas_dtype()))
        )

    return change


def test_it_is_the_folder_of_a_plain_run(done: Path, tmp_path: Path) -> None:
    report = merge_parts(done / "out", done / "parts", tmp_path / "merged")
    plain = score(
        tiny_llama(), Parts(done / "parts"), tmp_path / "plain", end=2, max_length=64, unit_rows=6, progress=False
    )
    assert (report.rows, report.duplicates, report.unscored, report.cut) == (40, 0, 0, 0)
    folders = tmp_path / "merged", tmp_path / "plain"
    one, other = ((each / "scores.safetensors").read_bytes() for each in folders)
    assert one == other
    assert report.scores.manifest["run"] == plain.manifest["run"]
    with pytest.warns(ScoringWarning, match="all differences are 0"):
        difference = diff(*folders)
    assert difference.values.tolist() == [0.0 if count else pytest.approx(np.nan, nan_ok=True) for count in plain.count]
    # The plain run takes the folder for its own.
    again = score(tiny_llama(), Parts(done / "parts"), tmp_path / "merged", end=2, max_length=64, unit_rows=6)
    assert again.nll.tolist() == plain.nll.tolist()


def test_rows_that_stand_twice_and_agree_are_counted(done: Path, scores: Path, tmp_path: Path) -> None:
    """The file whose name sorts first is taken, here the old one."""
    rewritten(unit(scores, 3), shifted(5e-5), scores / "z.parquet")
    report = merge_parts(scores, done / "parts", tmp_path / "merged")
    assert report.duplicates == 6
    whole = merge_parts(done / "out", done / "parts", tmp_path / "whole")
    assert report.scores.nll.tolist() == whole.scores.nll.tolist()


@pytest.mark.parametrize(("column", "by"), [("nll", 0.01), ("count", 1), ("n_bytes", 4)])
def test_rows_that_stand_twice_and_disagree_are_named(
    done: Path, scores: Path, tmp_path: Path, column: str, by: float
) -> None:
    rewritten(unit(scores, 3), lambda table: shifted(by, column)(table).slice(2, 2), scores / "z.parquet")
    with pytest.raises(DataError, match=rf"row 20 stands twice .* in .*z.parquet and in .*{unit(scores, 3).name}"):
        merge_parts(scores, done / "parts", tmp_path / "merged")
    assert not (tmp_path / "merged" / "scores.safetensors").exists()


def test_scores_in_parts_are_told_to_be_put_together(scores: Path) -> None:
    with pytest.raises(DataError, match=r"holds scores in parts; put them together with: paperhooks miniplm merge"):
        Scores.load(scores)


def test_missing_rows_are_named_with_their_units(done: Path, scores: Path, tmp_path: Path) -> None:
    for number in (1, 6):
        unit(scores, number).unlink()
    with pytest.raises(
        DataError, match=r"10 of 40 rows have no scores .*unit 1 \(rows 6 to 11\), unit 6 \(rows 36 to 39\);"
    ):
        merge_parts(scores, done / "parts", tmp_path / "merged")


def test_a_file_with_changed_bytes_is_named(done: Path, scores: Path, tmp_path: Path) -> None:
    file = unit(scores, 2)
    raw = bytearray(file.read_bytes())
    raw[60:70] = bytes(255 - each for each in raw[60:70])
    file.write_bytes(raw)
    with pytest.raises(DataError, match=rf"{file.name} cannot be read \(rows 12 to 17\)"):
        merge_parts(scores, done / "parts", tmp_path / "merged")


@pytest.mark.parametrize("column", ["row", "count", "n_bytes", "cut"])
def test_a_file_with_nulls_is_named(done: Path, scores: Path, tmp_path: Path, column: str) -> None:
    def holed(table: pa.Table) -> pa.Table:
        values = [None, *table[column].to_pylist()[1:]]
        return table.set_column(table.column_names.index(column), column, pa.array(values, table[column].type))

    rewritten(unit(scores, 2), holed)
    with pytest.raises(DataError, match=rf"\(rows 12 to 17\): its column {column} has nulls; delete it, score again"):
        merge_parts(scores, done / "parts", tmp_path / "merged")


def test_a_file_under_the_name_of_another_unit_is_named(done: Path, scores: Path, tmp_path: Path) -> None:
    one, other = unit(scores, 1), unit(scores, 2)
    one.replace(other)
    with pytest.raises(DataError, match=rf"{other.name} is {one.name} under another name; delete it, score again"):
        merge_parts(scores, done / "parts", tmp_path / "merged")


def test_files_of_other_runs_are_named(done: Path, scores: Path, tmp_path: Path) -> None:
    other = pa.table({"row": [0], "nll": [0.0]}).replace_schema_metadata(
        {"paperhooks": '{"run": "0123456789abcdef", "unit": 2}'}
    )
    pq.write_table(other, scores / "stray.parquet")
    with pytest.raises(
        DataError,
        match=r"stray.parquet \(rows 12 to 17\) holds scores of another run, 0123456789ab, not of \w+; move it away$",
    ):
        merge_parts(scores, done / "parts", tmp_path / "merged")
    pq.write_table(other.replace_schema_metadata({}), scores / "stray.parquet")
    with pytest.raises(DataError, match="holds scores of another run, None"):
        merge_parts(scores, done / "parts", tmp_path / "merged")


def test_rows_outside_of_the_corpus_are_named(done: Path, scores: Path, tmp_path: Path) -> None:
    rewritten(unit(scores, 6), shifted(1, "row"))
    with pytest.raises(DataError, match=rf"{unit(scores, 6).name} has row 40; .*parts has 40"):
        merge_parts(scores, done / "parts", tmp_path / "merged")


def test_another_corpus_is_named(done: Path, scores: Path, tmp_path: Path) -> None:
    write_parts(ROWS[::-1], tmp_path / "other", unit_rows=6)
    with pytest.raises(DataError, match=r"holds scores of another corpus than .*other: corpus\.sha256"):
        merge_parts(scores, tmp_path / "other", tmp_path / "merged")
    with pytest.raises(DataError, match=r"run\.json is not there"):
        merge_parts(done / "parts", done / "parts", tmp_path / "merged")


def test_a_changed_run_file_is_no_run(done: Path, scores: Path, tmp_path: Path) -> None:
    known = json.loads((scores / "run.json").read_text())
    known["identity"]["max_length"] = 5
    (scores / "run.json").write_text(json.dumps(known))
    with pytest.raises(DataError, match="is no run of scores, or was changed"):
        merge_parts(scores, done / "parts", tmp_path / "merged")


def test_too_many_rows_without_a_score_are_refused(done: Path, scores: Path, tmp_path: Path) -> None:
    rewritten(unit(scores, 0), shifted(np.nan))
    with pytest.raises(DataError, match="6 rows gave NaN or infinity"):
        merge_parts(scores, done / "parts", tmp_path / "merged")
    report = merge_parts(scores, done / "parts", tmp_path / "merged", most_bad=0.5)
    assert (report.unscored, int((~np.isfinite(report.scores.nll)).sum())) == (6, 6)


def test_a_merge_that_fails_leaves_the_last_one(done: Path, scores: Path, tmp_path: Path) -> None:
    merge_parts(scores, done / "parts", tmp_path / "merged")
    before = (tmp_path / "merged" / "scores.safetensors").read_bytes()
    unit(scores, 1).unlink()
    with pytest.raises(DataError, match="6 of 40 rows"):
        merge_parts(scores, done / "parts", tmp_path / "merged")
    assert (tmp_path / "merged" / "scores.safetensors").read_bytes() == before
    assert len(Scores.load(tmp_path / "merged")) == 40


MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from paperhooks.io import hash_json
from paperhooks.testing import print_peak
from paperhooks_miniplm import merge_parts

folder, unit = Path(sys.argv[1]), 250_000

def run_of(units):
    place = folder / str(units)
    place.mkdir()
    index = {"schema": 1, "kind": "parts of a corpus", "rows": units * unit, "unit_rows": unit, "part_units": 1,
             "corpus": {}, "identity": "", "parts": []}
    (place / "parts.json").write_text(json.dumps(index))
    identity = {"corpus": {}, "rows": units * unit, "unit_rows": unit}
    known = {"kind": "scores in parts", "run": hash_json(identity), "identity": identity, "about": {}}
    (place / "run.json").write_text(json.dumps(known))
    values, marks = np.ones(unit, "i8"), {"paperhooks": json.dumps({"run": known["run"]})}
    for number in range(units):
        rows = np.arange(number * unit, (number + 1) * unit)
        columns = {"row": rows, "nll": values * 1.5, "count": values, "n_bytes": values, "cut": values == 0}
        pq.write_table(pa.table(columns).replace_schema_metadata(marks), place / f"{number:03d}.parquet")
    return place

few, many = run_of(4), run_of(24)
merge_parts(few, few, folder / "few")  # what a piece takes is there
print_peak(lambda: merge_parts(many, many, folder / "many"))
"""


def test_memory_does_not_grow_with_the_scores(tmp_path: Path) -> None:
    """150 MB of scores of 6 million rows take little more than those of a million: a byte a row."""
    script = tmp_path / "script.py"
    script.write_text(MEASURE)
    found = fresh_process(script, str(tmp_path))
    assert (tmp_path / "many" / "scores.safetensors").stat().st_size > 150e6
    assert found["mib"] < 60, found


def test_scores_of_the_hub_or_a_bucket_are_named_by_their_address(done: Path, tmp_path: Path) -> None:
    address = f"memory://{tmp_path.name}/scores"
    storage = Storage(address)
    for file in (done / "out").iterdir():
        with storage.staged(file.name) as staged:
            staged.write_bytes(file.read_bytes())
    assert merge_parts(address, done / "parts", tmp_path / "merged").rows == 40
    with pytest.raises(DataError, match=re.escape("is an address")):
        merge_parts(address, done / "parts", address)
