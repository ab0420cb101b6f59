"""The real lm-eval and lmms-eval on exported folders, by their command lines, answered by a server from a table.

The session ``harnesses`` makes an environment for each and says in PAPERHOOKS_HARNESSES where they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from paperhooks.generation import ReplayBackend, Request, arrange
from paperhooks.io import plain
from paperhooks.testing import Processes
from paperhooks_evaluation import Document, Export, Record, Task, evaluate, export_task, grouped, load_task
from quiz_task import Quiz, quiz_reply, write_quiz
from repository import ROOT
from table_server import TableServer, serving

PLACE = os.environ.get("PAPERHOOKS_HARNESSES", "")
pytestmark = pytest.mark.skipif(not PLACE, reason="run with nox -s harnesses")
#: A command of an environment is a program of its own Python, which has to run it.
RUNNER = "import os, sys; os.execv(sys.argv[1], sys.argv[1:])"
#: Of each harness its environment and command, and what makes it ask the server.
COMMANDS: dict[str, Callable[[str], list[str]]] = {
    "lm-eval": lambda url: [
        "lm_eval", "run", "--apply_chat_template", "--model", "local-chat-completions", "--model_args",
        f"model=table,base_url={url}/chat/completions,tokenizer_backend=None,tokenized_requests=False,max_images=9",
    ],
    "lmms-eval": lambda url: [
        "lmms-eval", "eval", "--verbosity", "DEBUG", "--model", "openai", "--model_args",
        f"model_version=table,base_url={url},api_key=none,max_retries=1",
    ],
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a harness left: figures and settings by its names, rows by document, and what the server was asked."""

    settings: Sequence[Mapping[str, Any]]
    figures: Mapping[str, Mapping[str, float]]
    rows: Mapping[str, Mapping[str, Any]]
    server: TableServer


def words(request: Request) -> str:
    """The text of a request that is laid out, as the server looks it up."""
    content = request.messages[-1]["content"]
    return "".join(part["text"] for part in content if part["type"] == "text")


def run(harness: str, written: Export, replies: Mapping[str, str], out: Path) -> Outcome:
    """Run a harness on an exported folder."""
    environment = {
        "PYTHONPATH": str(ROOT / "packages" / "evaluation" / "tests"),  # where the module of the quiz is
        "HF_HUB_OFFLINE": "1", "HF_HOME": str(out / "home"), "OPENAI_API_KEY": "none",
    }  # fmt: skip
    with serving(replies) as server, Processes(limit=280) as processes:
        name, *arguments = COMMANDS[harness](server.url)
        arguments += ["--include_path", str(written.path), "--tasks", written.name, "--log_samples"]
        python, command = Path(PLACE, harness, "bin", "python"), Path(PLACE, harness, "bin", name)
        processes.start(
            "-c", RUNNER, python, command, *arguments, "--output_path", out / "out", environment=environment
        )
        processes.wait()
    assert server.unknown == []
    (results,) = (json.loads(file.read_text("utf-8")) for file in (out / "out").rglob("*results*.json"))
    figures = {
        name: {metric.partition(",")[0]: value for metric, value in found.items() if metric.endswith(",none")}
        for name, found in results["results"].items()
    }
    lines = (line for file in (out / "out").rglob("*samples_*.jsonl") for line in file.read_text("utf-8").splitlines())
    settings = [found["generation_kwargs"] for found in results["configs"].values()]
    return Outcome(settings, figures, {row["unparsable"]["id"]: row for row in map(json.loads, lines)}, server)


def check(
    harness: str, task: Task, source: Path, tmp_path: Path, reply: Callable[[Any], str], **settings: Any
) -> Outcome:
    """Run a task in a harness and its sample files here: letters, scores and the figures of all groups are the same."""
    written = export_task(task, data=source, to=harness, out=tmp_path / "exported", **settings)
    documents = {one.id: one for one in task.documents(str(source))}
    layout = settings.get("layout", task.layout)
    replies: dict[str, str] = {}  # the server tells documents apart by their text alone
    for one in documents.values():
        replies.setdefault(words(arrange(task.request(one), layout, opened=False)), reply(one))
    outcome = run(harness, written, replies, tmp_path)
    assert set(outcome.rows) == set(documents)
    backend = ReplayBackend(tmp_path / "out")
    result = evaluate(backend, None, task, data=source, out=tmp_path / "run", modes=[written.mode], report=False)
    assert result.first.failures == {}
    for record in result.records:
        row = outcome.rows[record.document.id]
        assert (row["unparsable"]["value"], row[task.metric]) == (plain(record.parsed.value), record.score)
        assert row["unparsable"]["fallback"] == record.parsed.fallback
    parts = {"": result.records, **grouped(result.records)}
    for name, found in _named(written.name, parts, outcome.figures).items():
        assert outcome.figures[name][task.metric] == pytest.approx(fmean(one.score for one in found), abs=1e-12)
        share = fmean(one.parsed.fallback for one in found)
        assert outcome.figures[name]["unparsable"] == pytest.approx(share, abs=1e-12)
    return outcome


def _named(name: str, parts: Mapping[Any, Sequence[Record]], figures: Iterable[str]) -> dict[str, Sequence[Record]]:
    """The records of every figure, by the names that an export gives to groups."""
    known: dict[str, Sequence[Record]] = {name: parts[""]}
    for grouping, group in (part for part in parts if part):
        word = re.sub(r"\W+", "_", group)
        known |= dict.fromkeys((f"{name}_{grouping}_{word}", f"{name}_{word}"), parts[grouping, group])
    return {figure: known[figure] for figure in figures}


@pytest.mark.parametrize("harness", COMMANDS)
def test_a_quiz(harness: str, tmp_path: Path) -> None:
    source = write_quiz(tmp_path / "data")
    outcome = check(
        harness, Quiz(limit=33), source, tmp_path, lambda document: quiz_reply(document.data), layout="interleave"
    )
    assert {"paperhooks_color_quiz", "paperhooks_color_quiz_A", "paperhooks_color_quiz_Arts"} < set(outcome.figures)
    # Pictures twice where they are mentioned twice; lmms-eval sends them in their places, lm-eval in front.
    two = next(asked for text, asked in outcome.server.asked.items() if text.startswith("1.") and "(Art)" in text)
    assert two.parts.count("image") == 3
    assert two.parts[:2] == (("1. ", "image") if harness == "lmms-eval" else ("image", "image"))
    assert two.settings["max_tokens"] == 33
    assert not two.settings.get("stop")
    assert [found["until"] for found in outcome.settings] == [[]] * 4  # and not two line feeds, as where none is named


@pytest.mark.parametrize("harness", COMMANDS)
def test_jmmmu(harness: str, tmp_path: Path) -> None:
    """28 subjects in domains and subsets, with replies that some rule reads, and some that none does."""
    source = tmp_path / "data"
    pytest.importorskip("paperhooks_jmmmu.data").make_sample(source)
    _, task = load_task("jmmmu")
    forms = ("{}", "({})", "答えは {} です。", "{}\n\n理由は次のとおりです。", "分かりません。", "", "**{}**")

    def reply(document: Document) -> str:
        number = sum(map(ord, document.id))
        return forms[number % len(forms)].format(document.data["answer"] if number % 3 else "A")

    outcome = check(harness, task, source, tmp_path, reply)
    assert len(outcome.rows) == 140
    assert len(outcome.figures) >= 28 + 5 + 2 + 1


def test_jmmmu_s_parser_gives_the_letters_of_the_installed_one() -> None:
    """The installed function on the reference replies; what both parsers of ours take beside it is printed."""
    cases = ROOT / "packages" / "jmmmu" / "tests" / "reference" / "mc_cases.json"
    python, script = Path(PLACE, "lmms-eval", "bin", "python"), Path(__file__).with_name("parser_times.py")
    with Processes(limit=120) as processes:
        child = processes.start("-c", RUNNER, python, script, cases)
        processes.wait()
        found = json.loads(child.stdout.splitlines()[-1])
    print({name: value for name, value in found.items() if name != "differ"})
    assert found["cases"] > 600
    assert found["differ"] == []
