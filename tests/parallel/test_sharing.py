"""Work that ranks share by replicas of a model: what is spread over them is called equally often, or by all alike."""

from __future__ import annotations

import re
from pathlib import Path

import cases_sharing
import pytest
import torch
from evaluation_tasks import Echo, rows_of, timeless, tiny_model, untimed, word_tokenizer, write_questions
from paperhooks.testing import ChildError, RankPool, run_ranks, tiny_llama, tiny_text
from paperhooks_evaluation import evaluate
from paperhooks_mathneuro import Statistics, collect
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


@pytest.mark.parametrize("kind", ["plain", "fsdp2", "tp"])
def test_what_is_drawn_does_not_depend_on_how_a_model_is_spread(
    ranks: RankPool, kind: str, folder: Path, tmp_path: Path
) -> None:
    alone, asked = cases_sharing.drawn("plain", str(folder), str(tmp_path / "alone"))
    told = ranks.run(cases_sharing.drawn, kind, folder, tmp_path / "run")
    assert [ids for ids, _ in told] == [alone] * 2
    assert len({tuple(ids) for ids in alone.values()}) > 4
    shares = [set(keys) for _, keys in told]
    assert shares[0] | shares[1] == set(asked)
    assert shares[0] & shares[1] == (set(asked) if kind == "tp" else set())


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
    """The other rank waits for a part of this one's, and is told why that does not come."""
    with pytest.raises(ChildError) as caught:
        run_ranks(cases_sharing.evaluated, kind, folder, data, tmp_path / "run", "within", limit=60)
    told = str(caught.value)
    assert told.startswith("rank 1 of 2 failed: RuntimeError: lost its device")
    ways = "rank 1 failed before,|rank 0 ends: it waits for rank 1, which failed"
    assert re.search(f"paperhooks: ({ways}) with RuntimeError: lost its device", told)


@pytest.mark.parametrize("kind", ["fsdp2", pytest.param("tp", marks=pytest.mark.slow)])
def test_nobody_waits_for_a_rank_that_lives_on_after_an_error(
    kind: str, folder: Path, data: Path, tmp_path: Path
) -> None:
    """Without a session too; the wrapper's groups are of no use to whoever waits in them."""
    words = "paperhooks: rank 0 ends: it waits for rank 1, which failed with RuntimeError: lost its device"
    arguments = (kind, folder, data, tmp_path / "run", "within, and lives on")
    with pytest.raises(ChildError, match=words):
        run_ranks(cases_sharing.evaluated, *arguments, limit=28)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_tensor_parallel_group_asks_what_all_of_it_can_ask(
    ranks: RankPool, batch_size: int, folder: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    told = ranks.run(cases_sharing.asked_unevenly, folder, data, tmp_path / "run", batch_size)
    answers, failures = told[0]
    assert told == [told[0]] * 2
    replies = {row["id"]: row["reply"] for row in rows_of(whole)}
    assert answers == {name: replies[name] for name in IDS - {"q1", "q4", "q6"}}
    assert failures == {
        "q1": "request: OSError: rank 0 has no image",
        "q4": "request: OSError: rank 1 has no image",
        "q6": "prompt: rank 1 has made another prompt than rank 0",
    }


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([5, 7], "rank 1 calls the model with other inputs than rank 0 (input_ids [1, 7]; input_ids [1, 5]), though"),
        ([5, -5], "rank 1 calls the model with other inputs than rank 0 (input_ids [1, 5]), though"),
        ([0, 5], "rank 1 calls the model and rank 0 has no work left, though"),
    ],
)
def test_a_tensor_parallel_group_calls_the_model_alike(
    ranks: RankPool, calls: list[int], expected: str, folder: Path
) -> None:
    for told in ranks.run(cases_sharing.called_unlike, folder, calls):
        assert told.startswith(expected)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("embeddings", "inputs_embeds [1, 5, "),
        ("mask", "attention_mask [1, 1, 5, 5]"),
        ("number", "logits_to_keep = 2"),
        ("cache", "past_key_values of 1 tokens"),
    ],
)
def test_a_tensor_parallel_group_gives_the_model_the_same(ranks: RankPool, kind: str, said: str, folder: Path) -> None:
    for told in ranks.run(cases_sharing.called_with, folder, kind):
        assert told.startswith("rank 1 calls the model with other inputs than rank 0 (")
        assert said in told


@pytest.mark.parametrize("kind", ["fsdp2", pytest.param("tp", marks=pytest.mark.slow)])
def test_a_call_that_failed_in_its_middle_is_the_last_one(kind: str, folder: Path) -> None:
    with pytest.raises(
        ChildError, match="rank 0 ends: it waits for rank 1, which failed with PaperhooksError: rank 1 calls"
    ):
        run_ranks(cases_sharing.goes_on_after_a_failed_call, kind, folder, limit=28)


@pytest.mark.parametrize("where", ["before", "between"])
@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_a_batch_that_held_nobody_up_is_halved(
    ranks: RankPool, kind: str, where: str, folder: Path, data: Path, whole: Path, tmp_path: Path
) -> None:
    """By one rank where replicas are sharded, and by all of a tensor-parallel group."""
    told = ranks.run(cases_sharing.asked_with_little_memory, kind, folder, data, tmp_path / "run", where)
    assert [each[:2] for each in told] == [[10, 0.5]] * 2
    assert told[1][2][:3] == [2, 1, 1]
    assert told[0][2][:2] == ([2, 1] if kind == "tp" else [2])  # two documents are its own
    assert untimed(tmp_path / "run") == untimed(whole)


def test_units_that_not_every_call_passes_are_not_waited_for(ranks: RankPool) -> None:
    told = ranks.run(cases_sharing.with_images_on_one_rank)
    assert [len(each) for each in told] == [5, 3]
    assert max(map(max, told)) < 1e-5


# -- collecting and scoring --------------------------------------------------------------------------------------------


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """A model whose inner width two processes cannot halve."""
    tiny_llama(intermediate_size=33).save_pretrained(tmp_path / "uneven")
    return tmp_path / "uneven"


@pytest.mark.parametrize("keep", ["samples", "sums"])
@pytest.mark.parametrize("kind", ["plain", "fsdp2", "tp"])
def test_statistics_are_those_of_one_process(
    ranks: RankPool, kind: str, keep: str, uneven: Path, tmp_path: Path
) -> None:
    """Whole rows under tensor parallelism too, of the same weights; parts that are there are not made again."""
    model, out = AutoModelForCausalLM.from_pretrained(uneven), tmp_path / "out"
    whole = collect(model, cases_sharing.ROWS, keep=keep, batch_size=2, progress=False)
    for left in (11, 0):
        told = ranks.run(cases_sharing.collected, kind, uneven, out, keep)
        assert [weights for weights, _ in told] == [whole.weights] * 2
        assert sum(texts for _, texts in told) == left * (2 if kind == "tp" else 1)
        found = Statistics.load(out / "statistics.safetensors")
        for matrix in whole.matrices:
            for aggregate in ("sum_of_norms", "rms"):
                expected = whole.channel_norms(matrix.name, aggregate)
                torch.testing.assert_close(found.channel_norms(matrix.name, aggregate), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_spread_experts_are_refused_before_a_text_is_read(ranks: RankPool, kind: str, tmp_path: Path) -> None:
    tiny_text("mixtral").save_pretrained(tmp_path / "model")
    for text, with_exclude in ranks.run(cases_sharing.refused, kind, tmp_path / "model"):
        assert text.startswith("ModelError: ")
        assert "model.layers.0.mlp.experts.gate_up_proj is a part of its experts" in text
        assert not with_exclude


@pytest.mark.parametrize("kind", ["plain", "fsdp2", "tp"])
def test_rows_are_scored_as_by_one_process(ranks: RankPool, kind: str, uneven: Path, tmp_path: Path) -> None:
    """A folder that lacks units goes on, also where they are all of one rank."""
    alone, out = cases_sharing.scored("plain", str(uneven), str(tmp_path / "alone"))[0], tmp_path / "out"
    told = ranks.run(cases_sharing.scored, kind, uneven, out)
    made = [units for _, units in told]
    assert made == ([[0, 1, 2, 3, 4, 5]] * 2 if kind == "tp" else [[0, 2, 4], [1, 3, 5]])
    for name in ("scores.safetensors", "units/unit-000001.safetensors", "units/unit-000003.safetensors"):
        (out / name).unlink()
    told += ranks.run(cases_sharing.scored, kind, uneven, out)
    assert [units for _, units in told[2:]] == ([[1, 3]] * 2 if kind == "tp" else [[], [1, 3]])
    for values, _ in told:
        if values or kind != "plain":  # who is done first there leaves without the others
            assert values == pytest.approx(alone, rel=1e-4, abs=1e-4, nan_ok=True)


@pytest.mark.parametrize("kind", ["plain", "fsdp2", "tp"])
def test_a_method_scores_as_in_one_process(ranks: RankPool, kind: str, uneven: Path, tmp_path: Path) -> None:
    alone = cases_sharing.scored_by_a_method("plain", str(uneven), str(tmp_path / "alone"))[0]
    told = ranks.run(cases_sharing.scored_by_a_method, kind, uneven, tmp_path / "out")
    assert [units for _, units in told] == ([[0, 2], [1, 3]] if kind == "plain" else [[0, 1, 2, 3], []])
    for values, _ in told:
        assert values == pytest.approx(alone, rel=1e-4, abs=1e-4, nan_ok=True)
