"""Files that were cut or changed by a bit after they were written: named, never read as something else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paperhooks
import pytest
from paperhooks import Artefact
from paperhooks.data import Selection
from paperhooks.errors import PaperhooksError
from paperhooks.generation import CallableBackend
from paperhooks.reports import RunFolder
from paperhooks.testing import tiny_text
from paperhooks_evaluation import compare, rescore
from paperhooks_mathneuro import Statistics, collect, load_selection
from paperhooks_mathneuro import select as isolate
from paperhooks_miniplm import Difference, MemoryRows, MiniPLM, Scores, Shards, diff, export, score, write_shards
from paperhooks_miniplm import load_selection as rows_of
from test_two_runs import Echo

ROWS = [[1 + (i * j) % 90 for j in range(2, 9)] for i in range(24)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the packages write, made once."""
    folder = tmp_path_factory.mktemp("made")
    models = {"teacher": tiny_text(layers=2, seed=0), "reference": tiny_text(layers=2, seed=1)}
    write_shards(ROWS, folder / "corpus", identity={"made": "here"})
    rows = Shards(folder / "corpus")
    for name, model in models.items():
        score(model, rows, folder / name, end=0, max_length=16, unit_rows=8, progress=False)
    difference = diff(folder / "teacher", folder / "reference")
    difference.save(folder / "difference")
    paperhooks.score(models, rows, MiniPLM(end=0), out=folder / "core")
    chosen = paperhooks.select(MiniPLM(end=0), corpus=rows, ratio=0.5, out=folder / "selected", scores=folder / "core")
    export(chosen, rows, folder / "bitmap", "bitmap")
    sides = [collect(models["teacher"], part, progress=False) for part in (ROWS[:12], ROWS[12:])]
    sides[0].save(folder / "statistics")
    isolate(models["teacher"], *sides, ratio=0.1).save(folder / "recipe")
    data = {"target": ROWS[:12], "reference": ROWS[12:]}
    paperhooks.compress(models["teacher"], "mathneuro", data=data, out=folder / "compressed", ratio=0.1).undo()
    for name in ("one", "two"):
        backend = CallableBackend(lambda request: "yes")
        paperhooks.evaluate(backend, None, Echo(), data="x", out=folder / name, report=False)
    return folder


INDEX = "selected/selection.safetensors"
READS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "scores": ("teacher/scores.safetensors", lambda folder: Scores.load(folder / "teacher")),
    "manifest of scores": ("teacher/manifest.json", lambda folder: Scores.load(folder / "teacher")),
    "difference": ("difference.safetensors", lambda folder: Difference.load(folder / "difference.safetensors")),
    "index": (
        "selected/selection.safetensors",
        lambda folder: Selection.load(folder / "selected/selection.safetensors"),
    ),
    "bitmap": ("bitmap.safetensors", lambda folder: rows_of(folder / "bitmap.safetensors", Shards(folder / "corpus"))),
    "result": ("selected/result.json", lambda folder: RunFolder.open(folder / "selected")),
    "corpus index": ("corpus/data_0.idx", lambda folder: Shards(folder / "corpus").fingerprint()),
    "corpus ids": ("corpus/data_0.bin", lambda folder: Shards(folder / "corpus").fingerprint()),
    "corpus file": ("corpus/corpus.json", lambda folder: Shards(folder / "corpus").fingerprint()),
    "statistics": ("statistics.safetensors", lambda folder: Statistics.load(folder / "statistics.safetensors")),
    "recipe": ("recipe.safetensors", lambda folder: load_selection(folder / "recipe.safetensors")),
    "artefact": ("compressed/artefact.safetensors", lambda folder: Artefact.load(folder / "compressed")),
    "documents": ("one/documents.jsonl", lambda folder: rescore(folder / "one", Echo())),
    "samples": ("one/samples.jsonl", lambda folder: rescore(folder / "one", Echo())),
    "scores of documents": ("one/scores.csv", lambda folder: compare(folder / "one", folder / "two")),
    "core's scores": ("core/scores.safetensors", lambda folder: selected(folder, "core")),
}


def selected(folder: Path, scores: str) -> Selection:
    rows = Shards(folder / "corpus")
    return paperhooks.select(MiniPLM(end=0), corpus=rows, ratio=0.25, out=folder / "again", scores=folder / scores)


def digest(folder: Path, but: str) -> dict[str, bytes]:
    """What lies in a folder, but for one file."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {name: file.read_bytes() for file in files if (name := str(file.relative_to(folder))) != but}


DAMAGES = [(what, damage) for what in READS for damage in ("a bit", "half", "nothing left", "gone")]
DAMAGES.remove(("corpus file", "gone"))  # shards of other tools have none


@pytest.mark.parametrize(("what", "damage"), DAMAGES)
def test_damage_is_named_and_nothing_is_overwritten(made: Path, tmp_path: Path, what: str, damage: str) -> None:
    name, read = READS[what]
    folder = tmp_path / "copy"
    shutil.copytree(made, folder)
    assert read(folder) is not None, "whole, it can be read"
    shutil.rmtree(folder)
    shutil.copytree(made, folder)
    file = folder / name
    raw = bytearray(file.read_bytes())
    if damage == "a bit":
        # What a manifest says of the time and the versions decides nothing, so a change there does no harm.
        begin = raw.index(b'"unit_rows"') + 13 if file.name == "manifest.json" else len(raw) * 2 // 3
        text = file.suffix in (".json", ".jsonl", ".csv")
        if file.name == "result.json":
            begin = raw.index(b'"results"') + 13
        raw[next(i for i in range(begin, len(raw)) if chr(raw[i]).isdigit() or not text)] ^= 1
    file.write_bytes(raw[: {"a bit": None, "half": len(raw) // 2, "nothing left": 0, "gone": 0}[damage]])
    if damage == "gone":
        file.unlink()
    before = digest(folder, name)
    left = file.read_bytes() if file.exists() else None
    with pytest.raises(PaperhooksError) as caught:
        read(folder)
    assert file.name in str(caught.value) or file.parent.name in str(caught.value)
    assert {name: raw for name, raw in digest(folder, name).items() if not name.startswith("again")} == before
    assert (file.read_bytes() if file.exists() else None) == left


def test_responses_of_another_run_are_not_taken_for_its_own(tmp_path: Path) -> None:
    for name in ("one", "two"):
        backend = CallableBackend(lambda request: "yes", name)
        paperhooks.evaluate(backend, None, Echo(), data="x", out=tmp_path / name, report=False)
    shutil.copy(tmp_path / "two" / "samples.jsonl", tmp_path / "one" / "samples.jsonl")
    with pytest.raises(PaperhooksError, match="of another run"):
        rescore(tmp_path / "one", Echo())
    (tmp_path / "two" / "result.json").unlink()
    with pytest.raises(PaperhooksError, match="of another run"):
        paperhooks.evaluate(CallableBackend(lambda _: "no", "three"), None, Echo(), data="x", out=tmp_path / "two")


def test_a_folder_that_goes_away_in_the_middle_is_no_success(tmp_path: Path) -> None:
    asked = []

    def answer(request: object) -> str:
        asked.append(1)
        if len(asked) == 2:
            shutil.rmtree(tmp_path / "run")
        return "yes"

    with pytest.raises(PaperhooksError, match="run"):
        paperhooks.evaluate(CallableBackend(answer), None, Echo(), data="x", out=tmp_path / "run")


@pytest.mark.parametrize("link", [False, True])
def test_a_file_of_the_user_is_not_taken_for_responses(tmp_path: Path, link: bool) -> None:
    own = tmp_path / ("own.txt" if link else "run/samples.jsonl")
    own.parent.mkdir(exist_ok=True)
    own.write_text('{"my": "notes"}\nand no line end')
    if link:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "samples.jsonl").symlink_to(own)
    before = own.read_bytes()
    with pytest.raises(PaperhooksError, match=r"samples\.jsonl"):
        paperhooks.evaluate(CallableBackend(lambda request: "yes"), None, Echo(), data="x", out=tmp_path / "run")
    assert own.read_bytes() == before


def test_statistics_and_scores_of_other_models_are_refused(tmp_path: Path) -> None:
    one, other = tiny_text(layers=2, seed=0), tiny_text(layers=2, seed=5)
    sides = [collect(one, part, progress=False) for part in (ROWS[:12], ROWS[12:])]
    with pytest.raises(PaperhooksError, match="weights"):
        isolate(other, *sides, ratio=0.1)
    collect(one, ROWS, out=tmp_path / "side", progress=False)
    with pytest.raises(PaperhooksError, match="another run"):
        collect(other, ROWS, out=tmp_path / "side", progress=False)
    score(one, MemoryRows(ROWS), tmp_path / "scores", end=0, max_length=16, progress=False)
    with pytest.raises(PaperhooksError, match="model = "):
        score(other, MemoryRows(ROWS), tmp_path / "scores", end=0, max_length=16, progress=False)
    assert json.loads((tmp_path / "scores" / "manifest.json").read_text())["rows"] == 24
