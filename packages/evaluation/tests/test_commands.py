"""The commands evaluate, rescore, compare and tasks: what is printed, written and refused, with which exit code."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from evaluation_tasks import tiny_model, word_tokenizer
from paperhooks.testing import FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]

TASK = """
from dataclasses import dataclass

import paperhooks
from paperhooks.generation import Request
from paperhooks_evaluation import Document, Parsed, Task
from paperhooks.info import TaskInfo

@paperhooks.hookimpl
def evaluation_tasks():
    return [TaskInfo("count", "Counts.", "dist_one_task:Count", needs=("text", "image"))]

@dataclass(frozen=True)
class Count(Task):
    version = "1"
    modes = ("official", "never")
    scoring_options = ("worth",)
    worth: float = 1.0
    fails_at: str = ""

    def documents(self, source):
        return [Document(str(i), {"kind": "ab"[i % 2]}) for i in range(int(source))]

    def request(self, document):
        if document.id == self.fails_at:
            raise ValueError("no question")
        return Request(prompt="w1 w2", max_new_tokens=2)

    def parse(self, document, response, mode):
        return Parsed(mode)

    def score(self, document, parsed):
        return self.worth if parsed.value == "official" else 0.0
"""


@pytest.fixture
def task(site: FakeSite, tmp_path: Path) -> Path:
    """A plugin that offers the task ``count``; a model folder with a tokenizer."""
    site.add("dist-one", "t-one", info_source("t-one", "dist_one", extra='hooks="dist_one_task"'))
    (site.root / "dist_one_task.py").write_text(TASK)
    tiny_model().save_pretrained(tmp_path / "model")
    word_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_evaluate_runs_a_task_with_methods(task: Path, cli, tmp_path: Path) -> None:
    arguments = ("evaluate", str(task), "count", "--data", "5", "--out", str(tmp_path / "run"))
    code, out, err = cli(*arguments, "-p", "t-one:factor=1.0", "--limit", "3", "--mode", "never", "--group", "a")
    assert code == 0, err
    assert "count: score 0.0%" in out
    assert "n = 3" in out
    inputs = json.loads((tmp_path / "run" / "result.json").read_text())["inputs"]
    assert inputs["methods"] == [{"class": "dist_one_method:Scale", "options": {"factor": 1.0, "first_layer": 0}}]
    code, out, err = cli(*arguments, "-p", "t-one:factor=1.0", "--limit", "2", "--limit-per", "kind")
    assert (code, "n = 4" in out) == (0, True), err
    code, _, err = cli(*arguments, "--option", "fails_at='9'")
    assert (code, "inputs.options" in err) == (1, True)
    code, out, err = cli(*arguments, "--option", "worth=0.5", "--force-new", "--stop", "w0", "--layout", "text-only")
    assert (code, "score 50.0%" in out) == (0, True), err


def test_evaluate_says_what_is_missing_or_failed(task: Path, cli, tmp_path: Path) -> None:
    arguments = ("evaluate", str(task), "count", "--data", "3", "--out", str(tmp_path / "run"))
    code, out, err = cli(*arguments, "--option", "fails_at='1'")
    assert (code, "n = 2" in out) == (1, True)
    assert "1 document has no score, the first is '1': request: ValueError: no question" in err
    assert cli(*arguments, "--shard", "half")[0] == 2
    assert cli(*arguments, "--option", "no option")[0] == 2
    assert cli(*arguments, "--layout", "beside")[0] == 2
    code, _, err = cli("evaluate", str(task), "counts", "--data", "3", "--out", str(tmp_path / "other"))
    assert (code, "did you mean 'count'" in err) == (1, True)
    (task / "tokenizer.json").unlink()
    (task / "tokenizer_config.json").unlink()
    code, _, err = cli(*arguments[:-1], str(tmp_path / "third"))
    assert (code, "has no processor or tokenizer" in err) == (1, True)


def test_a_shard_that_is_not_the_last_has_not_failed(task: Path, cli, tmp_path: Path) -> None:
    arguments = ("evaluate", str(task), "count", "--data", "9", "--out", str(tmp_path / "run"))
    code, out, err = cli(*arguments, "--shard", "0/2")
    assert (code, "report.html" in out) == (0, False), err
    assert "this shard is done" in out
    assert "left to other shards; the last one writes the results" in out
    code, out, err = cli(*arguments, "--shard", "1/2")
    assert (code, "n = 9" in out) == (0, True), err


def test_evaluate_replays_stored_responses(task: Path, cli, tmp_path: Path) -> None:
    files = [tmp_path / "a_samples_count.jsonl", tmp_path / "b_samples_count.jsonl"]
    for number, file in enumerate(files):
        rows = [{"doc_id": i, "doc": {"id": str(2 * number + i)}, "resps": [["w1"]]} for i in range(2)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = (
        "evaluate",
        "some-model",
        "count",
        "--data",
        "4",
        "--out",
        str(tmp_path / "run"),
        "--image-memory",
        "64",
    )
    code, out, err = cli(*arguments, "--replay", str(files[0]), "--replay", str(files[1]))
    assert (code, "n = 4" in out) == (0, True), err
    assert json.loads((tmp_path / "run" / "result.json").read_text())["results"]["about"]["name"] == "some-model"
    code, out, err = cli(*arguments[:-3], str(tmp_path / "folder"), "--replay", str(tmp_path))
    assert (code, "n = 4" in out) == (0, True), err
    code, out, err = cli(
        "evaluate", "m", "count", "--data", "3", "--out", str(tmp_path / "c"), "--replay", str(tmp_path)
    )
    assert (code, "n = 3" in out) == (0, True), err
    part = ("evaluate", "m", "count", "--data", "3", "--out", str(tmp_path / "d"), "--replay", str(files[1]))
    code, _, err = cli(*part)
    assert (code, "holds responses to 1 document that the data do not have, such as '3'" in err) == (1, True)
    assert not (tmp_path / "d").exists()
    code, _, err = cli(*arguments, "--replay", str(files[0]), "--server", "http://127.0.0.1:9")
    assert (code, "--server and --replay" in err) == (2, True)


def test_rescore_compare_and_tasks(task: Path, cli, tmp_path: Path) -> None:
    for name, worth in (("a", 0.0), ("b", 1.0)):
        arguments = ("evaluate", str(task), "count", "--data", "4", "--out", str(tmp_path / name))
        assert cli(*arguments, "--option", f"worth={worth}")[0] == 0
    both = ("compare", str(tmp_path / "a"), str(tmp_path / "b"))
    code, _, err = cli(*both)
    assert (code, "worth: 0.0 in a, 1.0 in b" in err) == (1, True)
    code, out, err = cli(*both, "--allow", "worth", "--out", str(tmp_path / "ab"))
    assert code == 0, err
    assert "4 better, 0 worse, p = 0.125" in out
    assert (tmp_path / "ab" / "report.html").exists()
    code, out, err = cli("rescore", str(tmp_path / "a"), "--mode", "official", "--option", "worth=0.25")
    assert (code, "score 25.0%" in out) == (0, True), err
    code, out, _ = cli("rescore", str(tmp_path / "a"))
    assert "score 25.0%" in out  # as it was scored last
    code, _, err = cli("rescore", str(tmp_path / "a"), "--option", "fails_at='1'")
    assert (code, "the run was made with fails_at = ''" in err) == (1, True)
    code, out, _ = cli(*arguments[:-1], str(tmp_path / "a"), "--option", "worth=0.5")
    assert (code, "score 50.0%" in out) == (0, True)  # goes on, and asks nothing again
    code, out, _ = cli("tasks")
    assert (code, "text, image" in out) == (0, True)
    rows = json.loads(cli("tasks", "--json")[1])
    assert {"name": "count", "needs": ["text", "image"], "summary": "Counts."} in rows
    assert cli("compare", str(tmp_path / "a"), str(tmp_path / "nothing"))[0] == 1


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--data", "0"), 1, "has no documents"),
        (("--group", "c"), 1, "no group 'c'"),
        (("--limit", "1", "--limit-per", "knd"), 1, "no grouping 'knd'; did you mean 'kind'"),
        (("--mode", "nver"), 1, "did you mean 'never'"),
        (("--option", "wrth=1"), 1, "did you mean 'worth'"),
        (("--stop", ""), 1, "must be a list of strings"),
        (("--shard", "3/2"), 2, "INDEX below COUNT"),
        (("-p", "t-on"), 1, "did you mean 't-one'"),
        (("--option", "fails_at=2", "--out", "OLD"), 1, "inputs.options.fails_at = '', not 2"),
        (("--layout", "text-only", "--out", "OLD"), 1, "inputs.layout = 'prepend', not 'text-only'"),
        (("--seed", "3", "--out", "OLD"), 1, "seed = 0, not 3"),
    ],
)
def test_what_needs_no_model_is_checked_before_one_is_loaded(
    task: Path, cli, tmp_path: Path, monkeypatch, more: tuple[str, ...], code: int, said: str
) -> None:
    old = str(tmp_path / "old")
    if "OLD" in more:
        assert cli("evaluate", str(task), "count", "--data", "3", "--out", old)[0] == 0

    def load(*arguments: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("paperhooks_evaluation.commands.load_model", load)
    arguments = ("evaluate", str(task), "count", "--data", "3", "--out", str(tmp_path / "new"))
    found, _, err = cli(*arguments, *(old if one == "OLD" else one for one in more))
    assert (found, said in " ".join(err.split())) == (code, True), err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("n", "said"), [(3, "all 3 answers are empty"), (1, "the only answer is empty")])
def test_answers_that_are_all_empty_are_said_once(
    task: Path, cli, tmp_path: Path, monkeypatch, n: int, said: str
) -> None:
    from paperhooks.generation import CallableBackend

    monkeypatch.setattr("paperhooks_evaluation.commands._loaded", lambda *_: (CallableBackend(lambda _: " "), None))
    log = logging.getLogger("paperhooks.evaluation")
    monkeypatch.setattr(log, "propagate", False)  # as outside of tests: nobody listens, and warnings go to the terminal
    arguments = ("evaluate", str(task), "count", "--data", str(n), "--out", str(tmp_path / "run"))
    for again in (arguments, (*arguments, "--shard", "0/1"), arguments, ("rescore", str(tmp_path / "run"))):
        code, out, err = cli(*again)
        assert (code, f"{n} empty" in out, (out + err).count(said)) == (1, True, 1)
