"""A search whose candidates two processes share ends as that of one process."""

from __future__ import annotations

import json
from pathlib import Path

import cases_search
import pytest
from paperhooks.testing import RankPool, run_python, run_ranks, tiny_llama

_COMMAND = """
from paperhooks.cli import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


@pytest.mark.parametrize(("target", "start"), [("bits=2.5", "even"), ("depth=0.4", "even"), ("bits=2.5", "additive")])
def test_two_processes_end_as_one(ranks: RankPool, tmp_path: Path, target: str, start: str) -> None:
    alone = cases_search.searched(target, str(tmp_path / "alone"), start)
    told = ranks.run(cases_search.searched, target, str(tmp_path / "shared"), start)
    for each in told:
        assert {**each, "tokens": 0} == {**alone, "tokens": 0}
    assert 0 < max(each["tokens"] for each in told) < alone["tokens"]
    file = "artefact.safetensors"
    assert (tmp_path / "alone" / file).read_bytes() == (tmp_path / "shared" / file).read_bytes()
    first, second = (json.loads((tmp_path / run / "search.json").read_text()) for run in ("alone", "shared"))
    assert first["population"] == second["population"]
    assert [each["best"] for each in first["history"]] == [each["best"] for each in second["history"]]
    again = ranks.run(cases_search.searched, target, str(tmp_path / "shared"), start)  # finished: it is applied
    assert [each["weights"] for each in again] == [alone["weights"]] * 2


def test_an_error_of_one_process_reaches_the_other(ranks: RankPool, tmp_path: Path) -> None:
    told = ranks.run(cases_search.one_fails, str(tmp_path))
    assert "rank 1 failed: DataError" in told[0]
    assert "4000" in told[1]


def test_the_command_runs_under_torchrun(tmp_path: Path) -> None:
    tiny_llama(layers=2).save_pretrained(tmp_path / "model")
    rows = [{"input_ids": ids} for ids in cases_search.texts()]
    (tmp_path / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    method = "evopress:schedule=quick,generations=2,check_model=False"
    command = [
        "compress", str(tmp_path / "model"), method, "--data", str(tmp_path / "ids.jsonl"), "--target", "bits=3",
    ]  # fmt: skip
    script = tmp_path / "paperhooks_command.py"
    script.write_text(_COMMAND)
    run_ranks(script, *command, "--out", tmp_path / "shared", launcher="torchrun")
    run_python(script, *command, "--out", tmp_path / "alone")
    name = "artefact.safetensors"
    assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
