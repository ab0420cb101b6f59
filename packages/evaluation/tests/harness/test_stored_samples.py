"""Sample files that lm-eval 0.4.13 and lmms-eval 0.7.3 wrote on an exported quiz: scored again, they give the same."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from paperhooks.generation import ReplayBackend
from paperhooks_evaluation import evaluate
from quiz_task import Quiz, write_quiz

STORED = Path(__file__).with_name("stored")
FIGURES: dict[str, dict[str, dict[str, float]]] = json.loads((STORED / "figures.json").read_text("utf-8"))


@pytest.mark.parametrize("harness", FIGURES)
def test_their_replies_give_their_letters_and_their_figures(harness: str, tmp_path: Path) -> None:
    backend = ReplayBackend(STORED / harness)
    data = write_quiz(tmp_path / "data")
    result = evaluate(backend, None, Quiz(), data=data, out=tmp_path / "run", modes=["wrong"], report=False)
    theirs = {row["unparsable"]["id"]: row for row in _rows(STORED / harness)}
    assert {one.document.id: [one.parsed.value, one.score] for one in result.records} == {
        key: [row["unparsable"]["value"], row["accuracy"]] for key, row in theirs.items()
    }
    ours = {
        "_".join(["paperhooks_color_quiz", *([re.sub(r"\W+", "_", one.group)] if one.group else [])]): one.value
        for one in result.summary.metrics
        if one.grouping != "pictures"
    }
    assert ours == pytest.approx({name: found["accuracy"] for name, found in FIGURES[harness].items()}, abs=1e-12)
    share = result.first.unparsable / len(result.records)
    assert share == pytest.approx(FIGURES[harness]["paperhooks_color_quiz"]["unparsable"], abs=1e-12)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text("utf-8").splitlines()]
