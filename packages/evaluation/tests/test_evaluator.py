"""Evaluation runs, end to end with a test task on a tiny model: files, resuming, refusals, what is left untouched."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import paperhooks
import pytest
import torch
from evaluation_tasks import (
    Counting,
    Echo,
    direct,
    rows_of,
    timeless,
    tiny_model,
    untimed,
    word_tokenizer,
    write_questions,
)
from paperhooks.errors import DataError, PluginBroken, PluginConflict, PluginNotFound
from paperhooks.generation import CallableBackend, Request, TransformersBackend
from paperhooks.info import TaskInfo
from paperhooks.reports import wilson_interval
from paperhooks.testing import FakeSite, info_source, run_python
from paperhooks_evaluation import Document, Parsed, Task, evaluate
from paperhooks_evaluation.task import available_tasks, load_task

pytest_plugins = ["paperhooks.testing.site_fixtures"]

quick = partial(evaluate, report=False)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


@pytest.fixture
def data(tmp_path: Path, model, tokenizer) -> Path:
    return write_questions(tmp_path / "questions.json", model, tokenizer)


def test_scores_intervals_groups_and_files(model, tokenizer, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run")
    headline = result.headline
    assert (headline.name, headline.n, headline.value, headline.interval) == ("accuracy", 10, 0.5, "wilson")
    assert (headline.low, headline.high) == wilson_interval(5, 10)
    assert result.metric(group="even").value == 1.0
    assert result.metric("accuracy", group="odd").value == 0.0
    rows = rows_of(tmp_path / "run")
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(10)]
    keys = {
        "id",
        "groups",
        "doc_hash",
        "prompt_hash",
        "reply",
        "reasoning",
        "finish",
        "tokens",
        "prompt_tokens",
        "seconds",
        "error",
        "run",
        "crc32",
    }
    assert set(rows[0]) == keys
    assert result.first.truncated == sum(row["finish"] == "length" for row in rows) > 0
    assert {row["finish"] for row in rows} <= {"eos", "length"}
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["status"] == "finished"
    assert saved["inputs"]["generation"]["greedy"] is True
    assert saved["inputs"]["dtype"] == "float32"
    report = (tmp_path / "run" / "report.html").read_text()
    assert "even" in report
    assert "Unparsable" in report
    assert {"groups.svg", "groups.png"} <= {file.name for file in (tmp_path / "run").iterdir()}
    assert str(result).startswith("echo: accuracy 50.0% [")
    with pytest.raises(DataError, match="no metric 'accuracies'"):
        result.metric("accuracies")


def test_every_mode_is_scored_from_the_same_responses(model, tokenizer, data: Path, tmp_path: Path) -> None:
    result = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run")
    responses = {row["id"]: row["reply"] for row in rows_of(tmp_path / "run")}
    short = {key for key, response in responses.items() if len(set(response.split())) < 3}
    assert 0 < len(short) < 10
    strict = result.modes["strict"]
    assert strict.unparsable == len(short)
    assert {one.document.id for one in strict.records if one.parsed.fallback} == short
    assert result.first.unparsable == 0
    only = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run", modes=["strict"])
    assert list(only.modes) == ["strict"]
    assert only.records == strict.records
    with pytest.raises(DataError, match="did you mean 'strict'"):
        quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run", modes=["stric"])


def test_batch_sizes_and_the_order_of_the_data_do_not_matter(model, tokenizer, data: Path, tmp_path: Path) -> None:
    runs = {}
    for size in (1, 2, 5):
        runs[size] = quick(model, tokenizer, Echo(), data=data, out=tmp_path / str(size), batch_size=size)
    rows = json.loads(data.read_text())
    data.write_text(json.dumps(rows[::-1]))
    runs[0] = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "0", batch_size=5)
    assert tokenizer.padding_side == word_tokenizer().padding_side
    for size in (2, 5, 0):
        assert timeless(rows_of(tmp_path / str(size))) == timeless(rows_of(tmp_path / "1"))
    assert runs[1].records == runs[2].records == runs[5].records == runs[0].records[::-1]
    for row, record in zip(rows, runs[1].records, strict=True):
        assert record.response == direct(model, tokenizer, row["prompt"])


def test_batches_hold_prompts_of_similar_length(model, tokenizer, data: Path, tmp_path: Path) -> None:
    backend = Counting(TransformersBackend(model, tokenizer))
    quick(backend, None, Echo(), data=data, out=tmp_path / "run", batch_size=3)
    lengths = {row["id"]: len(row["prompt"]) for row in json.loads(data.read_text())}
    asked = [lengths[one] for one in backend.asked]
    assert asked == sorted(asked)
    assert [len(batch) for batch in backend.batches] == [3, 3, 3, 1]


def test_a_killed_run_goes_on_and_ends_the_same(model, tokenizer, data: Path, tmp_path: Path) -> None:
    inner = TransformersBackend(model, tokenizer)
    with pytest.raises(KeyboardInterrupt):
        quick(Counting(inner, dies_at="q6"), None, Echo(), data=data, out=tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists()
    before = [row["id"] for row in rows_of(tmp_path / "run")]
    with (tmp_path / "run" / "samples.jsonl").open("a") as file:
        file.write('{"id": "q6", "rep')  # torn by the kill
    backend = Counting(inner)
    result = quick(backend, None, Echo(), data=data, out=tmp_path / "run")
    assert 0 < len(before) < 10
    assert sorted(backend.asked) == sorted({f"q{i}" for i in range(10)} - set(before))
    whole = quick(inner, None, Echo(), data=data, out=tmp_path / "whole")
    assert timeless(rows_of(tmp_path / "run")) == timeless(rows_of(tmp_path / "whole"))
    assert result.records == whole.records
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


def test_the_limit_may_grow_and_a_finished_run_asks_nothing(model, tokenizer, data: Path, tmp_path: Path) -> None:
    backend = Counting(TransformersBackend(model, tokenizer))
    run = {"data": data, "out": tmp_path / "run"}
    assert evaluate(backend, None, Echo(), limit=4, **run).headline.n == 4
    result = evaluate(backend, None, Echo(), **run)
    assert (result.headline.n, len(backend.asked)) == (10, 10)
    times = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()}

    class NoRequests(Echo):
        def request(self, document: Document) -> Request:
            raise AssertionError("a finished run opens nothing")

        def fingerprint(self) -> str:
            return Echo().fingerprint()

    assert evaluate(backend, None, NoRequests(), **run).records == result.records
    assert len(backend.asked) == 10
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").iterdir()} == times


def test_only_some_groups(model, tokenizer, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run", groups=["odd"], limit=3)
    assert [one.document.id for one in result.records] == ["q1", "q3", "q5"]
    counts = json.loads((tmp_path / "run" / "results.json").read_text())["n-samples"]["echo"]
    assert counts == {"original": 10, "effective": 3}
    assert "3 of 10 documents" in (tmp_path / "run" / "report.md").read_text()
    with pytest.raises(DataError, match="no group 'od'; did you mean 'odd'"):
        evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run", groups=["od"])


@dataclass(frozen=True)
class Fails(Echo):
    """Fails at one request and at one score."""

    def request(self, document: Document) -> Request:
        if document.id == "q1":
            raise KeyError("image")
        return super().request(document)

    def score(self, document: Document, parsed: Parsed) -> float:
        if document.id == "q2":
            raise ValueError("unreadable gold")
        return super().score(document, parsed)

    def fingerprint(self) -> str:
        return Echo().fingerprint()


def test_documents_that_fail_are_counted_and_tried_again(model, tokenizer, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, tokenizer, Fails(), data=data, out=tmp_path / "run")
    assert (result.headline.n, result.answered) == (8, 9)
    said = {"q1": "request: KeyError: 'image'", "q2": "score: ValueError: unreadable gold"}
    assert result.first.failures == said
    assert [row["id"] for row in rows_of(tmp_path / "run") if row["error"]] == ["q1"]
    assert "unreadable gold" in (tmp_path / "run" / "report.md").read_text()
    backend = Counting(TransformersBackend(model, tokenizer))
    again = evaluate(backend, None, Echo(), data=data, out=tmp_path / "run")
    assert (backend.asked, dict(again.first.failures), again.headline.n) == (["q1"], {}, 10)


def test_when_every_document_fails_the_first_error_is_shown(model, tokenizer, data: Path, tmp_path: Path) -> None:
    def fail(request: Request) -> str:
        raise KeyError("image")

    with pytest.raises(DataError, match=r"all 10 documents failed, the first with.*image"):
        quick(CallableBackend(fail), None, Echo(), data=data, out=tmp_path / "run")


def test_empty_responses_are_responses(data: Path, tmp_path: Path) -> None:
    backend = Counting(CallableBackend(lambda request: ""))
    for _ in range(2):
        result = quick(backend, None, Echo(), data=data, out=tmp_path / "run")
    assert len(backend.asked) == 10
    assert (result.first.empty, result.modes["strict"].unparsable) == (10, 10)


def test_a_changed_prompt_document_version_or_model_is_refused(model, tokenizer, data: Path, tmp_path: Path) -> None:
    run = {"data": data, "out": tmp_path / "run"}
    quick(model, tokenizer, Echo(), limit=2, **run)

    @dataclass(frozen=True)
    class Newer(Echo):
        version: ClassVar[str] = "2"

    @dataclass(frozen=True)
    class Reworded(Echo):
        def request(self, document: Document) -> Request:
            return Request(prompt=document.data["prompt"] + " w3", max_new_tokens=6)

        def fingerprint(self) -> str:
            return Echo().fingerprint()

    with pytest.raises(DataError, match=r"inputs\.version = '1', not '2'"):
        quick(model, tokenizer, Newer(), **run)
    with pytest.raises(DataError, match=r"inputs\.options\.least = 3, not 2"):
        quick(model, tokenizer, Echo(least=2), **run)
    with pytest.raises(DataError, match=r"inputs\.stop = None, not \['w3'\]"):
        quick(model, tokenizer, Echo(), stop=["w3"], **run)
    with pytest.raises(DataError, match="response to another prompt of 'q0'"):
        quick(model, tokenizer, Reworded(), **run)
    rows = json.loads(data.read_text())
    rows[1]["prompt"] += " w3"
    data.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="response to another document 'q1'"):
        quick(model, tokenizer, Echo(), **run)
    data.write_text(json.dumps(rows[2:]))
    with pytest.raises(DataError, match="response to 'q0', which the data no longer have"):
        quick(model, tokenizer, Echo(), **run)


def test_prompts_answered_before_are_checked_within_bounds(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("paperhooks.generation.prompt_windows._CHECKED", 5)
    rows = [{"id": f"q{i}", "prompt": f"w{i}", "answer": "w"} for i in range(40)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    made: list[str] = []

    class Watched(CallableBackend):
        def prompt(self, document_id, request):
            made.append(document_id)
            return super().prompt(document_id, request)

    backend = Watched(lambda request: "w1")
    quick(backend, None, Echo(), data=file, out=tmp_path / "run", limit=37)
    assert len(made) == 37
    quick(backend, None, Echo(), data=file, out=tmp_path / "run")
    assert sorted(made[37:]) == sorted(["q37", "q38", "q39", "q0", "q7", "q14", "q22", "q29"])


def test_force_new_keeps_the_old_files(model, tokenizer, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate(model, tokenizer, Echo(), data=data, out=run, limit=2)
    old = (run / "samples.jsonl").read_bytes()
    evaluate(model, tokenizer, Echo(least=2), data=data, out=run, limit=3, force_new=True)
    assert (run / "previous-1" / "samples.jsonl").read_bytes() == old
    assert (run / "previous-1" / "report.html").exists()
    assert len(rows_of(run)) == 3
    evaluate(model, tokenizer, Echo(), data=data, out=run, limit=1, force_new=True)
    assert len(rows_of(run / "previous-2")) == 3


@dataclass(eq=False)
class Silence:
    """Zeroes what the last layers return."""

    traits = paperhooks.Traits()

    @paperhooks.hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 0


def responses(result) -> list[str]:
    return [record.response for record in result.records]


def test_methods_are_attached_for_the_run_only(model, tokenizer, data: Path, tmp_path: Path) -> None:
    plain = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "plain")
    hooked = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "hooked", methods=[Silence()])
    assert responses(plain) != responses(hooked)
    again = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "again")
    assert responses(plain) == responses(again)
    with pytest.raises(DataError, match=r"inputs\.methods"):
        quick(model, tokenizer, Echo(), data=data, out=tmp_path / "hooked")
    with paperhooks.attach(model, Silence()):
        outside = quick(model, tokenizer, Echo(), data=data, out=tmp_path / "outside")
    assert responses(outside) == responses(hooked)
    recorded = json.loads((tmp_path / "outside" / "result.json").read_text())["inputs"]["methods"]
    assert [method["class"] for method in recorded] == [f"{Silence.__module__}:Silence"]


@pytest.mark.filterwarnings("error")
def test_a_finished_run_with_methods_attaches_nothing(model, tokenizer, data: Path, tmp_path: Path) -> None:
    options = {"data": data, "out": tmp_path / "run", "limit": 2}
    first = quick(model, tokenizer, Echo(), methods=[Silence()], **options)
    assert quick(model, tokenizer, Echo(), methods=[Silence()], **options).records == first.records


def test_model_and_random_state_are_left_as_they_were(model, tokenizer, data: Path, tmp_path: Path) -> None:
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state, config = torch.get_rng_state(), model.generation_config
    entries = config.to_dict()
    quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run", limit=2)
    assert [module.training for module in model.modules()] == modes
    model.eval()
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config is config
    assert config.to_dict() == entries


def test_nothing_is_printed(model, tokenizer, data: Path, tmp_path: Path, capsys) -> None:
    for progress in (False, True):  # a captured stream is no terminal
        quick(model, tokenizer, Echo(), data=data, out=tmp_path / str(progress), limit=2, progress=progress)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("content", "said"),
    [([], "has no documents"), ([{"id": "a", "prompt": "w1", "answer": ""}] * 2, "two documents with the id")],
)
def test_data_that_cannot_be_used_are_refused(model, tokenizer, tmp_path: Path, content, said: str) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        quick(model, tokenizer, Echo(), data=file, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"limit": 0}, "limit = 0"),
        ({"layout": "interleaved"}, "did you mean 'interleave'"),
        ({"stop": "w1"}, "must be a list of strings"),
        ({"stop": [""]}, "must be a list of strings"),
        ({"shard": (2, 2)}, "0 <= index < count"),
        ({"options": {"least": 1}}, "is an object already"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(
    model, tokenizer, data: Path, tmp_path: Path, arguments, said
) -> None:
    with pytest.raises(DataError, match=said):
        quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_model_needs_its_processor(model, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="LlamaForCausalLM needs its processor"):
        quick(model, None, Echo(), data=data, out=tmp_path / "run")


def test_a_damaged_line_in_the_middle_is_named(model, tokenizer, data: Path, tmp_path: Path) -> None:
    quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run", limit=3)
    file = tmp_path / "run" / "samples.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "rubbish", lines[2]]) + "\n")
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"samples\.jsonl, line 2: is damaged"):
        quick(model, tokenizer, Echo(), data=data, out=tmp_path / "run")
    assert file.read_bytes() == before


def test_observers_are_told_and_cannot_stop_a_run(data: Path, tmp_path: Path, caplog) -> None:
    class Watches:
        def __init__(self) -> None:
            self.seen: list[str] = []

        def started(self, run) -> None:
            self.seen.append(f"{run.task} {run.answered}/{run.documents}")

        def sample(self, record) -> None:
            self.seen.append(record.document.id)
            if record.document.id == "q1":
                raise RuntimeError("no room on the wall")

        def finished(self, result) -> None:
            self.seen.append(str(result.headline.n))

    watcher = Watches()
    backend = CallableBackend(lambda request: "w1")
    quick(backend, None, Echo(), data=data, out=tmp_path / "run", limit=3, observers=[object(), watcher])
    assert watcher.seen == ["echo 0/3", "q0", "q1", "q2", "3"]
    assert "no room on the wall" in caplog.text


BYTES = """
import sys
sys.path[:0] = sys.argv[3:]
from evaluation_tasks import Echo
from paperhooks.generation import CallableBackend
from paperhooks_evaluation import evaluate
evaluate(CallableBackend(lambda request: request.prompt), None, Echo(), data=sys.argv[1], out=sys.argv[2], batch_size=3)
"""


def test_two_hash_seeds_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    for seed in ("1", "2"):
        words = ("-c", BYTES, data, tmp_path / seed, Path(__file__).parent)
        run_python(*words, environment={"PYTHONHASHSEED": seed})
    assert untimed(tmp_path / "1") == untimed(tmp_path / "2")
    for name in ("scores.csv", "documents.jsonl", "report.md", "groups.svg"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


# -- tasks -------------------------------------------------------------------------------------------------------------

HOOKS = """
import paperhooks
from paperhooks.info import TaskInfo

class Hooks:
    @paperhooks.hookimpl
    def evaluation_tasks(self):
        return [TaskInfo("echo", "Questions.", "evaluation_tasks:Echo"), TaskInfo("bad", "x", "offered_tasks:Bad")]
"""


def add(site: FakeSite, name: str) -> None:
    """A plugin that offers the task ``echo``, and one that lacks its methods."""
    module = f"dist_{name}"
    site.add(f"dist-{name}", f"t-{name}", info_source(f"t-{name}", module, extra=f'hooks="{module}_hooks:Hooks"'))
    (site.root / f"{module}_hooks.py").write_text(HOOKS)


def test_tasks_are_found_by_name_and_names_are_unique(site: FakeSite) -> None:
    add(site, "one")
    (site.root / "offered_tasks.py").write_text("from paperhooks_evaluation import Task\nclass Bad(Task):\n    pass\n")
    assert available_tasks()["echo"].summary == "Questions."
    assert load_task("echo", {"least": 5}) == ("echo", Echo(least=5))
    with pytest.raises(DataError, match="no option 'leas'; did you mean 'least'"):
        load_task("echo", {"leas": 5})
    with pytest.raises(PluginBroken, match="lacks version, documents, request, parse, score"):
        load_task("bad")
    with pytest.raises(PluginNotFound, match="did you mean 'echo'"):
        load_task("eco")
    with pytest.raises(PluginBroken, match="cannot be imported"):
        load_task(TaskInfo("x", "y", "nowhere_at_all:Task"))
    with pytest.raises(PluginBroken, match="no class derived from"):
        load_task(TaskInfo("x", "y", "pathlib:Path"))
    with pytest.raises(DataError, match="is no task"):
        load_task(object())
    add(site, "two")
    from paperhooks.plugins import refresh

    refresh()
    with pytest.raises(PluginConflict, match=r"'t-one' and 't-two' both offer the task 'echo'"):
        load_task("echo")
    assert "echo" not in available_tasks()


def test_importing_what_a_task_needs_loads_nothing_heavy() -> None:
    code = (
        "import sys, paperhooks_evaluation.task, paperhooks.generation.requests, paperhooks_evaluation.evaluator\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'numpy', 'matplotlib', 'PIL'} & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout.strip() == "[]"


def test_the_fingerprint_tells_class_version_and_options() -> None:
    @dataclass(frozen=True)
    class Newer(Echo):
        version: ClassVar[str] = "2"

    assert len({Echo().fingerprint(), Echo(least=2).fingerprint(), Newer().fingerprint()}) == 3
    assert Echo().fingerprint() == Echo(least=3).fingerprint()
    assert Task().options() == {}
