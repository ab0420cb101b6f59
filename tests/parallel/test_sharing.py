"""Work that ranks share by replicas of a model: what is spread over them is called equally often, or by all alike."""

from __future__ import annotations

from pathlib import Path

import cases_sharing
import pytest
from evaluation_tasks import Echo, rows_of, timeless, tiny_model, untimed, word_tokenizer, write_questions
from paperhooks.testing import ChildError, RankPool, run_ranks
from paperhooks_evaluation import evaluate
from transformers import AutoModelForCausalLM

IDS = {f"q{n}" for n in range(10)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "questions.json", tiny_model(), word_tokenizer())


@pytest.fixture
def whole(folder: Path, data: Path, tmp_path: Path) -> Path:
    """A run of one process."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    evaluate(model, word_tokenizer(), Echo(), data=data, out=tmp_path / "whole", report=False)
    return tmp_path / "whole"


# -- evaluation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "fsdp2"])
def test_each_replica_answers_documents_of_its_own(
    ranks: RankPool, kind: str, folder: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """Answers differ in length, shares in size: a rank that is done calls a sharded model until the other is."""
    run = tmp_path / "run"
    told = ranks.run(cases_sharing.evaluated, kind, folder, data, run)
    asked = [set(each[2]) for each in told]
    assert [each[:2] for each in told] == [[10, 0.5]] * 2
    assert not asked[0] & asked[1]
    assert asked[0] | asked[1] == IDS
    assert untimed(run) == untimed(whole)
    (run / "samples-1-of-2.jsonl").unlink()  # rank 0 has nothing left, and rank 1 cannot go on alone
    assert [each[2] for each in ranks.run(cases_sharing.evaluated, kind, folder, data, run)] == [[], told[1][2]]
    assert untimed(run) == untimed(whole)


def test_a_tensor_parallel_group_answers_as_one(
    ranks: RankPool, folder: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """One file, written by one of both; the folder of a run by one process goes on."""
    told = ranks.run(cases_sharing.evaluated, "tp", folder, data, tmp_path / "run")
    assert [[*each[:2], set(each[2])] for each in told] == [[10, 0.5, IDS]] * 2
    assert untimed(tmp_path / "run") == untimed(whole)
    keys = ("id", "reply", "tokens", "prompt_hash")
    rows = [[[row[key] for key in keys] for row in timeless(rows_of(each))] for each in (tmp_path / "run", whole)]
    assert rows[0] == rows[1]
    lines = (whole / "samples.jsonl").read_text().splitlines(keepends=True)
    (whole / "samples.jsonl").write_text("".join(lines[:4]))
    told = ranks.run(cases_sharing.evaluated, "tp", folder, data, whole)
    assert [[*each[:2], len(each[2])] for each in told] == [[10, 0.5, 6]] * 2


def test_two_tensor_parallel_groups_share_the_documents(
    four_ranks: RankPool, folder: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    told = four_ranks.run(cases_sharing.evaluated, "tp fsdp2", folder, data, tmp_path / "run")
    asked = [set(each[2]) for each in told]
    assert [each[:2] for each in told] == [[10, 0.5]] * 4
    assert sorted(map(len, asked)) == sorted([len(asked[0])] * 2 + [10 - len(asked[0])] * 2)
    assert set.union(*asked) == IDS
    assert untimed(tmp_path / "run") == untimed(whole)


@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_an_error_of_one_rank_between_calls_ends_the_run_for_all(
    ranks: RankPool, kind: str, folder: Path, data: Path, tmp_path: Path
) -> None:
    told = ranks.run(cases_sharing.evaluated, kind, folder, data, tmp_path / "run", "before")
    assert told == [
        ["PaperhooksError: rank 1 failed: RuntimeError: lost its device"],
        ["RuntimeError: lost its device"],
    ]


@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_an_error_in_the_middle_of_a_call_hangs_nobody(kind: str, folder: Path, data: Path, tmp_path: Path) -> None:
    """The other rank waits for a part of this one's, which leaves the group within seconds."""
    with pytest.raises(ChildError) as caught:
        run_ranks(cases_sharing.evaluated, kind, folder, data, tmp_path / "run", "within", limit=60)
    told = str(caught.value)
    assert told.startswith("rank 1 of 2 failed: RuntimeError: lost its device")
    assert "paperhooks: rank 1 failed: RuntimeError: lost its device" in told


def test_units_that_not_every_call_passes_are_not_waited_for(ranks: RankPool) -> None:
    told = ranks.run(cases_sharing.with_images_on_one_rank)
    assert [len(each) for each in told] == [5, 3]
    assert max(map(max, told)) < 1e-5
