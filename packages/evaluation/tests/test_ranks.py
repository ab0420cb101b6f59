"""Sharing a run: shards by hand, and two gloo processes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from evaluation_tasks import Counting, Echo, rows_of, timeless, untimed
from paperhooks.errors import PaperhooksError
from paperhooks.generation import CallableBackend
from paperhooks.io import Ranks
from paperhooks.testing import run_ranks
from paperhooks_evaluation import Document, evaluate
from paperhooks_evaluation.plan import share

quick = partial(evaluate, report=False)


def say(request) -> str:
    """The prompt again, so that the answer depends on it."""
    return request.prompt


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"id": f"q{i}", "prompt": f"w{i}", "answer": f"w{i % 7}", "group": "ab"[i % 2]} for i in range(20)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    return file


def test_shares_are_a_partition_that_the_order_does_not_change() -> None:
    documents = [Document(f"d{i}") for i in range(100)]
    shares = [share(documents, (i, 3)) for i in range(3)]
    assert sorted(one.id for part in shares for one in part) == sorted(one.id for one in documents)
    assert all(20 <= len(part) <= 50 for part in shares)
    assert {one.id for one in share(documents[::-1], (1, 3))} == {one.id for one in shares[1]}
    assert share(documents, None) == documents


def test_shards_run_by_hand_make_one_result(data: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    part = quick(CallableBackend(say), None, Echo(), data=data, out=run, shard=(1, 2))
    assert 0 < part.answered < 20
    assert len(part.untried) == 20 - part.answered
    assert not (run / "results.json").exists()
    assert json.loads((run / "result.json").read_text())["status"] == "running"
    torn = run / "samples-1-of-2.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"id": "q')  # another process is just writing
    result = quick(CallableBackend(say), None, Echo(), data=data, out=run, shard=(0, 2))
    assert torn.read_bytes().endswith(b'{"id": "q')
    assert (result.answered, result.headline.n, result.untried) == (20, 20, ())
    assert timeless(rows_of(run, "samples-0-of-2.jsonl"))
    fresh = quick(CallableBackend(say), None, Echo(), data=data, out=whole)
    assert result.records == fresh.records
    assert untimed(run) == untimed(whole)
    backend = Counting(CallableBackend(say))
    assert quick(backend, None, Echo(), data=data, out=run).records == fresh.records
    assert backend.asked == []


class Breaks(CallableBackend):
    """Loses its device on one rank."""

    def answer(self, prompts):
        raise RuntimeError("lost its device")


def evaluated(data: str, out: str, fails: int) -> list[float] | str:
    """What a rank ends with: documents answered and the headline's value, or its error."""
    backend = Breaks if Ranks().index == fails else CallableBackend
    try:
        result = quick(backend(say), None, Echo(), data=data, out=out)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return [result.answered, result.headline.value]


def test_two_processes_share_a_run_and_an_error_of_one_ends_it_for_both(data: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    broken = run_ranks(evaluated, data, run, 1)
    assert broken == [
        "PaperhooksError: rank 1 failed: RuntimeError: lost its device",
        "RuntimeError: lost its device",
    ]
    told = run_ranks(evaluated, data, run, -1)
    fresh = quick(CallableBackend(say), None, Echo(), data=data, out=whole)
    assert told == [[20, fresh.headline.value]] * 2
    assert untimed(run) == untimed(whole)
    ids = [{row["id"] for row in rows_of(run, f"samples-{rank}-of-2.jsonl")} for rank in range(2)]
    assert not ids[0] & ids[1]
    assert len(ids[0] | ids[1]) == 20


def test_alone_there_is_nobody_to_wait_for() -> None:
    ranks = Ranks()
    assert (ranks.first, ranks.count, ranks.shard) == (True, 1, None)
    ranks.meet()
    with pytest.raises(PaperhooksError, match="own"):
        ranks.meet(PaperhooksError("own"))
