"""Sharing a run: shards by hand, and two gloo processes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from evaluation_tasks import Counting, Echo, rows_of, timeless, untimed
from paperhooks.backends import CallableBackend
from paperhooks.errors import PaperhooksError
from paperhooks.evaluation import evaluate
from paperhooks.ranks import Ranks, share
from paperhooks.tasks import Document

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
    assert not (run / "results.json").exists()
    assert json.loads((run / "result.json").read_text())["status"] == "running"
    torn = run / "samples-1-of-2.jsonl"
    torn.write_bytes(torn.read_bytes() + b'{"id": "q')  # another process is just writing
    result = quick(CallableBackend(say), None, Echo(), data=data, out=run, shard=(0, 2))
    assert torn.read_bytes().endswith(b'{"id": "q')
    assert (result.answered, result.headline.n) == (20, 20)
    assert timeless(rows_of(run, "samples-0-of-2.jsonl"))
    fresh = quick(CallableBackend(say), None, Echo(), data=data, out=whole)
    assert result.records == fresh.records
    assert untimed(run) == untimed(whole)
    backend = Counting(CallableBackend(say))
    assert quick(backend, None, Echo(), data=data, out=run).records == fresh.records
    assert backend.asked == []


PROCESS = """
import json, sys
rank, port, data, out, fails, tests = sys.argv[1:]
sys.path.insert(0, tests)
import torch.distributed as dist
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=2)
from evaluation_tasks import Echo
from paperhooks.backends import CallableBackend
from paperhooks.evaluation import evaluate

def say(request):
    return request.prompt

class Breaks(CallableBackend):
    def answer(self, prompts):
        if fails == rank:
            raise RuntimeError("lost its device")
        return super().answer(prompts)

try:
    result = evaluate(Breaks(say), None, Echo(), data=data, out=out, report=False)
    print(json.dumps([result.answered, result.headline.value]))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
dist.destroy_process_group()
"""


def processes(data: Path, out: Path, fails: str = "") -> list[str]:
    """What two ranks print."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    tests = str(Path(__file__).parent)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(rank), str(port), str(data), str(out), fails, tests],
            stdout=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    return [process.communicate(timeout=120)[0].strip() for process in started]


def test_two_processes_share_a_run_and_an_error_of_one_ends_it_for_both(data: Path, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    broken = processes(data, run, fails="1")
    assert broken == [
        "PaperhooksError: the evaluation failed on rank 1: RuntimeError: lost its device",
        "RuntimeError: lost its device",
    ]
    told = processes(data, run)
    fresh = quick(CallableBackend(say), None, Echo(), data=data, out=whole)
    assert told == [json.dumps([20, fresh.headline.value])] * 2
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
