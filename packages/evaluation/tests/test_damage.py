"""Run folders that were cut, edited, removed, or belong to somebody else: refused by name, and left as they are."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from evaluation_tasks import Echo, rows_of
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend, Request
from paperhooks.io import FolderLock
from paperhooks_evaluation import Document, Parsed, compare, evaluate, rescore

quick = partial(evaluate, report=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps([{"id": f"q{i}", "prompt": f"p{i}", "answer": "w1"} for i in range(6)]))
    return file


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Path:
    """A finished run."""
    evaluate(CallableBackend(lambda request: f"w1 {request.prompt}"), None, Echo(), data=data, out=tmp_path / "run")
    return tmp_path / "run"


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def halved(file: Path) -> None:
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[: len(lines) // 2]))


def flipped(file: Path, place: int) -> None:
    raw = bytearray(file.read_bytes())
    raw[place] ^= 4
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: halved(run / "documents.jsonl"), r"documents\.jsonl is not what the run wrote"),
        (lambda run: flipped(run / "documents.jsonl", 40), r"documents\.jsonl is not what the run wrote"),
        (lambda run: (run / "documents.jsonl").unlink(), r"documents\.jsonl cannot be read"),
        (lambda run: halved(run / "samples.jsonl"), r"samples\.jsonl was cut or removed: 3 documents have no row"),
        (lambda run: (run / "samples.jsonl").unlink(), r"samples\.jsonl was cut or removed: 6 documents"),
        (lambda run: flipped(run / "samples.jsonl", 250), r"samples\.jsonl, line 1: "),
    ],
)
def test_scoring_again_refuses_files_that_are_not_whole(run: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(run)
    before = content(run)
    with pytest.raises(DataError, match=said):
        rescore(run, Echo(), modes=["strict"])
    assert content(run) == before


def test_no_flipped_bit_of_a_response_is_read(run: Path) -> None:
    file = run / "samples.jsonl"
    whole, rows = file.read_bytes(), rows_of(run)
    for place in range(0, len(whole), 7):
        flipped(file, place)
        try:
            rescore(run, Echo(), report=False)
        except DataError:
            pass
        else:  # in the name of the sum, or in what the clock says and so on, with every answer as it was
            assert [row["reply"] for row in rows_of(run)] == [row["reply"] for row in rows], place
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["scores.csv", "results.json", "documents.jsonl"])
def test_comparing_refuses_files_that_were_changed(run: Path, name: str) -> None:
    shutil.copytree(run, run.parent / "other")
    assert compare(run, run.parent / "other").overall.n == 6
    whole = (run / name).read_text()
    (run / name).write_text(whole.replace("1.0", "0.0", 1) if "1.0" in whole else whole[:-20])
    with pytest.raises(DataError, match=rf"{name} is not what the run wrote"):
        compare(run, run.parent / "other")
    if name != "documents.jsonl":
        rescore(run, Echo(), report=False)
        assert compare(run, run.parent / "other").overall.delta == 0


# -- a folder in other hands -------------------------------------------------------------------------------------------


def test_a_folder_that_is_removed_in_the_middle_is_an_error(data: Path, tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        if request.prompt == "p2":
            shutil.rmtree(tmp_path / "run")
        return "w1"

    with pytest.raises(DataError, match="was removed or replaced while this run was using it"):
        quick(CallableBackend(answer), None, Echo(), data=data, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_samples_that_are_removed_in_the_middle_are_an_error(data: Path, tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        if request.prompt == "p2":
            (tmp_path / "run" / "samples.jsonl").unlink()
        return "w1"

    with pytest.raises(DataError, match=r"samples\.jsonl was cut or removed: \d documents have no row"):
        quick(CallableBackend(answer), None, Echo(), data=data, out=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()


def test_one_run_at_a_time_uses_a_folder(data: Path, run: Path) -> None:
    before = content(run)
    with FolderLock(run):
        for use in (
            lambda: quick(CallableBackend(lambda request: "w1"), None, Echo(), data=data, out=run),
            lambda: quick(CallableBackend(lambda request: "w1"), None, Echo(), data=data, out=run, force_new=True),
            lambda: rescore(run, Echo()),
        ):
            with pytest.raises(DataError, match=r"is used by another run \(process \d+ on "):
                use()
        assert compare(run, run).overall.n == 6, "reading is not blocked"
    assert content(run) == before
    rescore(run, Echo())


@pytest.mark.parametrize("text", ['{"id": "q0", "mine": 1}\n{"id": "torn', "my notes", '{"a": 1}\n', "[1]"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_of_the_user_is_never_changed(data: Path, tmp_path: Path, text: str, linked: bool) -> None:
    out = tmp_path / "run"
    out.mkdir()
    file = tmp_path / "mine.txt" if linked else out / "samples.jsonl"
    file.write_text(text)
    if linked:
        (out / "samples.jsonl").symlink_to(file)
    with pytest.raises(DataError, match=r"samples\.jsonl"):
        quick(CallableBackend(lambda request: "w1"), None, Echo(), data=data, out=out)
    assert file.read_text() == text


def test_a_link_to_samples_is_not_written_through(data: Path, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    halved(run / "samples.jsonl")
    before = (run / "samples.jsonl").read_bytes()
    (other / "samples.jsonl").symlink_to(run / "samples.jsonl")
    with pytest.raises(DataError, match="is a link"):
        quick(CallableBackend(lambda request: "w1"), None, Echo(), data=data, out=other)
    assert (run / "samples.jsonl").read_bytes() == before


def test_other_files_beside_the_samples_are_let_be(data: Path, run: Path) -> None:
    (run / "samples-old.jsonl").write_text("not ours")
    assert rescore(run, Echo()).headline.n == 6


# -- cells that spreadsheets would run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Formulas(Echo):
    def unit(self, document: Document) -> str:
        return f"@{document.id}"

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(response, rule="-1+1")


def test_cells_are_harmless_and_read_back_as_they_were(data: Path, tmp_path: Path) -> None:
    ids = ["=1+1", "+x", "-y", "@z", "'=a", "\tb", 'c"\r\nd', "-1"]
    data.write_text(json.dumps([{"id": key, "prompt": "p", "answer": "w1", "group": f"={key}"} for key in ids]))
    for name in ("a", "b"):
        quick(CallableBackend(lambda request: "w1" * 100_000), None, Formulas(), data=data, out=tmp_path / name)
    csv.field_size_limit(10**7)
    with (tmp_path / "a" / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    csv.field_size_limit(131072)
    for row in rows:
        assert not any(cell.startswith(("=", "+", "@", "\t")) or cell[:2] in ("-y", "-1+") for cell in row.values())
    found = compare(tmp_path / "a", tmp_path / "b")
    assert (found.overall.n, found.changed, {line.group for line in found.groups}) == (8, 0, {f"={key}" for key in ids})
