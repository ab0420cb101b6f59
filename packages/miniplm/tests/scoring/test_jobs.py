"""Scoring folders: units, workers that come and go, killed runs, refusals; and differences of two of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import warnings
from pathlib import Path

import golden_miniplm as golden
import numpy as np
import pytest
import torch
from paperhooks import DataError
from paperhooks.testing import Child, Processes
from paperhooks_miniplm import LogLikelihood, MemoryRows, Row, Scores, ScoringWarning, diff, open_rows, plan, score
from paperhooks_miniplm.scoring.scores import stop_if_bad

CHUNKS = golden.packing()["a_no_bos"]["chunks"]
STORED = {name: each.numpy() for name, each in golden.scores().items()}
QUICK = {"end": 0, "max_length": 64, "progress": False}

SCRIPT = """
import os, sys, time, json, numpy as np, torch
torch.set_num_threads(1)
sys.path.insert(0, {tests!r})
import golden_miniplm as golden
from paperhooks_miniplm import MemoryRows
from paperhooks_miniplm import score
from paperhooks_miniplm.scoring import likelihood as scoring
slow = float(sys.argv[2])
plain = scoring.LogLikelihood.score
def score_slowly(self, rows, *, first=0):
    time.sleep(slow)
    return plain(self, rows, first=first)
scoring.LogLikelihood.score = score_slowly
rows = MemoryRows(golden.packing()["a_no_bos"]["chunks"][:300])
score(golden.fresh("ref"), rows, sys.argv[1], end=0, max_length=64, unit_rows=32, progress=False)
"""


def start(processes: Processes, folder: Path, count: int, slow: float = 0.0) -> list[Child]:
    """So many workers, each of which knows its number and nothing of the others."""
    script = SCRIPT.format(tests=str(Path(__file__).parents[1]))
    return [
        processes.start(
            "-c", script, folder, slow, name=f"worker {rank} of {count}",
            environment={"RANK": str(rank), "WORLD_SIZE": str(count)},
        )
        for rank in range(count)
    ]  # fmt: skip


def work(folder: Path, count: int) -> None:
    """Let so many workers work to their end."""
    with Processes() as processes:
        start(processes, folder, count)
        processes.wait()


def units(folder: Path) -> list[Path]:
    return sorted((folder / "units").glob("unit-*.safetensors"))


def test_scores_and_differences_are_the_official_ones(tmp_path: Path) -> None:
    rows = MemoryRows(CHUNKS)
    found = {
        name: score(golden.fresh(name), rows, tmp_path / name, unit_rows=500, **QUICK) for name in ("teacher", "ref")
    }
    for name, one in found.items():
        np.testing.assert_allclose(one.values(), STORED[f"{name}_nll"], atol=2e-5)
        assert one.count.tolist() == STORED["scored_tokens"].tolist()
    difference = diff(tmp_path / "teacher", tmp_path / "ref")
    np.testing.assert_allclose(difference.values, STORED["diff"], atol=4e-5)
    assert difference.values.dtype == np.float32
    assert difference.unscored == 0
    sums = diff(found["teacher"], found["ref"], "sum").values
    np.testing.assert_allclose(sums, STORED["diff"] * STORED["scored_tokens"], atol=4e-3)
    with pytest.warns(ScoringWarning, match="are the roles swapped"):
        diff(found["ref"], found["teacher"])
    with pytest.warns(ScoringWarning, match="the same model"):
        diff(found["ref"], found["ref"])


def test_a_finished_run_is_not_run_again_and_others_are_refused(tmp_path: Path) -> None:
    rows, model = MemoryRows(CHUNKS[:40]), golden.fresh("ref")
    found = score(model, rows, tmp_path, unit_rows=16, **QUICK)
    before = {file: file.stat().st_mtime_ns for file in units(tmp_path)}
    calls = []
    handle = model.register_forward_pre_hook(lambda m, a, k: calls.append(1), with_kwargs=True)
    again = score(model, rows, tmp_path, unit_rows=16, **QUICK)
    handle.remove()
    assert len(calls) <= 1  # the head is proven once
    assert np.array_equal(again.nll, found.nll)
    assert {file: file.stat().st_mtime_ns for file in units(tmp_path)} == before
    for change, word in (
        ({"rows": MemoryRows(CHUNKS[1:41])}, "corpus"),
        ({"model": golden.fresh("teacher")}, "model"),
        ({"max_length": 32}, "max_length"),
        ({"mask_after_end": False}, "end"),
        ({"unit_rows": 8}, "unit_rows"),
    ):
        given = {"model": model, "rows": rows, "out": tmp_path, "unit_rows": 16, **QUICK, **change}
        with pytest.raises(DataError, match=rf"holds likelihoods of another run: .*{word}\S* = "):
            score(**given)


def test_equal_weights_under_another_config_are_refused(tmp_path: Path) -> None:
    model, rows = golden.fresh("ref"), MemoryRows(CHUNKS[:4])
    found = score(model, rows, tmp_path, **QUICK)
    model.config.rms_norm_eps = 0.1
    with pytest.raises(DataError, match=r"under another config: rms_norm_eps = \S+, not 0.1; use another folder"):
        score(model, rows, tmp_path, **QUICK)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["about"]["config"]  # as earlier versions wrote it
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert np.array_equal(score(model, rows, tmp_path, **QUICK).nll, found.nll)


def test_a_damaged_unit_is_made_again(tmp_path: Path) -> None:
    rows, model = MemoryRows(CHUNKS[:40]), golden.fresh("ref")
    found = score(model, rows, tmp_path, unit_rows=16, **QUICK)
    (tmp_path / "scores.safetensors").unlink()
    broken = units(tmp_path)[1]
    broken.write_bytes(broken.read_bytes()[:50])
    with pytest.raises(DataError, match="expected merged scores; score the corpus to its end"):
        Scores.load(tmp_path)
    assert np.array_equal(score(model, rows, tmp_path, unit_rows=16, **QUICK).nll, found.nll)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match="is no manifest of likelihoods"):
        Scores.load(tmp_path)


@pytest.mark.parametrize("which", ["unit", "merged"])
def test_a_flipped_bit_never_gives_other_scores(tmp_path: Path, which: str) -> None:
    rows, model = MemoryRows(CHUNKS[:40]), golden.fresh("ref")
    found = score(model, rows, tmp_path, unit_rows=16, **QUICK)
    merged = tmp_path / "scores.safetensors"
    file = units(tmp_path)[0] if which == "unit" else merged
    wanted, raw = file.read_bytes(), bytearray(file.read_bytes())
    raw[-20] ^= 4
    file.write_bytes(raw)
    if which == "unit":
        merged.unlink()
    else:
        with pytest.raises(DataError, match="its checksum does not match"):
            Scores.load(tmp_path)
    assert np.array_equal(score(model, rows, tmp_path, unit_rows=16, **QUICK).nll, found.nll)
    assert file.read_bytes() == wanted, "equal runs give equal bytes"


@pytest.mark.parametrize("count", [2, 3])
def test_workers_share_a_corpus_without_waiting(tmp_path: Path, count: int) -> None:
    work(tmp_path, count)
    wanted = score(golden.fresh("ref"), MemoryRows(CHUNKS[:300]), tmp_path / "alone", unit_rows=32, **QUICK)
    assert np.array_equal(Scores.load(tmp_path).nll, wanted.nll)
    assert len(units(tmp_path)) == 10


def test_killed_workers_lose_one_unit_each_and_others_go_on(tmp_path: Path) -> None:
    """Two workers are killed in the middle; three go on; nothing is made twice, and the result is that of one."""
    with Processes() as processes:
        killed = start(processes, tmp_path, 2, slow=1.0)
        deadline = time.monotonic() + 120
        while len(units(tmp_path)) < 3 and time.monotonic() < deadline and any(c.status is None for c in killed):
            time.sleep(0.02)
        for child in killed:
            child.kill()
        assert [child.status for child in killed] == [-signal.SIGKILL] * 2, "\n".join(c.stderr for c in killed)
    kept = {file: file.stat().st_mtime_ns for file in units(tmp_path)}
    assert 3 <= len(kept) < 10
    assert not (tmp_path / "scores.safetensors").exists()
    work(tmp_path, 3)
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    wanted = score(golden.fresh("ref"), MemoryRows(CHUNKS[:300]), tmp_path / "alone", unit_rows=32, **QUICK)
    found = Scores.load(tmp_path)
    assert np.array_equal(found.nll, wanted.nll)
    assert np.array_equal(found.count, wanted.count)
    work(tmp_path, 1)  # and once more: nothing to do, and well


def test_half_written_files_of_killed_workers_are_deleted_by_the_next_run(tmp_path: Path) -> None:
    rows, model = MemoryRows(CHUNKS[:4]), golden.fresh("ref")
    score(model, rows, tmp_path, **QUICK)
    left = tmp_path / "units" / ".unit-000001.safetensors.part"
    left.write_bytes(b"half")
    score(model, rows, tmp_path, **QUICK)
    assert not left.exists()


def test_a_worker_that_wakes_up_in_the_folder_of_another_run_stops(tmp_path: Path) -> None:
    """It keeps to the identity it began with: it overwrites no unit and returns no score of the other model."""
    rows, folder = MemoryRows(CHUNKS[:40]), tmp_path / "scores"
    model = golden.fresh("ref")
    seen: list[bytes] = []

    def replaced(*_: object) -> None:
        if (folder / "manifest.json").exists() and not seen:
            shutil.rmtree(folder)
            score(golden.fresh("teacher"), rows, folder, unit_rows=16, **QUICK)
            seen.extend(file.read_bytes() for file in units(folder))

    handle = model.register_forward_pre_hook(replaced)
    with pytest.raises(DataError, match="belongs to another run by now"):
        score(model, rows, folder, unit_rows=16, **QUICK)
    handle.remove()
    assert [file.read_bytes() for file in units(folder)] == seen


def test_two_runs_on_one_folder_the_second_is_told_who_works(tmp_path: Path) -> None:
    rows, model, told = MemoryRows(CHUNKS[:4]), golden.fresh("ref"), []

    def second(*_: object) -> None:
        try:
            score(golden.fresh("ref"), rows, tmp_path, **QUICK)
        except DataError as error:
            told.append(str(error))

    handle = model.register_forward_pre_hook(lambda *a: second() if (tmp_path / "manifest.json").exists() else None)
    assert score(model, rows, tmp_path, **QUICK) is not None
    handle.remove()
    assert told
    assert f"is used by another run (process {os.getpid()} on " in told[0]


def test_addresses_are_no_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="s3://bucket/scores is an address"):
        score(golden.fresh("ref"), MemoryRows(CHUNKS[:4]), "s3://bucket/scores", **QUICK)
    assert not list(tmp_path.iterdir())


def test_streams_and_several_machines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match="can only be read in order, by one process"):
        score(golden.fresh("ref"), iter(CHUNKS[:4]), tmp_path, **QUICK)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    with pytest.raises(DataError, match=r"2 processes were launched, 1 of them .*--on datatrove, or ray"):
        score(golden.fresh("ref"), MemoryRows(CHUNKS[:4]), tmp_path, **QUICK)


def test_an_id_that_the_model_does_not_know_is_named_by_the_row_of_the_corpus(tmp_path: Path) -> None:
    rows = MemoryRows([*CHUNKS[:40], [5, 10**6]])
    with pytest.raises(DataError, match="row 40 has the id 1000000"):
        score(golden.fresh("ref"), rows, tmp_path, unit_rows=16, **QUICK)
    with pytest.raises(DataError, match="row 40 has the id 1000000"):
        plan({"ref": golden.fresh("ref")}, rows, max_length=64, sample_rows=41)


@pytest.mark.parametrize("n", [0, 1, 63])
def test_small_corpora(tmp_path: Path, n: int) -> None:
    found = score(golden.fresh("ref"), MemoryRows(CHUNKS[:n]), tmp_path, **QUICK)
    assert len(found) == n
    assert found.usable.all()


def test_rows_without_a_score_are_counted_and_many_stop_the_run(tmp_path: Path) -> None:
    rows = [[5], [0, 7], *CHUNKS[:6]]
    found = score(golden.fresh("ref"), MemoryRows(rows), tmp_path / "a", **QUICK)
    assert found.usable.tolist() == [False, False, *[True] * 6]
    assert np.isnan(found.values()[:2]).all()
    broken = golden.fresh("ref")
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DataError, match=r"6 rows gave NaN or infinity, more than 0\.1% of the corpus"):
            score(broken, MemoryRows(rows), tmp_path / "b", **QUICK)


def test_bytes_allow_other_tokenizers(tmp_path: Path) -> None:
    texts = ["one two", "three", "four five six"]
    known = [
        MemoryRows([Row(np.arange(1, 1 + n), n_bytes=len(t)) for t, n in zip(texts, lengths, strict=True)])
        for lengths in ((4, 3, 6), (5, 4, 7))
    ]
    found = [
        score(golden.fresh(name), rows, tmp_path / name, **QUICK)
        for name, rows in zip(("teacher", "ref"), known, strict=True)
    ]
    with pytest.raises(DataError, match="the scores differ in corpus"):
        diff(*found)
    values = diff(*found, "per_byte").values
    wanted = [(found[1].nll[i] - found[0].nll[i]) / len(text) for i, text in enumerate(texts)]
    np.testing.assert_allclose(values, wanted, rtol=1e-6)
    other = Scores(found[1].nll, found[1].count, found[1].n_bytes + 1, found[1].manifest)
    with pytest.raises(DataError, match="row 0 has another number of bytes"):
        diff(found[0], other, "per_byte")
    unknown = Scores(found[1].nll, found[1].count, np.full(3, -1), found[1].manifest)
    with pytest.raises(DataError, match="row 0 has no byte count"):
        unknown.values("per_byte")
    with pytest.raises(DataError, match="normalize is 'max'"):
        unknown.values("max")
    with pytest.raises(DataError, match="the teacher scored 3 rows and the reference 2"):
        diff(found[0], Scores(found[1].nll[:2], found[1].count[:2], found[1].n_bytes[:2]))


def test_per_byte_leaves_out_rows_of_which_only_a_part_was_scored(tmp_path: Path) -> None:
    texts = ["a short one. " * 2, "a short one. " * 40, ""]
    rows = open_rows(texts, golden.tokenizer())
    found = score(golden.fresh("ref"), rows, tmp_path / "cut", **QUICK)
    assert found.cut.tolist() == [False, True, False]
    assert np.isnan(found.values("per_byte")).tolist() == [False, True, True]
    assert np.isfinite(found.values()).tolist() == [True, True, False]
    with pytest.warns(ScoringWarning, match="1 of 3 rows were cut"):
        diff(found, found, "per_byte")
    whole = score(golden.fresh("ref"), rows, tmp_path / "split", over_long="split", **QUICK)
    assert np.isnan(whole.values("per_byte")).tolist() == [False, False, True]
    assert whole.values("per_byte")[1] == pytest.approx(whole.nll[1] / len(texts[1]))


def test_rows_without_a_score_are_judged_against_the_corpus_whatever_the_units(tmp_path: Path, monkeypatch) -> None:
    plain = LogLikelihood.score

    def broken(self, rows, *, first=0):
        found = plain(self, rows, first=first)
        found.nll[[number for number in range(len(rows)) if first + number in (0, 1)]] = np.nan
        return found

    monkeypatch.setattr(LogLikelihood, "score", broken)
    rows = MemoryRows([[5, 6 + n % 50] for n in range(3000)])
    for size in (10, 3000):
        found = score(golden.fresh("ref"), rows, tmp_path / str(size), **{**QUICK, "unit_rows": size})
        assert int((~found.usable).sum()) == 2
    with pytest.raises(DataError, match=r"2 rows gave NaN or infinity, more than 0\.1%"):
        score(golden.fresh("ref"), MemoryRows([[5, 6]] * 100), tmp_path / "few", **QUICK)
    assert score(golden.fresh("ref"), MemoryRows([[5, 6]] * 100), tmp_path / "few", most_bad=0.1, **QUICK) is not None


def test_a_long_stream_goes_on_with_few_rows_without_a_score() -> None:
    stop_if_bad(11, 827_392, 0.001)
    with pytest.raises(DataError, match="11 rows gave NaN"):
        stop_if_bad(11, 10_000, 0.001)


def test_a_path_is_opened_and_overlap_is_warned_of_whoever_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in CHUNKS[:40]))
    options = {"unit_rows": 16, "trained_on": file, **QUICK}
    for same in (file, str(file)):
        options["trained_on"] = same
        with pytest.warns(ScoringWarning, match="40 rows of .* which the model was trained on"):
            score(golden.fresh("ref"), file, tmp_path / "out", **options)


def test_other_rows_of_the_same_number_are_not_subtracted() -> None:
    one, two = np.array([3.0, 4.0]), np.array([5, 6])
    with pytest.raises(DataError, match="row 1 has 6 tokens that count for the teacher and 7 for the reference"):
        diff(Scores(one, two, two), Scores(one, np.array([5, 7]), two))


def test_the_manifest_says_what_scores_were_made_with(tmp_path: Path) -> None:
    tokenizer = golden.tokenizer("tok_a")
    score(
        golden.fresh("ref"), MemoryRows(CHUNKS[:3]), tmp_path, tokenizer=tokenizer, max_length=64, progress=False,
        name="reference", trained_on=["shard 9"],
    )  # fmt: skip
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["end"] == 0
    assert manifest["dtype"] == "torch.float32"
    assert manifest["about"]["trained_on"] == ["shard 9"]
    assert len(manifest["tokenizer"]) == 64
    trained = MemoryRows([*CHUNKS[1:3], CHUNKS[7]])
    with pytest.warns(ScoringWarning, match="2 rows of in memory stand in in memory, which the model was trained on"):
        score(golden.fresh("ref"), MemoryRows(CHUNKS[:3]), tmp_path / "own", trained_on=trained, **QUICK)
    own = json.loads((tmp_path / "own" / "manifest.json").read_text())
    assert own["about"]["trained_on"] == trained.fingerprint()
    assert manifest["about"]["versions"]["torch"]
