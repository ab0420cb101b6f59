"""Units of a run over parts: the numbers of a plain run, wherever and however often they are made."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from paperhooks import DataError
from paperhooks.testing import fingerprint, tiny_llama
from paperhooks_miniplm import FlatIds, MemoryRows, Parts, ScoringRun, ScoringSpec, score, score_rows, write_parts
from paperhooks_miniplm.scoring import LogLikelihood, Scorer

RNG = np.random.default_rng(1)
ROWS = [RNG.integers(3, 60, RNG.integers(1, 30)) for _ in range(40)]
OPTIONS = {"end": 2, "max_length": 24}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, another one, and a corpus in parts."""
    folder = tmp_path_factory.mktemp("runs")
    tiny_llama().save_pretrained(folder / "model")
    tiny_llama(seed=1).save_pretrained(folder / "other")
    write_parts([row.tolist() for row in ROWS], folder / "parts", unit_rows=6, part_units=2)
    return folder


def begun(place: Path, out: Path | str, model: str = "model", **options) -> ScoringRun:
    return ScoringRun.begin(ScoringSpec(str(place / model), **(OPTIONS | options)), place / "parts", out)


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.parquet"))}


def test_rows_are_scored_as_by_the_plain_likelihood(place: Path) -> None:
    spec = ScoringSpec(str(place / "model"), **OPTIONS)
    scorer = spec.open()
    assert spec.open() is scorer
    before = fingerprint(scorer.likelihood.model)
    found = score_rows(scorer, FlatIds.joined(ROWS))
    known = LogLikelihood(tiny_llama(), 2, 24).score(ROWS)
    assert {name: column.tolist() for name, column in found.items()} == {
        "nll": known.nll.tolist(), "count": known.count.tolist(), "cut": known.cut.tolist(),
    }  # fmt: skip
    assert found["cut"].any()
    assert fingerprint(scorer.likelihood.model) == before


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("end", "</s>"),
        ("end", True),
        ("end", [2]),
        ("max_length", 16.5),
        ("mask_after_end", "no"),
        ("batch_tokens", "9"),
    ],
)
def test_options_of_another_kind_are_refused(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option} is {re.escape(repr(value))}; expected"):
        ScoringSpec("model", **{option: value})


def test_a_model_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    """A decoder that was saved without its head gets a random one."""
    tiny_llama().model.save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"has no weights of lm_head\.weight, which would be random"):
        ScoringSpec(str(tmp_path), **OPTIONS).open()


def test_a_model_is_loaded_once_a_process(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    loaded = []
    plain = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: loaded.append(a) or plain(*a, **k))
    for length in (20, 22):
        run = begun(place, f"memory://once{length}", "other", max_length=length)
        [run.score(number) for number in run.missing()]
    assert len(loaded) == 1


def test_a_folder_with_new_weights_is_another_model_to_the_next_run(tmp_path: Path, place: Path) -> None:
    """As of checkpoints that a training writes to one folder, one after another, each scored by the same process."""
    shutil.copytree(place / "model", tmp_path / "checkpoint")
    spec = ScoringSpec(str(tmp_path / "checkpoint"), **OPTIONS)
    first = ScoringRun.begin(spec, place / "parts", tmp_path / "first")
    tiny_llama(seed=1).save_pretrained(tmp_path / "checkpoint")
    second = ScoringRun.begin(spec, place / "parts", tmp_path / "second")
    assert second.run == begun(place, tmp_path / "other", "other").run != first.run


@pytest.mark.parametrize("count", [1, 2, 5])
def test_workers_in_any_order_give_the_same_bytes(place: Path, tmp_path: Path, count: int) -> None:
    """Each works through a shuffled list of all units, so that most are asked for again when they are there."""
    run = begun(place, tmp_path / "one")
    assert run.missing() == list(range(7))
    assert [run.score(number) for number in run.missing()] == [True] * 7
    workers = [pickle.loads(pickle.dumps(begun(place, tmp_path / "many"))) for _ in range(count)]
    orders = [np.random.default_rng(seed).permutation(7).tolist() for seed in range(count)]
    made = [worker.score(order[turn]) for turn in range(7) for worker, order in zip(workers, orders, strict=True)]
    assert (sum(made), workers[0].missing()) == (7, [])
    assert files(tmp_path / "many") == files(tmp_path / "one")


def test_scores_are_those_of_the_plain_run(place: Path, tmp_path: Path) -> None:
    run = begun(place, tmp_path / "parts")
    [run.score(number) for number in range(run.units)]
    plain = score(tiny_llama(), MemoryRows(ROWS), tmp_path / "plain", unit_rows=6, progress=False, **OPTIONS)
    tables = [pq.read_table(tmp_path / "parts" / name) for name in files(tmp_path / "parts")]
    assert np.concatenate([table["nll"].to_numpy() for table in tables]).tolist() == plain.nll.tolist()
    assert np.concatenate([table["row"].to_numpy() for table in tables]).tolist() == list(range(40))


def test_another_run_is_refused_with_what_differs(place: Path, tmp_path: Path) -> None:
    run = begun(place, tmp_path)
    assert begun(place, tmp_path) == run
    with pytest.raises(DataError, match=r"holds scores of another run: max_length = 24, not 23"):
        begun(place, tmp_path, max_length=23)
    with pytest.raises(DataError, match=r"holds scores of another run: model = "):
        begun(place, tmp_path, "other")
    write_parts(ROWS[:39], tmp_path / "corpus", unit_rows=6)
    with pytest.raises(DataError, match=r"rows = 40, not 39"):
        ScoringRun.begin(run.spec, tmp_path / "corpus", tmp_path)


def test_a_worker_with_another_model_stops(place: Path, tmp_path: Path) -> None:
    """As where a machine has other files under the same name."""
    run = begun(place, tmp_path)
    known = json.loads((tmp_path / "run.json").read_text())
    scorer = Scorer(LogLikelihood(tiny_llama(seed=1), **OPTIONS), "tiny")
    with pytest.raises(DataError, match="tiny is another model here than where the run began: weights = "):
        scorer.check(known["loaded"])
    run.spec.open().check(known["loaded"])


def test_another_config_is_refused_also_where_nothing_is_missing(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "model", tmp_path / "model")
    run = begun(place, tmp_path / "scores", str(tmp_path / "model"))
    for number in run.missing():
        run.score(number)
    file = tmp_path / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rms_norm_eps": 0.5}))
    with pytest.raises(DataError, match="another model here than where the run began: config"):
        begun(place, tmp_path / "scores", str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("row", "options", "said"),
    [
        ([3, 500], {}, "row 13 has the id 500; the model has 0 to 99"),
        ([3] * 40, {"over_long": "error"}, "row 13 has 40 ids"),
    ],
)
def test_a_row_that_the_model_refuses_is_named(place: Path, tmp_path: Path, row, options, said) -> None:
    write_parts([*[[3, 4]] * 13, row], tmp_path / "parts", unit_rows=6)
    run = ScoringRun.begin(
        ScoringSpec(str(place / "model"), **(OPTIONS | options)), tmp_path / "parts", tmp_path / "out"
    )
    assert run.score(1)
    with pytest.raises(DataError, match=f"unit 2 of .*parts: {said}"):
        run.score(2)
    assert len(files(tmp_path / "out")) == 1


def test_a_corpus_of_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    from paperhooks_miniplm import byte_tokenizer

    one, other = byte_tokenizer(["some text"]), byte_tokenizer(["other words, xyz"])
    other.save_pretrained(tmp_path / "other")
    parts = write_parts([{"text": "some"}], tmp_path / "parts", tokenizer=one)
    assert Parts(tmp_path / "parts").packed_with == parts.packed_with is not None
    with pytest.raises(DataError, match="was packed with the tokenizer"):
        ScoringRun.begin(
            ScoringSpec(str(place / "model"), tokenizer=str(tmp_path / "other"), **OPTIONS), parts, tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()
